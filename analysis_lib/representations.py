"""Reading a tree of representations: its taps by name, and export to other formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xarray as xr
from safetensors.numpy import save_file
from scipy.sparse import csr_array

from analysis_lib.base import AnalysisError, write_atomically


def tap_names(tree: xr.DataTree, granularity: str) -> list[str]:
    """Names of the taps of a tree in numeric order, ``L0_B0_H2`` before ``L0_B0_H10``.

    Raises
    ------
    AnalysisError
        If the tree has no such granularity.
    """
    if granularity not in tree.children:
        raise AnalysisError(
            f"the tree has no granularity {granularity!r}; it has "
            f"{', '.join(tree.children)}."
        )
    taps = tree.root.attrs["taps"].items()
    return [name for name, place in taps if place[0].startswith(f"{granularity}/")]


def vectors(tree: xr.DataTree, tap: str) -> np.ndarray:
    """Vectors of one tap, one row a clip (or frame): (N, D) float32.

    Parameters
    ----------
    tap
        Such as ``L0_B0_H10``, ``L0_B0``, ``L0`` or ``L0_premerge``.

    Raises
    ------
    AnalysisError
        If the tree has no such tap.
    """
    taps = tree.root.attrs["taps"]
    if tap not in taps:
        known = list(taps)
        raise AnalysisError(
            f"the tree has no tap {tap!r}; it has {len(known)}, from {known[0]} to "
            f"{known[-1]}."
        )
    node, block, head = taps[tap]
    features = tree.root[node]["features"]
    numbers = {"block": block, "head": head}
    chosen = {axis: n for axis, n in numbers.items() if axis in features.dims}
    return np.asarray(features.sel(chosen).values)


def clip_means(tree: xr.DataTree, tap: str) -> np.ndarray:
    """Mean over each clip's frames, of a tree of frames: (clips, D) float64.

    One extraction of frames so serves every grain.

    Raises
    ------
    AnalysisError
        If the tree has no such tap, or holds means already.
    """
    frames, of_clip, _ = _frames(tree, tap)
    starts = np.searchsorted(of_clip, np.arange(of_clip[-1] + 2))
    return _means(frames, starts[:-1], starts[1:])


def segment_means(tree: xr.DataTree, tap: str, segments: pd.DataFrame) -> np.ndarray:
    """Mean over the frames whose centres lie in each segment, (segments, D) float64.

    Parameters
    ----------
    tree
        Of frames (``pool="frames"``).
    segments
        A row a segment: ``clip`` (its number in the tree), ``start`` and ``end`` (s).
        One shorter than a frame takes the frame nearest to its middle.

    Raises
    ------
    AnalysisError
        If the tree has no such tap, or holds a row a clip.
    """
    frames, of_clip, time = _frames(tree, tap)
    clips = segments["clip"].to_numpy()
    first, last = (np.searchsorted(of_clip, clips, side) for side in ("left", "right"))
    ends = segments[["start", "end"]].to_numpy()
    bounds = np.empty((len(segments), 2), dtype=np.int64)
    for row, (a, b, (start, end)) in enumerate(zip(first, last, ends, strict=True)):
        bounds[row] = a + np.searchsorted(time[a:b], (start, end))
        if bounds[row, 0] == bounds[row, 1]:
            nearest = a + int(np.abs(time[a:b] - (start + end) / 2).argmin())
            bounds[row] = nearest, nearest + 1
    return _means(frames, *bounds.T)


def _frames(tree: xr.DataTree, tap: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames of a tap, the clip of each, and the time of each."""
    frames = vectors(tree, tap)
    node = tree.root[tree.root.attrs["taps"][tap][0]]
    if "clip_index" not in node.coords:
        raise AnalysisError(
            f"{tap} holds a row a clip, not a frame: use vectors, or extract with "
            "pool='frames'."
        )
    return frames, np.asarray(node["clip_index"]), np.asarray(node["time"])


def _means(frames: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Mean of frames[start:end] for each pair of ends."""
    counts = end - start
    columns = np.repeat(start - np.r_[0, counts.cumsum()[:-1]], counts)
    columns = columns + np.arange(counts.sum())
    rows = np.r_[0, counts.cumsum()]
    weights = np.repeat(1 / counts, counts)
    mean = csr_array((weights, columns, rows), (len(counts), len(frames)))
    result: np.ndarray = mean @ frames.astype(np.float64)
    return result


def export(tree: xr.DataTree, path: str | Path) -> Path:
    """Write a tree for other programs, with labels, under readable keys.

    Parameters
    ----------
    path
        ``.npz``: an array a tap, with ``clip`` and ``label``. ``.safetensors``: a
        tensor a tap, with clips and labels as JSON in the metadata. ``.parquet``: a
        row a clip, with a list column a tap. A tree of frames goes to npz or
        safetensors, with ``clip_index`` and ``time`` for each granularity and layer
        (``clip_index/head/L0``).

    Raises
    ------
    AnalysisError
        If the suffix is another one, or the file cannot be written.
    """
    path = Path(path)
    names = [name for kind in tree.children for name in tap_names(tree, kind)]
    arrays = {name: vectors(tree, name) for name in names}
    clips, labels = list(tree.attrs["clips"]), list(tree.attrs["labels"])
    frames = bool(tree.attrs["frames"])
    if path.suffix not in (".npz", ".safetensors", ".parquet"):
        raise AnalysisError(f"{path}: export to .npz, .safetensors or .parquet.")
    if frames and path.suffix == ".parquet":
        raise AnalysisError(
            f"{path}: frames of different taps have different lengths and make no "
            "table; export them to .npz or .safetensors."
        )
    if frames:
        for node in tree.subtree:
            if "features" in node.data_vars:
                for column in ("clip_index", "time"):
                    arrays[f"{column}{node.path}"] = np.asarray(node[column])
    try:
        with write_atomically(path) as draft, open(draft, "wb") as file:
            if path.suffix == ".npz":
                arrays |= {"clip": np.array(clips, str), "label": np.array(labels, str)}
                np.savez(file, **arrays)  # type: ignore[arg-type]
            elif path.suffix == ".parquet":
                pq.write_table(_table(arrays, clips, labels), file)
        if path.suffix == ".safetensors":
            told = {"clip": json.dumps(clips), "label": json.dumps(labels)}
            solid = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
            with write_atomically(path) as draft:
                save_file(solid, draft, metadata=told)
    except OSError as error:
        raise AnalysisError(
            f"{path} cannot be written ({error.strerror or error}): free some space or "
            "choose a place where you may write."
        ) from error
    return path


def _table(
    arrays: dict[str, np.ndarray], clips: list[str], labels: list[str]
) -> pa.Table:
    columns: dict[str, pa.Array] = {"clip": pa.array(clips), "label": pa.array(labels)}
    for name, array in arrays.items():
        flat = pa.array(array.ravel())
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    return pa.table(columns)

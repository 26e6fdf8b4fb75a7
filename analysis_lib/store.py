"""Representations on disk: a Zarr v3 store written in chunks of clips.

A chunk of clips is marked done only after all its data, and every file is written
whole or not at all, so a run killed at any moment goes on where it was. Every piece
carries a CRC-32C checksum, so a flipped byte is noticed.

Layout: ``/clip`` and ``/label``; a group ``/GRANULARITY/L<layer>`` with ``features``
(and ``clip_index`` and ``time`` when frames are kept) and its coordinates; and
``/progress``: what is done, which clips had a problem, how many frames each node has.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock
from zarr.codecs import Crc32cCodec

from analysis_lib.base import AnalysisError

FORMAT = 1
# Rows of a piece of frames hold about this many bytes.
FRAME_BYTES = 4 << 20


@dataclass(frozen=True)
class Node:
    """Shape of one group of the tree.

    Attributes
    ----------
    path
        Such as ``head/L0``.
    coords
        Coordinates of the axes after the first: ``block`` and ``head`` numbers where
        they apply.
    width
        Length of the last axis, ``feature``.
    """

    path: str
    coords: Mapping[str, Sequence[int]]
    width: int

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes after the first."""
        return (*self.coords, "feature")

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes after the first."""
        return (*(len(values) for values in self.coords.values()), self.width)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a store alone; whoever comes second waits and finds the work done."""
    with faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f"{path.name}.lock"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def faults(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into one sentence."""
    try:
        yield
    except OSError as error:
        raise AnalysisError(
            f"{path} cannot be written ({error.strerror or error}): free some space, "
            "or choose a place where you may write with `store=` or ANALYSIS_CACHE, "
            "and run again; chunks that were finished are kept."
        ) from error


def prepare(
    path: Path,
    key: str,
    nodes: Sequence[Node],
    *,
    clips: Sequence[str],
    labels: Sequence[str],
    chunk: int,
    frames: bool,
    about: Mapping[str, Any],
) -> None:
    """Make the store with room for every clip, or check the one that is there.

    Parameters
    ----------
    key
        Fingerprint of everything the numbers depend on.
    clips, labels
        Names and labels of all clips.
    chunk
        Clips that are written together.
    frames
        Whether nodes hold a row a frame instead of a row a clip.
    about
        Plain facts about the run, kept as attributes.

    Raises
    ------
    AnalysisError
        If the store cannot be written, is of another format, or holds other results.
    """
    if path.exists():
        check(path, key)
        with faults(path):
            for piece in path.rglob("*.partial"):  # of a killed run
                piece.unlink()
        return
    draft = path.with_name(f".{path.name}.part")
    with faults(path):
        shutil.rmtree(draft, ignore_errors=True)
        root = zarr.create_group(draft, zarr_format=3)
        _strings(root, "clip", clips, len(clips))
        _strings(root, "label", labels, len(clips))
        _strings(root, "progress/problem", None, len(clips), chunk)
        count = -(-len(clips) // chunk)
        _zeros(root, "progress/done", count, "uint8", 1, "chunk")
        for node in nodes:
            room = 0 if frames else len(clips)
            rows = chunk
            if frames:
                rows = max(1, FRAME_BYTES // (4 * int(np.prod(node.shape))))
                _zeros(root, f"progress/frames/{node.path}", count, "int64", 1, "chunk")
                _zeros(root, f"{node.path}/clip_index", 0, "int64", 1 << 16, "frame")
                _zeros(root, f"{node.path}/time", 0, "float64", 1 << 16, "frame")
            root.create_array(
                f"{node.path}/features",
                shape=(room, *node.shape),
                chunks=(rows, *node.shape),
                dtype="float32",
                fill_value=np.nan,
                compressors=Crc32cCodec(),
                dimension_names=("frame" if frames else "clip", *node.dims),
                config={"write_empty_chunks": True},
            )
            for name, values in node.coords.items():
                place = _zeros(
                    root, f"{node.path}/{name}", len(values), "int64", len(values), name
                )
                place[:] = np.asarray(values)
        root.attrs.update(
            {**about, "format": FORMAT, "key": key, "chunk": chunk, "frames": frames}
        )
        draft.replace(path)


def _zeros(
    root: zarr.Group, name: str, length: int, dtype: str, rows: int, dim: str
) -> zarr.Array:
    return root.create_array(
        name,
        shape=(length,),
        chunks=(max(rows, 1),),
        dtype=dtype,
        compressors=Crc32cCodec(),
        dimension_names=(dim,),
        config={"write_empty_chunks": True},
    )


def _strings(
    root: zarr.Group,
    name: str,
    values: Sequence[str] | None,
    length: int,
    rows: int | None = None,
) -> None:
    array = root.create_array(
        name,
        shape=(length,),
        chunks=(rows or max(length, 1),),
        dtype="str",
        compressors=Crc32cCodec(),
        dimension_names=("clip",),
        config={"write_empty_chunks": True},
    )
    if values is not None:
        array[:] = np.asarray(values, dtype=object)


def check(path: Path, key: str) -> None:
    """Make sure that a store is one of ours, of this format, and holds these results.

    Raises
    ------
    AnalysisError
        Otherwise.
    """
    try:
        attrs = dict(_open(path, "r").attrs)
    except Exception as error:  # zarr raises many kinds on what is no store
        raise AnalysisError(
            f"{path} is no store of representations ({type(error).__name__}): delete "
            "it, or name another place with `store=`."
        ) from error
    if attrs.get("format") != FORMAT:
        raise AnalysisError(
            f"{path} was written in store format {attrs.get('format')}; this version "
            f"reads format {FORMAT}. Delete it to compute it anew, or name another "
            "place with `store=`."
        )
    if attrs["key"] != key:
        raise AnalysisError(
            f"{path} holds other representations (encoder {attrs.get('encoder')}, "
            f"corpus {attrs.get('corpus')}, made with other weights, clips, taps, "
            "pooling or code). Delete it, or name another place with `store=`."
        )


def _open(path: Path, mode: Any) -> zarr.Group:
    return zarr.open_group(path, mode=mode, zarr_format=3, use_consolidated=False)


def clips_of(path: Path, number: int) -> range:
    """Positions of the clips of one chunk."""
    root = _open(path, "r")
    size = int(str(root.attrs["chunk"]))
    return range(number * size, min((number + 1) * size, _array(root, "clip").shape[0]))


def unfinished(path: Path) -> list[int]:
    """Numbers of the chunks still to do.

    A finished chunk whose data file has gone (deleted because it was damaged) counts
    as unfinished.
    """
    root = _open(path, "r")
    done = np.asarray(_array(root, "progress/done")[:]).astype(bool)
    if not root.attrs["frames"]:
        for node in _nodes(path):
            depth = _array(root, f"{node}/features").ndim - 1
            for number in np.flatnonzero(done):
                piece = path / node / "features" / "c" / str(number)
                done[number] = piece.joinpath(*["0"] * depth).is_file()
    return [int(number) for number in np.flatnonzero(~done)]


def write(
    path: Path, number: int, values: Mapping[str, np.ndarray], problems: Sequence[str]
) -> None:
    """Write one chunk of clips, then mark it done.

    Parameters
    ----------
    values
        Node path -> array (clips, …, feature).
    problems
        A sentence for each clip of the chunk, empty where there is none.
    """
    root = _open(path, "r+")
    rows = clips_of(path, number)
    place = slice(rows.start, rows.stop)
    with faults(path):
        for node, array in values.items():
            _array(root, f"{node}/features")[place] = array
        _finish(root, number, place, problems)


def append(
    path: Path,
    number: int,
    values: Mapping[str, np.ndarray],
    clip_index: Mapping[str, np.ndarray],
    times: Mapping[str, np.ndarray],
    problems: Sequence[str],
) -> None:
    """Append the frames of one chunk of clips, then mark it done.

    Frames of a chunk that was cut off are written over. Chunks come in order.

    Parameters
    ----------
    values, clip_index, times
        Node path -> (frames, …, feature), and (frames,) of clip and of seconds.
    """
    root = _open(path, "r+")
    rows = clips_of(path, number)
    with faults(path):
        for node, array in values.items():
            ends = _array(root, f"progress/frames/{node}")
            start = int(np.asarray(ends[number - 1])) if number else 0
            end = start + len(array)
            columns = {"features": array, "clip_index": clip_index[node]}
            for name, new in {**columns, "time": times[node]}.items():
                target = _array(root, f"{node}/{name}")
                target.resize((end, *target.shape[1:]))
                target[start:end] = new
            ends[number] = end
        _finish(root, number, slice(rows.start, rows.stop), problems)


def _finish(
    root: zarr.Group, number: int, place: slice, problems: Sequence[str]
) -> None:
    _array(root, "progress/problem")[place] = np.asarray(problems, dtype=object)
    _array(root, "progress/done")[number] = 1


def verify(path: Path) -> None:
    """Read every piece once and compare its checksum; memory stays constant.

    Raises
    ------
    AnalysisError
        Naming the first damaged array and what to do.
    """
    root = _open(path, "r")
    parts = [(node, zarr.open_group(path / node, mode="r")) for node in _nodes(path)]
    names = [f"{node}/{name}" for node, group in parts for name in group]
    for name in ["clip", "label", "progress/problem", "progress/done", *names]:
        array = _array(root, name)
        step = array.chunks[0]
        for number, start in enumerate(range(0, array.shape[0], step)):
            try:
                array[start : start + step]
            except Exception as error:  # any codec may stumble over a damaged byte
                piece = path.joinpath(name, "c", str(number), *["0"] * (array.ndim - 1))
                whole = root.attrs["frames"] or not name.endswith("/features")
                remedy = path if whole else piece
                raise AnalysisError(
                    f"{piece} is damaged ({str(error).splitlines()[0]}). Delete "
                    f"{remedy} and run again; only what is deleted is computed anew."
                ) from error


def read(path: Path, clips: Sequence[str], labels: Sequence[str]) -> xr.DataTree:
    """Open a finished store; values are read when they are used.

    Parameters
    ----------
    clips, labels
        Names and labels as the corpus at hand has them: the same sounds may by now
        carry other file names.

    Returns
    -------
    DataTree
        A Dataset a node with ``features`` and coordinates; clips that had a problem
        are left out and told in the attribute ``skipped``.
    """
    root = _open(path, "r")
    problems = np.asarray(_array(root, "progress/problem")[:], dtype=object)
    kept = np.flatnonzero(problems == "")
    names = np.asarray(clips, dtype=object)[kept]
    classes = np.asarray(labels, dtype=object)[kept]
    attrs = dict(root.attrs) | {
        "skipped": [str(problem) for problem in problems if problem],
        "clips": names.tolist(),
        "labels": classes.tolist(),
    }
    found: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=attrs)}
    for node in _nodes(path):
        data = xr.open_zarr(
            path, group=node, consolidated=False, zarr_format=3, chunks=None
        )
        if attrs["frames"]:
            data = data.set_coords(["clip_index", "time"])
            position = np.searchsorted(kept, data["clip_index"].values)
            data = data.assign_coords(clip_index=("frame", position))
            found[node] = data.assign_coords(
                label=("frame", classes[position]), clip=("frame", names[position])
            )
            continue
        if len(kept) < len(problems):
            data = data.isel(clip=kept)
        found[node] = data.assign_coords(clip=names, label=("clip", classes))
    return xr.DataTree.from_dict(found)


def _array(root: zarr.Group, name: str) -> zarr.Array:
    array = root[name]
    assert isinstance(array, zarr.Array)
    return array


def _nodes(path: Path) -> list[str]:
    """Paths of the nodes, ``granularity/L<layer>``, in numeric order."""
    found = [p.parent.parent for p in path.glob("*/*/features/zarr.json")]
    return sorted(
        (p.relative_to(path).as_posix() for p in found),
        key=lambda node: (node.split("/")[0], int(node.rpartition("/L")[2])),
    )

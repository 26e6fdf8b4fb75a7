"""Running an encoder over a corpus once, at all its taps, into a labelled tree."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
import xarray as xr
from tqdm import tqdm

from analysis_lib import store as stores
from analysis_lib.base import AnalysisError, cache_dir, digest
from analysis_lib.corpora import Corpus
from analysis_lib.encoders.encoder import Encoder
from analysis_lib.passes import Plan, plan, run_chunk
from analysis_lib.representations import (
    clip_means,
    export,
    segment_means,
    tap_names,
    vectors,
)

__all__ = [
    "clip_means",
    "export",
    "extract",
    "segment_means",
    "tap_names",
    "vectors",
]


def extract(
    encoder: Encoder,
    corpus: Corpus,
    granularities: Iterable[str] = ("head", "block", "layer"),
    pool: str = "mean",
    *,
    batch_size: int | None = None,
    chunk: int = 64,
    on_error: str = "raise",
    store: str | Path | None = None,
    progress: bool | None = None,
    client: Any = None,
) -> xr.DataTree:
    """Run an encoder over a corpus in one pass and keep what its taps give.

    Finished work is reused, interrupted work goes on where it was. What the numbers
    depend on (weights, front end, clips, taps, pooling, dtype, code) is their key.

    Parameters
    ----------
    encoder
        From `load_encoder`.
    corpus
        From `load_corpus`.
    granularities
        Which taps; see the encoder's table ``taps``.
    pool
        ``mean`` or ``max`` over the real tokens of each clip; ``frames`` keeps every
        token, with the clip it belongs to and its centre in seconds.
    batch_size
        Clips a forward pass; the encoder's own by default. Results do not depend on
        it (to 1e-5).
    chunk
        Clips written together: what an interruption may cost.
    on_error
        ``raise`` stops at a clip that cannot be read or gives no finite numbers;
        ``skip`` leaves it out and says so in the attribute ``skipped``.
    store
        Path of the Zarr store; by default in the cache folder, named by the key.
    progress
        Show a progress bar; by default only in a terminal.
    client
        A ``dask.distributed`` client: its workers compute chunks and write them to
        the same store, which they must all see. Not with ``frames``.

    Returns
    -------
    DataTree
        A Dataset a granularity and layer, such as ``/head/L0``, with ``features``
        float32 of shape (clip, [block, [head,]] feature), or (frame, …) with
        ``clip_index`` and ``time``; coordinates ``clip``, ``label``, ``block``,
        ``head``. Values are read from disk when used.

    Raises
    ------
    AnalysisError
        If a clip is bad, or the store cannot be written, is damaged or is not ours.
    """
    if on_error not in ("raise", "skip"):
        raise AnalysisError(f"on_error {on_error!r}: choose raise or skip.")
    if len(corpus) == 0:
        raise AnalysisError(f"{corpus.name} has no clips.")
    if chunk < 1 or (batch_size is not None and batch_size < 1):
        raise AnalysisError("chunk and batch_size are at least 1.")
    todo = plan(encoder, granularities, pool)
    frames = pool == "frames"
    if frames and client is not None:
        raise AnalysisError("frames are appended in order: leave `client` out.")
    key = fingerprint(encoder, corpus, todo, chunk)
    path = Path(store) if store is not None else default_place(encoder, corpus, key)
    clips = [str(clip) for clip in corpus.table["clip"]]
    labels = [str(label) for label in corpus.table["label"]]
    about = {
        "encoder": encoder.name,
        "encoder_fingerprint": encoder.fingerprint,
        "encoder_licence": encoder.licence,
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.fingerprint,
        "corpus_licence": corpus.licence,
        "granularities": list(todo.granularities),
        "taps": {name: list(place) for name, place in todo.taps.items()},
        "pool": pool,
        "dtype": str(encoder.dtype).removeprefix("torch."),
    }
    with stores.locked(path):
        stores.prepare(
            path,
            key,
            todo.nodes,
            clips=clips,
            labels=labels,
            chunk=chunk,
            frames=frames,
            about=about,
        )
        stores.verify(path)
        size = batch_size or encoder.batch_size
        numbers = stores.unfinished(path)
        if frames and numbers:
            # Appended in order: what follows the first gap is done again.
            numbers = list(range(numbers[0], -(-len(corpus) // chunk)))
        bar = tqdm(
            total=sum(len(stores.clips_of(path, number)) for number in numbers),
            desc=encoder.name,
            unit="clip",
            disable=not numbers
            or not (sys.stderr.isatty() if progress is None else progress),
        )
        with bar:
            if client is None:
                for number in numbers:
                    run_chunk(encoder, corpus, todo, path, number, size, on_error)
                    bar.update(len(stores.clips_of(path, number)))
            else:
                _distribute(
                    client, encoder, corpus, todo, path, numbers, size, on_error, bar
                )
        return stores.read(path, clips, labels)


def _distribute(
    client: Any,
    encoder: Encoder,
    corpus: Corpus,
    todo: Plan,
    path: Path,
    numbers: Sequence[int],
    size: int,
    on_error: str,
    bar: Any,
) -> None:
    from distributed import as_completed

    # Once to every worker, not once a chunk.
    shared = client.scatter(encoder, broadcast=True, hash=False)
    jobs = {
        client.submit(
            run_chunk, shared, corpus, todo, path, number, size, on_error, pure=False
        ): number
        for number in numbers
    }
    for job in as_completed(jobs):
        job.result()
        bar.update(len(stores.clips_of(path, jobs[job])))


def fingerprint(encoder: Encoder, corpus: Corpus, todo: Plan, chunk: int) -> str:
    """Hash of everything the numbers depend on."""
    return digest(
        encoder.fingerprint,
        encoder.taps.to_csv(index=False, lineterminator="\n"),
        corpus.fingerprint,
        *todo.granularities,
        todo.pool,
        str(encoder.dtype),
        str(encoder.device.type),
        str(chunk),
        torch.__version__,
        transformers.__version__,
        code_version(),
    )


@cache
def code_version() -> str:
    """Hash of the code that makes representations."""
    here = Path(__file__).parent
    files = [*sorted((here / "encoders").glob("*.py")), here / "passes.py"]
    return digest(*(file.read_text(encoding="utf-8") for file in files))


def default_place(encoder: Encoder, corpus: Corpus, key: str) -> Path:
    """Path of a store in the cache folder: readable, and unique by its key."""
    told = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{encoder.name}-{corpus.name}")[-60:]
    return cache_dir() / "representations" / f"{told}-{key[:20]}.zarr"

"""One pass of an encoder over one chunk of clips: batches, hooks, pooling."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analysis_lib import store as stores
from analysis_lib.base import AnalysisError
from analysis_lib.corpora import Corpus
from analysis_lib.encoders.encoder import Batch, Encoder, Site, record, select_taps

POOLS = ("mean", "max", "frames")
# Hooks belong to a module, so two threads must not run one module at a time.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Place:
    """Where the activation of a site goes in the tree."""

    node: str
    block: int | None
    heads: int | None


@dataclass(frozen=True)
class Plan:
    """What to read, and the nodes it fills.

    ``taps`` gives for each tap's name its node, block and head, in numeric order.
    """

    granularities: tuple[str, ...]
    pool: str
    nodes: tuple[stores.Node, ...]
    places: dict[Site, list[Place]]
    taps: dict[str, tuple[str, int, int]]


def plan(encoder: Encoder, granularities: Iterable[str], pool: str) -> Plan:
    """Lay out the tree from the encoder's tap table.

    Raises
    ------
    AnalysisError
        If the encoder lacks a granularity or the pooling is unknown.
    """
    chosen = tuple(
        [granularities]
        if isinstance(granularities, str)
        else dict.fromkeys(granularities)
    )
    if pool not in POOLS:
        raise AnalysisError(f"pool {pool!r}: choose one of {', '.join(POOLS)}.")
    taps = select_taps(encoder, chosen)
    nodes: list[stores.Node] = []
    places: dict[Site, list[Place]] = {}
    for (granularity, layer), rows in taps.groupby(
        ["granularity", "layer"], sort=False
    ):
        path = f"{granularity}/L{layer}"
        coords: dict[str, list[int]] = {
            axis: sorted(int(number) for number in rows[axis].unique())
            for axis in ("block", "head")
            if (rows[axis] >= 0).all()
        }
        nodes.append(stores.Node(path, coords, int(rows["width"].iloc[0])))
        for row in _rows(rows.drop_duplicates(["module", "side"])):
            place = Place(
                path,
                coords["block"].index(row.block) if "block" in coords else None,
                int(row.heads) if "head" in coords else None,
            )
            places.setdefault(Site(row.module, row.side), []).append(place)
    names: dict[str, tuple[str, int, int]] = {}
    for row in _rows(taps.sort_values(["layer", "block", "head"], kind="stable")):
        node = f"{row.granularity}/L{row.layer}"
        names[row.name] = (node, int(row.block), int(row.head))
    return Plan(chosen, pool, tuple(nodes), places, names)


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    yield from table.itertuples(index=False)


def run_chunk(
    encoder: Encoder,
    corpus: Corpus,
    todo: Plan,
    path: Path,
    number: int,
    batch_size: int,
    on_error: str,
) -> None:
    """Compute one chunk of clips and write it.

    Batches are formed inside the chunk, so an interrupted run forms the same ones.
    """
    rows = stores.clips_of(path, number)
    waves: dict[int, np.ndarray] = {}
    problems = dict.fromkeys(rows, "")
    for i, wave in _waves(corpus, encoder.sampling_rate, rows):
        if isinstance(wave, AnalysisError):
            if on_error == "raise":
                raise wave
            problems[i] = str(wave)
        else:
            waves[i] = wave
    if todo.pool == "frames":
        _run_frames(encoder, corpus, todo, path, number, waves, problems, batch_size)
        return
    values = {
        node.path: np.full((len(rows), *node.shape), np.nan, np.float32)
        for node in todo.nodes
    }
    for chosen in batches(waves, batch_size, encoder.pads):
        pooled = pool_batch(encoder, todo, [waves[i] for i in chosen])
        at = [i - rows.start for i in chosen]
        for node, place, array in pooled:
            bad = ~np.isfinite(array.reshape(len(chosen), -1)).all(axis=1)
            for i in np.asarray(chosen)[bad]:
                clip = corpus.table["clip"].iloc[int(i)]
                problems[int(i)] = (
                    f"{clip}: {encoder.name} gives no finite numbers at {node} for it; "
                    "listen to the clip, or leave it out with on_error='skip'."
                )
            if place is None:
                values[node][at] = array
            else:
                values[node][at, place] = array
        told = [problems[i] for i in chosen if problems[i]]
        if told and on_error == "raise":
            raise AnalysisError(told[0])
    stores.write(path, number, values, [problems[i] for i in rows])


def _waves(
    corpus: Corpus, rate: int, rows: Sequence[int]
) -> Iterator[tuple[int, np.ndarray | AnalysisError]]:
    """Clips decoded ahead; a clip that cannot be read comes as its error."""
    left = list(rows)
    while left:
        try:
            for i, wave in corpus.stream(rate, left):
                if len(wave) == 0:
                    clip = corpus.table["clip"].iloc[i]
                    raise AnalysisError(f"{clip} holds no samples; leave it out.")
                left = left[1:]
                yield i, wave
        except AnalysisError as error:
            yield left[0], error
            left = left[1:]


def batches(
    waves: dict[int, np.ndarray], batch_size: int, pads: bool
) -> Iterator[list[int]]:
    """Group clips for forward passes, the long ones together.

    Where the encoder does not pad, only clips of one length share a batch.
    """
    batch: list[int] = []
    for i in sorted(waves, key=lambda i: (len(waves[i]), i)):
        other = batch and not pads and len(waves[batch[0]]) != len(waves[i])
        if len(batch) == batch_size or other:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def pool_batch(
    encoder: Encoder, todo: Plan, waves: Sequence[np.ndarray]
) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """One forward pass; yields node, position of the block, and pooled values.

    Pooling happens inside the hooks: an activation is read while it is warm, and is
    never kept.
    """
    batch = encoder.prepare(waves)

    def reduce(tap: Any, activation: Tensor) -> Tensor:
        return pooled(encoder, tap, activation, batch, todo.pool)

    with _ONE_AT_A_TIME, record(encoder, todo.granularities, reduce) as found:
        encoder.forward(batch)
    for site, places in todo.places.items():
        array = found[site].cpu().numpy()
        for place in places:
            yield place.node, place.block, _split(array, place.heads)


def _split(array: np.ndarray, heads: int | None) -> np.ndarray:
    if heads is None:
        return array
    return array.reshape(*array.shape[:-1], heads, -1)


def pooled(
    encoder: Encoder, tap: Any, activation: Tensor, batch: Batch, pool: str
) -> Tensor:
    """Pool an activation over the real tokens of each clip, (B, C) float32."""
    if batch.valid is None and batch.heard is None:
        # Every token is real, so their order does not matter.
        if tap.layout == "tbc":
            axis, tokens = 0, activation
        else:
            axis, tokens = 1, activation.reshape(batch.size, -1, activation.shape[-1])
        if pool == "max":
            return tokens.amax(axis).float()
        return tokens.mean(axis, dtype=torch.float32)
    values, mask = encoder.tokens(tap, activation, batch)
    if pool == "max":
        return values.masked_fill(~mask[..., None], -torch.inf).amax(1)
    weight = (mask / mask.sum(1, keepdim=True)).to(values)
    # Not einsum or a matrix product: hooks run under autocast, which would round them.
    return (values * weight[..., None]).sum(1)


def _run_frames(
    encoder: Encoder,
    corpus: Corpus,
    todo: Plan,
    path: Path,
    number: int,
    waves: dict[int, np.ndarray],
    problems: dict[int, str],
    batch_size: int,
) -> None:
    """Compute the frames of one chunk of clips and append them."""
    rows: dict[str, dict[int, np.ndarray]] = {node.path: {} for node in todo.nodes}
    times: dict[str, dict[int, np.ndarray]] = {node.path: {} for node in todo.nodes}
    shapes = {node.path: node.shape for node in todo.nodes}
    for chosen in batches(waves, batch_size, encoder.pads):
        batch = encoder.prepare([waves[i] for i in chosen])
        with _ONE_AT_A_TIME, record(encoder, todo.granularities) as found:
            encoder.forward(batch)
        taps = encoder.sites(todo.granularities)
        for site, places in todo.places.items():
            values, mask = encoder.tokens(taps[site], found[site], batch)
            seconds = encoder.frame_times(values.shape[1])
            for at, i in enumerate(chosen):
                real = mask[at].cpu().numpy()
                if batch.seconds is not None:  # repetitions of a short clip
                    real &= (seconds < batch.seconds[at]) | (seconds == seconds[0])
                own = values[at].cpu().numpy()[real]
                if not np.isfinite(own).all():
                    clip = corpus.table["clip"].iloc[i]
                    raise AnalysisError(
                        f"{clip}: {encoder.name} gives no finite numbers for it; leave "
                        "it out."
                    )
                for place in places:
                    times[place.node][i] = seconds[real]
                    part = _split(own, place.heads)
                    if place.block is None:
                        rows[place.node][i] = part
                        continue
                    whole = rows[place.node].setdefault(
                        i, np.empty((len(own), *shapes[place.node]), np.float32)
                    )
                    whole[:, place.block] = part
    order = sorted(waves)
    clip_index, when = {}, {}
    joined: dict[str, np.ndarray] = {}
    for node, own in rows.items():
        joined[node] = _concatenate([own[i] for i in order], shapes[node])
        clip_index[node] = np.repeat(order, [len(own[i]) for i in order])
        when[node] = _concatenate([times[node][i] for i in order], ())
    stores.append(path, number, joined, clip_index, when, list(problems.values()))


def _concatenate(parts: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.empty((0, *shape), np.float32), *parts])

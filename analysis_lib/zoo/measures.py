"""What the cards of the bundled models say: layer probes and error rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from analysis_lib.corpora import Corpus
from analysis_lib.encoders import Encoder, kaldi, record
from analysis_lib.encoders.encoder import Site
from analysis_lib.probing import linear_probe
from analysis_lib.stats import Interval, group_bootstrap

Floats = NDArray[np.float64]


def layer_means(encoder: Encoder, corpus: Corpus) -> dict[str, Floats]:
    """Mean over the own tokens of every clip, at every layer: name -> (N, D)."""
    taps = list(encoder.taps.query("granularity == 'layer'").itertuples(index=False))
    means: dict[str, list[Floats]] = {str(tap.name): [] for tap in taps}
    clips: list[np.ndarray] = []

    def flush() -> None:
        batch = encoder.prepare(clips)
        with record(encoder, ["layer"]) as seen:
            encoder.forward(batch)
        for tap in taps:
            site = Site(str(tap.module), str(tap.side))
            values, mask = encoder.tokens(tap, seen[site], batch)
            total = (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            means[str(tap.name)].append(total.double().cpu().numpy())
        clips.clear()

    for _, wave in corpus.stream(encoder.sampling_rate):
        if clips and (len(clips) == 16 or len(wave) != len(clips[0])):
            flush()
        clips.append(wave)
    flush()
    return {name: np.concatenate(parts) for name, parts in means.items()}


def log_mel_means(corpus: Corpus) -> Floats:
    """Mean log-mel spectrum of every clip, (N, 128): the baseline without a model."""
    spectra = [
        kaldi.fbank(torch.from_numpy(wave) * 2**15).mean(0).double().numpy()
        for _, wave in corpus.stream(16_000)
    ]
    return np.stack(spectra)


def probe_layers(encoder: Encoder, corpus: Corpus) -> dict[str, dict[str, float]]:
    """Linear probe of the label on every layer and on the mean log-mel spectrum.

    Returns
    -------
    dict
        ``log_mel``, ``L0``, ``L1`` … -> accuracy, its interval, and chance.
    """
    features = {"log_mel": log_mel_means(corpus), **layer_means(encoder, corpus)}
    rows = {}
    for name, values in features.items():
        probe = linear_probe(values, corpus.labels, corpus.groups, n_permutations=0)
        rows[name] = {
            "accuracy": round(probe.accuracy, 4),
            "low": round(probe.interval.low, 4),
            "high": round(probe.interval.high, 4),
            "chance": round(probe.chance, 4),
        }
    return rows


def depth_gain(rows: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Best layer of `probe_layers`, and by how much it beats log-mel and the input."""
    layers = {name: row["accuracy"] for name, row in rows.items() if name != "log_mel"}
    best = max(layers, key=lambda name: layers[name])
    return {
        "best_layer": best,
        "over_log_mel": round(layers[best] - rows["log_mel"]["accuracy"], 4),
        "over_input": round(layers[best] - layers["L0"], 4),
    }


def edit_distance(said: Sequence[Any], heard: Sequence[Any]) -> int:
    """Fewest insertions, deletions and substitutions from one sequence to another.

    References
    ----------
    Levenshtein (1966), Binary codes capable of correcting deletions, insertions and
    reversals; Wagner and Fischer (1974), The string-to-string correction problem.
    """
    row = list(range(len(heard) + 1))
    for i, symbol in enumerate(said, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            cost = min(row[j] + 1, row[j - 1] + 1, diagonal + (symbol != other))
            diagonal, row[j] = row[j], cost
    return row[-1]


def error_rate(
    said: Sequence[Sequence[Any]],
    heard: Sequence[Sequence[Any]],
    groups: Sequence[Any],
    seed: int = 0,
) -> dict[str, float]:
    """Edits per symbol said, over all clips.

    Returns
    -------
    dict
        ``rate``; ``low`` and ``high`` of its bootstrap interval over groups;
        ``chance``: the rate when every clip is given the answer to another one.
    """
    lengths = np.array([len(symbols) for symbols in said])
    errors = np.array([edit_distance(a, b) for a, b in zip(said, heard, strict=True)])
    order = np.random.default_rng(seed).permutation(len(said))
    neighbour = np.empty_like(order)
    neighbour[order] = np.roll(order, 1)
    swapped = [heard[i] for i in neighbour]
    chance = sum(edit_distance(a, b) for a, b in zip(said, swapped, strict=True))
    interval = _interval(errors, lengths, groups, seed)
    return {
        "rate": round(float(errors.sum() / lengths.sum()), 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "chance": round(chance / float(lengths.sum()), 4),
    }


def share(
    right: Sequence[bool], groups: Sequence[Any], chance: float, seed: int = 0
) -> dict[str, float]:
    """Share of clips that are right, with its bootstrap interval over groups."""
    counts = np.asarray(right, dtype=float)
    interval = _interval(counts, np.ones(len(counts)), groups, seed)
    return {
        "accuracy": round(float(counts.mean()), 4),
        "low": round(interval.low, 4),
        "high": round(interval.high, 4),
        "chance": round(chance, 4),
    }


def _interval(
    above: NDArray, below: NDArray, groups: Sequence[Any], seed: int
) -> Interval:
    def ratio(chosen: NDArray[np.int64]) -> float:
        return float(above[chosen].sum() / below[chosen].sum())

    interval, _, _ = group_bootstrap(ratio, groups, seed=seed)
    return interval

"""What the cards of the bundled speech models say: error rates and shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis_lib.stats import Interval, group_bootstrap


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

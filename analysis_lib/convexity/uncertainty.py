"""How far a convexity score would move with other clips or other speakers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from analysis_lib.convexity.graph import checked_labels, graph_convexity
from analysis_lib.stats import encode_groups

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ConvexityInterval:
    """A convexity score with its uncertainty.

    Attributes
    ----------
    value
        The score of all clips.
    standard_error
        Its standard error.
    low, high
        Ends of the interval, clipped to at most 1.
    n_units
        How many clips or groups the spread is over.
    method
        "subsampling" or "group jackknife".
    """

    value: float
    standard_error: float
    low: float
    high: float
    n_units: int
    method: str


def convexity_interval(
    X: ArrayLike,
    labels: ArrayLike,
    n_neighbors: int = 10,
    *,
    score: Literal["macro", "micro", "normalized"] = "macro",
    units: ArrayLike | None = None,
    fraction: float = 0.8,
    n_subsamples: int = 20,
    level: float = 0.95,
    seed: int = 0,
    groups: ArrayLike | None = None,
    **options: Any,
) -> ConvexityInterval:
    """How far a convexity score would move with other clips, or other speakers.

    Paths share clips, so their spread is no error of the score; and a bootstrap
    would make clips their own duplicates. Instead part of the clips is left out, by
    class and without replacement, or each unit in turn.

    Parameters
    ----------
    X, labels, n_neighbors, groups, **options
        As in `graph_convexity`.
    score
        Which of its scores.
    units
        (N,) what is independent (speaker, recording): leave out one after another.
        None: clips are.
    fraction
        Share of each class that a subsample keeps.
    n_subsamples
        How many.
    level
        Of the interval.
    seed
        Of the subsamples.

    Returns
    -------
    ConvexityInterval
        Around the score of all clips. A graph of fewer clips at the same k scores a
        little differently; only the spread of the subsamples enters.

    References
    ----------
    Politis, Romano & Wolf (1999), Subsampling; Efron & Tibshirani (1993), ch. 11.
    """
    x, codes, _ = checked_labels(X, labels)
    n = len(x)
    pair_groups = None if groups is None else encode_groups(groups, n)

    def value(kept: Ints) -> float:
        found = graph_convexity(
            x[kept],
            codes[kept],
            n_neighbors,
            groups=None if pair_groups is None else pair_groups[kept],
            **options,
        )
        return float(getattr(found, score))

    if score not in ("macro", "micro", "normalized"):
        raise ValueError(f"score={score!r}: choose 'macro', 'micro' or 'normalized'")
    whole = value(np.arange(n))
    if units is None:
        if not 0 < fraction < 1 or n_subsamples < 2:
            raise ValueError(
                f"fraction={fraction}, n_subsamples={n_subsamples}: keep a share "
                "between 0 and 1, twice or more"
            )
        rng = np.random.default_rng(seed)
        draws = [value(_subsample(codes, fraction, rng)) for _ in range(n_subsamples)]
        # A subsample's variance around the whole lacks the share it holds of it.
        error = np.std(draws, ddof=1) * np.sqrt(fraction / (1 - fraction))
        count, free, method = n, n_subsamples - 1, "subsampling"
    else:
        unit_codes = encode_groups(units, n)
        count = int(unit_codes.max()) + 1
        if count < 2:
            raise ValueError("all clips are of one unit: a jackknife needs two")
        draws = [value(np.flatnonzero(unit_codes != unit)) for unit in range(count)]
        error = np.sqrt((count - 1) * np.var(draws))
        free, method = count - 1, "group jackknife"
    reach = float(student.ppf((1 + level) / 2, free) * error)
    return ConvexityInterval(
        whole, float(error), whole - reach, min(whole + reach, 1.0), count, method
    )


def _subsample(codes: Ints, fraction: float, rng: np.random.Generator) -> Ints:
    kept = []
    for code in range(codes.max() + 1):
        members = np.flatnonzero(codes == code)
        count = max(min(2, len(members)), round(fraction * len(members)))
        kept.append(rng.choice(members, size=count, replace=False))
    return np.sort(np.concatenate(kept))

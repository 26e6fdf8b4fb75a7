"""Scores of clips become means with intervals, and one method is set against others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis_lib.stats import (
    benjamini_hochberg,
    bootstrap_counts,
    encode_groups,
    percentile_interval,
    permutation_p,
)

SCORES = ("Fid-In", "FF", "AI", "AD", "AG", "SPS", "COMP")
"""Input fidelity, faithfulness, average increase, drop and gain, sparseness and
complexity; all but AD and COMP are better when higher."""


def summarize(
    scores: pd.DataFrame,
    by: Sequence[str] = ("method",),
    columns: Iterable[str] = SCORES,
    n_draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Average scores over clips, with 95 % bootstrap intervals over groups.

    Parameters
    ----------
    scores : DataFrame
        Of `score_masks` or `area_curves`.
    by : sequence of str
        Columns that name a condition.
    columns : iterable of str
        Scores to average; clips where a score is NaN are left out of it.
    n_draws, seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        A row a condition and score: ``by``, ``score``, ``mean``, ``low``, ``high``,
        ``clips``.
    """
    rows = []
    for condition, part in scores.groupby(list(by), sort=False):
        for column in columns:
            known = part[part[column].notna()]
            row = dict(zip(by, condition, strict=True))
            values = known[column].to_numpy()
            row |= {"score": column, "clips": len(values)}
            row |= mean_interval(values, known["group"].to_numpy(), n_draws, seed)
            rows.append(row)
    return pd.DataFrame(rows)


def mean_interval(
    values: NDArray, groups: ArrayLike, n_draws: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Give ``mean``, ``low`` and ``high`` (95 %), whole groups drawn anew."""
    if len(values) == 0:
        return dict.fromkeys(("mean", "low", "high"), float("nan"))
    counts = bootstrap_counts(encode_groups(groups, len(values)), n_draws, seed)
    low, high = percentile_interval(counts @ values / counts.sum(1))
    return {"mean": float(values.mean()), "low": low, "high": high}


def paired_difference(
    differences: NDArray, groups: ArrayLike, n_permutations: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Test whether paired differences are zero on average, groups staying whole.

    Returns
    -------
    dict
        ``mean``, ``low`` and ``high`` (95 %, groups drawn anew) and ``p`` of a
        two-sided test that flips the sign of whole groups.
    """
    codes = encode_groups(groups, len(differences))
    sums = np.bincount(codes, differences)
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], (n_permutations, len(sums)))
    p = float(permutation_p(abs(sums.sum()), np.abs(signs @ sums)))
    return {**mean_interval(differences, groups, seed=seed), "p": p}


def against(
    curves: pd.DataFrame, method: str, column: str = "Fid-In", *, seed: int = 0
) -> pd.DataFrame:
    """Compare a method with every other at equal areas, clip by clip.

    Parameters
    ----------
    curves : DataFrame
        Of `area_curves`.
    method : str
        The one compared.
    column : str
        Score, averaged over areas first.
    seed : int
        Of permutations and bootstrap.

    Returns
    -------
    DataFrame
        Index: the other methods; ``mean`` of each, ``difference`` (of ``method`` over
        it), ``low``, ``high`` and ``p``, corrected for the number of comparisons
        (Benjamini–Hochberg).
    """
    wide = curves.pivot_table(column, ["group", "clip"], "method", sort=False)
    groups = wide.index.get_level_values("group").to_numpy()
    rows = {}
    for other in wide.columns.drop(method):
        gap = (wide[method] - wide[other]).to_numpy()
        test = paired_difference(gap, groups, seed=seed)
        rows[other] = {"mean": wide[other].mean(), "difference": test.pop("mean")}
        rows[other] |= test
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.assign(p=benjamini_hochberg(table["p"]))

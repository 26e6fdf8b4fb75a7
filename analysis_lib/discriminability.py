"""Fisher's ratio: how far class means lie apart, in units of the spread inside classes.

For each feature d, with class sizes n_c, class means mu_c and grand mean mu,

    S_B = sum_c n_c (mu_c - mu)^2        S_W = sum_c sum_{i in c} (x_i - mu_c)^2

and the score of a representation is the mean over features of S_B / S_W. On features
that know nothing of the labels its value is not 0 but about (C - 1) / (N - C), because
class means of finite samples always differ; F = ratio (N - C) / (C - 1) is about 1
there, whatever C and N. :func:`fisher_test` ranks many representations (taps) of the
same clips with permutation p-values that hold for the whole family of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.covariance import ledoit_wolf

from analysis_lib.stats import (
    Floats,
    Interval,
    Ints,
    as_features,
    constant_within_groups,
    encode_groups,
    encode_labels,
    max_t,
    percentile_interval,
    permutation_p,
    permute_labels,
)

# Spread below this share of a feature's total (or of its size, for the total itself)
# is rounding, not spread. A share, so that the score does not depend on scale.
_ROUNDING = 1e-12


def fisher_score(X: ArrayLike, y: ArrayLike) -> float:
    """Mean over features of between-class over within-class scatter.

    Does not change when a feature is shifted or scaled; does change under rotation,
    because each feature is judged alone. A constant feature counts 0; a feature
    constant inside each class counts 1e12 at most.

    Parameters
    ----------
    X : (N, D) array
        One vector a clip.
    y : (N,) array
        Class labels of any kind.

    Returns
    -------
    float
        At least 0; about ``fisher_null(y)`` where the labels are unrelated to ``X``.

    Raises
    ------
    ValueError
        If ``X`` is not finite, a label is missing, there are fewer than two classes,
        no class has two clips, or every feature is constant.

    References
    ----------
    Fisher (1936), The use of multiple measurements in taxonomic problems.
    """
    return float(fisher_scores([X], y)[0])


def fisher_scores(taps: Sequence[ArrayLike] | ArrayLike, y: ArrayLike) -> Floats:
    """Fisher score of many representations of the same clips.

    Parameters
    ----------
    taps : sequence of T arrays (N, D_t), or one (T, N, D) array
    y : (N,) array

    Returns
    -------
    (T,) array
    """
    columns, widths = _stack(taps)
    codes = _labels_for_scatter(y, len(columns))
    ratio = _ratios(columns, codes[None], np.arange(len(codes)))
    return _mean_per_tap(ratio, widths)[0]


def fisher_null(y: ArrayLike) -> float:
    """Value that Fisher's ratio takes on noise, (C - 1) / (N - C).

    Exact for the ratio of expectations; the mean of the ratio itself is larger by a
    factor (N - C) / (N - C - 2) on Gaussian features.
    """
    codes = _labels_for_scatter(y, None)
    n_classes = int(codes.max()) + 1
    return (n_classes - 1) / (len(codes) - n_classes)


def f_statistic(ratio: ArrayLike, n_clips: int, n_classes: int) -> Floats:
    """One-way ANOVA F of a Fisher ratio: ratio (N - C) / (C - 1), about 1 on noise."""
    return np.asarray(ratio, float) * (n_clips - n_classes) / (n_classes - 1)


def eta_squared(X: ArrayLike, y: ArrayLike) -> float:
    """Share of variance that classes explain, S_B / (S_B + S_W), mean over features."""
    features = as_features(X)
    codes = _labels_for_scatter(y, len(features))
    ratio = _ratios(features, codes[None], np.arange(len(codes)))[0]
    return float(np.mean(ratio / (1 + ratio)))


def multivariate_fisher(X: ArrayLike, y: ArrayLike) -> float:
    """Fisher score that sees correlations: tr(S_W^-1 S_B) / D with shrunk S_W.

    The per-feature score counts the same information as often as features repeat it.
    Here the within-class scatter is inverted whole, after Ledoit-Wolf shrinkage, which
    keeps it well conditioned where clips are fewer than features. Does not change under
    rotation, shift, or one scale for all features. The null value depends on D, so
    compare taps of one width.

    Returns
    -------
    float

    References
    ----------
    Ledoit and Wolf (2004), A well-conditioned estimator for large-dimensional
    covariance matrices.
    """
    features = as_features(X)
    codes = _labels_for_scatter(y, len(features))
    one_hot = np.eye(codes.max() + 1)[codes]
    means = one_hot.T @ features / one_hot.sum(0)[:, None]
    residuals = features - means[codes]
    if not residuals.any():
        raise ValueError("X is constant inside every class: S_W is zero.")
    covariance, _ = ledoit_wolf(residuals, assume_centered=True)
    between = (means - features.mean(0)) * np.sqrt(one_hot.sum(0))[:, None]
    solved = np.linalg.solve(covariance * len(features), between.T)
    return float(np.sum(solved * between.T) / features.shape[1])


def fisher_test(
    taps: Sequence[ArrayLike] | ArrayLike,
    y: ArrayLike,
    groups: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    n_permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Fisher scores of many taps with permutation p-values for each and for all.

    All taps share each permutation, so the family-wise p-values (Westfall-Young max-T)
    know how correlated the taps are. Labels move with whole groups where a group has
    one label, inside groups where it has several (see ``stats.permute_labels``).

    Parameters
    ----------
    taps : sequence of T arrays (N, D_t), or one (T, N, D) array
    y : (N,) array
    groups : (N,) array, optional
    names : sequence of T str, optional
    n_permutations : int
    seed : int

    Returns
    -------
    DataFrame
        Indexed by ``tap``: ``n_features``, ``fisher``, ``F``, ``eta2``, ``null`` (mean
        over permutations), ``p``, ``p_familywise``. ``.attrs`` holds ``permuted``
        (what moved), ``n_permutations``, ``n_clips``, ``n_groups``, ``chance``.

    Raises
    ------
    ValueError
        As in :func:`fisher_score`; also if every class is one single group, for then
        no permutation can tell the class from the group.
    """
    columns, widths = _stack(taps)
    codes = _labels_for_scatter(y, len(columns))
    group_codes = encode_groups(groups, len(codes))
    n_classes = int(codes.max()) + 1
    constant = constant_within_groups(codes, group_codes)
    if constant and group_codes.max() + 1 == n_classes:
        raise ValueError(
            "Each class is one single group, so class and group cannot be told apart; "
            "pass groups=None to compare clips, or add groups."
        )
    drawn, permuted = permute_labels(codes, group_codes, n_permutations, seed)
    labels = np.vstack([codes, drawn])
    units = group_codes if constant else np.arange(len(codes))
    # Labels of a unit never differ, so its clips enter through their sum alone.
    batch = max(1, 2**23 // (n_classes * columns.shape[1]))
    batches = np.array_split(labels, -(-len(labels) // batch))
    scores = np.vstack(
        [_mean_per_tap(_ratios(columns, part, units), widths) for part in batches]
    )
    ratio = _ratios(columns, codes[None], np.arange(len(codes)))
    observed = _mean_per_tap(ratio, widths)[0]
    names = [str(i) for i in range(len(widths))] if names is None else list(names)
    if len(names) != len(widths):
        raise ValueError(f"{len(names)} names for {len(widths)} taps.")
    table = pd.DataFrame(
        {
            "n_features": widths,
            "fisher": observed,
            "F": f_statistic(observed, len(codes), n_classes),
            "eta2": _mean_per_tap(ratio / (1 + ratio), widths)[0],
            "null": scores[1:].mean(axis=0),
            "p": permutation_p(scores[0], scores[1:]),
            "p_familywise": max_t(scores[0], scores[1:]),
        },
        index=pd.Index(names, name="tap"),
    )
    table.attrs = {
        "permuted": permuted,
        "n_permutations": n_permutations,
        "n_clips": len(codes),
        "n_groups": int(group_codes.max()) + 1,
        "chance": (n_classes - 1) / (len(codes) - n_classes),
    }
    return table


@dataclass(frozen=True)
class Reliability:
    """How well a ranking of taps repeats on other clips.

    Attributes
    ----------
    half : float
        Mean Spearman correlation between the scores of two disjoint halves.
    full : float
        What it would be for samples of full size: 2 r / (1 + r) (Spearman-Brown).
    interval : Interval
        Central 95 % of ``full`` over splits: spread between splits, not a confidence
        interval, as splits share clips.
    correlations : (n_splits,) array
        Spearman correlation of each split.
    """

    half: float
    full: float
    interval: Interval
    correlations: Floats


def split_half_reliability(
    taps: Sequence[ArrayLike] | ArrayLike,
    y: ArrayLike,
    groups: ArrayLike | None = None,
    n_splits: int = 100,
    seed: int = 0,
) -> Reliability:
    """Correlate the Fisher ranking of taps between halves that share no group.

    Classes that cannot be halved (one group only) take no part.

    Parameters
    ----------
    taps : sequence of T >= 3 arrays (N, D_t), or one (T, N, D) array
    y : (N,) array
    groups : (N,) array, optional
    n_splits : int
        Random halvings, stratified by class where groups have one label.
    seed : int

    References
    ----------
    Spearman (1910) and Brown (1910), British Journal of Psychology 3.
    """
    columns, widths = _stack(taps)
    if len(widths) < 3:
        raise ValueError(f"A ranking needs at least three taps, not {len(widths)}.")
    codes = _labels_for_scatter(y, len(columns))
    group_codes = encode_groups(groups, len(codes))
    pairs = np.unique(np.stack([codes, group_codes]), axis=1)
    keep = np.isin(codes, np.flatnonzero(np.bincount(pairs[0]) >= 2))
    if len(np.unique(codes[keep])) < 2:
        raise ValueError("Fewer than two classes have two groups: nothing to halve.")
    columns, codes = columns[keep], np.unique(codes[keep], return_inverse=True)[1]
    group_codes = np.unique(group_codes[keep], return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    correlations = np.empty(n_splits)
    for split in range(n_splits):
        first = _half_of_groups(codes, group_codes, rng)
        ranks = []
        for half in (first, ~first):
            present = np.unique(codes[half], return_inverse=True)[1]
            ratio = _ratios(columns[half], present[None], np.arange(half.sum()))
            ranks.append(rankdata(_mean_per_tap(ratio, widths)[0]))
        correlations[split] = np.corrcoef(ranks)[0, 1]
    full = 2 * correlations / (1 + np.maximum(correlations, -0.99))
    half_mean = float(correlations.mean())
    return Reliability(
        half=half_mean,
        full=2 * half_mean / (1 + half_mean),
        interval=percentile_interval(full),
        correlations=correlations,
    )


def _half_of_groups(codes: Ints, groups: Ints, rng: np.random.Generator) -> np.ndarray:
    """Choose half of each class's groups; odd ones out fall to either side by lot."""
    strata = codes
    if not constant_within_groups(codes, groups):
        strata = np.zeros_like(codes)
    chosen = np.zeros(groups.max() + 1, dtype=bool)
    for stratum in np.unique(strata):
        members = rng.permutation(np.unique(groups[strata == stratum]))
        chosen[members[: (len(members) + rng.integers(2)) // 2]] = True
    return chosen[groups]


def _stack(taps: Sequence[ArrayLike] | ArrayLike) -> tuple[Floats, Ints]:
    """Put all taps' features side by side: (N, sum of widths), and the widths."""
    arrays = [as_features(X, name=f"tap {i}") for i, X in enumerate(taps)]  # type: ignore[arg-type]
    if not arrays:
        raise ValueError("There are no taps to score.")
    for i, array in enumerate(arrays):
        if len(array) != len(arrays[0]):
            raise ValueError(
                f"tap {i} has {len(array)} clips, tap 0 has {len(arrays[0])}."
            )
        if not (np.ptp(array, axis=0) > 0).any():
            raise ValueError(f"Every feature of tap {i} is constant over the clips.")
    widths = np.array([array.shape[1] for array in arrays])
    return np.concatenate(arrays, axis=1), widths


def _labels_for_scatter(y: ArrayLike, n: int | None) -> Ints:
    codes, _ = encode_labels(y, n)
    if codes.max() + 1 >= len(codes):
        raise ValueError("Every class has one clip only: no spread inside classes.")
    return codes


def _ratios(columns: Floats, labels: Ints, units: Ints) -> Floats:
    """S_B / S_W of each feature (column) under each labelling (row): one product.

    The total scatter does not depend on labels, so S_W = S_T - S_B, and S_B needs only
    the class sums, a matrix product over all labellings at once. Clips of one unit
    (a group whose clips always share their label) are summed beforehand.
    """
    centred = columns - columns.mean(axis=0)
    total = np.einsum("nd,nd->d", centred, centred)
    size = np.abs(columns).max(axis=0)
    spread = total > (_ROUNDING * size) ** 2 * len(columns)
    centred = centred / np.sqrt(np.where(spread, total, 1))
    n_units, n_classes = units.max() + 1, int(labels.max()) + 1
    if n_units < len(units):
        order = np.argsort(units, kind="stable")
        starts = np.searchsorted(units[order], np.arange(n_units))
        centred = np.add.reduceat(centred[order], starts, axis=0)
        labels = labels[:, order[starts]]
    clips = np.bincount(units, minlength=n_units)
    one_hot = (labels[:, None, :] == np.arange(n_classes)[:, None]).astype(float)
    counts = one_hot @ clips
    sums = one_hot.reshape(-1, n_units) @ centred
    sums = sums.reshape(len(labels), n_classes, -1)
    between = np.einsum("pcd,pcd,pc->pd", sums, sums, 1 / np.maximum(counts, 1))
    return np.where(spread, between / np.maximum(1 - between, _ROUNDING), 0.0)


def _mean_per_tap(values: Floats, widths: Ints) -> Floats:
    """Average columns (P, sum of widths) tap by tap: (P, T)."""
    starts = np.concatenate([[0], np.cumsum(widths)[:-1]])
    return np.add.reduceat(values, starts, axis=1) / widths

"""Which layers to take out first, and what that costs and saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from analysis_lib.base import AnalysisError
from analysis_lib.encoders.encoder import Batch, Encoder
from analysis_lib.pruning.surgery import How, n_layers, prune_layers
from analysis_lib.stats import permutation_p

Order = Literal["redundancy", "convexity", "probe", "random", "top"]


def removal_order(
    by: Order,
    n_layers: int,
    *,
    similarity: ArrayLike | None = None,
    scores: ArrayLike | None = None,
    seed: int = 0,
) -> list[int]:
    """Order layers by how soon they should go.

    Parameters
    ----------
    by
        "redundancy": most alike before and after the layer first. "convexity":
        layers above the most convex one first, from the top; then the smallest
        gains. "probe": smallest gain in accuracy over the layer before first.
        "random". "top": the last layer first.
    n_layers
        L.
    similarity
        For redundancy, (L+1, L+1): of ``L0`` … ``LL`` to each other, for example
        their debiased CKA.
    scores
        For convexity and probe, (L+1,): a score of each of ``L0`` … ``LL``.
    seed
        Of the random order.

    Returns
    -------
    list of int
        All layers, 1 … L, first to go first; ties go from the top.

    References
    ----------
    Dorszewski et al. (2024), Convexity-based pruning of speech representation models.
    """
    numbers = np.arange(n_layers, 0, -1)
    if by == "top":
        return [int(n) for n in numbers]
    if by == "random":
        return [int(n) for n in np.random.default_rng(seed).permutation(numbers)]
    if by == "redundancy":
        table = _given(similarity, "similarity", (n_layers + 1, n_layers + 1), by)
        rank = -table[numbers - 1, numbers]
    elif by in ("convexity", "probe"):
        values = _given(scores, "scores", (n_layers + 1,), by)
        rank = values[numbers] - values[numbers - 1]
        if by == "convexity":
            above = numbers > int(values.argmax())
            rank = np.where(above, -np.inf, rank)
    else:
        raise AnalysisError(
            f"by={by!r}: choose 'redundancy', 'convexity', 'probe', 'random' or 'top'."
        )
    return [int(n) for n in numbers[np.argsort(rank, kind="stable")]]


def _given(
    values: ArrayLike | None, name: str, shape: tuple[int, ...], by: str
) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.shape != shape or not np.isfinite(array).all():
        raise AnalysisError(
            f"order by {by} needs {name} of shape {shape}, finite: one for the input "
            f"L0 and each layer; got shape {array.shape}."
        )
    return array


def size(encoder: Encoder) -> tuple[int, int]:
    """Count an encoder's parameters, and the bytes they take."""
    weights = list(encoder.module.parameters())
    return (
        sum(w.numel() for w in weights),
        sum(w.numel() * w.element_size() for w in weights),
    )


def forward_seconds(encoder: Encoder, batch: Batch, repeats: int = 3) -> float:
    """Time a forward pass: the fastest of some, after one that is not timed."""
    encoder.forward(batch)
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        encoder.forward(batch)
        spent.append(time.perf_counter() - start)
    return min(spent)


def multiply_adds(encoder: Encoder, batch: Batch) -> int:
    """Count the multiplications of a forward pass: its cost whatever the machine.

    Of matrix products, convolutions and attention; the rest costs little.
    """
    with FlopCounterMode(display=False) as counter:
        encoder.forward(batch)
    return counter.get_total_flops() // 2


def pruning_curve(
    encoder: Encoder,
    order: Sequence[int],
    score: Callable[[Encoder], float],
    *,
    counts: Sequence[int] | None = None,
    how: How = "remove",
    batch: Batch | None = None,
) -> pd.DataFrame:
    """Remove more and more layers and measure what is left.

    Parameters
    ----------
    encoder
        Is left as it is.
    order
        Layers, first to go first; see `removal_order`.
    score
        The task metric of an encoder, larger is better.
    counts
        How many layers to take out; 0 to L - 1 by default.
    how
        As in `prune_layers`.
    batch
        What to time and count; None: neither is done.

    Returns
    -------
    DataFrame
        A row a count (``removed``): layers (tuple), score, drop (from the whole
        encoder's score), parameters, bytes; and of a forward pass its multiply_adds
        and its seconds.
    """
    steps = list(range(n_layers(encoder))) if counts is None else list(counts)
    if steps and max(steps) > len(order):
        raise AnalysisError(
            f"{max(steps)} layers to remove, but order has {len(order)}."
        )
    whole = float(score(encoder))
    rows = []
    for count in steps:
        smaller = prune_layers(encoder, order[:count], how)
        value = whole if count == 0 else float(score(smaller))
        parameters, weight = size(smaller)
        rows.append(
            {
                "removed": count,
                "layers": tuple(sorted(order[:count])),
                "score": value,
                "drop": whole - value,
                "parameters": parameters,
                "bytes": weight,
                "multiply_adds": 0 if batch is None else multiply_adds(smaller, batch),
                "seconds": np.nan if batch is None else forward_seconds(smaller, batch),
            }
        )
    return pd.DataFrame(rows).set_index("removed")


@dataclass(frozen=True)
class RankAgreement:
    """Spearman's correlation of predicted and measured, with its interval.

    Attributes
    ----------
    rho
        The correlation.
    low, high
        Ends of the interval.
    p
        One-sided permutation p-value of a correlation as high.
    n
        Number of layers.
    """

    rho: float
    low: float
    high: float
    p: float
    n: int


def rank_agreement(
    predicted: ArrayLike,
    measured: ArrayLike,
    *,
    level: float = 0.95,
    n_permutations: int = 9999,
    seed: int = 0,
) -> RankAgreement:
    """Tell whether a predictor ranks layers as the measured drops do.

    Parameters
    ----------
    predicted, measured
        (n,) a number a layer, n ≥ 4.
    level
        Of the interval, by Fisher's transformation with variance 1.06 / (n - 3).
    n_permutations, seed
        Of the p-value.

    References
    ----------
    Fieller, Hartley & Pearson (1957), Biometrika 44, 470-481.
    """
    x, y = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 4:
        raise AnalysisError(
            f"predicted has shape {x.shape} and measured {y.shape}: give both a "
            "number for each of 4 layers or more."
        )
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise AnalysisError("all predicted or all measured values are equal: no ranks.")
    rho = float(stats.spearmanr(x, y)[0])
    center = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    reach = stats.norm.ppf((1 + level) / 2) * np.sqrt(1.06 / (len(x) - 3))
    rng = np.random.default_rng(seed)
    ranks = [stats.rankdata(v) - (len(v) + 1) / 2 for v in (x, y)]
    shuffled = rng.permuted(np.tile(ranks[1], (n_permutations, 1)), axis=1) @ ranks[0]
    p = float(permutation_p(ranks[1] @ ranks[0], shuffled))
    return RankAgreement(
        rho, float(np.tanh(center - reach)), float(np.tanh(center + reach)), p, len(x)
    )

"""What a latent does around the moments a phone begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from ..base import AnalysisError
from ..stats import group_bootstrap, percentile_interval


@dataclass(frozen=True)
class OnsetResponse:
    """A latent's mean activation around the onsets of a phone.

    Attributes
    ----------
    lags : ndarray, shape (L,)
        Seconds from the onset to the frame's centre, steps of one hop.
    mean, low, high : ndarray, shape (L,)
        Mean activation and its 95 % interval, whole groups resampled.
    latency : float
        Seconds from onset to the peak of the mean.
    latency_interval : tuple of float
    half_width : float
        Seconds the mean stays above half its rise over the least value.
    sustain : float
        Mean activation in the second half of the segments over that in the first:
        about 0 is transient, about 1 sustained. NaN if segments are shorter than two
        frames or the latent is silent in them.
    n_onsets : int
    """

    lags: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    latency: float
    latency_interval: tuple[float, float]
    half_width: float
    sustain: float
    n_onsets: int


def onset_response(
    codes: sp.csr_array,
    unit: int,
    clip_index: ArrayLike,
    times: ArrayLike,
    segments: pd.DataFrame,
    label: str,
    *,
    hop: float,
    window: tuple[float, float] = (-0.2, 0.4),
    groups: Sequence[object] | None = None,
    n_draws: int = 500,
    seed: int = 0,
) -> OnsetResponse:
    """Average a latent over the onsets of a phone or word.

    Parameters
    ----------
    codes : csr_array, shape (N, H)
    unit : int
    clip_index, times : array_like, shape (N,)
        Clip and centre (s) of each frame.
    segments : pandas.DataFrame
        Columns clip, label, start, end; see :class:`FrameLabels`.
    label : str
    hop : float
        Seconds between frames.
    window : tuple of float
        Seconds before (negative) and after the onset.
    groups : sequence, optional
        One a clip, what is resampled as a whole (voices); default the clip.
    n_draws, seed : int
        Of the bootstrap.

    Returns
    -------
    OnsetResponse

    Raises
    ------
    AnalysisError
        If the label never begins inside the frames.
    """
    clip, time = np.asarray(clip_index), np.asarray(times, float)
    activity = codes[:, [unit]].toarray()[:, 0]
    chosen = segments[segments["label"] == label]
    steps = np.arange(round(window[0] / hop), round(window[1] / hop) + 1)
    rows, owner, halves = [], [], []
    for index, events in chosen.groupby("clip", sort=True):
        frames = np.flatnonzero(clip == index)
        if len(frames) == 0:
            continue
        start, end = events["start"].to_numpy(), events["end"].to_numpy()
        # Bin by the true distance of a frame's centre from the onset.
        place = np.round((time[frames] - start[:, None]) / hop).astype(int)
        row = np.full((len(events), len(steps)), np.nan)
        event, frame = np.nonzero((place >= steps[0]) & (place <= steps[-1]))
        row[event, place[event, frame] - steps[0]] = activity[frames[frame]]
        rows.append(row)
        owner += [index] * len(events)
        share = (time[frames] - start[:, None]) / (end - start)[:, None]
        for early in (True, False):
            part = (
                (share >= 0) & (share < 0.5) if early else (share >= 0.5) & (share < 1)
            )
            halves.append((early, (part @ activity[frames]).sum(), part.sum()))
    if not rows:
        raise AnalysisError(
            f"{label!r} never begins inside the frames; see `segments` for the labels."
        )
    table = np.concatenate(rows)
    by_clip = np.asarray(owner)
    group = by_clip if groups is None else np.asarray(groups)[by_clip]

    def average(index: NDArray[np.int64]) -> NDArray[np.float64]:
        taken = table[index]
        seen = np.isfinite(taken).sum(0)
        return np.nansum(taken, 0) / np.where(seen > 0, seen, np.nan)

    mean = average(np.arange(len(table)))
    curves: list[NDArray[np.float64]] = []

    def peak(index: NDArray[np.int64]) -> float:
        curves.append(average(index))
        curve = curves[-1]
        return float(hop * steps[np.nanargmax(curve)]) if curve.any() else np.nan

    latency = peak(np.arange(len(table)))
    curves.clear()
    interval, _, _ = group_bootstrap(peak, group, n_draws, seed=seed)
    low, high = np.array([percentile_interval(c) for c in np.array(curves).T]).T
    return OnsetResponse(
        lags=hop * steps.astype(float),
        mean=mean,
        low=low,
        high=high,
        latency=latency,
        latency_interval=(float(interval[0]), float(interval[1])),
        half_width=_half_width(mean, hop),
        sustain=_sustain(halves),
        n_onsets=len(table),
    )


def _half_width(mean: NDArray[np.float64], hop: float) -> float:
    """Length of the stretch round the peak that stays above half the rise."""
    curve = np.nan_to_num(mean, nan=-np.inf)
    base = np.nanmin(mean)
    above = curve > base + (curve.max() - base) / 2
    if not above.any():
        return float("nan")
    peak = int(curve.argmax())
    left = right = peak
    while left > 0 and above[left - 1]:
        left -= 1
    while right < len(curve) - 1 and above[right + 1]:
        right += 1
    return hop * (right - left + 1)


def _sustain(halves: list[tuple[bool, float, int]]) -> float:
    means = []
    for wanted in (True, False):
        total = sum(s for early, s, _ in halves if early == wanted)
        n = sum(n for early, _, n in halves if early == wanted)
        means.append(total / n if n else np.nan)
    return float(means[1] / means[0]) if means[0] else float("nan")

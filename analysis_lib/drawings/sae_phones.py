"""Drawings of the chapter on units and phones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.signal import spectrogram as stft

from analysis_lib.figures import INK, MUTED, PALETTE


def unit_map(matrix: pd.DataFrame) -> Figure:
    """Map of AUROC, a row a unit, a column a phone; 0.5 is chance and blank.

    Parameters
    ----------
    matrix : DataFrame (units, phones)
    """
    rows, columns = matrix.shape
    figure, axes = plt.subplots(
        figsize=(min(9.6, 2.0 + 0.2 * columns), min(8.6, 1.0 + 0.19 * rows))
    )
    sns.heatmap(
        matrix,
        ax=axes,
        vmin=0,
        vmax=1,
        cmap="vlag",
        center=0.5,
        xticklabels=True,
        yticklabels=True,
        cbar_kws={"label": "AUROC on unseen voices"},
    )
    axes.tick_params(axis="y", rotation=0, labelsize=8)
    axes.tick_params(axis="x", rotation=0, labelsize=7 if columns > 40 else 8)
    axes.set(xlabel="phone", ylabel="unit")
    return figure


def false_alarms(shares: Mapping[str, float], level: float) -> Figure:
    """Bars of the share of unrelated units that each null calls significant."""
    figure, axes = plt.subplots(figsize=(6.4, 0.6 + 0.45 * len(shares)))
    names = list(shares)[::-1]
    axes.barh(names, [shares[name] for name in names], color=PALETTE[0], height=0.6)
    axes.axvline(level, color=MUTED, ls="--", lw=1.2)
    axes.set(xlabel="share called significant although unrelated", xlim=(0, 1))
    return figure


def probe_curves(table: pd.DataFrame) -> Figure:
    """Mean AUROC over phones by number of columns, a curve a feature set.

    Parameters
    ----------
    table : DataFrame
        Columns ``features``, ``phone``, ``k``, ``auroc``.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    means = table.groupby(["features", "k"], sort=False)["auroc"].mean()
    styles = dict(zip(pd.unique(table["features"]), PALETTE, strict=False))
    for name, colour in styles.items():
        line = means[name]
        axes.plot(line.index, line, "o-", ms=4.5, color=colour, label=name)
    axes.axhline(0.5, color=MUTED, ls="--", lw=1.2)
    levels = sorted(table["k"].unique())
    axes.set(xscale="log", xlabel="columns in the probe", ylabel="mean AUROC")
    axes.set_xticks(levels, [str(k) for k in levels])
    axes.minorticks_off()
    figure.legend(loc="outside right upper")
    return figure


def onsets(responses: Mapping[str, Any]) -> Figure:
    """Mean activation around onsets, one panel a phone, with its interval.

    Parameters
    ----------
    responses : name -> OnsetResponse
    """
    figure, grid = plt.subplots(
        1,
        len(responses),
        figsize=(2.1 * len(responses) + 0.6, 2.4),
        sharex=True,
        squeeze=False,
    )
    for axes, (name, found) in zip(grid[0], responses.items(), strict=True):
        lags = 1000 * found.lags
        axes.fill_between(
            lags,
            found.low,
            found.high,
            color=PALETTE[0],
            alpha=0.25,
            lw=0,
        )
        axes.plot(lags, found.mean, color=PALETTE[0])
        axes.axvline(0, color=MUTED, ls="--", lw=1.2)
        axes.set(title=name, xlabel="ms from onset", ylim=(0, None))
    grid[0][0].set_ylabel("mean activation")
    return figure


def unit_page(
    wave: ArrayLike,
    sampling_rate: int,
    times: ArrayLike,
    activation: ArrayLike,
    phones: Sequence[tuple[float, float, str]],
    *,
    marked: str = "",
) -> Figure:
    """A clip's spectrogram, a unit's activation in it, and what is being said.

    Parameters
    ----------
    wave : (samples,)
    times, activation : (T,)
        Frame centres in seconds; the unit's activation.
    phones : sequence of (start, end, phone)
    marked
        Phone to draw in colour.
    """
    figure, (top, middle, below) = plt.subplots(
        3, 1, figsize=(7.2, 3.6), sharex=True, height_ratios=[5, 2, 0.9]
    )
    samples = np.asarray(wave, float)
    f, t, power = stft(samples, sampling_rate, nperseg=400, noverlap=240)
    level = 10 * np.log10(power / power.max() + 1e-8)
    top.pcolormesh(t, f / 1000, level, vmin=-70, vmax=0, cmap="magma", rasterized=True)
    top.set(ylabel="kHz")
    middle.bar(times, activation, width=0.036, color=PALETTE[1])
    middle.set(ylabel="unit", ylim=(0, max(1e-6, 1.05 * np.max(activation))))
    _phone_track(below, phones, marked)
    below.set(xlim=(0, len(samples) / sampling_rate), xlabel="time, s")
    return figure


def _phone_track(
    axes: Axes, phones: Sequence[tuple[float, float, str]], marked: str
) -> None:
    for start, end, phone in phones:
        colour = PALETTE[1] if phone == marked else INK
        axes.axvline(start, color=MUTED, lw=0.8)
        axes.axvline(end, color=MUTED, lw=0.8)
        axes.text(
            (start + end) / 2,
            0.5,
            phone,
            ha="center",
            va="center",
            color=colour,
            fontsize=9,
            fontweight="bold" if phone == marked else "normal",
        )
    axes.set(ylim=(0, 1), yticks=[], ylabel="phone")
    axes.spines[["left"]].set_visible(False)


def dictionary_maps(
    maps: Mapping[str, ArrayLike], labels: ArrayLike, order: Sequence[str]
) -> Figure:
    """Maps of points side by side, coloured by label.

    Parameters
    ----------
    maps : title -> (N, 2)
    labels : (N,)
    order : sequence of str
        Labels in the order of their colours.
    """
    kinds = np.asarray(labels)
    colours = dict(
        zip(order, sns.color_palette([*PALETTE, MUTED], len(order)), strict=True)
    )
    figure, grid = plt.subplots(
        1, len(maps), figsize=(3.4 * len(maps) + 1.4, 3.4), squeeze=False
    )
    for axes, (title, points) in zip(grid[0], maps.items(), strict=True):
        places = np.asarray(points)
        for name in order:
            at = kinds == name
            axes.scatter(*places[at].T, s=7, color=colours[name], label=name, lw=0)
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    handles, words = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside right upper", markerscale=1.8)
    return figure

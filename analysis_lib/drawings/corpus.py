"""Drawings of the data pages."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from analysis_lib.acoustics import log_mel
from analysis_lib.figures import INK


def spectrograms(
    waves: Sequence[NDArray[np.float32]], rate: int, titles: Sequence[str]
) -> Figure:
    """Draw small log-mel spectrograms of several clips on one scale.

    Parameters
    ----------
    waves : sequence of (T,) arrays
    rate
        Their sampling rate, Hz.
    titles
        One a clip.
    """
    columns = min(4, len(waves))
    rows = -(-len(waves) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(8.2, 1.5 * rows + 0.5), squeeze=False, sharex=True
    )
    for axes in grid.flat[len(waves) :]:
        axes.set_axis_off()
    for axes, wave, title in zip(grid.flat, waves, titles, strict=False):
        level = log_mel(wave, rate, n_mels=48)
        seconds = len(wave) / rate
        picture = axes.imshow(
            (level - level.max()).T,
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, 48),
            vmin=-70,
            vmax=0,
            cmap="magma",
        )
        axes.set_title(title, fontsize=9)
        axes.set_yticks([])
    figure.supxlabel("time, s", fontsize=10)
    figure.supylabel("mel band, low to high", fontsize=10)
    figure.colorbar(picture, ax=grid, label="dB below the clip's peak", shrink=0.8)
    return figure


def class_sizes(table: pd.DataFrame) -> Figure:
    """Draw the number of clips of each class.

    Parameters
    ----------
    table : DataFrame
        Indexed by class, with ``clips``.
    """
    figure, axes = plt.subplots(figsize=(6.4, 0.8 + 0.2 * len(table)))
    axes.barh(table.index.astype(str), table["clips"])
    axes.invert_yaxis()
    axes.set(xlabel="clips", ylabel="class")
    return figure


def confusions(counts: ArrayLike, classes: Sequence[str]) -> Figure:
    """Draw the share of each class's clips that a probe takes for each class."""
    matrix = np.asarray(counts, dtype=float)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.25 * len(classes)
    figure, axes = plt.subplots(figsize=(side + 0.8, side))
    sns.heatmap(
        share,
        ax=axes,
        vmin=0,
        vmax=1,
        cmap="viridis",
        square=True,
        xticklabels=list(classes),
        yticklabels=list(classes),
        cbar_kws={"label": "share of the class's clips", "shrink": 0.8},
    )
    axes.set(xlabel="taken for", ylabel="class")
    return figure


def phone_track(
    wave: NDArray[np.float32], rate: int, phones: pd.DataFrame, words: pd.DataFrame
) -> Figure:
    """Draw a clip's spectrogram with its words above and its phones below.

    Parameters
    ----------
    wave : (T,)
    rate
        Hz.
    phones, words : DataFrame
        A row an interval: ``start``, ``end`` (s), ``label``.
    """
    figure, (axes, track) = plt.subplots(
        2, 1, figsize=(8.2, 3.4), sharex=True, height_ratios=(4, 1)
    )
    level = log_mel(wave, rate, n_mels=64)
    axes.imshow(
        (level - level.max()).T,
        origin="lower",
        aspect="auto",
        extent=(0, len(wave) / rate, 0, 64),
        vmin=-70,
        vmax=0,
        cmap="magma",
    )
    axes.set(ylabel="mel band", yticks=[])
    for intervals, height in ((words, 1.5), (phones, 0.5)):
        for start, end, label in intervals[["start", "end", "label"]].itertuples(
            index=False
        ):
            track.plot([start, start], [height - 0.4, height + 0.4], color=INK, lw=0.8)
            track.plot([end, end], [height - 0.4, height + 0.4], color=INK, lw=0.8)
            middle = (start + end) / 2
            track.text(middle, height, label, ha="center", va="center", fontsize=9)
    track.set(ylim=(0, 2), yticks=[0.5, 1.5], xlabel="time, s")
    track.set_yticklabels(["phones", "words"])
    return figure

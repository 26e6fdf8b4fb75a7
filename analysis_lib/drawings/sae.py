"""Drawings of the chapter on the dictionary: the path of sound, its quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import LogLocator
from numpy.typing import ArrayLike

from analysis_lib.figures import INK, MUTED, PALETTE


def path(steps: Sequence[tuple[str, str]], marked: int) -> Figure:
    """Draw a chain of boxes from left to right, one of them marked.

    Parameters
    ----------
    steps : sequence of (name, detail)
    marked : int
        The box to draw in colour.
    """
    figure, axes = plt.subplots(figsize=(8.2, 1.7))
    for i, (name, detail) in enumerate(steps):
        colour = PALETTE[1] if i == marked else INK
        box = FancyBboxPatch(
            (1.3 * i, 0), 1.0, 0.6, boxstyle="round,pad=0.03", fill=False, ec=colour
        )
        axes.add_patch(box)
        axes.text(1.3 * i + 0.5, 0.3, name, ha="center", va="center", fontsize=9)
        axes.text(1.3 * i + 0.5, -0.12, detail, ha="center", va="top", fontsize=8)
        if i:
            arrow = {"arrowstyle": "->", "color": INK}
            axes.annotate(
                "", (1.3 * i - 0.04, 0.3), (1.3 * i - 0.26, 0.3), arrowprops=arrow
            )
    axes.set(xlim=(-0.1, 1.3 * len(steps) - 0.2), ylim=(-0.65, 0.75))
    axes.set_axis_off()
    return figure


def training_curve(history: pd.DataFrame) -> Figure:
    """Unexplained variance and dead latents over the frames seen.

    Parameters
    ----------
    history : DataFrame
        Columns ``samples``, ``mse`` (training units) and ``dead``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.8))
    thousands = history["samples"] / 1000
    left.plot(thousands, history["mse"], color=PALETTE[0])
    left.set(
        xlabel="frames seen, thousands", ylabel="squared error, share", yscale="log"
    )
    right.plot(thousands, history["dead"], color=PALETTE[1])
    right.set(xlabel="frames seen, thousands", ylabel="dead latents", ylim=(0, None))
    return figure


def density(values: ArrayLike, dense: float) -> Figure:
    """Histogram of the share of frames each live latent fires in.

    Parameters
    ----------
    values : (H,)
        Shares; zeros are left out.
    dense
        Above it a latent counts as dense.
    """
    live = np.asarray(values, dtype=float)
    figure, axes = plt.subplots(figsize=(6.4, 2.8))
    axes.hist(np.log10(live[live > 0]), bins=40, color=PALETTE[0])
    axes.axvline(np.log10(dense), color=MUTED, ls="--", lw=1.2)
    ticks = np.arange(np.floor(np.log10(live[live > 0].min())), 1)
    axes.set_xticks(ticks, [f"{100 * 10**t:g} %" for t in ticks])
    axes.set(xlabel="share of frames in which the latent fires", ylabel="latents")
    return figure


def pareto(
    grid: pd.DataFrame, rivals: Mapping[str, tuple[ArrayLike, ArrayLike]]
) -> Figure:
    """Unexplained variance over active latents, a curve a width, rivals dotted.

    Parameters
    ----------
    grid : DataFrame
        Columns ``k``, ``n_latents``, ``seed``, ``fvu``.
    rivals : name -> (k, fvu)
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for colour, (width, rows) in zip(PALETTE, grid.groupby("n_latents"), strict=False):
        line = rows.groupby("k")["fvu"].agg(["mean", "min", "max"])
        axes.plot(
            line.index,
            line["mean"],
            "o-",
            ms=4.5,
            color=colour,
            label=f"{width} latents",
        )
        axes.fill_between(
            line.index, line["min"], line["max"], color=colour, alpha=0.25, lw=0
        )
    for marker, (name, (k, fvu)) in zip("s^D", rivals.items(), strict=False):
        axes.plot(
            np.asarray(k),
            np.asarray(fvu),
            ls=":",
            marker=marker,
            ms=4.5,
            color=MUTED,
            label=name,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="active latents a frame",
        ylabel="variance unexplained",
    )
    levels = sorted(grid["k"].unique())
    axes.set_xticks(levels, [str(k) for k in levels], minor=False)
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside right upper")
    return figure


def matched_cosines(pairs: ArrayLike, null: ArrayLike) -> Figure:
    """Histogram of the cosines of matched atoms, and of what chance gives.

    Parameters
    ----------
    pairs, null : (n,), (m,)
        Cosines of atoms matched between two seeds; the same with one turned at random.
    """
    figure, axes = plt.subplots(figsize=(6.4, 2.8))
    bins = np.linspace(0, 1, 41).tolist()
    for values, colour, name in (
        (np.asarray(null), MUTED, "turned at random"),
        (np.asarray(pairs), PALETTE[0], "two seeds"),
    ):
        weights = np.full(values.size, 1 / values.size)
        axes.hist(
            values, bins=bins, weights=weights, color=colour, alpha=0.75, label=name
        )
    axes.set(xlabel="cosine of matched atoms", ylabel="share of pairs", xlim=(0, 1))
    figure.legend(loc="outside right upper")
    return figure

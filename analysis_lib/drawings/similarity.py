"""Drawings of the chapter on similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from analysis_lib.figures import MUTED, PALETTE


def matrix_grid(
    rows: Mapping[str, Mapping[str, ArrayLike]],
    *,
    label: str,
    limits: tuple[float, float] = (0.0, 1.0),
    x_label: str = "layer",
    y_label: str = "layer",
    cut: float | None = None,
) -> Figure:
    """Maps in rows and columns, all on one scale.

    Parameters
    ----------
    rows
        For each row's title its maps, by column title.
    label
        Words at the colour bar.
    limits
        Of the scale. What lies outside is drawn in the end's colour, and the bar has
        an arrow there.
    cut
        Draw a cross between layers ``cut - 1`` and ``cut``.
    """
    height, width = len(rows), max(len(row) for row in rows.values())
    figure, grid = plt.subplots(
        height, width, figsize=(2.0 * width + 0.9, 2.05 * height + 0.3), squeeze=False
    )
    bottom, top = limits
    every = np.concatenate(
        [np.ravel(matrix) for row in rows.values() for matrix in row.values()]
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for r, (row_title, row) in enumerate(rows.items()):
        for axes, (title, matrix) in zip(grid[r], row.items(), strict=False):
            axes.set_axis_on()
            picture = axes.imshow(
                np.asarray(matrix, float),
                vmin=bottom,
                vmax=top,
                cmap="vlag" if bottom == -top else "viridis",
                aspect="auto",
            )
            axes.spines[:].set_visible(False)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(4, integer=True))
            if cut is not None:
                axes.axvline(cut - 0.5, color="white", lw=1.2)
                axes.axhline(cut - 0.5, color="white", lw=1.2)
            if r == 0:
                axes.set_title(title)
            axes.tick_params(
                length=0, labelbottom=r == height - 1, labelleft=axes is grid[r][0]
            )
            if r == height - 1:
                axes.set_xlabel(x_label)
        grid[r][0].set_ylabel(f"{row_title}\n{y_label}" if row_title else y_label)
    low, high = np.nanmin(every) < bottom - 1e-9, np.nanmax(every) > top + 1e-9
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}
    figure.colorbar(picture, ax=grid, label=label, extend=extend[int(low), int(high)])
    return figure


def noise_curve(table: pd.DataFrame) -> Figure:
    """CKA of independent noise over the number of clips, a colour a width.

    Parameters
    ----------
    table : DataFrame
        Columns ``clips``, ``width``, ``biased``, ``debiased``, ``chance``.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    for colour, (width, rows) in zip(PALETTE, table.groupby("width"), strict=False):
        axes.plot(rows["clips"], rows["chance"], color=colour, lw=1.2)
        axes.plot(rows["clips"], rows["biased"], "o", color=colour, ms=5)
        axes.plot(rows["clips"], rows["debiased"], "x", color=colour, ms=5)
        axes.plot([], [], "s", color=colour, label=f"{width} features")
    axes.plot([], [], "o", color=MUTED, label="biased")
    axes.plot([], [], "-", color=MUTED, label="its chance, closed form")
    axes.plot([], [], "x", color=MUTED, label="debiased")
    axes.axhline(0, color=MUTED, ls="--", lw=1)
    axes.set(xscale="log", xlabel="clips", ylabel="linear CKA of noise with noise")
    axes.set_ylim(-0.06, 1)
    figure.legend(loc="outside right upper")
    return figure


def cut_curve(
    cuts: Sequence[int], excess: Mapping[str, ArrayLike], spread: ArrayLike
) -> Figure:
    """How much a cut between two layers explains beyond the decay with distance.

    Parameters
    ----------
    cuts
        First layer after the cut.
    excess
        Name of a network -> excess contrast at each cut; the first is the chapter's.
    spread : (draws, cuts)
        The first network's, for halves of the clips.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.2))
    low, high = np.quantile(np.asarray(spread), [0.025, 0.975], axis=0)
    axes.fill_between(cuts, low, high, color=PALETTE[0], alpha=0.22, lw=0)
    styles = ((PALETTE[0], "o-"), (MUTED, "s:"))
    for (colour, style), (name, values) in zip(styles, excess.items(), strict=False):
        axes.plot(cuts, np.asarray(values), style, color=colour, ms=4.5, label=name)
    axes.axhline(0, color=MUTED, ls="--", lw=1)
    axes.set_xticks(list(cuts))
    axes.set(xlabel="first layer of the second block", ylabel="excess contrast")
    axes.legend()
    return figure

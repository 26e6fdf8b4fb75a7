"""Drawings of the chapter on pruning."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis_lib.figures import INK, MUTED, PALETTE


def damage_bars(rise: pd.DataFrame, label: str) -> Figure:
    """Rise of the error rate for each layer removed, with its interval.

    Parameters
    ----------
    rise : DataFrame
        Indexed by layer: ``rise``, ``low``, ``high``.
    label
        Words on the axis.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.2))
    axes.bar(rise.index, rise["rise"], color=PALETTE[0], width=0.7)
    ends = rise["rise"] - rise["low"], rise["high"] - rise["rise"]
    axes.errorbar(
        rise.index, rise["rise"], yerr=np.clip(ends, 0, None), fmt="none", ecolor=INK,
        elinewidth=1.2, capsize=2.5,
    )  # fmt: skip
    axes.axhline(0, color=MUTED, lw=1)
    axes.set_xticks(list(rise.index))
    axes.set(xlabel="layer removed", ylabel=label)
    return figure


def predicted_against_measured(
    predicted: pd.DataFrame, rise: pd.Series, rate: str
) -> Figure:
    """Measured rise over every predictor, a panel each, a numbered point a layer.

    Parameters
    ----------
    predicted : DataFrame
        Indexed by layer, a column a predictor.
    rise
        Indexed by layer.
    rate
        What rises.
    """
    width = len(predicted.columns)
    columns = min(3, width)
    rows = -(-width // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.7 * columns, 2.5 * rows), sharey=True, squeeze=False
    )
    for axes in grid.flat[width:]:
        axes.set_axis_off()
    for axes, name in zip(grid.flat, predicted, strict=False):
        axes.plot(predicted[name], rise, "o", color=PALETTE[0], ms=4)
        heights = rise.reindex(predicted.index)
        for layer, x, y in zip(predicted.index, predicted[name], heights, strict=True):
            axes.annotate(
                str(layer), (x, y), xytext=(3, 3),
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
        axes.axhline(0, color=MUTED, lw=1, ls="--")
        axes.set_xlabel(str(name))
        axes.locator_params(axis="x", nbins=4)
    figure.supylabel(f"rise of the {rate}", fontsize=10)
    return figure


def pruning_curves(curves: pd.DataFrame, chance: float, rate: str) -> Figure:
    """Error rate over the number of layers removed, a line an order.

    Parameters
    ----------
    curves : DataFrame
        ``by``, ``removed``, ``rate``; where an order was drawn several times, as
        "random", its mean and range are drawn.
    chance
        Level of the dashed line.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    names = [name for name in dict.fromkeys(curves["by"]) if name != "random"]
    styles = dict(zip(names, zip(PALETTE, "os^D", strict=False), strict=False))
    for name in dict.fromkeys(curves["by"]):
        part = curves[curves["by"] == name].groupby("removed")["rate"]
        line = part.agg(["mean", "min", "max"])
        colour, marker = styles.get(name, (MUTED, "s"))
        style = ":" if name == "random" else "-"
        axes.plot(
            line.index, line["mean"], style, marker=marker, color=colour, ms=4.5,
            label=name,
        )  # fmt: skip
        if name == "random":
            axes.fill_between(
                line.index, line["min"], line["max"], color=MUTED, alpha=0.22, lw=0
            )
    axes.axhline(chance, color=MUTED, ls="--", lw=1.2, label="chance")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="layers removed", ylabel=rate)
    figure.legend(loc="outside right upper", title="order", title_fontsize=9)
    return figure


def recovery(table: pd.DataFrame, chance: float, rate: str) -> Figure:
    """Error rate before and after training, a row a choice of layers.

    Parameters
    ----------
    table : DataFrame
        Indexed by choice, "whole" among them: ``before``, ``after``, ``low``,
        ``high``.
    chance
        Level of the dashed line.
    """
    figure, axes = plt.subplots(figsize=(6.4, 0.5 * len(table) + 1.2))
    places = np.arange(len(table))[::-1]
    columns = table[["before", "after", "low", "high"]].to_numpy(dtype=float)
    for place, (before, after, low, high) in zip(places, columns, strict=True):
        axes.plot([before, after], [place] * 2, color=MUTED, lw=1)
        axes.plot(before, place, "o", mfc="none", mec=PALETTE[1], ms=7)
        axes.plot([low, high], [place] * 2, color=PALETTE[0], lw=2)
        axes.plot(after, place, "o", color=PALETTE[0], ms=6)
    axes.axvline(float(table["after"]["whole"]), color=MUTED, ls=":", lw=1.2)
    axes.axvline(chance, color=MUTED, ls="--", lw=1.2)
    axes.set_yticks(places, [str(name) for name in table.index])
    axes.set(xlabel=rate, ylim=(-0.6, len(table) - 0.4))
    return figure

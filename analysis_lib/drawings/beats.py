"""Drawings of the BEATs chapter: a panel a corpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from analysis_lib.figures import INK, MUTED, PALETTE


def _panels(names: Sequence[str], height: float) -> tuple[Figure, dict[str, Axes]]:
    """One row of axes, a panel a corpus, sharing the vertical axis."""
    figure, row = plt.subplots(
        1,
        len(names),
        figsize=(8.2 if len(names) > 1 else 6.0, height),
        sharey=True,
        squeeze=False,
    )
    panels = dict(zip(names, row.flat, strict=True))
    for name, axes in panels.items():
        axes.set_title(name)
    return figure, panels


def _legend_below(figure: Figure, axes: Axes, columns: int = 3) -> None:
    handles, words = axes.get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=columns)


def _layer_ticks(axes: Axes, layers: pd.Series) -> None:
    places = np.sort(layers.unique())
    axes.set_xticks(places[:: 1 + len(places) // 14])


def trap(table: pd.DataFrame, chance: float) -> Figure:
    """Draw accuracy after pooling over either axis.

    Parameters
    ----------
    table : DataFrame
        Columns ``pooling``, ``accuracy``, ``low``, ``high``.
    """
    figure, axes = plt.subplots(figsize=(6.4, 0.9 + 0.45 * len(table)))
    rows = np.arange(len(table))
    reach = [table["accuracy"] - table["low"], table["high"] - table["accuracy"]]
    axes.errorbar(table["accuracy"], rows, xerr=reach, fmt="o", capsize=3)
    axes.axvline(chance, color=MUTED, ls="--", lw=1.2)
    axes.text(chance, -0.75, " chance", color=MUTED, va="center", fontsize=9)
    axes.set_yticks(rows, table["pooling"])
    axes.set(xlabel="balanced accuracy", xlim=(0, 1.02), ylim=(len(table) - 0.5, -1))
    return figure


def accuracy_curves(table: pd.DataFrame) -> Figure:
    """Draw accuracy by layer with interval, null band and both controls.

    Parameters
    ----------
    table : DataFrame
        Columns ``corpus``, ``layer``, ``accuracy``, ``low``, ``high``, ``null_low``,
        ``null_high``, ``chance``, ``random``, ``log_mel``, and ``tied`` (bool: within
        one standard error of the best).
    """
    figure, panels = _panels(list(table["corpus"].unique()), 3.8)
    for name, axes in panels.items():
        rows = table[table["corpus"] == name].sort_values("layer")
        at = rows["layer"]
        axes.fill_between(
            at,
            rows["null_low"],
            rows["null_high"],
            color=MUTED,
            alpha=0.3,
            lw=0,
            label="permuted labels, 95 %",
        )
        axes.axhline(
            rows["chance"].iloc[0], color=MUTED, ls="--", lw=1.2, label="chance"
        )
        axes.axhline(
            rows["log_mel"].iloc[0],
            color=PALETTE[2],
            ls="-.",
            lw=1.5,
            label="log-mel, no network",
        )
        axes.plot(
            at,
            rows["random"],
            color=PALETTE[1],
            ls=":",
            marker="s",
            ms=4,
            label="random weights",
        )
        axes.plot(at, rows["accuracy"], color=PALETTE[0], marker="o", ms=4)
        axes.fill_between(at, rows["low"], rows["high"], alpha=0.22, lw=0)
        axes.plot([], [], color=PALETTE[0], marker="o", ms=4, label="trained, 95 %")
        best = rows[rows["tied"]]
        axes.plot(
            best["layer"],
            best["accuracy"],
            ls="none",
            marker="o",
            ms=9,
            mfc="none",
            mec=INK,
            label="within one standard error of the best",
        )
        _layer_ticks(axes, at)
        axes.set(xlabel="layer", ylim=(0, 1.02))
    first = next(iter(panels.values()))
    first.set_ylabel("balanced accuracy")
    _legend_below(figure, first)
    return figure


def targets_by_depth(table: pd.DataFrame) -> Figure:
    """Draw how readable each target is, by layer; dotted with random weights.

    Parameters
    ----------
    table : DataFrame
        Columns ``corpus``, ``target``, ``layer``, ``score``, ``low``, ``high`` and
        ``random``; scores are 0 at chance and 1 when perfect.
    """
    figure, panels = _panels(list(table["corpus"].unique()), 4.0)
    colours = dict(zip(table["target"].unique(), PALETTE, strict=False))
    for name, axes in panels.items():
        rows = table[table["corpus"] == name]
        for target, line in rows.groupby("target", sort=False):
            line, colour = line.sort_values("layer"), colours[target]
            axes.plot(
                line["layer"],
                line["score"],
                color=colour,
                marker="o",
                ms=3.5,
                label=target,
            )
            axes.fill_between(
                line["layer"], line["low"], line["high"], color=colour, alpha=0.13, lw=0
            )
            axes.plot(line["layer"], line["random"], color=colour, ls=":", lw=1.2)
        axes.axhline(0, color=MUTED, ls="--", lw=1.2)
        _layer_ticks(axes, rows["layer"])
        axes.set(xlabel="layer", ylim=(-0.25, 1.03))
    first = next(iter(panels.values()))
    first.set_ylabel("score: 0 chance, 1 perfect")
    first.plot([], [], color=MUTED, ls=":", label="random weights")
    _legend_below(figure, first)
    return figure


def forest(table: pd.DataFrame) -> Figure:
    """Draw accuracies of several read-outs with their intervals, a row each.

    Parameters
    ----------
    table : DataFrame
        Columns ``corpus``, ``read_out``, ``accuracy``, ``low``, ``high``, ``chance``.
    """
    names = list(table["corpus"].unique())
    kinds = list(table["read_out"].unique())
    figure, panels = _panels(names, 1.1 + 0.33 * len(kinds))
    for name, axes in panels.items():
        rows = table[table["corpus"] == name].set_index("read_out")
        places = [kinds.index(kind) for kind in rows.index]
        reach = [rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]]
        axes.errorbar(rows["accuracy"], places, xerr=reach, fmt="o", capsize=3)
        axes.axvline(rows["chance"].iloc[0], color=MUTED, ls="--", lw=1.2)
        axes.set(xlabel="balanced accuracy", xlim=(0, 1.02))
    first = next(iter(panels.values()))
    first.set_yticks(range(len(kinds)), kinds)
    first.set_ylim(len(kinds) - 0.5, -0.5)
    return figure


def layer_weights(weights: Mapping[str, np.ndarray], layers: Sequence[int]) -> Figure:
    """Draw the weight of each layer in the learned sum: mean and range over folds.

    Parameters
    ----------
    weights : corpus -> (K, L)
    """
    figure, panels = _panels(list(weights), 2.8)
    for name, axes in panels.items():
        folds = weights[name]
        axes.fill_between(layers, folds.min(0), folds.max(0), alpha=0.22, lw=0)
        axes.plot(layers, folds.mean(0), color=PALETTE[0], marker="o", ms=4)
        axes.axhline(1 / len(layers), color=MUTED, ls="--", lw=1.2)
        _layer_ticks(axes, pd.Series(layers))
        axes.set(xlabel="layer")
    first = next(iter(panels.values()))
    first.set_ylabel("weight")
    first.set_ylim(bottom=0)
    return figure


def head_maps(table: pd.DataFrame) -> Figure:
    """Draw a map of heads a corpus: a row a layer, a cell a head, best first.

    Parameters
    ----------
    table : DataFrame
        Columns ``corpus``, ``layer``, ``accuracy``, ``passes`` (bool).
    """
    names = list(table["corpus"].unique())
    n_layers, n_heads = table["layer"].nunique(), table["layer"].value_counts().max()
    n_heads //= len(names)
    figure, panels = _panels(names, 1.2 + 0.3 * n_layers)
    low, high = table["accuracy"].min(), table["accuracy"].max()
    for name, axes in panels.items():
        rows = table[table["corpus"] == name].sort_values(
            ["layer", "accuracy"], ascending=[True, False]
        )
        rows = rows.assign(rank=rows.groupby("layer").cumcount() + 1)
        grid = rows.pivot(index="layer", columns="rank", values="accuracy")
        words = rows.assign(
            words=[
                f"{accuracy:.2f}" + ("" if passes else " ns")
                for accuracy, passes in zip(
                    rows["accuracy"], rows["passes"], strict=True
                )
            ]
        ).pivot(index="layer", columns="rank", values="words")
        sns.heatmap(
            grid,
            ax=axes,
            vmin=low,
            vmax=high,
            cmap="viridis",
            annot=words if n_heads <= 8 else False,
            fmt="",
            annot_kws={"size": 8},
            cbar=name == names[-1],
            cbar_kws={"label": "balanced accuracy"},
        )
        axes.set(xlabel="head, best first", ylabel="")
        axes.tick_params(axis="y", rotation=0)
    next(iter(panels.values())).set_ylabel("layer")
    return figure


def few_shots(table: pd.DataFrame) -> Figure:
    """Draw accuracy against the number of training clips a class.

    Parameters
    ----------
    table : DataFrame
        Columns ``corpus``, ``features``, ``shots``, ``accuracy``, ``low``, ``high``,
        ``chance``.
    """
    figure, panels = _panels(list(table["corpus"].unique()), 3.6)
    colours = dict(zip(table["features"].unique(), PALETTE, strict=False))
    for name, axes in panels.items():
        rows = table[table["corpus"] == name]
        for features, line in rows.groupby("features", sort=False):
            colour = colours[features]
            axes.plot(
                line["shots"],
                line["accuracy"],
                color=colour,
                marker="o",
                ms=4,
                label=features,
            )
            axes.fill_between(
                line["shots"], line["low"], line["high"], color=colour, alpha=0.18, lw=0
            )
        axes.axhline(
            rows["chance"].iloc[0], color=MUTED, ls="--", lw=1.2, label="chance"
        )
        shots = sorted(rows["shots"].unique())
        axes.set_xscale("log", base=2)
        axes.set_xticks(shots, [str(k) for k in shots])
        axes.set(xlabel="training clips of each class", ylim=(0, 1.02))
    first = next(iter(panels.values()))
    first.set_ylabel("balanced accuracy")
    _legend_below(figure, first, 5)
    return figure


def small_sample(accuracies: Mapping[str, np.ndarray], truth: float) -> Figure:
    """Draw how much accuracy varies with which clips are tested.

    Parameters
    ----------
    accuracies : label -> (draws,)
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.0))
    for colour, (label, draws) in zip(PALETTE, accuracies.items(), strict=False):
        share = np.full(len(draws), 1 / len(draws))
        bins = list(np.linspace(0, 1, 26))
        axes.hist(draws, bins=bins, weights=share, color=colour, alpha=0.6, label=label)
    axes.axvline(truth, color=INK, ls="--", lw=1.2)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="accuracy on the test clips", ylabel="share of draws")
    axes.legend()
    return figure

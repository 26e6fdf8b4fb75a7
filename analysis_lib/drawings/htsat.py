"""Drawings of the HTS-AT chapter."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from analysis_lib.figures import INK, MUTED, PALETTE


def stage_table(config: Any) -> pd.DataFrame:
    """Grid, depth, heads and width of every stage of a ``ClapAudioConfig``."""
    side = config.spec_size // config.patch_size
    rows = [
        {
            "stage": stage,
            "grid": side // 2**stage,
            "windows": max(1, side // 2**stage // config.window_size) ** 2,
            "blocks": depth,
            "heads": heads,
            "width": config.patch_embeds_hidden_size * 2**stage,
        }
        for stage, (depth, heads) in enumerate(
            zip(config.depths, config.num_attention_heads, strict=True)
        )
    ]
    return pd.DataFrame(rows)


def stages(table: pd.DataFrame) -> Figure:
    """Draw the stages as grids of windows, from left to right."""
    figure, axes = plt.subplots(figsize=(8.2, 3.0))
    for row in table.itertuples(index=False):
        stage: Any = row
        left, size = 2.3 * stage.stage, 1.6 * 0.82**stage.stage
        frame = Rectangle((left, -size / 2), size, size, fill=False, ec=INK, lw=1.2)
        axes.add_patch(frame)
        for line in np.linspace(0, size, round(stage.windows**0.5) + 1)[1:-1]:
            axes.plot([left + line] * 2, [-size / 2, size / 2], color=MUTED, lw=0.8)
            axes.plot([left, left + size], [line - size / 2] * 2, color=MUTED, lw=0.8)
        words = (
            f"stage {stage.stage}\n{stage.blocks} blocks × {stage.heads} heads\n"
            f"{stage.width} wide"
        )
        middle = left + size / 2
        axes.text(middle, 0.95, words, ha="center", va="bottom", fontsize=9)
        below = f"{stage.grid} × {stage.grid} tokens"
        axes.text(middle, -0.95, below, ha="center", va="top", fontsize=9)
        if stage.stage:
            arrow = {"arrowstyle": "->", "color": INK}
            axes.annotate("", (left - 0.1, 0), (left - 0.5, 0), arrowprops=arrow)
    axes.set(xlim=(-0.2, 2.3 * len(table) - 1), ylim=(-1.4, 1.9))
    axes.set_axis_off()
    return figure


def head_map(table: pd.DataFrame) -> go.Figure:
    """Map of F, a row a block, a cell a head, sorted within its block.

    Parameters
    ----------
    table : DataFrame
        Indexed by head, with ``layer``, ``block``, ``F``, ``eta2``,
        ``p_familywise`` and ``probe``.
    """
    rows = table.sort_values(["layer", "block", "F"], ascending=[True, True, False])
    place = "L" + rows["layer"].astype(str) + " B" + rows["block"].astype(str)
    rank = rows.groupby(["layer", "block"]).cumcount() + 1
    words = [
        f"{name}<br>F = {F:.1f}<br>η² = {eta2:.2f}<br>family-wise p = {p:.3f}"
        f"<br>probe = {probe:.2f}"
        for name, F, eta2, p, probe in rows[
            ["F", "eta2", "p_familywise", "probe"]
        ].itertuples()
    ]
    cells = pd.DataFrame({"F": rows["F"], "words": words, "place": place, "rank": rank})
    grid = cells.pivot_table("F", "place", "rank", sort=False)
    text = cells.pivot(index="place", columns="rank", values="words")
    heat = go.Heatmap(
        z=grid.to_numpy(),
        x=list(grid.columns),
        y=list(grid.index),
        text=text.reindex(grid.index).fillna("").to_numpy(),
        hovertemplate="%{text}<extra></extra>",
        colorscale="Viridis",
        zmin=0,
        colorbar={"title": "F"},
    )
    layout = {
        "height": 420,
        "margin": {"t": 10, "r": 10},
        "xaxis": {"title": "head, sorted by score within its block"},
        "yaxis": {"title": "stage and block", "autorange": "reversed"},
    }
    return go.Figure(heat, layout)


def score_against_probe(table: pd.DataFrame, chance: float, null: float) -> Figure:
    """Scatter of probe accuracy over F, a point a head, coloured by stage.

    Parameters
    ----------
    table : DataFrame
        Columns ``F``, ``probe`` and ``layer``.
    chance, null
        Accuracy and F where the labels mean nothing.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    colours = list(PALETTE[: table["layer"].nunique()])
    sns.scatterplot(
        table, x="F", y="probe", hue="layer", palette=colours, s=28, ax=axes
    )
    axes.axhline(chance, color=MUTED, ls="--", lw=1.2)
    axes.axvline(null, color=MUTED, ls="--", lw=1.2)
    axes.set(xlabel="F of the head", ylabel="balanced accuracy of its probe")
    sns.move_legend(
        axes, "upper left", bbox_to_anchor=(1, 1), title="stage", title_fontsize=9
    )
    return figure


def overlap_map(overlap: ArrayLike, stage: ArrayLike) -> Figure:
    """Map of similarity between all heads, with lines between stages."""
    matrix, stage = np.asarray(overlap), np.asarray(stage)
    figure, axes = plt.subplots(figsize=(6.0, 5.2))
    picture = axes.imshow(np.clip(matrix, 0, 1), vmin=0, vmax=1, cmap="viridis")
    edges = np.flatnonzero(np.diff(stage)) + 0.5
    axes.hlines(edges, -0.5, len(matrix) - 0.5, color="white", lw=0.8)
    axes.vlines(edges, -0.5, len(matrix) - 0.5, color="white", lw=0.8)
    middles = [float(np.flatnonzero(stage == k).mean()) for k in np.unique(stage)]
    names = [str(k) for k in np.unique(stage)]
    axes.set_xticks(middles, names)
    axes.set_yticks(middles, names)
    axes.set(xlabel="stage of the head", ylabel="stage of the head")
    figure.colorbar(picture, label="debiased linear CKA")
    return figure


def trained_against_random(table: pd.DataFrame, null: float) -> Figure:
    """Box plots of F by stage for the trained weights and for random ones.

    Parameters
    ----------
    table : DataFrame
        Columns ``layer``, ``weights`` and ``F``.
    null
        F where the labels mean nothing.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    sns.boxplot(
        table,
        x="layer",
        y="F",
        hue="weights",
        ax=axes,
        fliersize=2,
        linewidth=1,
        palette=[PALETTE[0], MUTED],
        linecolor=INK,
    )
    axes.axhline(null, color=MUTED, ls="--", lw=1.2)
    axes.set(xlabel="stage", ylabel="F of its heads")
    sns.move_legend(
        axes, "upper left", bbox_to_anchor=(1, 1), title="weights", title_fontsize=9
    )
    return figure


def ablation_curve(outcomes: pd.DataFrame, chance_loss: float) -> Figure:
    """Log-loss over the share of heads removed: best, worst, random.

    Parameters
    ----------
    outcomes : DataFrame
        Columns ``share``, ``heads`` ("none", "best", "worst", "random"), ``loss``.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    start = outcomes[outcomes["heads"] == "none"]
    styles = {
        "best": (PALETTE[1], "o-"),
        "worst": (PALETTE[0], "o-"),
        "random": (MUTED, "s:"),
    }
    for kind, (colour, style) in styles.items():
        part = pd.concat([start, outcomes[outcomes["heads"] == kind]])
        line = part.groupby("share")["loss"].agg(["mean", "min", "max"])
        axes.plot(line.index, line["mean"], style, color=colour, ms=5, label=kind)
        axes.fill_between(
            line.index, line["min"], line["max"], color=colour, alpha=0.2, lw=0
        )
    axes.axhline(chance_loss, color=MUTED, ls="--", lw=1.2, label="guessing")
    axes.set(xlabel="share of heads removed from each block", ylabel="log-loss, nats")
    axes.legend(title="heads removed", title_fontsize=9)
    return figure

"""A result becomes a picture that reads in light and dark, with words beside it.

:func:`show` puts a Matplotlib, seaborn or Plotly figure on the page with its
alternative text and caption. The other functions draw the plots the chapters share and
return the Matplotlib figure, so that a chapter can still change it.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import plotly.graph_objects as go

INK = "#1a1a1b"
"""The colour of text and axes; on the page it becomes the colour of the page's text."""

PALETTE = ("#2f7fc1", "#d1682a", "#2f9e63", "#b565c4", "#a5852a", "#c9506a")
"""Colours with at least 3:1 contrast on both the light and the dark page."""

MUTED = "#808890"
"""For what is drawn behind: chance lines, null bands, controls."""

_RASTER_ABOVE = (
    1500  # marks in one artist; beyond it a vector picture outgrows the page
)


def set_theme() -> None:
    """Set Matplotlib and seaborn to the book's look: clear ground, one ink."""
    # A seaborn grid lays itself out and would say so on the page.
    warnings.filterwarnings("ignore", message="The figure layout has changed to tight")
    sns.set_theme(
        style="ticks",
        palette=list(PALETTE),
        rc={
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "axes.titlecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "legend.labelcolor": INK,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "savefig.dpi": 160,
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "svg.fonttype": "path",
            "svg.hashsalt": "analysis-lib",
            "image.cmap": "viridis",
        },
    )


class Shown:
    """A figure as HTML, with the same words as its plain-text form."""

    def __init__(self, markup: str, words: str, spec: dict[str, Any] | None = None):
        self.markup, self.words, self.spec = markup, words, spec

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = {"text/html": self.markup, "text/plain": self.words}
        if self.spec is not None:  # what JupyterLab draws; the book drops it
            bundle["application/vnd.plotly.v1+json"] = self.spec
        return bundle

    def __repr__(self) -> str:
        return self.words


def show(figure: Any, *, alt: str, caption: str = "") -> None:
    """Put a figure on the page.

    Parameters
    ----------
    figure
        A Matplotlib figure or axes, a seaborn grid, or a Plotly figure.
    alt
        What the figure shows, in words, for a reader who cannot see it.
    caption
        What to look at; Markdown is not read here.

    Raises
    ------
    ValueError
        If ``alt`` is empty.
    """
    if not alt.strip():
        raise ValueError("show(…, alt=…) needs words for a reader who cannot see it")
    if hasattr(figure, "to_plotly_json"):
        display(plotly_html(figure, alt, caption))
        return
    drawn: Any = getattr(figure, "figure", figure)  # of axes or a seaborn grid
    markup = svg(drawn, alt)
    plt.close(drawn)
    words = html.escape(caption.strip())
    label = f"<figcaption>{words}</figcaption>" if words else ""
    display(Shown(f'<figure class="drawing">{markup}{label}</figure>', alt))


def svg(figure: Figure, alt: str) -> str:
    """Draw a Matplotlib figure as inline SVG in the page's own text colour.

    Marks beyond a few thousand become an embedded bitmap. The same figure gives the
    same bytes; ids are unique to it, so that several can stand on one page.
    """
    for artist in figure.findobj():
        if _marks(artist) > _RASTER_ABOVE:
            artist.set_rasterized(True)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "analysis-lib", "svg.fonttype": "path"}):
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", metadata={"Date": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(rf"{INK}|#000000", "currentColor", text)
    name = hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    label = html.escape(" ".join(alt.split()), quote=True)
    return text.replace(
        "<svg ", f'<svg role="img" aria-label="{label}" fill="currentColor" ', 1
    )


def plotly_html(figure: go.Figure, alt: str, caption: str = "") -> Shown:
    """Give a Plotly figure as data that the page's own script draws."""
    spec = json.loads(figure.to_json())
    spec["layout"].pop("template", None)
    data = json.dumps(spec, sort_keys=True, separators=(",", ":")).replace("</", "<\\/")
    height = spec["layout"].get("height", 450)
    words = html.escape(caption.strip())
    label = f"<figcaption>{words}</figcaption>" if words else ""
    markup = (
        '<figure class="plot">'
        f'<p class="plot-words">{html.escape(" ".join(alt.split()))}</p>'
        f'<div class="plot-target" style="min-height:{height}px"></div>{label}'
        f'<script type="application/json">{data}</script></figure>'
    )
    return Shown(markup, alt, spec)


def layer_curve(
    table: pd.DataFrame,
    *,
    x: str = "layer",
    y: str = "accuracy",
    low: str = "low",
    high: str = "high",
    series: str | None = None,
    chance: float | None = None,
    null: tuple[ArrayLike, ArrayLike] | None = None,
    control: ArrayLike | None = None,
    control_label: str = "control",
    x_label: str = "layer",
    y_label: str | None = None,
) -> Figure:
    """Draw a score by layer with its interval, chance, null band and control.

    Parameters
    ----------
    table : DataFrame
        A row for each layer (and series): the columns ``x``, ``y`` and, when known,
        ``low`` and ``high``, the ends of the interval.
    series
        Column that names the curve a row belongs to.
    chance
        Level of a horizontal dashed line.
    null : (low, high), each (n_layers,) or a number
        Band that scores fall in when there is nothing to find.
    control : (n_layers,)
        Score of the control at each layer, drawn dotted.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    places = np.sort(table[x].unique())
    if null is not None:
        bottom, top = (np.broadcast_to(np.asarray(end), places.shape) for end in null)
        axes.fill_between(
            places, bottom, top, color=MUTED, alpha=0.25, lw=0, label="null, 95 %"
        )
    if chance is not None:
        axes.axhline(chance, color=MUTED, ls="--", lw=1.2, label="chance")
    if control is not None:
        axes.plot(
            places, np.asarray(control), color=MUTED, ls=":", marker="s", ms=4,
            label=control_label,
        )  # fmt: skip
    groups = (
        [(None, table)] if series is None else list(table.groupby(series, sort=False))
    )
    for colour, (name, rows) in zip(_colours(len(groups)), groups, strict=True):
        rows = rows.sort_values(x)
        axes.plot(
            rows[x], rows[y], color=colour, marker="o", ms=4.5,
            label=str(name) if name is not None else (y_label or y),
        )  # fmt: skip
        if low in rows and high in rows:
            axes.fill_between(
                rows[x], rows[low], rows[high], color=colour, alpha=0.22, lw=0
            )
    if np.issubdtype(places.dtype, np.integer) and len(places) <= 40:
        axes.set_xticks(places[:: 1 + len(places) // 20])
    axes.set(xlabel=x_label, ylabel=y_label or y)
    figure.legend(loc="outside right upper")
    return figure


def matrix_map(
    matrix: ArrayLike,
    *,
    label: str,
    limits: tuple[float, float],
    x_labels: Sequence[str] | None = None,
    y_labels: Sequence[str] | None = None,
    x_label: str = "layer",
    y_label: str = "layer",
    cmap: str | None = None,
    annotate: bool | None = None,
) -> Figure:
    """Draw a matrix, such as the similarity of every layer to every other.

    Parameters
    ----------
    matrix : (n_rows, n_columns)
        NaN cells stay empty.
    label
        What a cell measures, with its unit: the words at the colour bar.
    limits
        The measure's own range, such as ``(0, 1)``, not the data's: shades of two maps
        then mean the same. A range symmetric about zero gets a diverging map.
    annotate
        Write the number in each cell; by default when there are at most 150 cells.
    """
    values = np.asarray(matrix, dtype=float)
    if values.ndim != 2:
        raise ValueError(f"matrix_map needs two dimensions, got shape {values.shape}")
    bottom, top = limits
    outside = np.isfinite(values) & ((values < bottom - 1e-6) | (values > top + 1e-6))
    if outside.any():
        raise ValueError(
            f"{outside.sum()} cells lie outside limits ({bottom}, {top}): the map runs "
            f"from {np.nanmin(values):.3g} to {np.nanmax(values):.3g}"
        )
    if cmap is None:
        cmap = "vlag" if bottom == -top else "viridis"
    if annotate is None:
        annotate = values.size <= 150
    rows, columns = values.shape
    figure, axes = plt.subplots(
        figsize=(float(np.clip(1.6 + 0.42 * columns, 3.8, 8)),
                 float(np.clip(1.0 + 0.42 * rows, 2.4, 7)))
    )  # fmt: skip
    sns.heatmap(
        values, ax=axes, vmin=bottom, vmax=top, cmap=cmap, annot=annotate, fmt=".2f",
        annot_kws={"size": 8}, square=abs(rows - columns) < 0.5 * max(rows, columns),
        xticklabels=list(x_labels) if x_labels is not None else "auto",
        yticklabels=list(y_labels) if y_labels is not None else "auto",
        cbar_kws={"label": label},
    )  # fmt: skip
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure


def scatter_grid(
    maps: Mapping[str, ArrayLike],
    classes: ArrayLike,
    *,
    columns: int = 4,
    size: float = 2.1,
) -> Figure:
    """Draw several two-dimensional maps of the same points, coloured by class.

    Parameters
    ----------
    maps : title -> (n_points, 2)
        Coordinates without meaning of their own (UMAP, PCA): axes carry no numbers.
    classes : (n_points,)
    """
    kinds = np.asarray(classes)
    names = pd.unique(kinds)
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(size * columns + 1.6, size * rows), squeeze=False
    )
    colours = dict(zip(names, _colours(len(names)), strict=True))
    for axes in grid.flat[len(maps) :]:
        axes.set_axis_off()
    for axes, (title, points) in zip(grid.flat, maps.items(), strict=False):
        places = np.asarray(points)
        if places.shape != (len(kinds), 2):
            raise ValueError(
                f"map {title!r} has shape {places.shape}, needs ({len(kinds)}, 2)"
            )
        for name in names:
            at = kinds == name
            axes.scatter(*places[at].T, s=9, color=colours[name], label=str(name), lw=0)
        axes.set(title=title, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    handles, words = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside right upper", markerscale=1.8)
    return figure


def _colours(number: int) -> list[Any]:
    """The palette, or as many evenly spaced hues of middle lightness as are needed."""
    if number <= len(PALETTE):
        return list(PALETTE[:number])
    return list(sns.husl_palette(number, l=0.58, s=0.85))


def _marks(artist: Any) -> int:
    """How many marks one artist draws, where that can be many."""
    if isinstance(artist, QuadMesh):
        return int(np.size(artist.get_array()))  # type: ignore[arg-type]
    return (
        np.shape(artist.get_offsets())[0] if isinstance(artist, PathCollection) else 1
    )

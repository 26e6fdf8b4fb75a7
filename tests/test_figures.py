import re
import warnings
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import seaborn as sns

from analysis_lib import figures


@pytest.fixture(autouse=True)
def theme():
    figures.set_theme()
    yield
    plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    """Collect what is displayed."""
    kept = []
    monkeypatch.setattr(figures, "display", kept.append)
    return kept


def draw(points=30, colour=None):
    figure, axes = plt.subplots()
    rng = np.random.default_rng(0)
    axes.scatter(*rng.standard_normal((2, points)), color=colour)
    axes.set(title="a < b & c", xlabel="x")
    return figure


def test_words_land_in_the_page(shown):
    figures.show(draw(), alt='A "cloud" & more', caption="Look <here>.")
    page = shown[0].markup
    assert 'aria-label="A &quot;cloud&quot; &amp; more"' in page
    assert "<figcaption>Look &lt;here&gt;.</figcaption>" in page
    assert repr(shown[0]) == 'A "cloud" & more'
    ET.fromstring(page.replace("xlink:", ""))  # well-formed


@pytest.mark.parametrize("alt", ["", "  "])
def test_a_figure_without_words_is_refused(alt):
    with pytest.raises(ValueError, match="needs words"):
        figures.show(draw(), alt=alt)


def test_ink_is_the_colour_of_the_page():
    page = figures.svg(draw(colour="black"), "x")
    assert figures.INK not in page
    assert "#000000" not in page
    assert "currentColor" in page
    white = re.findall(r"fill: #ffffff", page)
    assert not white, "a white ground would stand out on the dark page"


def test_same_figure_same_bytes():
    assert figures.svg(draw(), "x") == figures.svg(draw(), "x")


def test_ids_are_unique_on_a_page():
    pages = [figures.svg(draw(points=n), "x") for n in (10, 20)]
    first, second = ({*re.findall(r'\bid="([^"]+)"', page)} for page in pages)
    assert first
    assert not first & second
    for page, ids in zip(pages, (first, second), strict=True):
        targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
        assert {a or b for a, b in targets} <= ids


def test_many_marks_become_a_bitmap():
    assert "<image" not in figures.svg(draw(points=500), "x")
    page = figures.svg(draw(points=20_000), "x")
    assert "<image" in page
    assert len(page) < 400_000


def test_axes_and_grids_are_figures_too(shown):
    figures.show(draw().axes[0], alt="axes")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would land on the page
        figures.set_theme()
        figures.show(sns.relplot(x=[1, 2], y=[1, 2]), alt="grid")
    assert all("<svg" in one.markup for one in shown)
    assert not plt.get_fignums(), "a figure left open is drawn twice"


def test_plotly_is_data_for_the_page_script(shown):
    figure = go.Figure(go.Scatter(x=[1], y=[2], name="</script>"))
    figures.show(figure, alt="One point.", caption="Hover.")
    bundle = shown[0]._repr_mimebundle_()
    page = bundle["text/html"]
    assert page.count("</script>") == 1, "data cannot end the script element"
    assert '<p class="plot-words">One point.</p>' in page
    assert "template" not in bundle["application/vnd.plotly.v1+json"]["layout"]
    assert "http" not in page


def test_layer_curve_draws_what_it_is_given():
    table = pd.DataFrame({"layer": [2, 0, 1], "accuracy": [0.9, 0.5, 0.7]})
    table["low"], table["high"] = table.accuracy - 0.1, table.accuracy + 0.1
    figure = figures.layer_curve(
        table, chance=0.25, null=(0.2, [0.3, 0.3, 0.3]), control=[0.26, 0.24, 0.25]
    )
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["accuracy"].get_ydata(), [0.5, 0.7, 0.9])
    np.testing.assert_allclose(lines["control"].get_ydata(), [0.26, 0.24, 0.25])
    np.testing.assert_allclose(lines["chance"].get_ydata(), 0.25)
    assert len(axes.collections) == 2  # null band, interval


def test_layer_curve_draws_a_line_a_series():
    table = pd.DataFrame(
        {"layer": [0, 1] * 8, "accuracy": 0.5, "model": np.repeat(list("abcdefgh"), 2)}
    )
    axes = figures.layer_curve(table, series="model").axes[0]
    assert [line.get_label() for line in axes.lines] == list("abcdefgh")


def test_matrix_map_keeps_the_scale_of_the_measure():
    figure = figures.matrix_map([[0.9, np.nan], [0.8, 1.0]], label="cka", limits=(0, 1))
    mesh = figure.axes[0].collections[0]
    assert mesh.get_clim() == (0, 1)
    assert figure.axes[1].get_ylabel() == "cka"


@pytest.mark.parametrize(
    ("matrix", "words"),
    [([[0.5, 1.2]], "1 cells lie outside"), ([1.0, 2.0], "two dimensions")],
)
def test_matrix_map_refuses_what_it_would_misdraw(matrix, words):
    with pytest.raises(ValueError, match=words):
        figures.matrix_map(matrix, label="cka", limits=(0, 1))


def test_scatter_grid_colours_by_class():
    points = np.arange(12.0).reshape(6, 2)
    figure = figures.scatter_grid({"a": points, "b": points}, list("xyzxyz"))
    assert len(figure.axes) == 2
    assert len(figure.axes[0].collections) == 3
    with pytest.raises(ValueError, match=r"map 'a' has shape \(6, 2\), needs \(5, 2\)"):
        figures.scatter_grid({"a": points}, list("xyzxy"))


def test_palette_reads_on_both_grounds():
    def light(colour):
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(
            parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def contrast(one, other):
        low, high = sorted([light(one), light(other)])
        return (high + 0.05) / (low + 0.05)

    for colour in (*figures.PALETTE, figures.MUTED):
        for ground in ("#ffffff", "#121212"):
            assert contrast(colour, ground) >= 3, (colour, ground)

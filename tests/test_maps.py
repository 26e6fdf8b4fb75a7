"""Maps: seeded, aligned, honest about what they show."""

import numpy as np
import pytest
from scipy.stats import ortho_group

from analysis_lib.maps import map_grid, summarise

N, WIDTH = 60, 12
LABELS = np.arange(N) % 3
RNG = np.random.default_rng(0)
CLUSTERS = RNG.normal(size=(N, WIDTH)) + 6 * np.eye(WIDTH)[LABELS]
METHODS = ["pca", "tsne", "umap"]


@pytest.mark.parametrize("method", METHODS)
def test_clusters_show_and_noise_does_not(method):
    if method == "umap":
        pytest.importorskip("umap")
    layers = {"L0": RNG.normal(size=(N, WIDTH)), "L1": CLUSTERS}
    panels = map_grid(layers, LABELS, method, n_neighbors=8)
    again = map_grid(layers, LABELS, method, n_neighbors=8)
    assert [panel.name for panel in panels] == ["L0", "L1", "noise"]
    table = summarise(panels)
    assert table.loc["L1", "silhouette"] > 0.3
    assert table.loc["L1", "map_silhouette"] > table.loc["L1", "silhouette"]
    assert abs(table.loc["noise", "silhouette"]) < 0.1
    assert table.loc["noise", "map_silhouette"] < 0.2
    assert table.loc["L1", "trustworthiness"] > 0.75
    for one, two in zip(panels, again, strict=True):
        assert one.points.shape == (N, 2)
        np.testing.assert_array_equal(one.points, two.points)
        np.testing.assert_allclose(one.points.mean(axis=0), 0, atol=1e-9)
        assert (one.points**2).sum(axis=1).mean() == pytest.approx(1)


def test_panels_of_a_turned_copy_coincide():
    turned = CLUSTERS @ ortho_group.rvs(WIDTH, random_state=1) * 5
    one, two = map_grid({"a": CLUSTERS, "b": turned}, LABELS, "pca", noise=False)
    np.testing.assert_allclose(one.points, two.points, atol=1e-6)


def test_noise_panel_has_the_spread_of_the_last_layer():
    from analysis_lib.maps import _noise_like

    X = RNG.normal(size=(500, 4)) * [10, 5, 1, 0.1] + 100
    noise = _noise_like(X, 0)
    np.testing.assert_allclose(noise.std(axis=0), X.std(axis=0), rtol=0.15)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ({}, "no layers"),
        ({"a": np.ones((N, 3))}, "constant"),
        ({"a": CLUSTERS, "b": CLUSTERS[:-1]}, "Layer b has 59 clips"),
        ({"a": np.full((N, 3), np.nan)}, "layer a"),
        ({"noise": CLUSTERS}, "control panel"),
        ({"a": CLUSTERS[:, :1]}, "two features"),
    ],
)
def test_bad_layers_are_named(layers, said):
    with pytest.raises(ValueError, match=said):
        map_grid(layers, LABELS, "pca")


def test_too_few_clips_and_unknown_methods_are_named():
    with pytest.raises(ValueError, match="too few for 40 neighbours"):
        map_grid({"a": CLUSTERS}, LABELS, n_neighbors=40)
    with pytest.raises(ValueError, match="isomap"):
        map_grid({"a": CLUSTERS}, LABELS, "isomap")

"""Two-dimensional maps of representations, and the numbers that say their worth.

A map is a picture, not evidence: UMAP and t-SNE make clusters tighter than they are.
So each map comes with its trustworthiness, with the silhouette of the labels in the map
*and* in the full space, and a panel of pure noise goes through the same machinery.
Numbers only; drawing is left to the reader of :class:`Map`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.metrics import silhouette_score

from analysis_lib.stats import Floats, as_features, encode_labels

NOISE = "noise"


@dataclass(frozen=True)
class Map:
    """One panel.

    Attributes
    ----------
    name : str
        Layer, or "noise".
    points : (N, 2) array
        Centred, of unit root-mean-square radius, turned towards the panel before.
    trustworthiness : float
        1 where every neighbour in the map is one in the full space; see scikit-learn.
    silhouette : float
        Of the labels in the full space, -1 to 1: the number to quote.
    map_silhouette : float
        Of the labels in the map: usually larger, and not to be quoted.
    """

    name: str
    points: Floats
    trustworthiness: float
    silhouette: float
    map_silhouette: float


def map_grid(
    layers: Mapping[str, ArrayLike],
    y: ArrayLike,
    method: Literal["umap", "tsne", "pca"] = "umap",
    *,
    n_neighbors: int = 15,
    noise: bool = True,
    seed: int = 0,
) -> list[Map]:
    """Map each layer to two dimensions, panels aligned, noise last.

    Every map starts from the first two principal components, is seeded, and is turned
    (or mirrored) to fit the panel before it, so that what moves between panels is the
    data and not the arbitrary axes. The noise panel is Gaussian, with the clips, the
    width and the principal variances of the last layer, and the same labels: what shows
    there shows for no reason.

    Parameters
    ----------
    layers : mapping of name to (N, D) array
        In the order of panels, the same clips in each.
    y : (N,) array
        Labels.
    method : {"umap", "tsne", "pca"}
    n_neighbors : int
        Neighbours for UMAP and for trustworthiness; t-SNE takes it as perplexity.
    noise : bool
        Append the control panel.
    seed : int

    Returns
    -------
    list of Map

    Raises
    ------
    ValueError
        If there are no layers, layers differ in clips or are not finite or constant,
        there are at most 2 ``n_neighbors`` clips, or the method is unknown.

    References
    ----------
    McInnes, Healy and Melville (2018), UMAP. van der Maaten and Hinton (2008),
    Visualizing data using t-SNE. Venna and Kaski (2001), Neighborhood preservation in
    nonlinear projection methods (trustworthiness).
    """
    if method not in ("umap", "tsne", "pca"):
        raise ValueError(f'method is "umap", "tsne" or "pca", not {method!r}.')
    arrays = {name: as_features(X, f"layer {name}") for name, X in layers.items()}
    if not arrays:
        raise ValueError("There are no layers to map.")
    n_clips = len(next(iter(arrays.values())))
    codes, _ = encode_labels(y, n_clips)
    if n_clips <= 2 * n_neighbors:
        raise ValueError(
            f"{n_clips} clips are too few for {n_neighbors} neighbours; "
            f"take fewer than {n_clips / 2:g}."
        )
    for name, X in arrays.items():
        if len(X) != n_clips:
            raise ValueError(f"Layer {name} has {len(X)} clips, not {n_clips}.")
        if not np.ptp(X, axis=0).any():
            raise ValueError(f"Layer {name} is constant: every clip lies on one point.")
    if noise:
        if NOISE in arrays:
            raise ValueError(f'A layer is called "{NOISE}", as the control panel is.')
        arrays[NOISE] = _noise_like(X, seed)
    panels: list[Map] = []
    for name, X in arrays.items():
        points = _standard(_embed(X, method, n_neighbors, seed))
        if panels:
            points = points @ orthogonal_procrustes(points, panels[-1].points)[0]
        panels.append(
            Map(
                name=name,
                points=points,
                trustworthiness=float(
                    trustworthiness(X, points, n_neighbors=n_neighbors)
                ),
                silhouette=float(silhouette_score(X, codes)),
                map_silhouette=float(silhouette_score(points, codes)),
            )
        )
    return panels


def summarise(panels: list[Map]) -> pd.DataFrame:
    """Table of the numbers under the panels, a row a panel."""
    columns = ["name", "trustworthiness", "silhouette", "map_silhouette"]
    rows = [[getattr(panel, column) for column in columns] for panel in panels]
    return pd.DataFrame(rows, columns=columns).set_index("name")


def _embed(X: Floats, method: str, n_neighbors: int, seed: int) -> Floats:
    start = PCA(2, svd_solver="full").fit_transform(X) if X.shape[1] > 1 else None
    if start is None:
        raise ValueError("A map needs at least two features.")
    if method == "pca":
        return start
    if method == "tsne":
        model = TSNE(
            perplexity=n_neighbors,
            init=start / max(start[:, 0].std(), 1e-300) * 1e-4,
            random_state=seed,
            n_jobs=1,
        )
        return model.fit_transform(X).astype(float)
    from umap import UMAP  # compiles for seconds: only where it is asked for

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*spectral|.*n_jobs")
        model = UMAP(
            n_neighbors=n_neighbors,
            init=start / max(np.abs(start).max(), 1e-300) * 10,
            random_state=seed,
            n_jobs=1,
        )
        return np.asarray(model.fit_transform(X), dtype=float)


def _standard(points: Floats) -> Floats:
    """Centre and bring to unit root-mean-square radius."""
    centred = points - points.mean(axis=0)
    return centred / max(np.sqrt((centred**2).sum(axis=1).mean()), 1e-300)


def _noise_like(X: Floats, seed: int) -> Floats:
    """Gaussian noise with the covariance of ``X`` and no relation to any label."""
    _, sizes, axes = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    drawn = np.random.default_rng(seed).normal(size=(len(X), len(sizes)))
    return drawn * sizes / np.sqrt(len(X)) @ axes

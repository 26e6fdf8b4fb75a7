"""How much of a phone fits in one latent, in five, in all; and in their rivals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from ..base import AnalysisError
from .association import encode_classes
from .model import SparseAutoencoder

Matrix: TypeAlias = NDArray[Any] | sp.csr_array


def sparse_probe(
    features: Mapping[str, Matrix],
    labels: ArrayLike,
    train: ArrayLike,
    *,
    k: Sequence[int] = (1, 2, 5, 20),
    phones: Sequence[str] | None = None,
    max_frames: int = 20_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Tell each phone from all others with the k best columns of every feature set.

    Columns are chosen on the training frames by the standardised difference of means
    and go into a class-balanced logistic regression ([1]_, [2]_).

    Parameters
    ----------
    features : mapping of str to array, shape (N, columns)
        The codes and what they must beat; see :func:`baseline_features`.
    labels : array_like of str, shape (N,)
        "" leaves a frame out.
    train : array_like of bool, shape (N,)
        Training frames; the others, of other voices, are tested.
    k : sequence of int
        Numbers of columns; more than there are means all.
    phones : sequence of str, optional
        Default all.
    max_frames : int
        Training frames drawn at most.
    seed : int
        Of that draw.

    Returns
    -------
    pandas.DataFrame
        One row a feature set, phone and k: auroc, average_precision, f1, prevalence.

    References
    ----------
    .. [1] Gurnee et al. (2023). Finding neurons in a haystack: case studies with
       sparse probing. arXiv:2305.01610.
    .. [2] Kantamneni et al. (2025). Are sparse autoencoders useful? A case study in
       sparse probing. arXiv:2502.16681.
    """
    y, names = encode_classes(labels, phones)
    known = np.asarray(labels).astype(str) != ""
    learn = np.asarray(train, bool) & known
    test = ~np.asarray(train, bool) & known
    if not learn.any() or not test.any():
        raise AnalysisError(
            "Probing needs labelled frames of training and test voices."
        )
    drawn = np.flatnonzero(learn)
    if len(drawn) > max_frames:
        rng = np.random.default_rng(seed)
        drawn = np.sort(rng.choice(drawn, max_frames, replace=False))
    held = np.flatnonzero(test)
    rows = []
    for source, matrix in features.items():
        if matrix.shape[0] != len(y):
            raise AnalysisError(
                f"Feature set {source!r} has {matrix.shape[0]} rows, not {len(y)}."
            )
        columns = sp.csr_array(matrix)
        fit, unseen = columns[drawn], columns[held]
        for code, phone in enumerate(names):
            target, truth = y[drawn] == code, y[held] == code
            if target.all() or truth.all() or not target.any() or not truth.any():
                continue
            order = np.argsort(-np.abs(_effect(fit, target)), kind="stable")
            for size in k:
                best = np.sort(order[:size])
                result = _probe(fit[:, best], target, unseen[:, best], truth)
                rows.append({"features": source, "phone": phone, "k": size, **result})
    return pd.DataFrame(rows)


def _effect(X: sp.csr_array, positive: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Difference of class means over the pooled standard deviation, by column."""
    n = np.array([positive.sum(), (~positive).sum()])
    mask = np.stack([positive, ~positive]).astype(float)
    means = np.asarray(mask @ X) / n[:, None]
    squares = np.asarray(mask @ X.multiply(X)).sum(0) / len(positive)
    pooled = squares - (n[:, None] * means**2).sum(0) / len(positive)
    return (means[0] - means[1]) / np.sqrt(np.maximum(pooled, 1e-12))


def _probe(
    fit: sp.csr_array, target: NDArray, unseen: sp.csr_array, truth: NDArray
) -> dict[str, float]:
    X, Z = fit.toarray(), unseen.toarray()
    mean, scale = X.mean(0), X.std(0)
    scale = np.where(scale > 0, scale, 1)
    model = LogisticRegression(class_weight="balanced", max_iter=300)
    model.fit((X - mean) / scale, target)
    score = model.decision_function((Z - mean) / scale)
    return {
        "auroc": float(roc_auc_score(truth, score)),
        "average_precision": float(average_precision_score(truth, score)),
        "f1": float(f1_score(truth, score > 0)),
        "prevalence": float(truth.mean()),
    }


def baseline_features(
    frames: Any, train: ArrayLike, sae: SparseAutoencoder, *, seed: int = 0
) -> dict[str, Matrix]:
    """Feature sets without learned sparse codes, for comparison at equal k.

    Parameters
    ----------
    frames : array of shape (N, D)
    train : array_like of bool, shape (N,)
        What PCA and k-means are fitted on.
    sae : SparseAutoencoder
        Gives width, k and architecture of the untrained one.
    seed : int

    Returns
    -------
    dict
        ``raw`` dimensions, ``pca`` scores, ``k-means`` membership (as many clusters as
        latents, at most a tenth of the training frames) and codes of a ``random SAE``.
    """
    x = np.asarray(frames, dtype=np.float32)
    learn = np.flatnonzero(np.asarray(train, bool))
    pca = PCA(min(x.shape[1], len(learn)), random_state=seed).fit(x[learn])
    n_clusters = max(2, min(sae.n_latents, len(learn) // 10))
    clusters = MiniBatchKMeans(n_clusters, random_state=seed, n_init=1).fit(x[learn])
    member = clusters.predict(x)
    ones = np.ones(len(x), np.float32)
    shape = (len(x), n_clusters)
    untrained = SparseAutoencoder(
        sae.d_in, sae.n_latents, sae.k, "topk", seed=seed + 1000
    )
    with torch.no_grad():
        untrained.b_dec.copy_(sae.b_dec)
    return {
        "raw": x,
        "pca": pca.transform(x),
        "k-means": sp.csr_array((ones, (np.arange(len(x)), member)), shape=shape),
        "random SAE": untrained.codes(x),
    }

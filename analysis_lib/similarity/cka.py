"""Centred kernel alignment: biased, debiased, and calibrated by its exact null.

Everything linear CKA needs of two representations is three numbers a pair and the
clips' squared norms. With centred X, Y and Gram matrices K = XXᵀ, L = YYᵀ:

- ⟨K, L⟩ = ‖XᵀY‖², taken from whichever side is the cheaper;
- d_i = K_ii and e_i = L_ii, for the debiased estimate and for the null.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import pdist, squareform

from analysis_lib.similarity.inputs import (
    Floats,
    Ids,
    centered,
    paired,
    unit,
    warn_if_constant,
)

Method = Literal["auto", "features", "gram"]
_BLOCK_BYTES = 64 * 2**20


class CKANull(NamedTuple):
    """Mean and standard deviation of CKA over all pairings of the clips."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Moments:
    """What linear CKA needs of L layers against M layers over n clips."""

    n: int
    cross: Floats  # (L, M): ⟨K_l, L_m⟩ of centred Gram matrices
    own: tuple[Floats, Floats]  # (L,), (M,): ⟨K_l, K_l⟩ and ⟨L_m, L_m⟩
    norms: tuple[Floats, Floats]  # (L, n), (M, n): squared norms of the clips

    def biased(self) -> Floats:
        """CKA from the plug-in (Gretton) estimate of HSIC."""
        return _ratio(self.cross, *self.own)

    def debiased(self) -> Floats:
        """CKA from the unbiased (Song) estimate of HSIC."""
        d, e = self.norms
        cross = _unbias(self.cross, d @ e.T, d.sum(1), e.sum(1), self.n)
        own = [
            np.diag(_unbias(np.diag(v), x @ x.T, x.sum(1), x.sum(1), self.n))
            for v, x in zip(self.own, self.norms, strict=True)
        ]
        return _ratio(cross, *own)

    def null(self) -> tuple[Floats, Floats]:
        """Permutation mean and sd of the biased CKA (Kazi-Aoual et al., 1995)."""
        n = self.n
        dimension, spread = [], []
        for own, norms in zip(self.own, self.norms, strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):
                beta = norms.sum(1) ** 2 / own
                peaks = n * (n + 1) * (norms**2).sum(1) / own
            dimension.append(beta)
            spread.append((n - 1) / (n - 3) * (peaks - (n - 1) * (beta + 2)))
        mean = np.sqrt(np.outer(*dimension)) / (n - 1)
        left = np.outer(n - 1 - dimension[0], n - 1 - dimension[1])
        right = (n - 3) / (2 * n * (n - 1)) * np.outer(*spread)
        variance = 2 / ((n + 1) * (n - 1) ** 2 * (n - 2)) * (left + right)
        return mean, np.sqrt(np.maximum(variance, 0))


def _ratio(cross: Floats, own_x: Floats, own_y: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(np.outer(own_x, own_y))
        result: Floats = np.where(scale > 0, cross / scale, np.nan)
    return result


def _unbias(cross: Floats, shared: Floats, x: Floats, y: Floats, n: int) -> Floats:
    """n(n-3)·HSIC_unbiased: the diagonal's share leaves ⟨K, L⟩.

    A centred Gram's rows sum to 0, so the row sums without the diagonal are -d.
    """
    result: Floats = (
        cross - shared + np.outer(x, y) / ((n - 1) * (n - 2)) - 2 * shared / (n - 2)
    )
    return result


def moments(
    xs: Sequence[Floats], ys: Sequence[Floats] | None = None, method: Method = "auto"
) -> Moments:
    """Take the moments of centred layers; ``ys=None`` compares ``xs`` with itself.

    ``method`` "features" costs N·D² a pair, "gram" N²·D a layer and N² a pair
    (streamed, never an N×N matrix in memory); "auto" counts and takes the cheaper.
    """
    n = len(xs[0])
    if method not in ("auto", "features", "gram"):
        raise ValueError(f"method={method!r}: choose 'auto', 'features' or 'gram'")
    if method == "auto":
        widths = np.array([x.shape[1] for x in xs], dtype=float)
        others = (
            widths if ys is None else np.array([y.shape[1] for y in ys], dtype=float)
        )
        pairs = len(widths) * (len(widths) + 1) / 2
        every = (widths.sum() ** 2 + (widths**2).sum()) / 2
        if ys is not None:
            pairs = len(widths) * len(others)
            every = widths.sum() * others.sum() + (widths**2).sum() + (others**2).sum()
            widths = np.concatenate([widths, others])
        gram = n * n / 2 * (widths.sum() + pairs)
        method = "gram" if gram < n * every else "features"
    take = _by_gram if method == "gram" else _by_features
    cross, own_x, own_y = take(xs, ys)
    d = np.stack([np.einsum("nd,nd->n", x, x) for x in xs])
    e = d if ys is None else np.stack([np.einsum("nd,nd->n", y, y) for y in ys])
    return Moments(n, cross, (own_x, own_y), (d, e))


def _by_features(
    xs: Sequence[Floats], ys: Sequence[Floats] | None
) -> tuple[Floats, Floats, Floats]:
    def inner(x: Floats, y: Floats) -> float:
        product = x.T @ y
        return float(np.vdot(product, product))

    own_x = np.array([inner(x, x) for x in xs])
    if ys is not None:
        cross = np.array([[inner(x, y) for y in ys] for x in xs])
        return cross, own_x, np.array([inner(y, y) for y in ys])
    cross = np.diag(own_x)
    for i, x in enumerate(xs):
        for j in range(i + 1, len(xs)):
            cross[i, j] = cross[j, i] = inner(x, xs[j])
    return cross, own_x, own_x


def _by_gram(
    xs: Sequence[Floats], ys: Sequence[Floats] | None
) -> tuple[Floats, Floats, Floats]:
    """Sum ⟨K_l, L_m⟩ over row blocks right of the diagonal; symmetry gives the rest."""
    n, count = len(xs[0]), len(xs)
    layers = [*xs, *(ys or [])]
    step = int(np.clip(_BLOCK_BYTES // (8 * n * len(layers)), min(16, n), n))
    cross = np.zeros((count, count if ys is None else len(ys)))
    own = np.zeros(len(layers))
    buffer = np.empty(len(layers) * step * n)
    for start in range(0, n, step):
        stop = min(start + step, n)
        shape = (len(layers), stop - start, n - start)
        block = buffer[: np.prod(shape)].reshape(shape)
        for x, gram in zip(layers, block, strict=True):
            np.matmul(x[start:stop], x[start:].T, out=gram)
        on_diagonal = block[:, :, : stop - start].reshape(len(layers), -1)
        for values, weight in ((block.reshape(len(layers), -1), 2), (on_diagonal, -1)):
            left = values[:count]
            right = left if ys is None else values[count:]
            cross += weight * (left @ right.T)
            own += weight * np.einsum("lk,lk->l", values, values)
    return cross, own[:count], own[:count] if ys is None else own[count:]


def linear_cka(
    X: ArrayLike,
    Y: ArrayLike,
    debiased: bool = False,
    *,
    method: Method = "auto",
    ids: Ids | None = None,
) -> float:
    """Linear centred kernel alignment of two representations of the same clips.

    Parameters
    ----------
    X, Y
        ``(N, D_x)`` and ``(N, D_y)``: row i of both is clip i.
    debiased
        Replace the plug-in HSIC, which is high for few clips in many dimensions
        (two independent representations of 500 clips in 768 dimensions score about
        0.6), by the unbiased one: near 0 for independent representations, and then
        possibly just below 0.
    method
        "features" (N·D_x·D_y) or "gram" (N²·D); "auto" takes the cheaper.
    ids
        Clip ids of X and of Y, to be sure that rows correspond.

    Returns
    -------
    float
        1 for equal up to offset, scale and rotation; NaN if X or Y is constant.

    Raises
    ------
    ValueError
        For unequal clips, NaN, or fewer than 2 clips (4 if ``debiased``).

    References
    ----------
    Kornblith et al. (2019), ICML, eq. 2; Song et al. (2012), JMLR 13, eq. 5.
    """
    stats = _pair(X, Y, method, ids, at_least=4 if debiased else 2)
    return float((stats.debiased() if debiased else stats.biased())[0, 0])


def linear_cka_null(X: ArrayLike, Y: ArrayLike, *, ids: Ids | None = None) -> CKANull:
    """What the biased linear CKA of X and Y would be if their clips were unrelated.

    The mean and standard deviation over all N! pairings of the clips, in closed
    form: linear CKA is the RV coefficient.

    Parameters
    ----------
    X, Y
        ``(N, D_x)`` and ``(N, D_y)``, N ≥ 4.
    ids
        Clip ids of X and of Y.

    Returns
    -------
    CKANull
        ``.mean`` and ``.sd``.

    References
    ----------
    Kazi-Aoual, Hitier, Sabatier & Lebreton (1995), Comput. Stat. Data Anal. 20;
    Josse, Pagès & Husson (2008), Comput. Stat. Data Anal. 53.
    """
    mean, sd = _pair(X, Y, "auto", ids, at_least=4).null()
    return CKANull(float(mean[0, 0]), float(sd[0, 0]))


def debiased_cka_sd(n_clips: int) -> float:
    """Permutation sd of the debiased linear CKA: √(2 / (N(N-3))), whatever the data.

    Its permutation mean is 0. Both follow from the pairwise moments of two
    U-centred matrices, whose rows all sum to 0.

    References
    ----------
    Székely & Rizzo (2013), J. Multivariate Anal. 117 (the degrees of freedom of
    their t-test are N(N-3)/2).
    """
    if n_clips < 4:
        raise ValueError(f"{n_clips} clips are too few: debiased CKA needs 4")
    return float(np.sqrt(2 / (n_clips * (n_clips - 3))))


def calibrated_cka(X: ArrayLike, Y: ArrayLike, *, ids: Ids | None = None) -> float:
    """Linear CKA with its exact chance level taken off: (CKA - E) / (1 - E).

    0 is what unrelated clips give on average, 1 is equality; see `linear_cka_null`.
    """
    stats = _pair(X, Y, "auto", ids, at_least=4)
    mean = stats.null()[0]
    return float(((stats.biased() - mean) / (1 - mean))[0, 0])


def rbf_cka(
    X: ArrayLike,
    Y: ArrayLike,
    sigma: float = 1.0,
    debiased: bool = False,
    *,
    ids: Ids | None = None,
) -> float:
    """CKA with Gaussian kernels exp(-‖x_i - x_j‖² / (2 s²)), s = sigma × median.

    Parameters
    ----------
    X, Y
        ``(N, D_x)`` and ``(N, D_y)``.
    sigma
        Width of the kernel in units of the median distance between clips, taken for
        X and Y each on its own.
    debiased
        As in `linear_cka`.
    ids
        Clip ids of X and of Y.

    Returns
    -------
    float
        In [0, 1] (debiased: may fall just below 0); NaN for a constant layer.

    References
    ----------
    Kornblith et al. (2019), ICML, section 3.
    """
    layers = [centered(a) for a in paired(X, Y, ids, at_least=4 if debiased else 2)]
    warn_if_constant(layers, ["X", "Y"])
    kernels = [rbf_gram(layer, sigma, debiased) for layer in layers]
    return float(np.vdot(*kernels))


def rbf_gram(X: Floats, sigma: float, debiased: bool) -> Floats:
    """Centred (U-centred if debiased) Gaussian Gram matrix of Frobenius norm 1."""
    if not sigma > 0:
        raise ValueError(f"sigma={sigma}: the kernel's width must be positive")
    squares = pdist(X, "sqeuclidean")
    # Few distinct points can leave a median of 0; the mean distance then stands in.
    width = np.median(np.sqrt(squares)) or np.sqrt(squares).mean()
    if width == 0:
        return np.full((len(X), len(X)), np.nan)
    kernel = squareform(np.exp(-squares / (2 * (sigma * width) ** 2)))
    np.fill_diagonal(kernel, 1)
    kernel = u_centered(kernel) if debiased else double_centered(kernel)
    result: Floats = kernel / np.linalg.norm(kernel)
    return result


def double_centered(K: Floats) -> Floats:
    """HKH: rows and columns that sum to 0."""
    rows = K.mean(axis=0)
    result: Floats = K - rows - rows[:, None] + rows.mean()
    return result


def u_centered(K: Floats) -> Floats:
    """Székely & Rizzo's U-centring: zero diagonal, rows that sum to 0."""
    n = len(K)
    off = K - np.diag(np.diag(K))
    rows = off.sum(axis=0)
    result: Floats = (
        off
        - rows / (n - 2)
        - rows[:, None] / (n - 2)
        + rows.sum() / ((n - 1) * (n - 2))
    )
    np.fill_diagonal(result, 0)
    return result


def minibatch_cka(batches: Iterable[tuple[ArrayLike, ArrayLike]]) -> float:
    """Linear CKA of representations that are only ever seen a batch at a time.

    The three unbiased HSIC estimates are averaged over batches, and only then
    divided: averaging biased estimates, or ratios, does not converge to CKA.

    Parameters
    ----------
    batches
        Pairs ``(X_b, Y_b)`` of the same clips, each of 4 clips or more.

    Returns
    -------
    float
        Near the debiased CKA of all clips; NaN if a layer is constant.

    References
    ----------
    Nguyen, Raghu & Kornblith (2021), ICLR, eq. 3.
    """
    sums = np.zeros(3)
    seen = 0
    for seen, (X, Y) in enumerate(batches, start=1):
        try:
            layers = [centered(a) for a in paired(X, Y, None, at_least=4)]
        except ValueError as error:
            raise ValueError(f"batch {seen - 1}: {error}") from None
        found = moments([layers[0]], [layers[1]])
        (d, e), n = found.norms, found.n
        for slot, (value, a, b) in enumerate(
            [(found.cross, d, e), (found.own[0], d, d), (found.own[1], e, e)]
        ):
            value = np.reshape(value, (1, 1))
            hsic = _unbias(value, a @ b.T, a.sum(1), b.sum(1), n) / (n * (n - 3))
            sums[slot] += hsic[0, 0]
    if seen == 0:
        raise ValueError("no batches were given: pass pairs (X_b, Y_b)")
    if sums[1] <= 0 or sums[2] <= 0:
        return float("nan")
    return float(sums[0] / np.sqrt(sums[1] * sums[2]))


def _pair(
    X: ArrayLike, Y: ArrayLike, method: Method, ids: Ids | None, at_least: int
) -> Moments:
    layers = [unit(centered(a)) for a in paired(X, Y, ids, at_least)]
    warn_if_constant(layers, ["X", "Y"])
    return moments(layers[:1], layers[1:], method)

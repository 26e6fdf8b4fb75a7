"""How well a dictionary describes frames it has not seen, and how it spends latents."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from ..base import AnalysisError
from ..stats import group_bootstrap
from .model import SparseAutoencoder, as_frames
from .train import train_sae

DENSE = 0.1
"""A latent active in more than this share of frames counts as dense."""


@dataclass(frozen=True)
class SAEEvaluation:
    """Quality of a dictionary on held-out frames.

    Attributes
    ----------
    fvu : float
        Squared error over squared distance from the mean frame; 0 is perfect, 1 what
        the mean frame alone achieves.
    interval : tuple of float
        95 % interval of ``fvu``, whole groups (voices, recordings) resampled.
    explained_variance : float
        ``1 - fvu``.
    l0, l0_std : float
        Mean and standard deviation of active latents per frame.
    cosine : float
        Mean cosine of frame and reconstruction, both relative to the mean frame.
    relative_norm : float
        Mean norm of the centred reconstruction over that of the centred frame;
        below 1 is shrinkage.
    dead, dense : float
        Share of latents that never fire here, and that fire in over 10 % of frames.
    density : ndarray, shape (H,)
        Share of frames each latent is active in.
    n_frames, n_groups : int
    """

    fvu: float
    interval: tuple[float, float]
    explained_variance: float
    l0: float
    l0_std: float
    cosine: float
    relative_norm: float
    dead: float
    dense: float
    density: NDArray[np.float64]
    n_frames: int
    n_groups: int

    def density_histogram(self, bins: int = 30) -> tuple[NDArray, NDArray]:
        """Counts and edges of ``log10(density)`` over live latents."""
        return np.histogram(np.log10(self.density[self.density > 0]), bins=bins)


@torch.no_grad()
def evaluate_sae(
    sae: SparseAutoencoder,
    frames: Any,
    groups: ArrayLike | None = None,
    *,
    batch_size: int = 4096,
    seed: int = 0,
) -> SAEEvaluation:
    """Measure a dictionary on held-out frames.

    Parameters
    ----------
    sae : SparseAutoencoder
    frames : array of shape (N, D)
        Of voices or recordings the dictionary was not trained on.
    groups : array_like, shape (N,), optional
        What belongs together in resampling; without it 200 stretches of consecutive
        frames, since neighbours are alike.
    batch_size : int
    seed : int
        Of the bootstrap.

    Returns
    -------
    SAEEvaluation

    Raises
    ------
    AnalysisError
        If there are under two frames, or their width or number does not fit.
    """
    n = len(frames)
    if n < 2:
        raise AnalysisError(f"{n} frames cannot be evaluated; hold out at least two.")
    labels = np.arange(n) * 200 // n if groups is None else np.asarray(groups)
    if len(labels) != n:
        raise AnalysisError(f"{n} frames but {len(labels)} groups; give one per frame.")

    def batches() -> Iterable[torch.Tensor]:
        for i in range(0, n, batch_size):
            yield as_frames(frames[i : i + batch_size]).float().to(sae.W_enc.device)

    mean = sum(x.double().sum(0) for x in batches()) / n
    mean = torch.as_tensor(mean).float()
    error, power, cosine, ratio, l0 = (np.empty(n) for _ in range(5))
    active = np.zeros(sae.n_latents)
    for start, x in zip(range(0, n, batch_size), batches(), strict=True):
        code = sae.encode(x)
        output = sae.decode(code)
        here = slice(start, start + len(x))
        a, b = x - mean, output - mean
        error[here] = (x - output).square().sum(1).cpu().numpy()
        power[here] = a.square().sum(1).cpu().numpy()
        cosine[here] = torch.cosine_similarity(a, b).cpu().numpy()
        ratio[here] = (b.norm(dim=1) / a.norm(dim=1).clamp_min(1e-12)).cpu().numpy()
        l0[here] = (code > 0).sum(1).cpu().numpy()
        active += (code > 0).sum(0).cpu().numpy()
    if power.sum() == 0:
        raise AnalysisError("All frames are equal; there is no variance to explain.")
    codes, index = np.unique(labels, return_inverse=True)
    e, p = (np.bincount(index, weights=v) for v in (error, power))
    # The statistic needs only each group's two sums, so a group is one sample.
    interval, _, _ = group_bootstrap(
        lambda i: float(e[i].sum() / p[i].sum()), np.arange(len(codes)), seed=seed
    )
    fvu = float(error.sum() / power.sum())
    density = active / n
    return SAEEvaluation(
        fvu=fvu,
        interval=(float(interval[0]), float(interval[1])),
        explained_variance=1 - fvu,
        l0=float(l0.mean()),
        l0_std=float(l0.std()),
        cosine=float(cosine.mean()),
        relative_norm=float(ratio.mean()),
        dead=float((active == 0).mean()),
        dense=float((density > DENSE).mean()),
        density=density,
        n_frames=n,
        n_groups=len(codes),
    )


def pareto_grid(
    train_frames: Any,
    test_frames: Any,
    *,
    k: Iterable[int],
    n_latents: Iterable[int],
    n_samples: int,
    seeds: Iterable[int] = (0, 1, 2),
    groups: ArrayLike | None = None,
    architecture: str = "topk",
    score: Callable[[SparseAutoencoder], dict[str, float]] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Train every k × width × seed on equally many frames and measure each.

    Parameters
    ----------
    train_frames, test_frames : array of shape (N, D)
        Of different voices.
    k, n_latents : iterable of int
        k stays fixed along a curve of widths.
    n_samples : int
        Frames every run sees.
    seeds : iterable of int
    groups : array_like, optional
        Of ``test_frames``.
    architecture : str
    score : callable, optional
        Further figures of a dictionary, such as its loss recovered.
    **options
        Passed on to :func:`train_sae`.

    Returns
    -------
    pandas.DataFrame
        One row a run: k, n_latents, seed, fvu, l0, dead, dense, cosine, ….
    """
    rows = []
    for width, active, seed in itertools.product(n_latents, k, seeds):
        sae = train_sae(
            train_frames,
            n_latents=width,
            k=active,
            seed=seed,
            n_samples=n_samples,
            architecture=architecture,
            **options,
        )
        result = evaluate_sae(sae, test_frames, groups)
        rows.append(
            {
                "architecture": architecture,
                "k": active,
                "n_latents": width,
                "seed": seed,
                "fvu": result.fvu,
                "l0": result.l0,
                "dead": result.dead,
                "dense": result.dense,
                "cosine": result.cosine,
                **(score(sae) if score is not None else {}),
            }
        )
    return pd.DataFrame(rows)

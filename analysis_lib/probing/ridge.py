"""Ridge regression over all folds at once, in closed form.

Leaving clips out of a ridge regression subtracts their sums of squares and products.
With features z and targets y, the normal equations of the clips that remain are

    (S_zz - S_zz(out) - n m m' + penalty I) beta = S_zy - S_zy(out) - n m t'

with S_zy = sum z y' over all clips or those left out, and n, m and t the number, mean
features and mean targets of what remains. So each fold's products are made once; every
outer fold, every inner fold (two folds left out) and every penalty is one Cholesky
factor; and any number of label permutations shares the factors. The answers are those
of refitting, to rounding.

Where features outnumber clips, one eigendecomposition of the N x N Gram matrix turns
the features into at most N - 1 coordinates with the same inner products; ridge
regression does not notice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from analysis_lib.stats import Floats, Ints

# Penalties in units of the mean variance of a training feature: free of scale.
PENALTIES = np.logspace(-5, 1, 7)
# Index of the penalty used where too few clips remain to choose.
FIXED = 4


class Targets(NamedTuple):
    """Sums over each fold of what is to be predicted."""

    products: Floats  # (K, r, M): Z'Y
    sums: Floats  # (K, M)

    def columns(self, which: np.ndarray) -> Targets:
        """Keep some of the M targets."""
        return Targets(self.products[:, :, which], self.sums[:, which])


@dataclass(frozen=True)
class Training:
    """The clips that remain when folds are left out, as sums.

    Attributes
    ----------
    gram : (r, r) array
        Centred squares and products of features.
    mean : (r,) array
    n : int
        Number of clips.
    folds : list of int
        The folds that remain.
    """

    gram: Floats
    mean: Floats
    n: int
    folds: list[int]

    @property
    def unit(self) -> float:
        """Mean over features of their sum of squares: one penalty unit."""
        return float(np.trace(self.gram)) / len(self.gram)

    def predict(self, targets: Targets, penalty: float, *parts: Floats) -> list[Floats]:
        """Predict targets of each part (n, r) of new clips: list of (n, M)."""
        beta, target_mean, _ = self._solve(targets, penalty)
        return [target_mean + (part - self.mean) @ beta for part in parts]

    def discriminate(
        self, targets: Targets, penalty: float, *parts: Floats
    ) -> list[Floats]:
        """Score new clips on every class, where targets are class indicators.

        The score of class c is (fit_c - own_c / 2) / share_c: the fitted indicator,
        less half its mean over the class's own training clips, over the class's share.
        The largest wins. That is the nearest class mean in the metric of the penalised
        covariance, so a rare class is recognised like a common one; with two classes it
        is exactly regularised linear discriminant analysis with equal priors. A class
        that was not trained scores -inf.
        """
        beta, share, products = self._solve(targets, penalty)
        with np.errstate(divide="ignore", invalid="ignore"):
            own = share + np.einsum("rm,rm->m", products, beta) / (self.n * share)
            offset = np.where(share > 0, (share - own / 2) / share, -np.inf)
            beta *= np.where(share > 0, 1 / share, 0)
        offset -= self.mean @ beta
        return [part @ beta + offset for part in parts]

    def _solve(self, targets: Targets, penalty: float) -> tuple[Floats, Floats, Floats]:
        """Coefficients, mean targets and centred products."""
        unit = self.unit
        if unit <= 1e-13:
            raise ValueError("X is constant over the training clips of a fold.")
        gram = self.gram.copy()
        gram.flat[:: len(gram) + 1] += penalty * unit
        factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
        target_mean = targets.sums[self.folds].sum(axis=0) / self.n
        products = -np.outer(self.n * self.mean, target_mean)
        for fold in self.folds:
            products += targets.products[fold]
        beta = cho_solve(factor, products, check_finite=False)
        return beta, target_mean, products


class FoldedRidge:
    """Sums of squares and products of each fold of (N, D) features.

    Attributes
    ----------
    tests : list of int arrays
        The clips of each fold.
    parts : list of (n_fold, r) arrays
        Their features in units of the root mean square, or coordinates where D > N.
    """

    def __init__(self, X: Floats, folds: Ints) -> None:
        self._mean = X.mean(axis=0)
        Z = X - self._mean
        # What is left of a constant after rounding is not spread.
        if np.abs(Z).max() <= 1e-13 * np.abs(X).max():
            raise ValueError("X is constant: every clip has the same features.")
        self._unit = float(np.sqrt(np.mean(Z**2)))
        Z /= self._unit
        self._basis = None
        if Z.shape[1] > Z.shape[0]:
            values, vectors = np.linalg.eigh(Z @ Z.T)
            keep = values > values[-1] * 1e-14
            self._basis = Z.T @ (vectors[:, keep] / np.sqrt(values[keep]))
            Z = vectors[:, keep] * np.sqrt(values[keep])
        self.tests = [np.flatnonzero(folds == fold) for fold in range(folds.max() + 1)]
        self.parts = [Z[test] for test in self.tests]
        self._grams = [part.T @ part for part in self.parts]
        self._sums = [part.sum(axis=0) for part in self.parts]
        self._gram, self._sum = sum(self._grams), sum(self._sums)

    def targets(self, Y: Floats) -> Targets:
        """Sum (N, M) targets fold by fold."""
        Y_parts = [Y[test] for test in self.tests]
        return Targets(
            np.stack([p.T @ t for p, t in zip(self.parts, Y_parts, strict=True)]),
            np.stack([part.sum(axis=0) for part in Y_parts]),
        )

    def without(self, *out: int) -> Training:
        """Training set of all folds but those in ``out``."""
        folds = [fold for fold in range(len(self.parts)) if fold not in out]
        n = sum(len(self.parts[fold]) for fold in folds)
        mean = (self._sum - sum(self._sums[fold] for fold in out)) / n
        gram = np.outer(-n * mean, mean)
        gram += self._gram
        for fold in out:
            gram -= self._grams[fold]
        return Training(gram, mean, n, folds)

    def coordinates(self, X: Floats) -> Floats:
        """Express clips that lie in no fold like ``parts``."""
        Z = (X - self._mean) / self._unit
        return Z if self._basis is None else Z @ self._basis

    def inner_pairs(self) -> list[tuple[int, int]]:
        """Folds to leave out together, so that each fold has two to choose by.

        Fold f chooses its penalty on folds f - 1 and f + 1, each predicted without
        itself and f. One factor serves both folds of a pair. None with two folds.
        """
        n = len(self.parts)
        return [(fold, (fold + 1) % n) for fold in range(n)] if n > 2 else []

    def absolute(self, chosen: Ints) -> Floats:
        """Penalty of each fold in the units of scikit-learn's ``Ridge(alpha)`` on X."""
        units = np.array([self.without(fold).unit for fold in range(len(self.parts))])
        return PENALTIES[chosen] * units * self._unit**2

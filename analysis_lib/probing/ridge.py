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

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from analysis_lib.stats import Floats, Ints

# Penalties in units of the mean variance of a training feature: free of scale.
PENALTIES = np.logspace(-6, 2, 9)


class Targets(NamedTuple):
    """Sums over each fold of what is to be predicted."""

    products: Floats  # (K, r, M): Z'Y
    sums: Floats  # (K, M)


Solve = Callable[[Targets, float, list[int]], list[Floats]]


class FoldedRidge:
    """Sums of squares and products of each fold of (N, D) features.

    Attributes
    ----------
    Z : (N, r) array
        Features in units of their root mean square, or their coordinates where D > N.
    tests : list of int arrays
        The clips of each fold.
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
        self.Z = Z
        self.tests = [np.flatnonzero(folds == fold) for fold in range(folds.max() + 1)]
        self._sizes = np.array([len(test) for test in self.tests])
        self._grams = np.stack([Z[test].T @ Z[test] for test in self.tests])
        self._sums = np.stack([Z[test].sum(axis=0) for test in self.tests])

    def discriminate_new(self, targets: Targets, penalty: float, X: Floats) -> Floats:
        """Score clips that lie in no fold, from all folds: see :meth:`discriminate`."""
        Z = (X - self._mean) / self._unit
        if self._basis is not None:
            Z = Z @ self._basis
        return self._class_scores(targets, penalty, [], [Z])[0]

    def targets(self, Y: Floats) -> Targets:
        """Sum (N, M) targets fold by fold."""
        return Targets(
            np.stack([self.Z[test].T @ Y[test] for test in self.tests]),
            np.stack([Y[test].sum(axis=0) for test in self.tests]),
        )

    def predict(self, targets: Targets, penalty: float, out: list[int]) -> list[Floats]:
        """Predict each fold in ``out`` by a regression that saw none of them.

        Parameters
        ----------
        targets : Targets
        penalty : float
            In units of the mean variance of a training feature.
        out : list of int
            Folds left out of training.

        Returns
        -------
        list of (n_fold, M) arrays
        """
        beta, mean, target_mean, _ = self._fit(targets, penalty, out)
        return [target_mean + (self.Z[self.tests[f]] - mean) @ beta for f in out]

    def discriminate(
        self, targets: Targets, penalty: float, out: list[int]
    ) -> list[Floats]:
        """Score each fold in ``out`` on every class, where targets are indicators.

        The score of class c is (fit_c - own_c / 2) / share_c: the fitted indicator,
        less half its mean over the class's own training clips, over the class's share.
        The largest wins. That is the nearest class mean in the metric of the penalised
        covariance, so a rare class is recognised like a common one; with two classes it
        is exactly regularised linear discriminant analysis with equal priors. A class
        that was not trained scores -inf.
        """
        left_out = [self.Z[self.tests[fold]] for fold in out]
        return self._class_scores(targets, penalty, out, left_out)

    def inner_predictions(
        self, solve: Solve, targets: Targets, penalty: float
    ) -> Floats:
        """Predict each fold g without folds f and g, for every f: (K, N, M).

        Row f is the inner cross-validation of outer fold f (NaN on fold f itself). One
        factor serves the pairs (f, g) and (g, f). ``solve`` is ``predict`` or
        ``discriminate``.
        """
        n_folds = len(self.tests)
        result = np.full((n_folds, len(self.Z), targets.sums.shape[1]), np.nan)
        for f in range(n_folds):
            for g in range(f):
                of_f, of_g = solve(targets, penalty, [f, g])
                result[f, self.tests[g]] = of_g
                result[g, self.tests[f]] = of_f
        return result

    def outer_predictions(
        self, solve: Solve, targets: Targets, penalties: Floats
    ) -> Floats:
        """Predict every fold from the others, at that fold's penalty: (N, M)."""
        result = np.empty((len(self.Z), targets.sums.shape[1]))
        for fold, test in enumerate(self.tests):
            result[test] = solve(targets, penalties[fold], [fold])[0]
        return result

    def absolute(self, penalties: Floats) -> Floats:
        """Penalty of each fold in the units of scikit-learn's ``Ridge(alpha)`` on X."""
        scales = [self._factor([f], 1.0)[2] for f in range(len(self.tests))]
        return penalties * np.array(scales) * self._unit**2

    def _class_scores(
        self, targets: Targets, penalty: float, out: list[int], parts: list[Floats]
    ) -> list[Floats]:
        beta, mean, share, products = self._fit(targets, penalty, out)
        n = self._sizes.sum() - self._sizes[out].sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            own = share + np.einsum("rm,rm->m", products, beta) / (n * share)
            offset = np.where(share > 0, (share - own / 2) / share, -np.inf)
            beta = np.where(share > 0, beta / share, 0)
        return [offset + (part - mean) @ beta for part in parts]

    def _fit(
        self, targets: Targets, penalty: float, out: list[int]
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Coefficients, mean features, mean targets, centred products of training."""
        factor, mean, _ = self._factor(out, penalty)
        rest = self._rest(out)
        n = self._sizes[rest].sum()
        target_mean = targets.sums[rest].sum(axis=0) / n
        products = targets.products[rest].sum(axis=0) - n * np.outer(mean, target_mean)
        return (
            cho_solve(factor, products, check_finite=False),
            mean,
            target_mean,
            products,
        )

    def _factor(
        self, out: list[int], penalty: float
    ) -> tuple[tuple[Floats, bool], Floats, float]:
        """Cholesky factor of the training Gram matrix, mean features, penalty unit."""
        rest = self._rest(out)
        n = self._sizes[rest].sum()
        mean = self._sums[rest].sum(axis=0) / n
        gram = self._grams[rest].sum(axis=0) - n * np.outer(mean, mean)
        scale = float(np.trace(gram)) / len(gram)
        if scale <= 1e-13:
            raise ValueError("X is constant over the training clips of a fold.")
        gram.flat[:: len(gram) + 1] += penalty * scale
        return (
            cho_factor(gram, lower=True, overwrite_a=True, check_finite=False),
            mean,
            scale,
        )

    def _rest(self, out: list[int]) -> list[int]:
        return [fold for fold in range(len(self.tests)) if fold not in out]

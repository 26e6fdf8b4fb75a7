"""Can a linear rule read the label? Ridge with a null band; logistic to confirm."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis_lib.probing.folds import Splits, deal, given_folds, group_folds
from analysis_lib.probing.results import ProbeResult, balanced_accuracy, score
from analysis_lib.probing.ridge import PENALTIES, FoldedRidge
from analysis_lib.stats import Floats, Ints, as_features, permute_labels

# Where too few clips remain to choose.
FIXED_PENALTY = 0.1
LOGISTIC_PENALTIES = np.array([1000.0, 100.0, 10.0, 1.0, 0.1])


def linear_probe(
    X: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    method: Literal["ridge", "logistic"] = "ridge",
    n_splits: int = 5,
    folds: ArrayLike | None = None,
    n_permutations: int = 100,
    n_bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> ProbeResult:
    """Measure how well a linear rule recognises the label on clips of unseen groups.

    Ridge: least squares onto class indicators, with equal priors, so that rare classes
    count like common ones (``ridge.FoldedRidge.discriminate`` has the rule). The
    penalty of each fold is chosen by cross-validation inside its training clips. The
    null repeats everything on permuted labels at the penalties chosen for the real
    ones. No feature is scaled by itself: the probe does not change under rotation,
    shift, or one scale for all features.

    Logistic: scikit-learn's multinomial regression on standardised features, classes
    weighted equally, penalty chosen on the same inner folds. It is refitted for each
    permutation, so ask for few.

    Parameters
    ----------
    X : (N, D) array
        One vector a clip. D may exceed N.
    y : (N,) array
        Labels of any kind.
    groups : (N,) array, optional
        What must not lie in training and test at once. Default: each clip its own.
    method : {"ridge", "logistic"}
    n_splits : int
        Folds; fewer if there are fewer groups (warned, and in ``.notes``).
    folds : (N,) array, optional
        Fold of each clip, instead of stratified folds drawn here.
    n_permutations : int
        Label permutations for the null; 0 for none.
    n_bootstrap : int
    level : float
        Of the interval.
    seed : int
        Of folds, permutations and bootstrap.

    Returns
    -------
    ProbeResult

    Raises
    ------
    ValueError
        If features are not finite or constant, labels are missing or of one class, or
        fewer than two classes have two groups.

    References
    ----------
    Alain and Bengio (2016), Understanding intermediate layers using linear classifier
    probes. Hastie, Tibshirani and Friedman (2009), The Elements of Statistical
    Learning, sections 3.4.1 and 4.2.
    """
    features = as_features(X)
    if folds is None:
        splits = group_folds(y, groups, n_splits, seed, n_clips=len(features))
    else:
        splits = given_folds(y, groups, folds, len(features))
    features = features[splits.clips]
    null = None
    permuted, scheme = permute_labels(splits.codes, splits.groups, n_permutations, seed)
    if method == "ridge":
        ridge = FoldedRidge(features, splits.folds)
        scores, probabilities, penalties = cross_validate(ridge, splits)
        if n_permutations:
            null = _ridge_null(ridge, permuted, penalties), scheme
        penalties = ridge.absolute(penalties)
    elif method == "logistic":
        scores, penalties = _logistic(features, splits)
        probabilities = scores
        if n_permutations:
            null = _logistic_null(features, splits, permuted, penalties), scheme
    else:
        raise ValueError(f'method is "ridge" or "logistic", not {method!r}.')
    return score(
        splits,
        scores,
        probabilities,
        penalties,
        f"{method} probe",
        (features.shape[1] + 1) * len(splits.classes),
        null,
        n_bootstrap,
        level,
        seed,
    )


def cross_validate(ridge: FoldedRidge, splits: Splits) -> tuple[Floats, Floats, Floats]:
    """Held-out scores (n, C), probabilities (n, C) and relative penalties (K,)."""
    y, folds = splits.codes, splits.folds
    targets = ridge.targets(np.eye(len(splits.classes))[y])
    n_folds = splits.n_splits
    chosen, best = np.full(n_folds, FIXED_PENALTY), np.full(n_folds, -np.inf)
    sharpness = np.ones(n_folds)
    if n_folds > 2:  # with two folds, nothing is left to choose on
        kept = np.empty((n_folds, len(y), len(splits.classes)))
        for penalty in PENALTIES:  # ascending, so that ties take the stronger
            inner = ridge.inner_predictions(ridge.discriminate, targets, penalty)
            for fold in range(n_folds):
                train = folds != fold
                guess = inner[fold][train].argmax(axis=1)
                merit = balanced_accuracy(y[train], guess)[0]
                if merit >= best[fold]:
                    best[fold], chosen[fold], kept[fold] = merit, penalty, inner[fold]
        for fold in range(n_folds):
            sharpness[fold] = _sharpness(kept[fold][folds != fold], y[folds != fold])
    scores = ridge.outer_predictions(ridge.discriminate, targets, chosen)
    return scores, softmax(scores * sharpness[folds][:, None], axis=1), chosen


def fit_and_score(
    X: Floats, y: Ints, groups: Ints, n_classes: int, new: Floats, seed: int = 0
) -> tuple[Floats, float]:
    """Train on all of ``X``, choosing the penalty inside it; score ``new`` clips.

    For training sets of any size: classes may be missing or have a single clip.

    Returns
    -------
    probabilities : (len(new), C) array
    penalty : float
        Relative, as in ``FoldedRidge``.
    """
    groups = np.unique(groups, return_inverse=True)[1]
    n_folds = min(5, int(groups.max()) + 1)
    choose = n_folds > 1 and len(np.unique(y)) > 1
    folds = deal(y, groups, n_folds, seed) if choose else np.zeros_like(y)
    ridge = FoldedRidge(X, folds)
    targets = ridge.targets(np.eye(n_classes)[y])
    best, chosen, kept = -np.inf, FIXED_PENALTY, None
    for penalty in PENALTIES if choose else []:
        try:
            inner = np.empty((len(y), n_classes))
            for fold, test in enumerate(ridge.tests):
                inner[test] = ridge.discriminate(targets, penalty, [fold])[0]
        except ValueError:  # too few clips remain to vary
            break
        merit = balanced_accuracy(y, inner.argmax(axis=1))[0]
        if merit >= best:
            best, chosen, kept = merit, float(penalty), inner
    sharpness = 1.0 if kept is None else _sharpness(kept, y)
    scores = ridge.discriminate_new(targets, chosen, new)
    return softmax(scores * sharpness, axis=1), chosen


def _sharpness(scores: Floats, y: Ints) -> float:
    """Factor on scores at which their softmax gives the labels most probability."""
    known = np.isfinite(scores[np.arange(len(y)), y])
    if not known.any():
        return 1.0
    scores, y = scores[known], y[known]
    weight = 1 / np.bincount(y)[y]

    def surprise(log_factor: float) -> float:
        log_p = log_softmax(scores * np.exp(log_factor), axis=1)
        return float(-(weight * log_p[np.arange(len(y)), y]).sum())

    return float(np.exp(minimize_scalar(surprise, bounds=(-7, 7), method="bounded").x))


def _ridge_null(ridge: FoldedRidge, permuted: Ints, penalties: Floats) -> Floats:
    """Balanced accuracy under each row of permuted labels, all at once."""
    n_classes = int(permuted.max()) + 1
    batch = max(1, 2**23 // (permuted.shape[1] * n_classes))
    result = []
    for labels in np.array_split(permuted, -(-len(permuted) // batch)):
        one_hot = (labels.T[:, :, None] == np.arange(n_classes)).astype(float)
        targets = ridge.targets(one_hot.reshape(len(one_hot), -1))
        scores = ridge.outer_predictions(ridge.discriminate, targets, penalties)
        predictions = scores.reshape(one_hot.shape).argmax(axis=2).T
        result.append(_many_accuracies(labels, predictions, n_classes))
    return np.concatenate(result)


def _many_accuracies(y: Ints, predictions: Ints, n_classes: int) -> Floats:
    """Balanced accuracy of each row, labels differing from row to row: (P,)."""
    right = (y == predictions).astype(float)
    recalls = []
    for label in range(n_classes):
        of_class = y == label
        size = of_class.sum(axis=1)
        recalls.append(
            np.where(size, (right * of_class).sum(axis=1) / np.maximum(size, 1), np.nan)
        )
    return np.nanmean(recalls, axis=0)


def _pipeline(penalty: float = 1.0) -> Pipeline:
    return make_pipeline(
        StandardScaler(),
        LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=1000),
    )


def _logistic(X: Floats, splits: Splits) -> tuple[Floats, Floats]:
    """Held-out probabilities and the penalty 1/C chosen in each fold."""
    y, folds = splits.codes, splits.folds
    probabilities = np.zeros((len(y), len(splits.classes)))
    penalties = np.ones(splits.n_splits)
    for fold in range(splits.n_splits):
        train, test = folds != fold, folds == fold
        model = _pipeline()
        if splits.n_splits > 2:
            search = GridSearchCV(
                model,
                {"logisticregression__C": 1 / LOGISTIC_PENALTIES},
                cv=PredefinedSplit(folds[train]),
                scoring="balanced_accuracy",
            )
            with warnings.catch_warnings():
                # An inner fold may lack a class; its accuracy is over those present.
                warnings.filterwarnings("ignore", "y_pred contains classes not in")
                search.fit(X[train], y[train])
            model = search.best_estimator_
            penalties[fold] = 1 / search.best_params_["logisticregression__C"]
        else:
            model.fit(X[train], y[train])
        known = model.classes_
        probabilities[np.ix_(test, known)] = model.predict_proba(X[test])
    return probabilities, penalties


def _logistic_null(
    X: Floats, splits: Splits, permuted: Ints, penalties: Floats
) -> Floats:
    result = []
    for labels in permuted:
        predictions = np.empty_like(labels)
        for fold, penalty in enumerate(penalties):
            train, test = splits.folds != fold, splits.folds == fold
            model = _pipeline(penalty).fit(X[train], labels[train])
            predictions[test] = model.predict(X[test])
        result.append(balanced_accuracy(labels, predictions)[0])
    return np.array(result)

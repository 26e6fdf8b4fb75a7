"""Fisher's ratio: its formula, its invariances, its null, and its p-values."""

import numpy as np
import pytest
from scipy.stats import f_oneway, ortho_group
from sklearn.covariance import LedoitWolf

from analysis_lib.discriminability import (
    eta_squared,
    f_statistic,
    fisher_null,
    fisher_score,
    fisher_scores,
    fisher_test,
    multivariate_fisher,
    split_half_reliability,
)

N_CLASSES, N_PER_CLASS, WIDTH = 6, 20, 8
LABELS = np.repeat(np.arange(N_CLASSES), N_PER_CLASS)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def signal(strength=1.0, seed=0):
    return noise(len(LABELS), WIDTH, seed=seed) + strength * np.eye(WIDTH)[LABELS]


def test_score_is_the_formula():
    X = signal() + 3
    between = np.zeros(WIDTH)
    within = np.zeros(WIDTH)
    for label in range(N_CLASSES):
        of_class = X[label == LABELS]
        between += len(of_class) * (of_class.mean(0) - X.mean(0)) ** 2
        within += ((of_class - of_class.mean(0)) ** 2).sum(0)
    assert fisher_score(X, LABELS) == pytest.approx((between / within).mean(), rel=1e-9)
    explained = between / (between + within)
    assert eta_squared(X, LABELS) == pytest.approx(explained.mean(), rel=1e-9)


def test_f_is_the_analysis_of_variance():
    X = signal()[:, :1]
    F = f_statistic(fisher_score(X, LABELS), len(LABELS), N_CLASSES)
    expected = f_oneway(*(X[label == LABELS, 0] for label in range(N_CLASSES)))
    np.testing.assert_allclose(F, expected.statistic, rtol=1e-9)


def test_scale_shift_and_label_names_do_not_matter():
    X = signal()
    score = fisher_score(X, LABELS)
    scales = 10.0 ** np.arange(-4, 4)
    assert fisher_score(X * scales + 7, LABELS) == pytest.approx(score, rel=1e-6)
    assert fisher_score(X * 1e-9, LABELS) == pytest.approx(score, rel=1e-9)
    names = np.array([f"class {9 - label}" for label in LABELS])
    assert fisher_score(X, names) == pytest.approx(score, rel=1e-12)


def test_noise_scores_the_null_value():
    X = noise(len(LABELS), 4000)
    n_within = len(LABELS) - N_CLASSES
    expected = fisher_null(LABELS) * n_within / (n_within - 2)
    assert fisher_score(X, LABELS) == pytest.approx(expected, rel=0.03)
    shuffled = np.random.default_rng(1).permutation(LABELS)
    planted = fisher_score(signal(), LABELS)
    assert fisher_score(signal(), shuffled) < planted / 3


def test_constant_and_pure_features():
    X = signal()
    padded = np.hstack([X, np.full_like(X, 0.1)])
    assert fisher_score(padded, LABELS) == pytest.approx(fisher_score(X, LABELS) / 2)
    assert fisher_score(LABELS[:, None] * 1e-6, LABELS) > 1e11
    with pytest.raises(ValueError, match="constant"):
        fisher_score(np.full((len(LABELS), 3), 0.1), LABELS)


def test_many_taps_equal_one_by_one_and_may_differ_in_width():
    taps = [signal(seed=i)[:, : i + 2] for i in range(5)]
    one_by_one = [fisher_score(X, LABELS) for X in taps]
    np.testing.assert_allclose(fisher_scores(taps, LABELS), one_by_one, rtol=1e-9)
    cube = np.stack([signal(seed=i) for i in range(3)])
    expected = [fisher_score(X, LABELS) for X in cube]
    np.testing.assert_allclose(fisher_scores(cube, LABELS), expected, rtol=1e-9)


def test_multivariate_score_is_the_trace_and_survives_rotation():
    X = signal()
    residual = np.vstack(
        [X[label == LABELS] - X[label == LABELS].mean(0) for label in range(N_CLASSES)]
    )
    within = LedoitWolf(assume_centered=True).fit(residual).covariance_ * len(X)
    means = np.stack([X[label == LABELS].mean(0) for label in range(N_CLASSES)])
    between = N_PER_CLASS * (means - X.mean(0)).T @ (means - X.mean(0))
    expected = np.trace(np.linalg.inv(within) @ between) / WIDTH
    score = multivariate_fisher(X, LABELS)
    assert score == pytest.approx(expected)
    turned = X @ ortho_group.rvs(WIDTH, random_state=0) * 1e-3 + 5
    assert multivariate_fisher(turned, LABELS) == pytest.approx(score)


def test_multivariate_score_sees_what_single_features_miss():
    common = noise(len(LABELS), 1) * 3
    sign = np.where(LABELS % 2, 1.0, -1.0)[:, None]
    X = np.hstack([common, common + sign + 0.3 * noise(len(LABELS), 1, seed=1)])
    assert multivariate_fisher(X, LABELS) > 5 * fisher_score(X, LABELS)


def test_planted_taps_are_found_and_noise_is_not():
    taps = noise(40, len(LABELS), WIDTH)
    taps[[3, 17]] += np.eye(WIDTH)[LABELS]
    table = fisher_test(taps, LABELS, n_permutations=300)
    assert set(table.index[table["p_familywise"] < 0.05]) == {"3", "17"}
    noise_p = table["p"].drop(["3", "17"])
    assert 0.3 < noise_p.mean() < 0.7
    assert (table["p_familywise"] >= table["p"] - 0.01).all()
    assert table.loc["0", "null"] == pytest.approx(table.attrs["chance"], rel=0.1)


def test_shuffled_labels_find_nothing():
    taps = np.stack([signal(seed=i) for i in range(20)])
    shuffled = np.random.default_rng(0).permutation(LABELS)
    table = fisher_test(taps, shuffled, n_permutations=200)
    assert (table["p_familywise"] > 0.05).all()


def test_groups_that_repeat_themselves_are_not_evidence():
    # Ten copies of two recordings a class: clips alone look significant.
    groups = np.repeat(np.arange(12), 10)
    X = noise(12, WIDTH)[groups] + 0.05 * noise(120, WIDTH, seed=1)
    naive = fisher_test([X], LABELS, n_permutations=200)
    grouped = fisher_test([X], LABELS, groups, n_permutations=200)
    assert naive["p"].iloc[0] < 0.01
    assert grouped["p"].iloc[0] > 0.05
    assert grouped.attrs["permuted"] == "groups"


def test_one_group_a_class_is_refused():
    with pytest.raises(ValueError, match="cannot be told apart"):
        fisher_test([signal()], LABELS, groups=LABELS)


def test_permutations_by_group_sums_equal_the_plain_way():
    groups = np.repeat(np.arange(24), 5)
    table = fisher_test([signal()], LABELS, groups, n_permutations=30, seed=5)
    from analysis_lib.stats import permute_labels

    drawn, _ = permute_labels(LABELS, groups, 30, seed=5)
    expected = np.mean([fisher_score(signal(), labels) for labels in drawn])
    assert table["null"].iloc[0] == pytest.approx(expected, rel=1e-9)


def test_reliability_is_high_with_signal_and_none_without():
    groups = np.repeat(np.arange(60), 2)
    strengths = np.linspace(0, 1.5, 15)
    taps = [signal(strength, seed=i) for i, strength in enumerate(strengths)]
    good = split_half_reliability(taps, LABELS, groups, n_splits=20)
    assert good.half > 0.8
    assert good.full > good.half
    bad = split_half_reliability(noise(15, 120, WIDTH), LABELS, groups, n_splits=20)
    assert abs(bad.half) < 0.5
    assert bad.interval.low < 0 < bad.interval.high


def test_halves_share_no_group():
    from analysis_lib.discriminability import _half_of_groups

    groups = np.repeat(np.arange(24), 5)
    for seed in range(5):
        half = _half_of_groups(LABELS, groups, np.random.default_rng(seed))
        assert not set(groups[half]) & set(groups[~half])
        assert set(LABELS[half]) == set(LABELS[~half]) == set(range(N_CLASSES))


@pytest.mark.parametrize(
    ("X", "y", "said"),
    [
        (np.full((4, 2), np.nan), [0, 0, 1, 1], "row 0"),
        (noise(4, 2), [0, 0, 1], "3 values for 4 clips"),
        (noise(4, 2), [0, 1, 2, 3], "one clip only"),
        (noise(4, 2), [0, 0, 0, 0], "one class only"),
        (noise(4, 2), ["a", None, "b", "b"], "missing"),
    ],
)
def test_bad_input_is_named(X, y, said):
    with pytest.raises(ValueError, match=said):
        fisher_score(X, y)

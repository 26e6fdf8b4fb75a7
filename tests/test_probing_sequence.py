"""Trained probes: attention against its match, masks, mixtures of layers."""

import numpy as np
import pytest

from analysis_lib.probing import (
    attention_probe,
    compare,
    concatenation_probe,
    linear_probe,
    mlp_probe,
    weighted_sum_probe,
)
from analysis_lib.probing.sequence import AttentionProbe, MeanPoolProbe

N, T, WIDTH, N_CLASSES = 180, 6, 8, 3
LABELS = np.arange(N) % N_CLASSES
GROUPS = np.arange(N) // 6
RNG = np.random.default_rng(0)


def one_telling_frame(strength=6.0):
    """Frames of noise; one, marked by a loud last feature, carries the class.

    The others carry random classes unmarked, so that the mean says little.
    """
    frames = RNG.normal(size=(N, T, WIDTH))
    frames[:, :, :N_CLASSES] += 3 * np.eye(N_CLASSES)[RNG.integers(3, size=(N, T))]
    marked = RNG.integers(T, size=N)
    frames[np.arange(N), marked, -1] += strength
    frames[np.arange(N), marked, :N_CLASSES] = 3 * np.eye(N_CLASSES)[LABELS]
    return frames


def test_attention_finds_the_frame_that_the_mean_loses():
    frames = one_telling_frame()
    attention = attention_probe(frames, LABELS, GROUPS, n_splits=3)
    mean = mlp_probe(frames, LABELS, GROUPS, n_splits=3)
    assert attention.accuracy > 0.8
    assert compare(attention, mean).interval.low > 0
    shuffled = attention_probe(
        frames, np.random.default_rng(1).permutation(LABELS), GROUPS, n_splits=3
    )
    assert shuffled.accuracy < 0.55


@pytest.mark.parametrize(("width", "n_classes"), [(16, 3), (768, 10), (96, 35)])
def test_probes_match_in_parameters(width, n_classes):
    counts = [
        sum(p.numel() for p in build(width, n_classes).parameters())
        for build in (AttentionProbe, MeanPoolProbe)
    ]
    assert abs(counts[0] - counts[1]) <= width + 1 + n_classes


def test_what_lies_outside_the_mask_is_never_read():
    frames = RNG.normal(size=(N, T, WIDTH)) + np.eye(WIDTH)[LABELS][:, None]
    mask = np.arange(T) < RNG.integers(2, T, size=N)[:, None]
    spoiled = np.where(mask[:, :, None], frames, np.nan)
    for probe in (attention_probe, mlp_probe):
        one = probe(frames, LABELS, GROUPS, mask, n_splits=2, max_epochs=3)
        two = probe(spoiled, LABELS, GROUPS, mask, n_splits=2, max_epochs=3)
        np.testing.assert_array_equal(one.probabilities, two.probabilities)


def test_same_seed_same_numbers_and_the_global_seed_is_left_alone():
    import torch

    frames = one_telling_frame()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    runs = [
        attention_probe(frames, LABELS, n_splits=2, max_epochs=2, seed=s).probabilities
        for s in (3, 3, 4)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("frames", "mask", "said"),
    [
        (np.ones((N, WIDTH)), None, "clip, time, feature"),
        (RNG.normal(size=(N, 1, WIDTH)), None, "use mlp_probe"),
        (RNG.normal(size=(N, T, WIDTH)), np.ones((N, 3)), "mask has shape"),
        (RNG.normal(size=(N, T, WIDTH)), np.zeros((N, T)), "Clip 0 has no frame"),
        (np.full((N, T, WIDTH), np.nan), None, "NaN"),
        (RNG.normal(size=(T, N, WIDTH)), None, "180 values for 6 clips"),
    ],
)
def test_bad_frames_are_named(frames, mask, said):
    with pytest.raises(ValueError, match=said):
        attention_probe(frames, LABELS, mask=mask)


# --- layers -------------------------------------------------------------------------


def layers(informative=2, scale=1.0):
    stack = np.random.default_rng(2).normal(size=(4, N, WIDTH))
    stack[informative] += 2 * np.eye(WIDTH)[LABELS]
    stack[informative] *= scale
    return stack


@pytest.mark.parametrize("scale", [0.001, 1000.0])
def test_weights_find_the_layer_whatever_its_scale(scale):
    result = weighted_sum_probe(layers(scale=scale), LABELS, GROUPS, n_splits=3)
    assert result.layer_weights.shape == (3, 4)
    np.testing.assert_allclose(result.layer_weights.sum(axis=1), 1, rtol=1e-6)
    assert (result.layer_weights.argmax(axis=1) == 2).all()
    best = linear_probe(layers()[2], LABELS, GROUPS, n_splits=3, n_permutations=0)
    assert result.accuracy > best.accuracy - 0.15
    plain = weighted_sum_probe(layers(), LABELS, GROUPS, n_splits=3)
    np.testing.assert_allclose(plain.layer_weights, result.layer_weights, atol=1e-3)


def test_no_layer_no_weight():
    noise = np.random.default_rng(3).normal(size=(4, N, WIDTH))
    result = weighted_sum_probe(noise, LABELS, GROUPS, n_splits=3)
    assert result.accuracy < 0.5
    assert result.layer_weights.max() < 0.6


def test_concatenation_is_the_linear_probe_of_scaled_layers():
    small = concatenation_probe(layers(scale=0.001), LABELS, GROUPS)
    large = concatenation_probe(layers(), LABELS, GROUPS)
    np.testing.assert_allclose(small.probabilities, large.probabilities, atol=1e-6)
    assert large.accuracy > 0.6


def test_layers_that_cannot_be_added_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        weighted_sum_probe([np.ones((N, 2)), np.ones((N, 3))], LABELS)
    with pytest.raises(ValueError, match="layer 1 is constant"):
        concatenation_probe([layers()[0], np.ones((N, 3))], LABELS)

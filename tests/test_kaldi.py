"""Our Kaldi filter banks against Kaldi's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis_lib.encoders import kaldi


def sounds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    seconds = np.arange(16_000) / 16_000
    return {
        "noise": 0.1 * rng.standard_normal(16_000),
        "tone with an offset": 0.3 + 0.5 * np.sin(2 * np.pi * 440 * seconds),
        "quiet then loud": np.where(seconds < 0.5, 1e-4, 0.5)
        * rng.standard_normal(16_000),
        "odd length": 0.1 * rng.standard_normal(12_345),
        "one frame": 0.1 * rng.standard_normal(400),
    }


@pytest.mark.parametrize("name", sounds())
@pytest.mark.parametrize(("n_mels", "low"), [(128, 300.0), (120, 20.0), (23, 20.0)])
def test_equals_kaldi(name: str, n_mels: int, low: float) -> None:
    # With 128 filters from 20 Hz one filter holds no bin of the spectrum (BEATs has
    # it so, at the logarithm's floor); this reference refuses that, so start higher.
    knf = pytest.importorskip("kaldi_native_fbank")
    wave = (sounds()[name] * 2**15).astype(np.float32)
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.samp_freq = 16_000
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = n_mels
    options.mel_opts.low_freq = low
    theirs = knf.OnlineFbank(options)
    theirs.accept_waveform(16_000, wave.tolist())
    theirs.input_finished()
    expected = np.stack([theirs.get_frame(i) for i in range(theirs.num_frames_ready)])
    ours = kaldi.fbank(torch.from_numpy(wave), n_mels=n_mels, low=low).numpy()
    assert ours.shape == expected.shape
    # Beside a loud tone the empty bands hold float32's own rounding, in both; so
    # compare logarithms of energies within 90 dB of the frame's loudest band.
    heard = expected > expected.max(1, keepdims=True) - 9 * np.log(10)
    assert heard.mean() > 0.2
    np.testing.assert_allclose(ours[heard], expected[heard], rtol=0, atol=2e-3)
    np.testing.assert_allclose(np.exp(ours), np.exp(expected), rtol=0.5, atol=0.1)


def test_one_of_beats_own_filters_is_empty() -> None:
    filters = kaldi.mel_filters(128, 512, 16_000.0, 20.0, 8_000.0)
    assert (filters.sum(0) == 0).sum() == 1
    noise = 2**13 * torch.randn(4_000, generator=torch.Generator().manual_seed(0))
    heard = kaldi.fbank(noise)
    floor = torch.tensor(torch.finfo(torch.float32).eps).log()
    assert torch.equal(heard == floor, (filters.sum(0) == 0).expand_as(heard))


def test_frame_count_and_position() -> None:
    assert [kaldi.n_frames(n) for n in (0, 399, 400, 559, 560, 16_000)] == [
        0, 0, 1, 1, 2, 98,
    ]  # fmt: skip
    click = torch.zeros(16_000)
    click[8_000] = 2.0**15
    heard = kaldi.fbank(click).mean(1)
    loud = (heard > heard.min() + 1).nonzero().flatten()
    # Frame i spans [160 i, 160 i + 400): those that hold sample 8 000, less the one
    # that meets it at the window's edge.
    assert loud.min() >= 48
    assert loud.max() == 50
    assert abs((160 * loud.float().mean() + 200) - 8_000) < 160


def test_batches_silence_and_too_short_signals() -> None:
    waves = 2**13 * torch.randn(3, 4_000, generator=torch.Generator().manual_seed(0))
    together = kaldi.fbank(waves)
    for row, wave in zip(together, waves, strict=True):
        torch.testing.assert_close(row, kaldi.fbank(wave), rtol=0, atol=1e-4)
    silent = kaldi.fbank(torch.zeros(1_600))
    assert torch.allclose(silent, torch.tensor(torch.finfo(torch.float32).eps).log())
    assert kaldi.fbank(torch.zeros(2, 399)).shape == (2, 0, 128)


def test_stays_float32_under_autocast() -> None:
    wave = 2**13 * torch.randn(8_000, generator=torch.Generator().manual_seed(1))
    exact = kaldi.fbank(wave)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kaldi.fbank(wave), exact)

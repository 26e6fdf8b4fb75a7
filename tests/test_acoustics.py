"""Acoustic measurements of sounds whose answer is known."""

import numpy as np
import pytest

from analysis_lib.acoustics import (
    acoustic_targets,
    fundamental_frequency,
    log_mel,
    log_mel_features,
    rms_level,
    sound_duration,
    spectral_centroid,
)

RATE = 16000
TIME = np.arange(RATE) / RATE
NOISE = np.random.default_rng(0).normal(size=RATE) * 0.1


def tone(frequency, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(rate) / rate)


def test_levels():
    assert rms_level(2 * tone(440)) == pytest.approx(-3.0103, abs=1e-3)
    assert rms_level(tone(440)) - rms_level(tone(440) / 10) == pytest.approx(20)
    assert rms_level(np.zeros(100)) == -120


@pytest.mark.parametrize("frequency", [100, 440, 3000])
def test_centroid_of_a_tone_is_its_frequency(frequency):
    assert spectral_centroid(tone(frequency), RATE) == pytest.approx(
        frequency, rel=0.01
    )


def test_centroid_of_white_noise_is_half_way():
    assert spectral_centroid(NOISE, RATE) == pytest.approx(4000, rel=0.03)
    assert np.isnan(spectral_centroid(np.zeros(100), RATE))


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("frequency", [80, 220, 997, 1500])
def test_pitch_of_a_tone_and_of_its_harmonics(frequency, rate):
    assert fundamental_frequency(tone(frequency, rate), rate) == pytest.approx(
        frequency, rel=0.035
    )
    pulses = sum(
        tone(frequency * k, rate) / k for k in (1, 2, 3) if frequency * k < rate / 2
    )
    assert fundamental_frequency(pulses, rate) == pytest.approx(frequency, rel=0.035)


def test_pitch_without_its_fundamental_and_in_noise():
    missing = tone(400) + tone(600) + tone(800)
    assert fundamental_frequency(missing, RATE) == pytest.approx(200, rel=0.01)
    assert fundamental_frequency(tone(300) + NOISE / 5, RATE) == pytest.approx(
        300, rel=0.01
    )
    assert np.isnan(fundamental_frequency(NOISE, RATE))
    assert np.isnan(fundamental_frequency(np.zeros(RATE), RATE))


def test_duration_counts_sound_not_silence():
    wave = np.zeros(RATE)
    wave[4000:8000] = NOISE[4000:8000]
    assert sound_duration(wave, RATE) == pytest.approx(0.25, abs=0.011)
    assert sound_duration(NOISE, RATE) == pytest.approx(1, abs=0.001)
    assert sound_duration(np.zeros(RATE), RATE) == 0


def test_log_mel_peaks_where_the_tone_is():
    peaks = [log_mel(tone(f), RATE, 40).mean(0).argmax() for f in (200, 1000, 4000)]
    assert peaks == sorted(set(peaks))
    assert log_mel(tone(200), RATE, 40).shape == (97, 40)
    assert log_mel_features(NOISE, RATE, 40).shape == (80,)
    louder = log_mel(10 * NOISE, RATE) - log_mel(NOISE, RATE)
    assert np.median(louder) == pytest.approx(20, abs=0.1)


def test_short_clips_and_bad_input():
    assert log_mel(np.ones(10), RATE).shape[1] == 64
    assert np.isfinite(acoustic_targets(tone(440)[:200], RATE)["loudness"])
    with pytest.raises(ValueError, match="mono"):
        rms_level(np.ones((2, 3)))
    with pytest.raises(ValueError, match="NaN"):
        rms_level([0.0, np.nan])
    with pytest.raises(ValueError, match="Pitch range"):
        fundamental_frequency(NOISE, RATE, fmin=9000)

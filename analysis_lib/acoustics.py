"""What can be read off a waveform without a model: targets and a baseline for probes.

All functions take a mono waveform (T,) in the range -1..1 and, where time matters, its
sampling rate in hertz.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import ShortTimeFFT, get_window

Floats = NDArray[np.float64]


def acoustic_targets(wave: ArrayLike, rate: float) -> dict[str, float]:
    """Measure loudness, pitch, spectral centroid and duration of one clip.

    Returns
    -------
    dict
        ``loudness`` in dB re full scale, ``pitch`` in hertz (NaN where nothing is
        periodic), ``centroid`` in hertz (NaN in silence), ``duration`` in seconds.
    """
    return {
        "loudness": rms_level(wave),
        "pitch": fundamental_frequency(wave, rate),
        "centroid": spectral_centroid(wave, rate),
        "duration": sound_duration(wave, rate),
    }


def rms_level(wave: ArrayLike, floor: float = -120.0) -> float:
    """Root mean square in dB re full scale, not below ``floor``.

    A sine of amplitude 1 has -3.01 dB.
    """
    power = float(np.mean(_waveform(wave) ** 2))
    return max(10 * float(np.log10(max(power, 1e-300))), floor)


def spectral_centroid(wave: ArrayLike, rate: float) -> float:
    """Mean frequency of the power spectrum in hertz; NaN for silence."""
    samples = _waveform(wave)
    power = np.abs(rfft(samples * get_window("hann", len(samples)))) ** 2
    total = power.sum()
    if total <= 0:
        return float("nan")
    frequencies = np.linspace(0, rate / 2, len(power))
    return float(frequencies @ power / total)


def sound_duration(wave: ArrayLike, rate: float, below_peak: float = 30.0) -> float:
    """Seconds during which the level is within ``below_peak`` dB of its maximum.

    Level in frames of 10 ms. Clips of one corpus often have one file length; this is
    how long the sound in them lasts. 0 for silence.
    """
    samples = _waveform(wave)
    step = max(1, round(rate / 100))
    n_frames = -(-len(samples) // step)
    padded = np.pad(samples, (0, n_frames * step - len(samples)))
    power = (padded.reshape(n_frames, step) ** 2).mean(axis=1)
    if power.max() <= 0:
        return 0.0
    active = power >= power.max() * 10 ** (-below_peak / 10)
    return min(float(active.sum() * step), len(samples)) / rate


def fundamental_frequency(
    wave: ArrayLike,
    rate: float,
    fmin: float = 60.0,
    fmax: float | None = None,
    threshold: float = 0.15,
) -> float:
    """Median pitch in hertz over periodic frames, by YIN without its last refinement.

    Parameters
    ----------
    wave : (T,) array
    rate : float
        Hertz.
    fmin, fmax : float
        Search range in hertz; ``fmax`` is a quarter of ``rate`` by default, at most
        8 kHz.
    threshold : float
        A frame is periodic where the normalised difference dips below this.

    Returns
    -------
    float
        NaN if fewer than a tenth of the sounding frames are periodic. Coarse near
        ``rate / 4``, where a period is four samples.

    References
    ----------
    de Cheveigne and Kawahara (2002), YIN, a fundamental frequency estimator for speech
    and music, equations 6 and 8 (steps 2 to 5).
    """
    samples = _waveform(wave)
    fmax = min(rate / 4, 8000.0) if fmax is None else fmax
    if not 0 < fmin < fmax <= rate / 2:
        raise ValueError(
            f"Pitch range {fmin} to {fmax} Hz does not fit a rate of {rate} Hz."
        )
    shortest, longest = max(2, int(rate / fmax)), int(np.ceil(rate / fmin))
    width = 2 * longest + 2
    if len(samples) < width:
        samples = np.pad(samples, (0, width - len(samples)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, width)[::longest]
    power = (frames**2).mean(axis=1)
    frames = frames[power > max(power.max() * 1e-3, 1e-12)]
    if not len(frames):
        return float("nan")
    normalised = _normalised_difference(frames, longest + 1)
    pitches = [
        pitch
        for row in normalised
        if (pitch := _first_dip(row, shortest, longest, threshold)) is not None
    ]
    if len(pitches) < 0.1 * len(frames):
        return float("nan")
    return float(np.median(rate / np.array(pitches)))


def _normalised_difference(frames: Floats, n_lags: int) -> Floats:
    """Cumulative mean normalised difference (YIN equation 8) at lags 0..n_lags-1."""
    width = frames.shape[1] - n_lags
    size = next_fast_len(frames.shape[1] + width, real=True)
    spectrum = rfft(frames, size) * np.conj(rfft(frames[:, :width], size))
    product = irfft(spectrum, size)[:, :n_lags]
    energy = np.pad(np.cumsum(frames**2, axis=1), ((0, 0), (1, 0)))
    window = energy[:, width : width + n_lags] - energy[:, :n_lags]
    difference = np.maximum(window[:, :1] + window - 2 * product, 0)
    difference[:, 0] = 0
    total = np.cumsum(difference, axis=1)
    lags = np.arange(n_lags)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, difference * lags / total, 1.0)


def _first_dip(
    row: Floats, shortest: int, longest: int, threshold: float
) -> float | None:
    """Lag of the first local minimum below threshold, between samples; or None."""
    low = np.flatnonzero(row[shortest:longest] < threshold)
    if not len(low):
        return None
    lag = shortest + int(low[0])
    while lag + 1 < longest and row[lag + 1] < row[lag]:
        lag += 1
    before, here, after = row[lag - 1 : lag + 2]
    curve = before - 2 * here + after
    return lag + (0.5 * (before - after) / curve if curve > 0 else 0.0)


def log_mel(
    wave: ArrayLike, rate: float, n_mels: int = 64, window: float = 0.025
) -> Floats:
    """Log-mel spectrogram: (frames, n_mels) in dB, with frames every 10 ms.

    Mel bands are triangles on the scale 2595 log10(1 + f / 700), of unit height, from
    0 Hz to half the rate.

    References
    ----------
    O'Shaughnessy (1987), Speech Communication: Human and Machine, p. 150.
    """
    samples = _waveform(wave)
    length, hop = round(rate * window), max(1, round(rate / 100))
    size = next_fast_len(length, real=True)
    if len(samples) < size:
        samples = np.pad(samples, (0, size - len(samples)))
    transform = ShortTimeFFT(get_window("hann", length), hop, rate, mfft=size)
    first, last = (
        transform.lower_border_end[1],
        transform.upper_border_begin(len(samples))[1],
    )
    power = np.abs(transform.stft(samples, p0=first, p1=max(last, first + 1))) ** 2
    return 10 * np.log10(mel_bands(transform.f, rate, n_mels) @ power + 1e-10).T


def log_mel_features(wave: ArrayLike, rate: float, n_mels: int = 64) -> Floats:
    """Mean and standard deviation over time of the log-mel spectrogram: (2 n_mels,).

    The baseline that a representation has to beat.
    """
    frames = log_mel(wave, rate, n_mels)
    return np.concatenate([frames.mean(axis=0), frames.std(axis=0)])


def mel_edges(rate: float, n_mels: int) -> Floats:
    """Borders and centres of mel bands in hertz, (n_mels + 2,): band i spans i…i+2."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    return 700 * (10 ** (np.linspace(0, top, n_mels + 2) / 2595) - 1)


def mel_bands(frequencies: Floats, rate: float, n_mels: int) -> Floats:
    """Weights (n_mels, bins) of spectrum bins at these frequencies (hertz)."""
    edges = mel_edges(rate, n_mels)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise = (frequencies - low) / (centre - low)
    fall = (high - frequencies) / (high - centre)
    return np.maximum(0, np.minimum(rise, fall))


def _waveform(wave: ArrayLike) -> Floats:
    samples = np.asarray(wave, dtype=np.float64)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"Expected a mono waveform (T,), not shape {samples.shape}.")
    if not np.isfinite(samples).all():
        raise ValueError("The waveform has NaN or infinite samples.")
    return samples

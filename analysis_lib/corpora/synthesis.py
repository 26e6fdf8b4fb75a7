"""Sound from numbers: noises, resonators, chirps, rooms, and a scene to mix them in.

Every function is pure: arrays and a seeded generator in, a float64 signal out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import signal

Array = NDArray[np.float64]
Rng = np.random.Generator


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """Draw so that every octave between ``low`` and ``high`` is equally likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def shaped_noise(rng: Rng, n: int, rate: int, points: dict[float, float]) -> Array:
    """Gaussian noise of unit RMS with a drawn spectrum.

    Parameters
    ----------
    rng, n, rate
        Generator, number of samples, samples per second.
    points
        Frequency in Hz → level in dB; between the points the level is a line
        over log-frequency.
    """
    padded = signal_length(n)
    spectrum = np.fft.rfft(rng.standard_normal(padded))
    frequency = np.maximum(np.fft.rfftfreq(padded, 1 / rate), 1.0)
    levels = np.interp(np.log(frequency), np.log(list(points)), list(points.values()))
    noise = np.fft.irfft(spectrum * 10 ** (levels / 20), padded)[:n]
    return noise / (np.sqrt(np.mean(noise**2)) + 1e-12)


def signal_length(n: int) -> int:
    """The next length at which an FFT is quick."""
    return 1 << (n - 1).bit_length()


def tilted_noise(rng: Rng, n: int, rate: int, db_per_octave: float) -> Array:
    """Noise whose level changes by ``db_per_octave`` (0 white, -3 pink, -6 brown)."""
    octaves = np.log2(rate / 2 / 20)
    return shaped_noise(rng, n, rate, {20: 0.0, rate / 2: db_per_octave * octaves})


def band_noise(rng: Rng, n: int, rate: int, low: float, high: float) -> Array:
    """Noise between ``low`` and ``high`` Hz, falling 60 dB within a third of them."""
    high = min(high, rate * 0.36)
    return shaped_noise(
        rng, n, rate, {low / 1.35: -60, low: 0, high: 0, high * 1.35: -60}
    )


def slow_curve(rng: Rng, n: int, rate: int, per_second: float) -> Array:
    """A smooth random line through standard normal points, ``per_second`` of them."""
    count = max(int(np.ceil(n / rate * per_second)) + 3, 4)
    points = rng.standard_normal(count)
    at = rng.uniform(0, 1) + np.arange(n) / rate * per_second
    low = np.minimum(at.astype(int), count - 2)
    part = (1 - np.cos(np.pi * (at - low))) / 2
    return points[low] * (1 - part) + points[low + 1] * part


def resonate(x: Array, rate: int, frequency: float, bandwidth: float) -> Array:
    """Two-pole resonator with unit gain at its peak (Klatt, 1980)."""
    radius = np.exp(-np.pi * bandwidth / rate)
    angle = 2 * np.pi * min(frequency, 0.45 * rate) / rate
    a = np.array([1.0, -2 * radius * np.cos(angle), radius**2])
    gain = abs(np.polyval(a[::-1], np.exp(-1j * angle)))
    return np.asarray(signal.lfilter([gain], a, x))


def modes(
    rate: int, frequencies: ArrayLike, decays: ArrayLike, gains: ArrayLike
) -> Array:
    """A struck object: damped sines, each falling 60 dB in its ``decay`` (s)."""
    frequencies, decays, gains = np.broadcast_arrays(
        *(np.asarray(a, float) for a in (frequencies, decays, gains))
    )
    n = int(min(decays.max() * 1.1, 4.0) * rate) + 1
    time = np.arange(n) / rate
    out = np.zeros(n)
    for frequency, decay, gain in zip(frequencies, decays, gains, strict=True):
        if frequency < 0.45 * rate:
            fall = np.exp(-6.91 * time / decay)
            out += gain * fall * np.sin(2 * np.pi * frequency * time)
    return out


def chirp(frequency: Array, rate: int, harmonics: ArrayLike = (1.0,)) -> Array:
    """Harmonics of a fundamental that follows ``frequency`` (n,) in Hz."""
    phase = 2 * np.pi * np.cumsum(frequency) / rate
    out = np.zeros(len(frequency))
    for number, gain in enumerate(np.asarray(harmonics, float), start=1):
        heard = frequency * number < 0.45 * rate
        out += gain * np.sin(number * phase) * heard
    return out


def envelope(n: int, attack: int, release: int) -> Array:
    """Rise over ``attack`` samples, hold, fall over ``release``; cosine edges."""
    out = np.ones(n)
    attack, release = min(attack, n // 2), min(release, n // 2)
    if attack:
        out[:attack] = (1 - np.cos(np.pi * np.arange(attack) / attack)) / 2
    if release:
        out[n - release :] = (1 + np.cos(np.pi * np.arange(release) / release)) / 2
    return out


def add(out: Array, sound: Array, at: int) -> None:
    """Mix ``sound`` into ``out`` in place from sample ``at``; what hangs over is cut.

    ``at`` may be negative: the sound began before the clip.
    """
    start, stop = max(at, 0), min(at + len(sound), len(out))
    if stop > start:
        out[start:stop] += sound[start - at : stop - at]


def regular_times(rng: Rng, seconds: float, period: float, jitter: float) -> Array:
    """Onsets ``period`` apart from a random phase, each moved by ``jitter``·period."""
    count = int(seconds / period) + 3
    times = (np.arange(count) - 1 + rng.uniform()) * period
    return times + rng.normal(0, jitter * period, count)


def poisson_times(rng: Rng, seconds: float, per_second: float) -> Array:
    """Onsets without memory: the number is Poisson, the places are uniform."""
    return np.sort(rng.uniform(0, seconds, rng.poisson(per_second * seconds)))


def equalize(x: Array, rate: int, levels: Array) -> Array:
    """Colour a signal by ``levels`` (dB), evenly spaced in octaves from 60 Hz up."""
    padded = signal_length(len(x))
    frequency = np.maximum(np.fft.rfftfreq(padded, 1 / rate), 1.0)
    at = np.linspace(np.log(60), np.log(rate / 2), len(levels))
    gain = 10 ** (np.interp(np.log(frequency), at, levels) / 20)
    return np.fft.irfft(np.fft.rfft(x, padded) * gain, padded)[: len(x)]


def room(rng: Rng, rate: int, reverberation: float, wet: float) -> Array:
    """Impulse response: the direct sound, then noise that falls 60 dB in time.

    Parameters
    ----------
    rng, rate
        Generator and samples per second.
    reverberation
        Seconds until the tail has fallen by 60 dB.
    wet
        Energy of the tail over that of the direct sound.
    """
    n = max(int(reverberation * rate), 1)
    tail = rng.standard_normal(n) * np.exp(-6.91 * np.arange(n) / n)
    tail[: min(int(0.004 * rate), n)] = 0
    tail *= np.sqrt(wet / (np.sum(tail**2) + 1e-12))
    tail[0] = 1.0
    return tail


def convolve(x: Array, response: Array) -> Array:
    """Put a signal in a room; the length stays."""
    return np.asarray(signal.fftconvolve(x, response))[: len(x)]


def loudness(x: Array, rate: int) -> float:
    """RMS of the loud moments: the 95th percentile over 25 ms frames."""
    frame = max(int(0.025 * rate), 1)
    whole = x[: len(x) // frame * frame].reshape(-1, frame)
    return float(np.sqrt(np.percentile(np.mean(whole**2, axis=1), 95)))


def mix(x: Array, background: Array, rate: int, snr_db: float) -> Array:
    """Add a background ``snr_db`` below the loud moments of ``x``."""
    scale = loudness(x, rate) / (loudness(background, rate) + 1e-12)
    return x + background * scale * 10 ** (-snr_db / 20)


def set_peak(x: Array, peak: float) -> Array:
    """Scale so that the largest sample is ``peak``; silence stays silent."""
    return x * (peak / max(float(np.abs(x).max()), 1e-9))

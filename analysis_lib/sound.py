"""A sound becomes a labelled player and a picture."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import soundfile
from IPython.display import display
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from analysis_lib.acoustics import mel_bands, mel_edges

PAGE_SECONDS = 10.0
"""A page carries at most this much of a clip, and says so when it cuts one."""


class Player:
    """An HTML audio element that carries its sound, with its label as plain text."""

    def __init__(self, markup: str, words: str):
        self.markup, self.words = markup, words

    def _repr_html_(self) -> str:
        return self.markup

    def __repr__(self) -> str:
        return self.words


def player(
    wave: ArrayLike, sampling_rate: int, *, label: str, caption: str = ""
) -> None:
    """Put a clip on the page.

    Parameters
    ----------
    wave : (T,) floats in -1..1
        A louder one is scaled down to fit.
    sampling_rate
        In Hz.
    label
        What the clip is, for a screen reader and for the line above the player.
    caption
        What to listen for.
    """
    markup = _figure(wave, sampling_rate, label, caption)
    display(Player(markup, f"Sound: {label}"))


def players(clips: Sequence[tuple[ArrayLike, int, str, str]]) -> None:
    """Put several clips side by side: (wave, sampling rate, label, caption) each."""
    markup = "".join(_figure(*clip) for clip in clips)
    words = "; ".join(clip[2] for clip in clips)
    display(Player(f'<div class="sounds">{markup}</div>', f"Sounds: {words}"))


def flac(wave: ArrayLike, sampling_rate: int) -> bytes:
    """Encode a mono wave (T,) as 16-bit FLAC.

    Raises
    ------
    ValueError
        If the wave is not one non-empty row of finite numbers.
    """
    samples = np.asarray(wave, dtype=np.float32)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"a player needs a mono wave (T,), got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("a player needs finite samples, got NaN or infinity")
    peak = float(np.abs(samples).max())
    buffer = io.BytesIO()
    soundfile.write(
        buffer, samples / max(peak, 1.0), int(sampling_rate), "PCM_16", format="FLAC"
    )
    return buffer.getvalue()


def spectrogram(
    wave: ArrayLike,
    sampling_rate: int,
    *,
    title: str = "",
    n_mels: int | None = 64,
    seconds: float = 0.025,
    hop: float = 0.010,
    floor: float = -80.0,
) -> Figure:
    """Draw the power of a wave over time and frequency, in decibels below its peak.

    Parameters
    ----------
    wave : (T,)
    n_mels
        Number of mel bands (HTK scale); None keeps the plain frequency axis.
    seconds, hop
        Window length and step.
    floor
        Lowest level drawn, dB.
    """
    samples = np.asarray(wave, dtype=float)
    times, frequencies, power = _power(samples, sampling_rate, seconds, hop)
    if n_mels is not None:
        power = mel_bands(frequencies, sampling_rate, n_mels) @ power
        frequencies = mel_edges(sampling_rate, n_mels)[1:-1]
    level = 10 * np.log10(np.maximum(power, 1e-20) / max(power.max(), 1e-20))
    figure, axes = plt.subplots(figsize=(6.4, 2.6))
    picture: Any = axes.pcolormesh(
        times, np.arange(len(frequencies)) if n_mels else frequencies / 1000, level,
        vmin=floor, vmax=0, cmap="magma", shading="nearest", rasterized=True,
    )  # fmt: skip
    if n_mels:
        ticks = np.linspace(0, n_mels - 1, 5).round().astype(int)
        axes.set_yticks(ticks, [f"{frequencies[t] / 1000:.1f}" for t in ticks])
    axes.set(xlabel="time, s", ylabel="frequency, kHz", title=title)
    figure.colorbar(picture, label="dB below peak")
    return figure


def _figure(wave: ArrayLike, sampling_rate: int, label: str, caption: str = "") -> str:
    if not label.strip():
        raise ValueError("a player needs a label")
    samples = np.asarray(wave)
    keep = int(PAGE_SECONDS * sampling_rate)
    words = caption.strip()
    if samples.ndim == 1 and len(samples) > keep:
        whole = len(samples) / sampling_rate
        cut = f"First {PAGE_SECONDS:g} s of {whole:.1f} s."
        words = f"{words} {cut}".strip()
        samples = samples[:keep]
    sound = base64.b64encode(flac(samples, sampling_rate)).decode()
    name = html.escape(label.strip(), quote=True)
    note = f'<span class="note">{html.escape(words)}</span>' if words else ""
    return (
        '<figure class="sound">'
        f"<figcaption><strong>{name}</strong>{note}</figcaption>"
        f'<audio controls preload="metadata" aria-label="{name}" '
        f'src="data:audio/flac;base64,{sound}"></audio></figure>'
    )


def _power(
    wave: np.ndarray, sampling_rate: int, seconds: float, hop: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Short-time power of a wave: (frames,) s, (bins,) Hz, (bins, frames)."""
    width, step = round(seconds * sampling_rate), round(hop * sampling_rate)
    wave = np.pad(wave, (0, max(0, width - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(wave, width)[::step]
    power = np.abs(np.fft.rfft(frames * np.hanning(width), axis=1)) ** 2
    times = (np.arange(len(frames)) * step + width / 2) / sampling_rate
    return times, np.fft.rfftfreq(width, 1 / sampling_rate), power.T

"""Log-mel filter banks as Kaldi computes them, in torch.

Speech and sound transformers were trained on Kaldi's features, and what a layer
"knows" depends on getting them right: frames lie wholly inside the signal
(``snip_edges``), each frame loses its mean and is pre-emphasised by itself, the
window is Povey's, and nothing is dithered.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad


def n_frames(n_samples: int, *, length: int = 400, shift: int = 160) -> int:
    """Count the frames that lie wholly inside ``n_samples`` samples."""
    return 0 if n_samples < length else 1 + (n_samples - length) // shift


@lru_cache(maxsize=8)
def mel_filters(
    n_mels: int, n_fft: int, sampling_rate: float, low: float, high: float
) -> Tensor:
    """Build Kaldi's triangular filters, (n_fft // 2 + 1, n_mels).

    The triangles are straight on the mel scale, not on the hertz scale, and the
    Nyquist bin belongs to none of them.
    """
    edges = 1127.0 * torch.log1p(torch.tensor([low, high], dtype=torch.float64) / 700)
    corners = torch.linspace(float(edges[0]), float(edges[1]), n_mels + 2).double()
    hertz = torch.arange(n_fft // 2, dtype=torch.float64) * (sampling_rate / n_fft)
    mels = (1127.0 * torch.log1p(hertz / 700.0))[:, None]
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rise, fall = (mels - left) / (centre - left), (right - mels) / (right - centre)
    return pad(torch.minimum(rise, fall).clamp(min=0.0), (0, 0, 0, 1)).float()


@lru_cache(maxsize=8)
def povey_window(length: int) -> Tensor:
    """Build Povey's window: a symmetric Hann window to the power 0.85."""
    hann = torch.hann_window(length, periodic=False, dtype=torch.float64)
    return hann.pow(0.85).float()


def fbank(
    wave: Tensor,
    *,
    n_mels: int = 128,
    sampling_rate: float = 16_000.0,
    frame_length: float = 25.0,
    frame_shift: float = 10.0,
    low: float = 20.0,
    high: float | None = None,
    preemphasis: float = 0.97,
) -> Tensor:
    """Compute Kaldi's log-mel energies, in float32 even under autocast.

    Parameters
    ----------
    wave : Tensor, shape (..., n_samples)
        Samples. Kaldi expects the range of 16-bit integers: multiply a waveform
        in [-1, 1] by ``2 ** 15``.
    n_mels : int
        Number of triangular filters.
    sampling_rate, low, high : float
        In hertz; ``high=None`` is the Nyquist frequency.
    frame_length, frame_shift : float
        In milliseconds.
    preemphasis : float
        Coefficient of the first difference inside each frame.

    Returns
    -------
    Tensor, shape (..., n_frames, n_mels)
        Natural logarithms, floored at the logarithm of float32's epsilon. Frame i
        covers the samples from ``i * shift`` to ``i * shift + length``; a signal
        shorter than one frame gives none.

    References
    ----------
    Povey et al. (2011), "The Kaldi Speech Recognition Toolkit", ASRU;
    ``compute-fbank-feats``.
    """
    length = round(sampling_rate * frame_length / 1000)
    shift = round(sampling_rate * frame_shift / 1000)
    n_fft = 1 << (length - 1).bit_length()
    count = n_frames(wave.shape[-1], length=length, shift=shift)
    if count == 0:
        return wave.new_zeros((*wave.shape[:-1], 0, n_mels), dtype=torch.float32)
    top = sampling_rate / 2 if high is None else high
    with torch.autocast(wave.device.type, enabled=False):
        frames = wave.float().unfold(-1, length, shift)
        frames = frames - frames.mean(-1, keepdim=True)
        # Kaldi lets a frame's first sample be its own predecessor.
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        frames = (frames - preemphasis * before) * povey_window(length).to(wave.device)
        spectrum = torch.fft.rfft(frames, n=n_fft)
        power = spectrum.real.square() + spectrum.imag.square()
        filters = mel_filters(n_mels, n_fft, sampling_rate, low, top).to(wave.device)
        return (power @ filters).clamp(min=torch.finfo(torch.float32).eps).log()

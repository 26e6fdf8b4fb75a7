"""What speech models hear: waveforms or log-mel spectrograms, with true lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    ASTFeatureExtractor,
    PretrainedConfig,
    WhisperFeatureExtractor,
)

from analysis_lib.base import AnalysisError
from analysis_lib.encoders import kaldi
from analysis_lib.encoders.encoder import Batch, arrange_tokens

SAMPLING_RATE = 16_000


@dataclass(frozen=True)
class WaveformFrontEnd:
    """Waveforms for the convolutional families, normalised clip by clip if asked.

    Attributes
    ----------
    do_normalize
        Whether each clip is brought to mean 0 and variance 1, over its own samples.
    masked
        Whether the model takes a mask. One whose convolutions are normalised over
        time (``feat_extract_norm="group"``) does not, and mixes padding into a clip.
    kernels, strides
        Of the convolutions, in order.
    """

    do_normalize: bool
    masked: bool
    kernels: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def receptive_field(self) -> int:
        """Samples that one frame hears."""
        hops = np.cumprod([1, *self.strides[:-1]])
        return 1 + int(
            sum((k - 1) * h for k, h in zip(self.kernels, hops, strict=True))
        )

    def n_frames(self, n_samples: int) -> int:
        """Count the frames that lie wholly inside a clip."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            n_samples = 0 if n_samples < kernel else (n_samples - kernel) // stride + 1
        return n_samples

    def times(self, n: int) -> np.ndarray:
        """Centres of the first ``n`` frames in seconds."""
        centre = (self.receptive_field - 1) / 2
        return (centre + math.prod(self.strides) * np.arange(n)) / SAMPLING_RATE

    def __call__(self, waves: Sequence[np.ndarray]) -> Batch:
        """Turn waveforms into ``input_values`` (B, samples), and a mask if taken.

        Raises
        ------
        AnalysisError
            If a clip is too short for one frame, or clips of unequal length meet in
            a model that takes no mask.
        """
        lengths = [len(wave) for wave in waves]
        valid = torch.tensor([self.n_frames(length) for length in lengths])
        if (valid == 0).any():
            place = valid.tolist().index(0)
            raise AnalysisError(
                f"wave {place} of the batch lasts {lengths[place] / SAMPLING_RATE:.4f}"
                f" s; one frame needs {self.receptive_field / SAMPLING_RATE:.4f} s. "
                "Pad or drop such clips."
            )
        if not self.masked and len(set(lengths)) > 1:
            raise AnalysisError(
                "this model takes no padding mask: batch only clips of equal length "
                f"(here {min(lengths)} to {max(lengths)} samples)."
            )
        rows = []
        for wave in waves:
            samples = torch.as_tensor(np.asarray(wave, dtype=np.float32))
            if self.do_normalize:
                centred = samples - samples.mean()
                samples = centred / (centred.square().mean() + 1e-7).sqrt()
            rows.append(samples)
        inputs = {"input_values": pad_sequence(rows, batch_first=True)}
        if self.masked:
            ones = [torch.ones(length, dtype=torch.long) for length in lengths]
            inputs["attention_mask"] = pad_sequence(ones, batch_first=True)
        return Batch(inputs, valid, np.array(lengths) / SAMPLING_RATE)


def whisper_times(n: int) -> np.ndarray:
    """Centres of the first ``n`` frames of Whisper's encoder in seconds: 0.020 t."""
    return 0.020 * np.arange(n)


def prepare_whisper(
    waves: Sequence[np.ndarray], extractor: WhisperFeatureExtractor
) -> Batch:
    """Turn waveforms into log-mel spectrograms of the model's window.

    The window is filled up with silence, as in training, and only the frames centred
    inside the clip count. What is longer than the window is cut.
    """
    features = extractor(
        [np.asarray(wave, dtype=np.float32) for wave in waves],
        sampling_rate=SAMPLING_RATE,
        return_tensors="pt",
    ).input_features
    samples = np.minimum([len(wave) for wave in waves], extractor.n_samples)
    return Batch(
        {"input_features": features},
        torch.from_numpy(-(-samples // (2 * extractor.hop_length))),
        samples / SAMPLING_RATE,
    )


@dataclass(frozen=True)
class ASTGrid:
    """Patches of the Audio Spectrogram Transformer, overlapping in time and pitch."""

    patch: int
    hop: int
    bands: int
    stretches: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> ASTGrid:
        """Read the grid off a configuration."""
        bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        stretches = (config.max_length - config.patch_size) // config.time_stride + 1
        return cls(config.patch_size, config.time_stride, bands, stretches)

    def prepare(
        self, waves: Sequence[np.ndarray], extractor: ASTFeatureExtractor
    ) -> Batch:
        """Turn waveforms into filter banks of fixed length; patches inside count."""
        inputs = extractor(
            [np.asarray(wave, dtype=np.float32) for wave in waves],
            sampling_rate=SAMPLING_RATE,
            return_tensors="pt",
        )
        frames = [kaldi.n_frames(len(wave)) for wave in waves]
        if min(frames) < self.patch:
            place = int(np.argmin(frames))
            raise AnalysisError(
                f"wave {place} of the batch lasts "
                f"{len(waves[place]) / SAMPLING_RATE:.3f} s; one patch needs "
                f"{(400 + 160 * (self.patch - 1)) / SAMPLING_RATE:.3f} s. Pad or drop "
                "such clips."
            )
        stretches = [
            min((count - self.patch) // self.hop + 1, self.stretches)
            for count in frames
        ]
        return Batch(
            {"input_values": inputs["input_values"]},
            torch.tensor(stretches) * self.bands,
            np.array([len(wave) / SAMPLING_RATE for wave in waves]),
        )

    def times(self, n: int) -> np.ndarray:
        """Centres of the first ``n`` tokens in seconds; bands share their time."""
        frame = self.hop * (np.arange(n) // self.bands) + (self.patch - 1) / 2
        return 0.010 * frame + 0.0125

    def arrange(
        self, tap: Any, activation: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None]:
        """Leave out the two summary tokens; go through time, not through bands."""
        patches = activation[:, -self.bands * self.stretches :]
        grid = patches.unflatten(1, (self.bands, self.stretches))
        return arrange_tokens(tap, grid.transpose(1, 2).flatten(1, 2), batch)

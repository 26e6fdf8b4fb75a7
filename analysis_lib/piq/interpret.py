"""The answer one can listen to: what of a sound made a classifier say its class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from analysis_lib.base import AnalysisError
from analysis_lib.piq.frontend import log_magnitude, masked_stft, resample
from analysis_lib.piq.train import PIQ


@dataclass(frozen=True, eq=False)
class Interpretation:
    """A sound, the part of it that explains a class, and what remains.

    Attributes
    ----------
    wave : ndarray
        ``(L,)`` the input at ``sampling_rate``.
    interpretation : ndarray
        ``(L,)`` the masked sound, with the input's phase.
    remainder : ndarray
        ``(L,)`` the sound under the complementary mask. Masks act on log magnitudes,
        so the two do not add up to the input exactly.
    mask : ndarray
        ``(T, F)`` from 0 to 1.
    log_magnitude : ndarray
        ``(T, F)`` of the input, ``log1p |X|``.
    indices : ndarray
        ``(h, w)`` keys used; -1 where ψ does not quantize.
    explained : str
        Class whose keys were used.
    predicted : str
        Class the classifier gives to the input.
    probabilities : dict
        Class to ``(p, p_in, p_out)``: of input, interpretation and remainder.
    sampling_rate : int
        Hz.
    """

    wave: NDArray[np.float32]
    interpretation: NDArray[np.float32]
    remainder: NDArray[np.float32]
    mask: NDArray[np.float32]
    log_magnitude: NDArray[np.float32]
    indices: NDArray[np.int64]
    explained: str
    predicted: str
    probabilities: dict[str, tuple[float, float, float]]
    sampling_rate: int


@torch.no_grad()
def interpret(
    piq: PIQ,
    wave: NDArray[np.floating],
    *,
    sampling_rate: int | None = None,
    label: str | None = None,
    threshold: float | None = None,
) -> Interpretation:
    """Say with a sound why a classifier gave its class, or would give another.

    Parameters
    ----------
    piq : PIQ
        From `train_piq`.
    wave : ndarray
        ``(L,)`` mono, of any length of at least one window. Its peak is brought to 1
        for the classifier and restored in the sounds returned.
    sampling_rate : int, optional
        Hz of ``wave``; by default the front end's. Sounds come back at this rate.
    label : str, optional
        Class asked about; by default the predicted one.
    threshold : float, optional
        Keep the bins whose mask exceeds it, whole; by default the mask is soft.

    Returns
    -------
    Interpretation
        As long as ``wave``, to the sample. A silent clip's is silent.

    Raises
    ------
    AnalysisError
        If the wave is not mono, not finite or too short, or the class unknown.
    """
    classifier, front_end = piq.classifier, piq.classifier.front_end
    rate = sampling_rate or front_end.sampling_rate
    wave = np.asarray(wave, np.float32)
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise AnalysisError(
            f"wave of shape {wave.shape} is not a finite mono waveform; pass one "
            f"channel (samples,) without NaN."
        )
    if label is not None and label not in classifier.classes:
        raise AnalysisError(
            f"label={label!r} is no class of this classifier; it knows "
            f"{', '.join(classifier.classes)}."
        )
    heard = resample(wave, rate, front_end.sampling_rate)
    peak = float(np.abs(heard).max(initial=0.0)) or 1.0
    stft = front_end.stft(torch.from_numpy(heard / peak)[None])
    hidden, logits = classifier.hidden_and_logits(stft)
    predicted = int(logits.argmax())
    asked = predicted if label is None else classifier.classes.index(label)
    out = piq.psi(hidden, torch.tensor([asked]), tuple(stft.shape[1:]))
    mask = out.logits[:, 0].sigmoid()
    if threshold is not None:
        mask = (mask > threshold).float()
    answers = torch.cat(
        [logits, classifier.predict(stft, mask), classifier.predict(stft, 1 - mask)]
    ).softmax(-1)

    def sound(part: torch.Tensor) -> NDArray[np.float32]:
        masked = front_end.waveform(masked_stft(stft, part), len(heard))[0].numpy()
        back = resample(masked * peak, front_end.sampling_rate, rate)
        return np.pad(back, (0, max(len(wave) - len(back), 0)))[: len(wave)]

    return Interpretation(
        wave=wave,
        interpretation=sound(mask),
        remainder=sound(1 - mask),
        mask=mask[0].numpy(),
        log_magnitude=log_magnitude(stft)[0].numpy(),
        indices=out.indices[0].numpy(),
        explained=classifier.classes[asked],
        predicted=classifier.classes[predicted],
        probabilities={
            name: (float(p[0]), float(p[1]), float(p[2]))
            for name, p in zip(classifier.classes, answers.T, strict=True)
        },
        sampling_rate=rate,
    )

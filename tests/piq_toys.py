"""A toy world for the PIQ tests: three classes told apart by the pitch of a burst."""

import numpy as np

from analysis_lib.piq import Clips, SpectrogramFrontEnd

RATE = 2000
FRONT_END = SpectrogramFrontEnd(RATE, n_fft=64, hop=32)
PITCHES = {"high": 800.0, "low": 150.0, "middle": 420.0}


def toy_clips(n_per_class=8, seed=0, length=RATE):
    """Bursts of 0.3 s at a random moment, on noise 30 dB below."""
    rng = np.random.default_rng(seed)
    waves, labels = [], []
    time = np.arange(length) / RATE
    for label, pitch in enumerate(PITCHES.values()):
        for _ in range(n_per_class):
            start = rng.uniform(0, length / RATE - 0.3)
            gate = (time >= start) & (time < start + 0.3)
            wave = gate * np.sin(2 * np.pi * pitch * rng.uniform(0.9, 1.1) * time)
            wave = wave + 0.03 * rng.standard_normal(length)
            waves.append(wave / np.abs(wave).max())
            labels.append(label)
    n = len(waves)
    return Clips(
        np.array(waves, np.float32),
        np.array(labels),
        tuple(PITCHES),
        np.array([f"source{i // 2}" for i in range(n)]),
        np.array([f"clip{i}" for i in range(n)]),
        RATE,
    )

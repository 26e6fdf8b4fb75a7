"""A small encoder and a small corpus for tests of extraction."""

import numpy as np
import pandas as pd
import soundfile
import torch
from torch import nn

from analysis_lib.corpora import load_corpus
from analysis_lib.encoders.encoder import TAP_COLUMNS, Batch, Encoder, fingerprint

RATE, HOP, WIDTH, HEADS, LAYERS = 8000, 80, 6, 3, 12


class Layer(nn.Module):
    """Time-major, as BEATs: (T, B, C) to (T, B, C)."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        return self.norm(x + self.out(x.tanh()))


class Toy(nn.Module):
    """Frames of the wave, embedded and passed through layers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(HOP, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, frames):
        x = self.embed(frames).transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        return x


def prepare(waves):
    longest = max(len(wave) for wave in waves) // HOP
    frames = torch.zeros(len(waves), longest, HOP)
    valid = torch.tensor([len(wave) // HOP for wave in waves])
    for k, wave in enumerate(waves):
        cut = torch.from_numpy(wave[: int(valid[k]) * HOP])
        frames[k, : valid[k]] = cut.view(-1, HOP)
    return Batch({"frames": frames}, None if (valid == longest).all() else valid)


def times(n):
    return (np.arange(n) + 0.5) * HOP / RATE


def toy_taps():
    rows = []
    for k in range(LAYERS):
        out = (f"layers.{k}.out", "input", "tbc", "head", k, 0)
        for head in range(HEADS):
            rows.append((f"L{k}_B0_H{head}", *out, head, HEADS, WIDTH // HEADS))
        layer = ("output", "tbc", "layer", k, -1, -1, -1, WIDTH)
        rows.append((f"L{k}", f"layers.{k}", *layer))
    return pd.DataFrame(rows, columns=list(TAP_COLUMNS))


def toy_encoder(seed=0, pads=True, name="toy", dtype=torch.float32):
    torch.manual_seed(seed)
    module = Toy()
    return Encoder(
        name=name,
        module=module,
        sampling_rate=RATE,
        licence="none",
        source="random",
        taps=toy_taps(),
        front_end=prepare,
        times=times,
        fingerprint=fingerprint(module),
        pads=pads,
        dtype=dtype,
    )


def toy_corpus(folder, clips=11, seed=0):
    """Clips of unequal length in two classes, as files."""
    rng = np.random.default_rng(seed)
    for k in range(clips):
        path = folder / "ab"[k % 2] / f"clip-{k:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = rng.choice([0.5, 0.75, 1.0])
        wave = 0.1 * rng.standard_normal(int(RATE * seconds))
        soundfile.write(path, wave, RATE, subtype="FLOAT")
    return load_corpus(folder)

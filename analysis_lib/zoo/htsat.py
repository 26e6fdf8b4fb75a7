"""Recipe of `htsat-mini`: HTS-AT learns the classes of the `environment` corpus.

It hears the sources of the corpus's train split only; what it is asked later, in its
card and in the book, is about sources it has never heard.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ClapAudioModel

from analysis_lib.corpora import Corpus, load_corpus
from analysis_lib.encoders import load_encoder
from analysis_lib.encoders.htsat import MINI_FRONT_END, htsat_config
from analysis_lib.zoo.evaluation import probe_layers, unheard
from analysis_lib.zoo.training import Log, finish, fit, workspace

NAME = "htsat-mini"
CORPUS = "environment"
EMBED_DIM = 24
STEPS, BATCH, LR = 1600, 16, 2e-3
FLOOR_DB = -100.0

Mels = Tensor  # (N, 1, frames, 64), decibels


class Classifier(nn.Module):
    """The encoder and a linear head on its pooled output; the encoder is kept."""

    def __init__(self, encoder: ClapAudioModel, n_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, n_classes)

    def forward(self, mels: Mels) -> Tensor:
        """Log-mel images to class logits (B, n_classes)."""
        return self.head(self.encoder(input_features=mels).pooler_output)


def train(
    out: Path, *, seed: int = 0, resume: bool = True, log: Log = print
) -> dict[str, Any]:
    """Train on the train split and write weights, configuration and card to ``out``.

    Returns the card. A run that was cut off resumes from its last checkpoint.
    """
    corpus = load_corpus(CORPUS)
    labels, classes = encode(corpus)
    heard = (corpus.table["split"] == "train").to_numpy(copy=True)
    mels = log_mels(corpus)
    torch.manual_seed(seed)
    encoder = ClapAudioModel(htsat_config(EMBED_DIM, drop_path_rate=0.1))
    model = Classifier(encoder, len(classes))
    normalize(encoder, mels[heard])

    def batch(rng: np.random.Generator) -> tuple[Mels, Tensor]:
        chosen = rng.choice(np.flatnonzero(heard), BATCH, replace=False)
        return augment(mels[chosen], one_hot(labels[chosen], len(classes)), rng)

    def loss(pair: tuple[Mels, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(pair[0])
        return cross_entropy(logits.float(), pair[1], label_smoothing=0.05)

    def held_out() -> dict[str, float]:
        correct = predict(model, mels[~heard]) == labels[~heard]
        return {"held_out_accuracy": float(correct.mean())}

    curve = fit(
        model,
        batch,
        loss,
        steps=STEPS,
        lr=LR,
        work=workspace(NAME, seed),
        seed=seed,
        evaluate=held_out,
        resume=resume,
        log=log,
    )
    out.mkdir(parents=True, exist_ok=True)
    encoder.config.save_pretrained(out)
    front_end = json.dumps(MINI_FRONT_END.to_dict(), indent=2)
    (out / "preprocessor_config.json").write_text(front_end + "\n")
    return finish(
        encoder,
        out,
        curve,
        evaluate,
        name=NAME,
        architecture="ClapAudioModel (HTS-AT): 4 stages, 12 blocks, 184 heads",
        command=f"python -m analysis_lib zoo train {NAME}",
        corpus=CORPUS,
        corpus_fingerprint=corpus.fingerprint,
        licence="MIT",
        not_good_for="real recordings: it has heard only synthesised sounds",
        own_head_accuracy=float(curve["held_out_accuracy"].iloc[-1]),
    )


def evaluate(name: str = NAME) -> dict[str, Any]:
    """Probe every stage on the sources that training never heard."""
    return probe_layers(load_encoder(name), unheard(load_corpus(CORPUS)))


def log_mels(corpus: Corpus) -> Mels:
    """Front end over the whole corpus, (N, 1, frames, 64)."""
    rate = MINI_FRONT_END.sampling_rate
    images = [
        MINI_FRONT_END([wave]).inputs["input_features"]
        for _, wave in corpus.stream(rate)
    ]
    return torch.cat(images)


def encode(corpus: Corpus) -> tuple[np.ndarray, list[str]]:
    """Class numbers (N,) and the names behind them."""
    classes, numbers = np.unique(corpus.table["label"], return_inverse=True)
    return numbers, list(classes)


def one_hot(labels: np.ndarray, n_classes: int) -> Tensor:
    """Class numbers (N,) to float rows (N, n_classes)."""
    return torch.eye(n_classes)[torch.as_tensor(labels)]


def normalize(encoder: ClapAudioModel, mels: Mels) -> None:
    """Give the input batch norm the corpus's own mean and variance from the start."""
    norm = encoder.audio_encoder.batch_norm
    norm.running_mean.copy_(mels.mean((0, 1, 2)))
    norm.running_var.copy_(mels.var((0, 1, 2)))


def augment(
    mels: Mels, targets: Tensor, rng: np.random.Generator
) -> tuple[Mels, Tensor]:
    """Roll in time, change the gain, mask times and bands, mix pairs in power."""
    n, _, frames, bands = mels.shape
    images = []
    for image in mels:
        image = image.roll(int(rng.integers(frames)), dims=1) + rng.normal(0, 4)
        for axis, longest in ((1, frames // 8), (2, bands // 8)):
            width = int(rng.integers(longest))
            start = int(rng.integers(image.shape[axis] - width))
            image.narrow(axis, start, width).fill_(FLOOR_DB)
        images.append(image)
    power = torch.pow(10.0, torch.stack(images) / 10)
    share = torch.as_tensor(rng.beta(0.3, 0.3, n), dtype=torch.float32)
    share = torch.maximum(share, 1 - share)
    partner = torch.as_tensor(rng.permutation(n))
    wide = share[:, None, None, None]
    mixed = wide * power + (1 - wide) * power[partner]
    rows = share[:, None]
    return (
        10 * mixed.clamp_min(1e-10).log10(),
        rows * targets + (1 - rows) * targets[partner],
    )


def predict(model: Classifier, mels: Mels) -> np.ndarray:
    """Class numbers (N,)."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return np.concatenate([model(part).argmax(1).numpy() for part in mels.split(8)])

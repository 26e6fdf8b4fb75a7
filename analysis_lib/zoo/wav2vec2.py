"""Recipe of `wav2vec2-mini`: a small wav2vec 2.0 writes down phones, by CTC.

The first convolution starts as a bank of band-pass filters, as in SincNet: from random
filters the few sounds here lead to features that tell loud from soft and no more.

The annotation gives every phone's time, so two more heads, on the middle and the last
layer, learn to name the phone of each frame: first alone, then beside CTC. They only
guide training and are not kept. Some voices and some words are never heard.

References
----------
Baevski et al. (2020), "wav2vec 2.0".
Graves et al. (2006), "Connectionist Temporal Classification".
Ravanelli and Bengio (2018), "Speaker recognition from raw waveform with SincNet".
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, ctc_loss, log_softmax
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from analysis_lib.acoustics import mel_edges
from analysis_lib.encoders.checkpoints import find
from analysis_lib.encoders.speech import quietly
from analysis_lib.encoders.speech_front_ends import WaveformFrontEnd
from analysis_lib.zoo.measures import error_rate
from analysis_lib.zoo.spoken import (
    BLANK,
    RATE,
    draw,
    name_frames,
    seed_masks,
    spoken,
    symbols_of,
    vary,
)
from analysis_lib.zoo.training import Log, finish, fit, keep_float32, workspace

NAME = "wav2vec2-mini"
GUIDED_STEPS, STEPS, BATCH, LR = 500, 1300, 24, 1.5e-3
SHARE_OF_WORDS = 0.7
GUIDANCE = 0.5  # weight of each frame head


def config(n_symbols: int) -> Wav2Vec2Config:
    """12 layers as published, but narrow, on 4 convolutions; layer norms take masks.

    Parameters
    ----------
    n_symbols
        Phones and the blank.
    """
    return Wav2Vec2Config(
        vocab_size=n_symbols,
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=12,
        num_attention_heads=4,
        initializer_range=0.1,  # the published 0.02 is for eight times the width
        conv_dim=(80, 80, 80, 80),
        conv_kernel=(320, 4, 4, 2),
        conv_stride=(20, 4, 2, 2),
        feat_extract_norm="layer",
        conv_bias=True,
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=8,
        hidden_dropout=0.05,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.1,
        mask_time_length=5,
        mask_feature_prob=0.05,
        mask_feature_length=8,
        pad_token_id=BLANK,
        bos_token_id=None,
        eos_token_id=None,
    )


class Transcriber(nn.Module):
    """wav2vec 2.0 with a CTC head, and frame heads for training only."""

    def __init__(self, model: Wav2Vec2ForCTC) -> None:
        super().__init__()
        self.model = model
        size: Any = model.config
        width, n = size.hidden_size, size.vocab_size
        self.halfway = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n))
        self.last = nn.Linear(width, n)

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """CTC logits and both heads' frame logits, each (B, T, symbols)."""
        found = self.model.wav2vec2(**inputs, output_hidden_states=True)
        halfway = found.hidden_states[len(found.hidden_states) // 2]
        last = self.model.dropout(found.last_hidden_state)
        return self.model.lm_head(last), self.halfway(halfway), self.last(last)


def train(
    out: Path, *, seed: int = 0, resume: bool = True, log: Log = print
) -> dict[str, Any]:
    """Train and write weights (with the CTC head), configuration and card to ``out``.

    Returns the card. A run that was cut off resumes from its last checkpoint.
    """
    heard, unheard = spoken("train"), spoken("test")
    symbols = symbols_of(heard)
    torch.manual_seed(seed)
    settings = config(len(symbols))
    settings.phones = symbols
    model = Wav2Vec2ForCTC(settings)
    start_convolutions(model.wav2vec2.feature_extractor.conv_layers)
    keep_float32(model.wav2vec2.encoder.pos_conv_embed)
    task = Transcriber(model)
    front_end = front_end_of(settings)

    def batch(rng: np.random.Generator) -> dict[str, Any]:
        seed_masks(rng)
        waves, speeds = [], []
        chosen = draw(heard, BATCH, SHARE_OF_WORDS, rng)
        for i in chosen:
            wave, speed = vary(heard.waves[i], rng)
            waves.append(wave)
            speeds.append(speed)
        ready = front_end(waves)
        assert ready.valid is not None
        phones = [heard.phones[i] for i in chosen]
        times = front_end.times(int(ready.valid.max()))
        targets = [[symbols.index(p) for *_, p in row] for row in phones]
        return {
            "inputs": ready.inputs,
            "valid": ready.valid,
            "frames": name_frames(phones, speeds, times, ready.valid, symbols),
            "targets": torch.tensor([code for row in targets for code in row]),
            "lengths": torch.tensor([len(row) for row in targets]),
        }

    def name_phones(made: dict[str, Any]) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            logits, *named = task(made["inputs"])
        wrong = [
            cross_entropy(frames.float().flatten(0, 1), made["frames"].flatten())
            for frames in named
        ]
        return logits, torch.stack(wrong).sum()

    def guided_loss(made: dict[str, Any]) -> Tensor:
        return name_phones(made)[1]

    def loss(made: dict[str, Any]) -> Tensor:
        logits, guided = name_phones(made)
        spelled = ctc_loss(
            log_softmax(logits.float(), -1).transpose(0, 1),
            made["targets"],
            made["valid"],
            made["lengths"],
            blank=BLANK,
            zero_infinity=True,
        )
        return spelled + GUIDANCE * guided

    def phone_error_rate() -> dict[str, float]:
        part = unheard.of("words")
        few = list(range(0, len(part.waves), 5))
        said = [[p for *_, p in part.phones[i]] for i in few]
        found = transcribe(model, [part.waves[i] for i in few])
        return {"per": error_rate(said, found, [part.voices[i] for i in few])["rate"]}

    fit(
        task,
        batch,
        guided_loss,
        steps=GUIDED_STEPS,
        lr=LR,
        work=workspace(f"{NAME}-guided", seed),
        seed=seed,
        resume=resume,
        log=log,
    )
    curve = fit(
        task,
        batch,
        loss,
        steps=STEPS,
        lr=LR,
        work=workspace(NAME, seed),
        seed=seed,
        evaluate=phone_error_rate,
        resume=resume,
        log=log,
    )
    out.mkdir(parents=True, exist_ok=True)
    settings.save_pretrained(out)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(out)
    return finish(
        model,
        out,
        curve,
        evaluate,
        name=NAME,
        architecture="Wav2Vec2ForCTC: 4 convolutions, 12 pre-norm layers, 48 heads",
        learns="CTC on phones, guided by two heads on annotated frames",
        command=f"python -m analysis_lib zoo train {NAME}",
        seed=seed,
        corpus="words and utterances, voices of the train split",
        corpus_fingerprint=heard.fingerprint,
        licence="MIT",
        not_good_for="human speech: it has heard only espeak-ng's voices",
    )


def start_convolutions(layers: Iterable[Any]) -> None:
    """Begin with Gabor filters, even and odd, on the mel scale; then with averaging."""
    first, *others = (layer.conv.weight.data for layer in layers)
    n, _, size = first.shape
    edges = mel_edges(RATE, n // 2)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    times = (np.arange(size) - (size - 1) / 2) / RATE
    # As wide as the neighbours are apart, but not narrower than 60 Hz.
    bell = np.exp(-0.5 * (1.5 * np.maximum(high - low, 60) * times) ** 2)
    waves = [bell * np.cos(2 * np.pi * centre * times + p) for p in (0, np.pi / 2)]
    filters = np.stack(waves, axis=1).reshape(n, size)
    filters *= 2 / np.linalg.norm(filters, axis=1, keepdims=True)
    first.copy_(torch.as_tensor(filters)[:, None])
    for weight in others:
        weight.mul_(0.2).add_(torch.eye(n)[..., None] / weight.shape[-1])


def evaluate(name: str = NAME) -> dict[str, Any]:
    """Phone error rates in voices that were not heard in training."""
    model = load_ctc(name)
    known, new = spoken("test"), spoken("test", held_out_words=True)
    parts = {
        "words": known.of("words"),
        "utterances": known.of("utterances"),
        "words_never_heard": new.of("words"),
    }
    rates: dict[str, Any] = {}
    for part, said in parts.items():
        phones = [[p for *_, p in row] for row in said.phones]
        rates[part] = error_rate(phones, transcribe(model, said.waves), said.voices)
        rates[part]["clips"] = len(phones)
    return {"phone_error_rate": rates}


def load_ctc(name: str = NAME) -> Wav2Vec2ForCTC:
    """Load the model with its CTC head; ``config.phones`` names the symbols."""
    with quietly():
        model = Wav2Vec2ForCTC.from_pretrained(find(name).location, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def transcribe(model: Wav2Vec2ForCTC, waves: list[np.ndarray]) -> list[list[str]]:
    """Greedy CTC: the best symbol of every frame, repeats joined, blanks dropped."""
    front_end, phones = front_end_of(model.config), model.config.phones
    order = np.argsort([len(wave) for wave in waves], kind="stable")
    found: dict[int, list[str]] = {}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        ready = front_end([waves[i] for i in chosen])
        assert ready.valid is not None
        with torch.inference_mode():
            best = model(**ready.inputs).logits.argmax(-1)
        for i, row, n in zip(chosen, best, ready.valid, strict=True):
            codes = torch.unique_consecutive(row[: int(n)]).tolist()
            found[int(i)] = [phones[code] for code in codes if code != BLANK]
    return [found[i] for i in range(len(waves))]


def front_end_of(settings: Any) -> WaveformFrontEnd:
    """Normalised waveforms with a mask, as `speech` makes them."""
    return WaveformFrontEnd(
        True, True, tuple(settings.conv_kernel), tuple(settings.conv_stride)
    )

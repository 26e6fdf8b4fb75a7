"""Recipe of `qwen2-audio-mini`: a small Qwen2-Audio writes the words it hears.

Tower, projector and language model are trained together on the next token of the
transcript. A head on the middle of the tower learns to name the phone of each frame; it
only guides training and is not kept. Towards the end, words are strung together, too:
the utterances are few, and the model would know them by heart. In training the tower
sees only as much of its window as the longest clip fills: its mask makes that equal to
the whole window, and quicker.

References
----------
Chu et al. (2024), "Qwen2-Audio Technical Report", arXiv:2407.10759.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu
from transformers import Qwen2AudioForConditionalGeneration
from transformers.models.whisper.modeling_whisper import sinusoids

from analysis_lib.encoders import qwen2_audio
from analysis_lib.encoders.qwen2_audio_language import (
    PROMPT,
    load_full,
    mini_config,
    mini_processor,
)
from analysis_lib.zoo.measures import error_rate, share
from analysis_lib.zoo.spoken import (
    RATE,
    Spoken,
    draw,
    name_frames,
    spoken,
    string,
    symbols_of,
    vary,
)
from analysis_lib.zoo.training import Log, finish, fit, workspace

NAME = "qwen2-audio-mini"
STEPS, BATCH, LR = 2200, 40, 2e-3
SHARE_OF_WORDS = 0.5
LAST_STEPS, LAST_LR = 1000, 1e-3
SHARE_STRUNG = 0.6
LONGEST = 32  # tokens of a transcript
GUIDANCE = 0.5  # weight of the frame head


class Lesson(NamedTuple):
    """A batch: spectrograms, their lengths, token ids, and which of them count."""

    features: Tensor  # (B, 128, M)
    lengths: Tensor  # (B,) mel frames
    ids: Tensor  # (B, S)
    labels: Tensor  # (B, S), -100 where nothing is asked
    present: Tensor  # (B, S), 0 where padded


class Writer(nn.Module):
    """Qwen2-Audio with a frame head for training only."""

    def __init__(self, model: Qwen2AudioForConditionalGeneration, n: int) -> None:
        super().__init__()
        self.model = model
        settings: Any = model.config
        width = settings.audio_config.d_model
        self.frames = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n))


def train(
    out: Path, *, seed: int = 0, resume: bool = True, log: Log = print
) -> dict[str, Any]:
    """Train and write the whole model, its processor and card to ``out``.

    Returns the card. A run that was cut off resumes from its last checkpoint.
    """
    heard, unheard = spoken("train"), spoken("test")
    processor = mini_processor(sorted(set(heard.texts)))
    torch.manual_seed(seed)
    model = Qwen2AudioForConditionalGeneration(mini_config(processor))
    tower: Any = model.model.audio_tower
    tower.embed_positions.weight.data = sinusoids(*tower.embed_positions.weight.shape)

    symbols = symbols_of(heard)
    task = Writer(model, len(symbols))
    # Frames of the tower before it averages pairs: 20 ms apart.
    times = np.arange(tower.config.max_source_positions) * 0.02

    def ready(said: Spoken, rng: np.random.Generator) -> tuple[Lesson, Tensor]:
        varied = [vary(wave, rng) for wave in said.waves]
        made = lesson(processor, [wave for wave, _ in varied], said.texts)
        mask_features(made.features, made.lengths, rng)
        counts, _ = tower._get_feat_extract_output_lengths(made.lengths)
        speeds = [speed for _, speed in varied]
        return made, name_frames(said.phones, speeds, times, counts, symbols)

    def batch(rng: np.random.Generator) -> tuple[Lesson, Tensor]:
        return ready(heard.select(draw(heard, BATCH, SHARE_OF_WORDS, rng)), rng)

    def last_batch(rng: np.random.Generator) -> tuple[Lesson, Tensor]:
        if rng.random() < SHARE_STRUNG:
            return ready(string(heard, BATCH, rng), rng)
        return batch(rng)

    def loss(pair: tuple[Lesson, Tensor]) -> Tensor:
        made, phones = pair
        with torch.autocast("cpu", torch.bfloat16):
            logits, halfway = next_tokens(model, made)
            named = task.frames(halfway)
        written = cross_entropy(
            logits[:, :-1].float().flatten(0, 1), made.labels[:, 1:].flatten()
        )
        guided = cross_entropy(
            named.float().flatten(0, 1), phones[:, : named.shape[1]].flatten()
        )
        return written + GUIDANCE * guided

    def accuracy() -> dict[str, float]:
        found = {}
        for kind in ("words", "utterances"):
            part = unheard.of(kind)
            few = list(range(0, len(part.waves), 8))
            texts = write(model, processor, [part.waves[i] for i in few])
            right = [t == part.texts[i] for t, i in zip(texts, few, strict=True)]
            found[f"{kind}_exact"] = float(np.mean(right))
        return found

    settings: dict[str, Any] = {
        "seed": seed,
        "evaluate": accuracy,
        "resume": resume,
        "log": log,
    }
    work = workspace(NAME, seed)
    first = fit(task, batch, loss, steps=STEPS, lr=LR, work=work, **settings)
    work = workspace(f"{NAME}-last", seed)
    last = fit(
        task, last_batch, loss, steps=LAST_STEPS, lr=LAST_LR, work=work, **settings
    )
    curve = pd.concat([first, last.assign(step=last["step"] + STEPS)])
    out.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(out)
    processor.save_pretrained(out)
    return finish(
        model,
        out,
        curve,
        evaluate,
        name=NAME,
        architecture="Qwen2-Audio: tower 4 × 128 on 4 s, projector, Qwen2 4 × 128",
        learns="the next token of what is said, guided by a phone head in mid-tower",
        command=f"python -m analysis_lib zoo train {NAME}",
        seed=seed,
        corpus="words and utterances, voices of the train split",
        corpus_fingerprint=heard.fingerprint,
        licence="MIT",
        not_good_for="human speech or any other question: it only writes down words",
    )


def evaluate(name: str = NAME) -> dict[str, Any]:
    """Words written, by ``generate``, in voices that were not heard in training."""
    model, processor = load_full(name)
    known = spoken("test")
    new = spoken("test", held_out_words=True).of("words")
    words, utterances = known.of("words"), known.of("utterances")
    written = write(model, processor, words.waves)
    right = [a == b for a, b in zip(written, words.texts, strict=True)]
    commonest = float(words.table["text"].value_counts(normalize=True).iloc[0])
    return {
        "single_words_exact": share(right, words.voices, commonest),
        "utterances_word_error_rate": error_rate(
            [text.split() for text in utterances.texts],
            [text.split() for text in write(model, processor, utterances.waves)],
            utterances.voices,
        ),
        "words_never_heard_letter_error_rate": error_rate(
            new.texts, write(model, processor, new.waves), new.voices
        ),
    }


def lesson(processor: Any, waves: list[np.ndarray], texts: list[str]) -> Lesson:
    """Put clips and transcripts into one batch, padded on the right."""
    ready = qwen2_audio.prepare(waves, processor.feature_extractor)
    assert ready.valid is not None
    lengths = ready.inputs["feature_attention_mask"].sum(-1)
    tokenizer = processor.tokenizer
    rows, counts = [], []
    for n, text in zip(ready.valid.tolist(), texts, strict=True):
        prompt = PROMPT.replace("<|AUDIO|>", "<|AUDIO|>" * n)
        ids = tokenizer(prompt + text)["input_ids"] + [tokenizer.eos_token_id]
        rows.append(torch.tensor(ids))
        counts.append(n + 2)
    ids = torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=tokenizer.pad_token_id
    )
    place = torch.arange(ids.shape[1])
    ends = torch.tensor([len(row) for row in rows])
    asked = place[None] >= torch.tensor(counts)[:, None]
    present = place[None] < ends[:, None]
    labels = ids.where(asked & present, -100)
    return Lesson(ready.inputs["input_features"], lengths, ids, labels, present.long())


def next_tokens(
    model: Qwen2AudioForConditionalGeneration, made: Lesson
) -> tuple[Tensor, Tensor]:
    """Run the model on the filled part of its window.

    Returns
    -------
    logits : (B, S, vocabulary), as the model's own forward gives them
    halfway : (B, 2 T, C), the middle of the tower
    """
    core: Any = model.model
    frames, counts, halfway = hear(core, made.features, made.lengths)
    own = torch.arange(frames.shape[1])[None] < counts[:, None]
    inputs = core.get_input_embeddings()(made.ids)
    audio = (made.ids == model.config.audio_token_id)[..., None]
    inputs = inputs.masked_scatter(audio, frames[own].to(inputs.dtype))
    hidden = core.language_model(inputs_embeds=inputs, attention_mask=made.present)
    return model.lm_head(hidden.last_hidden_state), halfway


def hear(core: Any, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Projector frames of a batch from the filled part of the window.

    Returns
    -------
    frames : (B, T, C)
    counts : (B,), own frames of each clip
    halfway : (B, 2 T, C), the middle of the tower
    """
    tower = core.audio_tower
    # The convolutions look two mel frames past a clip's end; pairs are averaged.
    filled = min(features.shape[-1], -(-(int(lengths.max()) + 2) // 4) * 4)
    hidden = gelu(tower.conv2(gelu(tower.conv1(features[..., :filled]))))
    hidden = hidden.transpose(1, 2)
    hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
    tokens, counts = tower._get_feat_extract_output_lengths(lengths)
    mask = torch.arange(hidden.shape[1])[None] < tokens[:, None]
    halfway = hidden
    for i, layer in enumerate(tower.layers):
        hidden = layer(hidden, mask[:, None, None])
        if 2 * (i + 1) == len(tower.layers):
            halfway = hidden
    hidden = tower.avg_pooler(hidden.transpose(1, 2)).transpose(1, 2)
    return core.multi_modal_projector(tower.layer_norm(hidden)), counts, halfway


def mask_features(features: Tensor, lengths: Tensor, rng: np.random.Generator) -> None:
    """Blank stretches of time and bands of a batch in place, as SpecAugment does."""
    for image, n in zip(features, lengths.tolist(), strict=True):
        for axis, size, longest in ((1, n, n // 8), (0, image.shape[0], 20)):
            for _ in range(2):
                width = int(rng.integers(longest + 1))
                start = int(rng.integers(size - width + 1))
                image.narrow(axis, start, width).fill_(float(image[:, :n].mean()))


def write(model: Any, processor: Any, waves: list[np.ndarray]) -> list[str]:
    """Transcribe clips greedily through the processor and ``generate``."""
    texts: list[str] = []
    for start in range(0, len(waves), BATCH):
        part = waves[start : start + BATCH]
        inputs = processor(
            text=[PROMPT] * len(part),
            audio=part,
            sampling_rate=RATE,
            return_tensors="pt",
            padding=True,
        )
        with torch.inference_mode():
            ids = model.generate(
                **inputs,
                max_new_tokens=LONGEST,
                do_sample=False,
                pad_token_id=processor.tokenizer.pad_token_id,
                eos_token_id=processor.tokenizer.eos_token_id,
            )
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts += processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts

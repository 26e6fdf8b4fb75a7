"""Speech for the recipes: the voices and words that training may hear, and others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import textgrid
import torch
from torch import Tensor

from analysis_lib.base import digest
from analysis_lib.corpora import Corpus, load_corpus

RATE = 16_000
CORPORA = ("words", "utterances")
FASTER, SLOWER = 1.18, 0.85
GAP = 0.05  # seconds between words in a row
BLANK = 0  # code of a frame in which nothing is said


@dataclass(frozen=True)
class Spoken:
    """Clips of speech with what is said in them.

    Attributes
    ----------
    waves
        At 16 kHz, each (samples,).
    table
        A row a clip: ``text``, ``phones``, ``group`` (voice), ``kind`` (corpus).
    phones
        For each clip its (start, end, phone) in seconds.
    fingerprint
        Of the sound and its labels.
    """

    waves: list[np.ndarray]
    table: pd.DataFrame
    phones: list[list[tuple[float, float, str]]]
    fingerprint: str

    @property
    def texts(self) -> list[str]:
        """What is said in every clip."""
        return self.table["text"].tolist()

    @property
    def voices(self) -> list[str]:
        """Who says it."""
        return self.table["group"].tolist()

    def of(self, kind: str) -> Spoken:
        """The clips of one corpus."""
        return self.select(np.flatnonzero(self.table["kind"] == kind))

    def select(self, indices: np.ndarray) -> Spoken:
        """These clips, in this order."""
        return Spoken(
            [self.waves[i] for i in indices],
            self.table.iloc[indices].reset_index(drop=True),
            [self.phones[i] for i in indices],
            self.fingerprint,
        )


def spoken(split: str, *, held_out_words: bool = False) -> Spoken:
    """Load ``words`` and ``utterances``, one split of voices.

    Parameters
    ----------
    split
        ``train`` or ``test``: the voices of training, or the others.
    held_out_words
        Clips with a word that training never hears, or those without one.
    """
    parts: list[Corpus] = []
    for name in CORPORA:
        corpus = load_corpus(name)
        table = corpus.table
        # A folder's own columns come as text.
        new = table["held_out_word"].astype(str) == "True"
        keep = (table["split"] == split) & (new == held_out_words)
        parts.append(corpus.select(keep.to_numpy()))
    return Spoken(
        [wave for part in parts for _, wave in part.stream(RATE)],
        pd.concat(
            [part.table.assign(kind=part.name) for part in parts], ignore_index=True
        ),
        [phones_of(part, i) for part in parts for i in range(len(part))],
        digest(*(part.fingerprint for part in parts)),
    )


def phones_of(corpus: Corpus, i: int) -> list[tuple[float, float, str]]:
    """Annotated phones of a clip: (start, end, phone) in seconds."""
    path = corpus.textgrid(i)
    tier = textgrid.TextGrid.fromFile(str(path)).getFirst("phones")
    return [(p.minTime, p.maxTime, p.mark) for p in tier if p.mark]


def vary(wave: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Another speaker in another room: change the speed, add noise.

    Playing faster raises pitch and resonances as a smaller throat would.

    Returns
    -------
    wave, speed
        What was at second t is now at t / speed.
    """
    speed = float(np.exp(rng.uniform(np.log(SLOWER), np.log(FASTER))))
    n = round(len(wave) / speed)
    changed = np.interp(np.arange(n) * speed, np.arange(len(wave)), wave)
    noise = rng.standard_normal(n) * 10 ** (-rng.uniform(15, 45) / 20)
    if rng.random() < 0.5:
        # Darker noise: most of it below a kilohertz.
        noise = np.convolve(noise, np.full(9, 1 / 3), mode="same")
    return (changed + noise * changed.std()).astype(np.float32), speed


def symbols_of(said: Spoken) -> list[str]:
    """The blank and every phone, in order of their codes."""
    return ["", *sorted({phone for row in said.phones for *_, phone in row})]


def name_frames(
    phones: Sequence[list[tuple[float, float, str]]],
    speeds: Sequence[float],
    times: np.ndarray,
    counts: Tensor,
    symbols: list[str],
) -> Tensor:
    """Code of the phone at the centre of every frame of a batch.

    Parameters
    ----------
    phones
        Annotation of each clip (B,) as it was before `vary`.
    speeds
        What `vary` did to each.
    times : (T,)
        Centres of frames in seconds.
    counts : (B,)
        Frames of each clip that are not padding.
    symbols
        As `symbols_of` gives them.

    Returns
    -------
    Tensor
        (B, T), -100 in the padding.
    """
    codes = torch.full((len(phones), len(times)), -100)
    for own, row, speed, n in zip(codes, phones, speeds, counts.tolist(), strict=True):
        own[:n] = BLANK
        for start, end, phone in row:
            inside = (times[:n] * speed >= start) & (times[:n] * speed < end)
            own[:n][torch.as_tensor(inside)] = symbols.index(phone)
    return codes


def draw(
    said: Spoken, size: int, share_of_words: float, rng: np.random.Generator
) -> np.ndarray:
    """Draw the clips of a batch: single words, in this share of batches, or utterances.

    Words among utterances would be mostly padding.
    """
    kind = "words" if rng.random() < share_of_words else "utterances"
    return rng.choice(np.flatnonzero(said.table["kind"] == kind), size)


def string(said: Spoken, size: int, rng: np.random.Generator) -> Spoken:
    """Make clips of two to four single words in a row, each clip in one voice.

    The utterances there are would be learnt by heart; these are always new.
    """
    words = said.table[said.table["kind"] == "words"]
    voices = [rows.index.to_numpy() for _, rows in words.groupby("group")]
    waves, rows, phones = [], [], []
    for _ in range(size):
        chosen = rng.choice(voices[rng.integers(len(voices))], rng.integers(2, 5))
        pieces, spans, now = [], [], 0
        for i in chosen:
            begin, end = said.phones[i][0][0] - GAP / 2, said.phones[i][-1][1] + GAP / 2
            piece = said.waves[i][max(0, round(begin * RATE)) : round(end * RATE)]
            shift = now / RATE - max(0.0, begin)
            spans += [(a + shift, b + shift, phone) for a, b, phone in said.phones[i]]
            pieces.append(piece)
            now += len(piece)
        waves.append(np.concatenate(pieces))
        phones.append(spans)
        text = " ".join(said.table["text"][i] for i in chosen)
        rows.append(said.table.loc[chosen[0]].to_dict() | {"text": text})
    return Spoken(waves, pd.DataFrame(rows), phones, said.fingerprint)


def seed_masks(rng: np.random.Generator) -> None:
    """Make the masks that transformers draws in training follow from the step."""
    # It draws them from numpy's global generator.
    np.random.seed(int(rng.integers(2**31)))  # noqa: NPY002

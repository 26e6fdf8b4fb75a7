"""``words``: single spoken words in many voices, with the time of every phone.

espeak-ng says every word in every voice with drawn speed and pitch; colour, room,
noise and gain are drawn on top. The label is the word, the group is the voice. Some
voices are held out (``split``), and some words (``held_out_word``), so that a question
about phones can be tested on voices and words that nothing was trained on.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import numpy as np
import soxr
import textgrid

from analysis_lib.base import AnalysisError
from analysis_lib.corpora import espeak
from analysis_lib.corpora.build import Row, write_clip
from analysis_lib.corpora.espeak import Speech, Utterance, speak_all
from analysis_lib.corpora.synthesis import (
    Array,
    Rng,
    add,
    convolve,
    equalize,
    log_uniform,
    mix,
    room,
    set_peak,
    shaped_noise,
    slow_curve,
)

RATE = 16000
PARTS = (espeak,)
SEED = 40
TAKES = 2
VOICES = str.split(
    "f1 f2 f3 f5 m1 m2 m3 m4 m6 m7 m8 klatt klatt2 Annie Andy max benjamin zac quincy "
    "belinda"
)
HELD_OUT_VOICES = str.split("f4 m5 klatt3 steph edward")
WORDS = str.split(
    "yes never stop go left right zero one two three four five six eight nine apple "
    "cheese orange juice water vision garage house mouse toy boy book push blue shoe "
    "father mother bird nurse thumb tooth think yellow jacket judge chair kitchen song "
    "king garden window happy village zebra music usual power hour fire violin banana"
)
HELD_OUT_WORDS = str.split(
    "seven moon voice foot feather watch finger rabbit measure flower"
)
LICENCE = """CC0 1.0 Universal (public domain dedication)

The speech in this folder was made on this computer by espeak-ng, a program under the
GNU General Public License 3.0 or later, which does not extend to the sound it makes.
To the extent possible under law, the authors of the recipe waive all copyright and
related rights to these files: https://creativecommons.org/publicdomain/zero/1.0/
"""


def versions() -> str:
    """What else the sound depends on: the release of espeak-ng."""
    try:
        return version("espeakng-loader")
    except PackageNotFoundError:
        return "none"


def jobs() -> list[tuple[str]]:
    """One job a voice."""
    return [(voice,) for voice in (*VOICES, *HELD_OUT_VOICES)]


def make_clips(folder: Path, voice: str) -> list[Row]:
    """Write every word of one voice, sound and TextGrid; return their rows."""
    texts = [word for word in (*WORDS, *HELD_OUT_WORDS) for _ in range(TAKES)]
    return speak_clips(folder, voice, texts, SEED)


def speak_clips(folder: Path, voice: str, texts: list[str], seed: int) -> list[Row]:
    """Write texts said in one voice, each with its TextGrid; return their rows."""
    number = (*VOICES, *HELD_OUT_VOICES).index(voice)
    rngs = [np.random.default_rng([seed, number, k]) for k in range(len(texts))]
    wanted = [
        utterance(rng, text, voice) for rng, text in zip(rngs, texts, strict=True)
    ]
    rows: list[Row] = []
    spoken = zip(rngs, wanted, speak_all(wanted), strict=True)
    for count, (rng, want, speech) in enumerate(spoken):
        words = want.text.split()
        name = f"{voice}/{count:03}-{'-'.join(words)}.flac"
        samples, lead = place(rng, speech)
        write_clip(folder / name, samples, RATE)
        grid = annotate(speech, words, lead, len(samples) / RATE)
        grid.write(str((folder / name).with_suffix(".TextGrid")))
        phones = [interval.mark for interval in grid.getFirst("phones")]
        rows.append(
            {
                "file_name": name,
                "label": words[0],
                "text": want.text,
                "phones": " ".join(filter(None, phones)),
                "group": voice,
                "split": "test" if voice in HELD_OUT_VOICES else "train",
                "held_out_word": bool(set(words) & set(HELD_OUT_WORDS)),
            }
        )
    return rows


def utterance(rng: Rng, text: str, voice: str) -> Utterance:
    """Draw how fast and how high a text is said."""
    return Utterance(
        text,
        f"en-us+{voice}",
        seed=int(rng.integers(1, 1 << 31)),
        speed=int(rng.integers(130, 211)),
        pitch=int(rng.integers(30, 71)),
        pitch_range=int(rng.integers(20, 81)),
    )


def place(rng: Rng, speech: Speech) -> tuple[Array, float]:
    """Put speech into a clip with colour, room and noise.

    Returns
    -------
    tuple
        The clip, 1 s or as many half seconds as the speech needs, so that batches of
        equal length are easy to find; and when in it the speech begins (s).
    """
    said = np.asarray(soxr.resample(speech.samples / 32768, speech.rate, RATE))
    seconds = max(1.0, np.ceil((len(said) / RATE + 0.1) * 2) / 2)
    n = int(seconds * RATE)
    start = int(rng.integers(int(0.03 * RATE), n - len(said) - int(0.03 * RATE)))
    out = np.zeros(n)
    add(out, said, start)
    out = equalize(out, RATE, rng.normal(0, 3, 6))
    reverberation, wet = rng.uniform(0.1, 0.5), log_uniform(rng, 0.01, 0.3)
    out = convolve(out, room(rng, RATE, reverberation, wet))
    levels = {80.0 * 2**k: float(rng.normal(-3 * k, 3)) for k in range(7)}
    noise = shaped_noise(rng, n, RATE, levels)
    noise *= np.exp(0.3 * slow_curve(rng, n, RATE, 4))
    out = mix(out, noise, RATE, rng.uniform(5, 30))
    return set_peak(out, rng.uniform(0.2, 0.9)), start / RATE


def annotate(
    speech: Speech, words: list[str], lead: float, seconds: float
) -> textgrid.TextGrid:
    """Tiers ``words`` and ``phones`` from the events of the synthesizer.

    A phone lasts until the next begins; a word from its first phone to the end of its
    last. Stress marks are left out. Times are in seconds of the clip.

    Raises
    ------
    AnalysisError
        If the synthesizer joined words or phones, so that they cannot be told apart.
    """
    phones: list[tuple[float, float, str]] = []
    spans: list[list[tuple[float, float, str]]] = []
    phone_marks = [mark for mark in speech.marks if not mark.is_word]
    ends = {id(a): b.sample for a, b in pairwise(phone_marks)}
    for mark in speech.marks:
        if mark.is_word:
            spans.append([])
            continue
        name = mark.name.strip("ˈˌ")
        end = ends.get(id(mark), len(speech.samples))
        if not name:
            continue
        if end <= mark.sample:
            raise AnalysisError(
                f"espeak-ng gives the {name} in {' '.join(words)!r} no time of its "
                "own: choose another word."
            )
        phone = (lead + mark.sample / speech.rate, lead + end / speech.rate, name)
        phones.append(phone)
        if spans:
            spans[-1].append(phone)
    spans = [span for span in spans if span]
    if len(spans) != len(words):
        raise AnalysisError(
            f"espeak-ng marked {len(spans)} words in {' '.join(words)!r}: "
            "choose words that it keeps apart."
        )
    grid = textgrid.TextGrid(maxTime=seconds)
    tiers = {
        "words": [(s[0][0], s[-1][1], w) for s, w in zip(spans, words, strict=True)],
        "phones": phones,
    }
    for name, intervals in tiers.items():
        tier = textgrid.IntervalTier(name=name, minTime=0, maxTime=seconds)
        for interval in intervals:
            tier.add(*interval)
        grid.append(tier)
    return grid

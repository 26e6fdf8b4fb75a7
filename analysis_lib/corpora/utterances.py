"""``utterances``: two to four words in a row, annotated like ``words``.

The words of an utterance are drawn, so that nothing but the sound tells which comes
next. The label is the first word; ``text`` has all of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis_lib.corpora import espeak, words
from analysis_lib.corpora.build import Row

SEED = 41
PER_VOICE = 66
PARTS = (espeak, words)
LICENCE = words.LICENCE
versions = words.versions
jobs = words.jobs


def make_clips(folder: Path, voice: str) -> list[Row]:
    """Write the utterances of one voice, sound and TextGrid; return their rows."""
    number = [job[0] for job in jobs()].index(voice)
    rng = np.random.default_rng([SEED, number])
    known = np.array([*words.WORDS, *words.HELD_OUT_WORDS])
    # Every word comes first once, so that no label is rare.
    firsts = rng.permutation(known)
    texts = [
        " ".join([first, *rng.choice(known[known != first], rng.integers(1, 4), False)])
        for first in firsts[:PER_VOICE]
    ]
    return words.speak_clips(folder, voice, texts, SEED)

"""Speech from text with the time of every phone: espeak-ng through ctypes.

The library keeps hidden state from one utterance to the next (its flutter runs on),
and a fault in it would end the process. So a list of utterances is always said by a
fresh process, :func:`speak_all`, which makes the list's sound depend on the list alone.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis_lib.base import AnalysisError

SYNCHRONOUS = 2
PHONEME_EVENTS, PHONEMES_IN_IPA, STAY_ALIVE = 0x1, 0x2, 0x8000
SPEED, PITCH, PITCH_RANGE = 1, 3, 4
UTF8 = 1
EXPECTED_FAILURE = 3
EVENT_END, EVENT_WORD, EVENT_PHONEME = 0, 1, 7
HOW = "install it with: python -m pip install -U 'espeakng-loader>=0.2.4'"


class _Name(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """``espeak_EVENT`` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_short),
    ctypes.c_int,
    ctypes.POINTER(_Event),
)


@dataclass(frozen=True)
class Utterance:
    """What to say and how.

    Attributes
    ----------
    text
        Words, separated by spaces.
    voice
        Language and variant, as ``"en-us+f2"``.
    seed
        Of the library's noise (it would take the time of day).
    speed
        Words per minute, 80 to 450.
    pitch, pitch_range
        0 to 100; 50 is the voice's own.
    """

    text: str
    voice: str
    seed: int
    speed: int = 160
    pitch: int = 50
    pitch_range: int = 50


@dataclass(frozen=True)
class Mark:
    """A phone or a word begins at ``sample``; ``name`` is IPA, empty for a pause."""

    sample: int
    name: str
    is_word: bool


@dataclass(frozen=True)
class Speech:
    """What espeak-ng said: 16-bit samples, their rate, and what begins when."""

    samples: NDArray[np.int16]
    rate: int
    marks: tuple[Mark, ...]


def speak_all(utterances: Sequence[Utterance]) -> list[Speech]:
    """Say a list of utterances in a fresh process; the same list sounds the same.

    Raises
    ------
    AnalysisError
        If espeak-ng is missing or too old, or has no such voice.
    """
    package_root = str(Path(__file__).parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps([asdict(utterance) for utterance in utterances]).encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    if done.returncode == EXPECTED_FAILURE:
        raise AnalysisError(done.stderr.decode(errors="replace").strip())
    if done.returncode != 0:
        last = (done.stderr.decode(errors="replace").strip() or "no message").split(
            "\n"
        )
        raise AnalysisError(
            f"espeak-ng stopped with code {done.returncode} ({last[-1]}): {HOW}"
        )
    with np.load(io.BytesIO(done.stdout)) as said:
        rate, marks = int(said["rate"]), json.loads(str(said["marks"]))
        return [
            Speech(said[f"samples{k}"], rate, tuple(Mark(*mark) for mark in of_one))
            for k, of_one in enumerate(marks)
        ]


def _answer() -> None:
    """Read utterances as JSON from stdin, write their sound as npz to stdout."""
    try:
        said = [_speak(Utterance(**each)) for each in json.load(sys.stdin)]
        rate = _library()[1]
    except AnalysisError as error:
        sys.stderr.write(str(error))
        sys.exit(EXPECTED_FAILURE)
    marks = [[(m.sample, m.name, m.is_word) for m in speech.marks] for speech in said]
    samples: dict[str, Any] = {f"samples{k}": s.samples for k, s in enumerate(said)}
    out = io.BytesIO()
    np.savez(out, rate=rate, marks=json.dumps(marks), **samples)
    sys.stdout.buffer.write(out.getvalue())


@cache
def _library() -> tuple[Any, int]:
    """The initialized library of this process and its sampling rate."""
    try:
        loader = importlib.import_module("espeakng_loader")
        library = ctypes.CDLL(loader.get_library_path())
        data = loader.get_data_path()
    except (ImportError, OSError, RuntimeError) as error:
        raise AnalysisError(
            f"The spoken corpora need the espeak-ng library ({error}): {HOW}"
        ) from error
    try:
        library.espeak_Info.restype = ctypes.c_char_p
        version = library.espeak_Info(None).decode().split()[0]
        seed = library.espeak_ng_SetRandSeed
    except AttributeError as error:
        raise AnalysisError(
            "The espeak-ng library is too old to speak the same way twice (1.52 can; "
            f"{error}): {HOW}"
        ) from error
    seed.argtypes = [ctypes.c_long]
    options = PHONEME_EVENTS | PHONEMES_IN_IPA | STAY_ALIVE
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), options)
    if rate <= 0:
        raise AnalysisError(f"espeak-ng {version} finds no voices in {data}: {HOW}")
    library.espeak_SetSynthCallback.argtypes = [_Callback]
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint,
        ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p,
    ]  # fmt: skip
    return library, rate


def _speak(utterance: Utterance) -> Speech:
    library, rate = _library()
    blocks: list[NDArray[np.int16]] = [np.zeros(0, np.int16)]
    marks: list[Mark] = []

    def receive(wave: Any, count: int, events: Any) -> int:
        if count > 0:
            # A copy: the buffer belongs to the library.
            blocks.append(np.array(wave[:count], dtype=np.int16))
        at = 0
        while events[at].type != EVENT_END:
            event = events[at]
            if event.type in (EVENT_WORD, EVENT_PHONEME):
                is_word = event.type == EVENT_WORD
                name = "" if is_word else event.id.string.decode("utf-8", "replace")
                marks.append(Mark(event.sample, name, is_word))
            at += 1
        return 0

    if library.espeak_SetVoiceByName(utterance.voice.encode()) != 0:
        raise AnalysisError(
            f"espeak-ng has no voice {utterance.voice!r}: choose one of the voices "
            "and variants that come with the espeakng-loader package."
        )
    library.espeak_SetParameter(SPEED, utterance.speed, 0)
    library.espeak_SetParameter(PITCH, utterance.pitch, 0)
    library.espeak_SetParameter(PITCH_RANGE, utterance.pitch_range, 0)
    callback = _Callback(receive)
    library.espeak_SetSynthCallback(callback)
    library.espeak_ng_SetRandSeed(utterance.seed)
    data = utterance.text.encode() + b"\0"
    library.espeak_Synth(data, len(data), 0, 1, 0, UTF8, None, None)
    library.espeak_Synchronize()
    return Speech(np.concatenate(blocks), rate, tuple(marks))


if __name__ == "__main__":
    _answer()

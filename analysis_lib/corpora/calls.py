"""``calls``: animal calls in two parts, otters and finches.

*Otters* have a repertoire: eight call types that every animal gives in its own
voice, and that vary within a type as much as real calls do. The label is the type,
the group is the animal: a type must be recognised from animals never heard.

*Finches* have one song each: a stereotyped motif of syllables. Birds come in pairs
taught by one tutor, who share the tutor's syllables and sing them in another order,
so that the average spectrum tells tutors apart, not birds. The label is the bird, the
group is the recording session, with its own distance and noise: a bird must be
recognised in a session never heard.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from analysis_lib.corpora.build import PUBLIC_DOMAIN, Row, write_clip
from analysis_lib.corpora.synthesis import (
    Array,
    Rng,
    add,
    chirp,
    convolve,
    envelope,
    equalize,
    log_uniform,
    mix,
    resonate,
    room,
    set_peak,
    shaped_noise,
    slow_curve,
)

RATE = 16000
SECONDS = 1.5
N = int(RATE * SECONDS)
LICENCE = PUBLIC_DOMAIN
OTTERS, CALLS_OF_A_TYPE = 8, 8
BIRDS, SESSIONS, MOTIFS = 10, 4, 10
SEED = 30


class Voice:
    """One otter's throat: how high, how big, how rough."""

    def __init__(self, draw: Rng) -> None:
        self.pitch = 2 ** draw.uniform(-0.35, 0.35)
        self.size = 2 ** draw.uniform(-0.2, 0.2)
        self.rough = draw.uniform(0.5, 1.5)

    def sing(
        self, rng: Rng, octaves: Array, base: float, tilt: float, breath: float
    ) -> Array:
        """A harmonic call that follows ``octaves`` above ``base`` Hz.

        ``tilt`` is the gain from one harmonic to the next, ``breath`` the share of
        noise; the animal's resonances colour both.
        """
        n = len(octaves)
        shaken = octaves + 0.012 * self.rough * slow_curve(rng, n, RATE, 45)
        tone = chirp(self.pitch * base * 2**shaken, RATE, tilt ** np.arange(14))
        tone /= tone.std() + 1e-9
        return self.colour(tone + self.rough * breath * rng.standard_normal(n))

    def colour(self, x: Array) -> Array:
        """Resonances of the vocal tract over the plain sound."""
        heard = 0.3 * x
        for formant in (900, 2300, 4300):
            heard = heard + resonate(x, RATE, formant * self.size, 500)
        return heard


def part_of(n: int) -> Array:
    """Time from 0 to 1 through a call of ``n`` samples."""
    return np.linspace(0, 1, n)


def samples(rng: Rng, low: float, high: float) -> int:
    """A drawn duration between ``low`` and ``high`` seconds, in samples."""
    return int(log_uniform(rng, low, high) * RATE)


def hah(rng: Rng, voice: Voice) -> Array:
    """A breathed burst that dies away."""
    n = samples(rng, 0.12, 0.3)
    octaves = -0.3 * part_of(n) * rng.uniform(0.3, 1)
    call = voice.sing(rng, octaves, log_uniform(rng, 350, 650), 0.75, 1.2)
    return call * envelope(n, n // 12, int(n * rng.uniform(0.5, 0.85)))


def snort(rng: Rng, voice: Voice) -> Array:
    """Two or three puffs of noise in quick succession."""
    puffs, gap = int(rng.integers(2, 4)), samples(rng, 0.09, 0.16)
    out = np.zeros(gap * puffs + RATE // 10)
    for puff in range(puffs):
        n = int(gap * rng.uniform(0.4, 0.7))
        sound = voice.colour(rng.standard_normal(n)) * envelope(n, n // 6, n // 2)
        add(out, sound * rng.uniform(0.6, 1), int(puff * gap * rng.uniform(0.95, 1.05)))
    return out


def growl(rng: Rng, voice: Voice) -> Array:
    """A low tone cut into pulses, thirty to fifty a second."""
    n = samples(rng, 0.4, 0.9)
    call = voice.sing(
        rng, 0.2 * slow_curve(rng, n, RATE, 4), rng.uniform(300, 600), 0.8, 0.6
    )
    pulse = np.sin(2 * np.pi * np.cumsum(rng.uniform(28, 50) * np.ones(n)) / RATE)
    return call * (0.55 + 0.45 * pulse) * envelope(n, n // 5, n // 4)


def hum(rng: Rng, voice: Voice) -> Array:
    """A soft level tone."""
    n = samples(rng, 0.35, 0.9)
    octaves = 0.05 * slow_curve(rng, n, RATE, 3)
    call = voice.sing(rng, octaves, log_uniform(rng, 350, 650), 0.75, 0.3)
    return call * envelope(n, n // 3, n // 3)


def coo(rng: Rng, voice: Voice) -> Array:
    """An arch: up and down again."""
    n = samples(rng, 0.25, 0.7)
    peak = rng.uniform(0.35, 0.65)
    arch = np.sin(np.pi * part_of(n) ** (np.log(0.5) / np.log(peak)))
    octaves = rng.uniform(0.5, 1.0) * (arch - 0.5)
    call = voice.sing(rng, octaves, log_uniform(rng, 400, 800), 0.7, 0.25)
    return call * envelope(n, n // 5, n // 4)


def whine(rng: Rng, voice: Voice) -> Array:
    """A tone that climbs to its end."""
    n = samples(rng, 0.3, 0.8)
    octaves = rng.uniform(0.5, 1.1) * (part_of(n) ** rng.uniform(0.7, 2) - 0.5)
    call = voice.sing(rng, octaves, log_uniform(rng, 400, 800), 0.7, 0.25)
    return call * envelope(n, n // 5, n // 6)


def squeal(rng: Rng, voice: Voice) -> Array:
    """A tone that falls from its start."""
    n = samples(rng, 0.25, 0.7)
    octaves = rng.uniform(0.5, 1.1) * (0.5 - part_of(n) ** rng.uniform(0.5, 1.4))
    call = voice.sing(rng, octaves, log_uniform(rng, 400, 800), 0.7, 0.25)
    return call * envelope(n, n // 10, n // 3)


def wavering_scream(rng: Rng, voice: Voice) -> Array:
    """A tone that wavers six to twelve times a second."""
    n = samples(rng, 0.5, 1.1)
    waver = np.sin(
        2 * np.pi * (rng.uniform(6, 12) * np.arange(n) / RATE + rng.uniform())
    )
    octaves = rng.uniform(0.12, 0.3) * waver + 0.15 * slow_curve(rng, n, RATE, 2)
    call = voice.sing(rng, octaves, log_uniform(rng, 400, 800), 0.75, 0.4)
    return call * envelope(n, n // 8, n // 4)


CALL_TYPES: dict[str, Callable[[Rng, Voice], Array]] = {
    call.__name__: call
    for call in (coo, growl, hah, hum, snort, squeal, wavering_scream, whine)
}

Syllable = Callable[[Rng], Array]


def syllable(draw: Rng) -> Syllable:
    """Draw one syllable of a tutor: a stack, a sweep, a buzz or a high note."""
    kind = int(draw.integers(4))
    n = int(draw.uniform(0.05, 0.13) * RATE)
    base = (log_uniform(draw, 450, 900), log_uniform(draw, 900, 1800), 0.0)[kind % 3]
    base = base or log_uniform(draw, 2200, 4200)
    bend = draw.uniform(-1.0, 1.0) * (kind != 0)
    tilt, buzz = draw.uniform(0.6, 0.95), draw.uniform(0.3, 1.5) * (kind == 3)
    throat = [log_uniform(draw, 1200, 2600), log_uniform(draw, 3000, 6000)]

    def render(rng: Rng) -> Array:
        length = int(n * rng.uniform(0.95, 1.05))
        octaves = bend * (part_of(length) - 0.5) + rng.normal(0, 0.02)
        sound = chirp(base * 2**octaves, RATE, tilt ** np.arange(12))
        sound = sound / sound.std() + buzz * rng.standard_normal(length)
        sound = 0.3 * sound + sum(resonate(sound, RATE, f, 900) for f in throat)
        return np.asarray(sound) * envelope(length, length // 6, length // 4)

    return render


def motif(bird: int) -> Syllable:
    """The song of one bird: its tutor's syllables in an order of its own."""
    tutor = np.random.default_rng([SEED, 1, bird // 2])
    count = int(tutor.integers(4, 6))
    taught = [syllable(tutor) for _ in range(count)]
    gains, gaps = tutor.uniform(0.6, 1, count), tutor.uniform(0.025, 0.06, count)
    order = np.arange(count)
    if bird % 2:
        # Sung backwards: the same syllables before and after other ones.
        order = order[::-1]

    def render(rng: Rng) -> Array:
        tempo, out, at = rng.uniform(0.95, 1.05), np.zeros(N), 0
        for place in order:
            sound = taught[place](rng) * gains[place] * rng.uniform(0.85, 1.15)
            add(out, sound, at)
            at += len(sound) + int(gaps[place] * tempo * RATE)
        return out[: min(at, N)]

    return render


def recording(draw: Rng) -> Callable[[Rng, Array], Array]:
    """Draw how far the animal is and what else sounds; return the mixer.

    Distance takes level and treble and gives reverberation.
    """
    distance = log_uniform(draw, 1, 8)
    treble = np.linspace(0, -3 * np.log2(distance), 6) + draw.normal(0, 2, 6)
    response = room(draw, RATE, draw.uniform(0.1, 0.5), 0.04 * distance)
    hiss = {80.0 * 2**k: float(draw.normal(-2 * k, 3)) for k in range(7)}
    clear = draw.uniform(22, 28) - 18 * np.log10(distance)

    def mixer(rng: Rng, call: Array) -> Array:
        out = np.zeros(N)
        add(
            out,
            call,
            int(rng.uniform(0.02, max(SECONDS - len(call) / RATE, 0.04)) * RATE),
        )
        out = convolve(equalize(out, RATE, treble), response)
        noise = shaped_noise(rng, N, RATE, hiss) * np.exp(
            0.3 * slow_curve(rng, N, RATE, 5)
        )
        heard = mix(out, noise, RATE, clear + rng.uniform(-3, 3))
        return set_peak(heard, rng.uniform(0.2, 0.9))

    return mixer


def jobs() -> list[tuple[str, int]]:
    """One job an animal: ``(species, number)``."""
    return [("otter", k) for k in range(OTTERS)] + [("finch", k) for k in range(BIRDS)]


def make_clips(folder: Path, species: str, number: int) -> list[Row]:
    """Write the calls of one animal; return their rows."""
    return (_otter if species == "otter" else _finch)(folder, number)


def _otter(folder: Path, number: int) -> list[Row]:
    draw = np.random.default_rng([SEED, 0, number])
    voice, animal = Voice(draw), f"otter-{number:02}"
    mixers = [recording(draw) for _ in range(2)]
    rows: list[Row] = []
    for kind, (label, call) in enumerate(CALL_TYPES.items()):
        for count in range(CALLS_OF_A_TYPE):
            rng = np.random.default_rng([SEED, 0, number, kind, count])
            heard = mixers[count % 2](rng, call(rng, voice))
            name = f"otters/{label}/{animal}-{count}.flac"
            write_clip(folder / name, heard, RATE)
            row: Row = {"file_name": name, "label": label, "group": animal}
            row |= {"fold": number % SESSIONS + 1, "species": "otter"}
            rows.append({**row, "recording": f"{animal}-recording-{count % 2}"})
    return rows


def _finch(folder: Path, number: int) -> list[Row]:
    song, bird = motif(number), f"finch-{number:02}"
    rows: list[Row] = []
    for session in range(SESSIONS):
        mixer = recording(np.random.default_rng([SEED, 2, number, session]))
        for count in range(MOTIFS):
            rng = np.random.default_rng([SEED, 2, number, session, count])
            name = f"finches/{bird}/session-{session}-{count}.flac"
            write_clip(folder / name, mixer(rng, song(rng)), RATE)
            row: Row = {
                "file_name": name,
                "label": bird,
                "group": f"{bird}-session-{session}",
            }
            row |= {"fold": session + 1, "species": "finch"}
            rows.append({**row, "recording": row["group"]})
    return rows

"""``environment``: sixteen procedural everyday sounds that share their colours.

A class is told by what happens in time (rate, regularity, sweep, decay) far more
than by its average spectrum: every source is coloured by its own drawn equaliser,
stands in its own room, and is mixed with a background at a drawn level. A recipe
draws the parameters of one *source* and returns a function that renders one *clip*
of it after another.
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
    band_noise,
    chirp,
    convolve,
    envelope,
    equalize,
    log_uniform,
    mix,
    modes,
    poisson_times,
    regular_times,
    resonate,
    room,
    set_peak,
    shaped_noise,
    slow_curve,
    tilted_noise,
)

RATE = 44100
SECONDS = 2.0
N = int(RATE * SECONDS)
SOURCES, CLIPS = 15, 4
# The bundled encoder hears these sources; chapters ask about the others.
TRAIN_SOURCES = 9
LICENCE = PUBLIC_DOMAIN
TIME = np.arange(N) / RATE
Render = Callable[[Rng], Array]


def rain(draw: Rng) -> Render:
    """Hundreds of tiny drops a second on a hiss."""
    drops, hiss = log_uniform(draw, 150, 700), draw.uniform(0.05, 0.25)
    low, high = log_uniform(draw, 500, 1500), log_uniform(draw, 4000, 12000)

    def render(rng: Rng) -> Array:
        hits = np.zeros(N)
        at = rng.integers(0, N, rng.poisson(drops * SECONDS))
        np.add.at(hits, at, rng.exponential(1, len(at)) ** 1.5)
        body = resonate(hits, RATE, log_uniform(rng, low, high), 2500)
        body += 0.7 * resonate(hits, RATE, high, 5000)
        return body / body.std() + hiss * band_noise(rng, N, RATE, low, high)

    return render


def wind(draw: Rng) -> Render:
    """Noise through a resonance that wanders with the gusts."""
    centre, width = log_uniform(draw, 250, 1200), draw.uniform(0.3, 0.7)
    gust, tilt = draw.uniform(0.8, 2.0), draw.uniform(-5, -2)

    def render(rng: Rng) -> Array:
        gusts = slow_curve(rng, N, RATE, gust)
        out = 0.6 * tilted_noise(rng, N, RATE, tilt) * np.exp(0.5 * gusts)
        # A bank of narrow noises weighted over time is a resonance that moves.
        position = np.log2(centre) + width * gusts
        for octave in np.arange(np.log2(centre) - 1.5, np.log2(centre) + 1.6, 0.5):
            weight = np.exp(-(((position - octave) / 0.3) ** 2))
            band = band_noise(rng, N, RATE, 2**octave * 0.92, 2**octave * 1.08)
            out += weight * np.exp(0.4 * gusts) * band
        return out

    return render


def waves(draw: Rng) -> Render:
    """Surf: a slow swell that brightens as it breaks and hisses away."""
    period, tilt = draw.uniform(1.1, 2.2), draw.uniform(-5, -2)
    top, break_at = log_uniform(draw, 3000, 9000), draw.uniform(0.35, 0.65)

    def render(rng: Rng) -> Array:
        phase = (TIME / period + rng.uniform()) % 1.0
        rise = np.where(
            phase < break_at, phase / break_at, (1 - phase) / (1 - break_at)
        )
        late = np.clip((phase - break_at * 0.7) / 0.2, 0, 1) * rise
        rumble = tilted_noise(rng, N, RATE, tilt) * (0.1 + rise**2)
        return rumble + 0.7 * band_noise(rng, N, RATE, 600, top) * late**1.5

    return render


def fire_crackle(draw: Rng) -> Render:
    """Clicks of all sizes, in clusters, over a soft flutter."""
    clusters, size = log_uniform(draw, 3, 8), draw.uniform(2, 6)
    low, high = log_uniform(draw, 700, 2000), log_uniform(draw, 3000, 9000)
    flutter, tilt = draw.uniform(0.05, 0.25), draw.uniform(-5, -2)

    def render(rng: Rng) -> Array:
        body = tilted_noise(rng, N, RATE, tilt)
        out = flutter * body * np.exp(0.5 * slow_curve(rng, N, RATE, 9))
        for start in poisson_times(rng, SECONDS, clusters):
            for _ in range(1 + rng.poisson(size)):
                at = int((start + rng.exponential(0.03)) * RATE)
                n = int(log_uniform(rng, 0.001, 0.008) * RATE)
                click = rng.standard_normal(n * 4) * np.exp(-np.arange(n * 4) / n)
                pitch = log_uniform(rng, low, high)
                gain = rng.pareto(2.0) + 0.2
                add(out, gain * 4 * resonate(click, RATE, pitch, 1500), at)
        return np.asarray(np.tanh(out / 6) * 6)

    return render


def knock_body(draw: Rng, low: float, high: float, decay: float) -> Array:
    """Modes of one struck body: frequencies, decays, gains in rows."""
    count = int(draw.integers(4, 8))
    frequencies = log_uniform(draw, low, high) * np.cumprod(
        np.r_[1.0, draw.uniform(1.15, 1.9, count - 1)]
    )
    return np.array(
        [
            frequencies,
            decay * draw.uniform(0.5, 1.2, count) / np.sqrt(np.arange(1, count + 1)),
            draw.uniform(0.3, 1.0, count),
        ]
    )


def clock_tick(draw: Rng) -> Render:
    """Tick and tock, never late."""
    period = draw.uniform(0.22, 0.5)
    bodies = [knock_body(draw, 700, 2500, 0.03) for _ in range(2)]
    second = draw.uniform(0.6, 1.0)

    def render(rng: Rng) -> Array:
        out, turn = np.zeros(N), int(rng.integers(2))
        for count, at in enumerate(regular_times(rng, SECONDS, period, 0.004)):
            which = (count + turn) % 2
            gain = (second if which else 1.0) * rng.uniform(0.93, 1.07)
            add(out, gain * modes(RATE, *bodies[which]), int(at * RATE))
        return out

    return render


def typing(draw: Rng) -> Render:
    """Keys: short clicks of many bodies, in hurried, uneven runs."""
    rate, run = draw.uniform(6, 11), draw.uniform(3, 7)
    keys = [knock_body(draw, 600, 2600, 0.035) for _ in range(8)]

    def render(rng: Rng) -> Array:
        out, at, left = np.zeros(N), rng.uniform(0, 0.15), rng.poisson(run) + 1
        while at < SECONDS:
            key = keys[int(rng.integers(8))]
            gain = rng.uniform(0.4, 1.0)
            add(out, gain * modes(RATE, *key), int(at * RATE))
            release = at + rng.uniform(0.05, 0.09)
            add(out, 0.35 * gain * modes(RATE, *key), int(release * RATE))
            left -= 1
            at += rng.gamma(4, 1 / rate / 4) if left > 0 else rng.uniform(0.3, 0.5)
            left = left if left > 0 else rng.poisson(run) + 1
        return out

    return render


def door_knock(draw: Rng) -> Render:
    """One quick row of knuckles on wood, and silence around it."""
    body, gap = knock_body(draw, 150, 600, 0.12), draw.uniform(0.13, 0.24)
    count = int(draw.integers(3, 6))

    def render(rng: Rng) -> Array:
        out = np.zeros(N)
        at = rng.uniform(0.05, SECONDS - gap * count - 0.2)
        for _ in range(count):
            hit = body * np.array([[rng.uniform(0.98, 1.02)], [1.0], [1.0]])
            add(out, rng.uniform(0.7, 1.0) * modes(RATE, *hit), int(at * RATE))
            at += gap * rng.normal(1, 0.05)
        return out

    return render


def footsteps(draw: Rng) -> Render:
    """A steady walk: heel thud, then the crunch of the sole."""
    period, limp = draw.uniform(0.42, 0.65), draw.uniform(0.0, 0.05)
    body, crunch = knock_body(draw, 90, 400, 0.09), draw.uniform(0.2, 0.9)
    low, high = log_uniform(draw, 500, 1500), log_uniform(draw, 3000, 9000)

    def render(rng: Rng) -> Array:
        out = np.zeros(N)
        for count, at in enumerate(regular_times(rng, SECONDS, period, 0.03)):
            at += limp * period * (count % 2)
            add(out, rng.uniform(0.7, 1.0) * modes(RATE, *body), int(at * RATE))
            n = int(rng.uniform(0.09, 0.16) * RATE)
            grains = np.abs(slow_curve(rng, n, RATE, 250)) ** 2
            sole = band_noise(rng, n, RATE, low, high) * grains
            sole *= crunch * envelope(n, n // 5, n // 2)
            add(out, sole, int((at + rng.uniform(0.02, 0.05)) * RATE))
        return out

    return render


def water_drops(draw: Rng) -> Render:
    """Drops into a vessel: bubbles whose pitch rises as they close."""
    rate, base = log_uniform(draw, 2.0, 5.0), log_uniform(draw, 500, 1200)
    rise, ring = draw.uniform(0.6, 2.0), draw.uniform(0.03, 0.09)

    def render(rng: Rng) -> Array:
        out = np.zeros(N)
        first = rng.uniform(0, 0.5)
        for at in np.r_[first, poisson_times(rng, SECONDS, rate)]:
            n = int(ring * 3 * RATE)
            time = np.arange(n) / RATE
            pitch = base * rng.uniform(0.8, 1.3) * 2 ** (rise * time / ring / 3)
            bubble = chirp(pitch, RATE) * np.exp(-time / ring) * envelope(n, 60, 60)
            bubble[:40] += rng.standard_normal(40) * 0.3
            add(out, rng.uniform(0.4, 1.0) * bubble, int(at * RATE))
        return out

    return render


def chirping_insects(draw: Rng) -> Render:
    """A cricket: trains of a few equal pulses on one high tone, over and over."""
    pitch, period = log_uniform(draw, 3000, 6500), draw.uniform(0.25, 0.6)
    pulses, speed = int(draw.integers(3, 7)), draw.uniform(28, 55)

    def render(rng: Rng) -> Array:
        out, n = np.zeros(N), int(0.6 / speed * RATE)
        tone = pitch * rng.uniform(0.97, 1.03)
        for at in regular_times(rng, SECONDS, period, 0.02):
            for pulse in range(pulses):
                sound = chirp(np.full(n, tone), RATE, (1, 0.15))
                sound *= envelope(n, n // 3, n // 2) * (0.6 + 0.4 * pulse / pulses)
                add(out, sound, int((at + pulse / speed) * RATE))
        return out

    return render


def bird_whistle(draw: Rng) -> Render:
    """A phrase of pure, gliding notes; the same phrase in every rendition."""
    base, count = log_uniform(draw, 1800, 3400), int(draw.integers(2, 5))
    bends = draw.uniform(-0.7, 0.7, (count, 2))
    steps, lengths = draw.uniform(-0.4, 0.4, count), draw.uniform(0.08, 0.28, count)
    trill = draw.uniform(0, 0.04)

    def render(rng: Rng) -> Array:
        out, at, tempo = np.zeros(N), rng.uniform(0.0, 0.6), rng.uniform(0.9, 1.1)
        while at < SECONDS:
            for bend, step, length in zip(bends, steps, lengths, strict=True):
                n = int(length * tempo * RATE)
                part = np.linspace(0, 1, n)
                octave = step + bend[0] * part + bend[1] * np.sin(np.pi * part) / 2
                octave += trill * np.sin(2 * np.pi * 30 * part * length)
                note = chirp(base * 2**octave, RATE, (1, 0.08))
                add(out, note * envelope(n, n // 5, n // 4), int(at * RATE))
                at += length * tempo + rng.uniform(0.03, 0.06)
            at += rng.uniform(0.4, 0.9)
        return out

    return render


def siren(draw: Rng) -> Render:
    """A harmonic tone swept up and down without a pause."""
    base, span = log_uniform(draw, 450, 900), draw.uniform(0.5, 1.1)
    speed, shape = log_uniform(draw, 0.5, 3.0), draw.uniform(0.3, 3.0)
    harmonics = draw.uniform(0.2, 1.0) ** np.arange(8)

    def render(rng: Rng) -> Array:
        swing = np.sin(2 * np.pi * (speed * TIME + rng.uniform()))
        swing = np.tanh(shape * swing) / np.tanh(shape)
        return chirp(base * 2 ** (span * swing / 2), RATE, harmonics)

    return render


def alarm_beeps(draw: Rng) -> Render:
    """A device that calls: equal beeps of one pitch, equally spaced."""
    pitch, speed = log_uniform(draw, 900, 3200), draw.uniform(2.5, 7)
    duty = draw.uniform(0.35, 0.6)
    harmonics = draw.uniform(0.1, 0.6) ** np.arange(6)

    def render(rng: Rng) -> Array:
        out, n = np.zeros(N), int(duty / speed * RATE)
        beep = chirp(np.full(n, pitch), RATE, harmonics) * envelope(n, 150, 200)
        for at in regular_times(rng, SECONDS, 1 / speed, 0.0):
            add(out, beep, int(at * RATE))
        return out

    return render


def bell(draw: Rng) -> Render:
    """Strikes of a bell: inharmonic partials with a long decay."""
    base, decay = log_uniform(draw, 400, 1100), draw.uniform(0.8, 2.5)
    # Hum, prime, tierce, quint, nominal and what rings above them.
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.51, 3.01, 4.1])
    ratios = ratios * draw.uniform(0.98, 1.02, 8)
    gains = draw.uniform(0.2, 1.0, 8)
    strikes = log_uniform(draw, 0.5, 1.6)

    def render(rng: Rng) -> Array:
        out = np.zeros(N)
        for at in np.r_[rng.uniform(0.05, 0.8), poisson_times(rng, 2, strikes * 0.6)]:
            touch = gains * rng.uniform(0.5, 1.5, 8)
            ring = modes(RATE, base * ratios, decay / ratios**0.7, touch)
            add(out, rng.uniform(0.5, 1.0) * ring, int(at * RATE))
        return out

    return render


def dog_bark(draw: Rng) -> Render:
    """Short hoarse calls whose pitch rises and drops, in ones and twos."""
    pitch, length = log_uniform(draw, 220, 650), draw.uniform(0.11, 0.24)
    formants = np.array([log_uniform(draw, 550, 1100), log_uniform(draw, 1300, 2600)])
    hoarse, gap = draw.uniform(0.15, 0.6), draw.uniform(0.28, 0.55)

    def render(rng: Rng) -> Array:
        out, at = np.zeros(N), rng.uniform(0.02, 0.5)
        while at < SECONDS - 0.1:
            n = int(length * rng.uniform(0.85, 1.15) * RATE)
            part = np.linspace(0, 1, n)
            glide = 0.75 + 0.5 * np.sin(np.pi * part**0.7) - 0.2 * part
            voice = chirp(pitch * rng.uniform(0.92, 1.08) * glide, RATE, np.ones(18))
            voice = voice / voice.std() + hoarse * rng.standard_normal(n)
            bark = sum(resonate(voice, RATE, f, 180 + f / 8) for f in formants)
            bark = np.asarray(bark) * envelope(n, n // 8, n // 2)
            add(out, rng.uniform(0.7, 1.0) * bark, int(at * RATE))
            at += gap * rng.uniform(0.8, 1.2) + (rng.uniform() < 0.3) * 0.4
        return out

    return render


def helicopter(draw: Rng) -> Render:
    """Blades: noise and thumps chopped ten to twenty times a second."""
    speed, sharp = draw.uniform(9, 19), draw.uniform(2, 7)
    tilt, thump = draw.uniform(-5, -2), draw.uniform(0.2, 1.0)

    def render(rng: Rng) -> Array:
        turn = 2 * np.pi * (speed * rng.uniform(0.97, 1.03) * TIME + rng.uniform())
        chop = np.exp(sharp * (np.cos(turn) - 1))
        noise = tilted_noise(rng, N, RATE, tilt)
        beat = np.convolve(chop, np.diff(np.hanning(800)), mode="same")
        return noise * (0.15 + chop) + thump * beat / (beat.std() + 1e-9) * 0.5

    return render


CLASSES: dict[str, Callable[[Rng], Render]] = {
    recipe.__name__: recipe
    for recipe in (
        alarm_beeps,
        bell,
        bird_whistle,
        chirping_insects,
        clock_tick,
        dog_bark,
        door_knock,
        fire_crackle,
        footsteps,
        helicopter,
        rain,
        siren,
        typing,
        water_drops,
        waves,
        wind,
    )
}


def scene(draw: Rng) -> Callable[[Rng, Array], Array]:
    """Draw where a source is heard: colour, room and background; return its mixer."""
    colour = draw.normal(0, 2.5, 7)
    response = room(draw, RATE, draw.uniform(0.1, 0.7), log_uniform(draw, 0.02, 0.6))
    noise = {60.0 * 2**k: float(draw.normal(-2.5 * k, 1.5)) for k in range(9)}

    def place(rng: Rng, x: Array) -> Array:
        x = convolve(equalize(x, RATE, colour), response)
        background = shaped_noise(rng, N, RATE, noise)
        background *= np.exp(0.25 * slow_curve(rng, N, RATE, 4))
        heard = mix(x, background, RATE, rng.uniform(8, 26))
        return set_peak(heard, rng.uniform(0.2, 0.9))

    return place


def render_source(label: str, source: int) -> list[Array]:
    """Render every clip of one source, (2 s at 44.1 kHz) each.

    The generator of a clip depends on its class, source and number alone, so the
    result is the same in any order and any number of processes.
    """
    key = [20, sorted(CLASSES).index(label), source]
    draw = np.random.default_rng(key)
    render, place = CLASSES[label](draw), scene(draw)
    clips = []
    for clip in range(CLIPS):
        rng = np.random.default_rng([*key, clip])
        clips.append(place(rng, render(rng)))
    return clips


def jobs() -> list[tuple[str, int]]:
    """One job a source: ``(label, number)``."""
    return [(label, source) for label in CLASSES for source in range(SOURCES)]


def make_clips(folder: Path, label: str, source: int) -> list[Row]:
    """Write the clips of one source; return their rows."""
    rows: list[Row] = []
    for clip, samples in enumerate(render_source(label, source)):
        name = f"{label}/{label}-{source:02}-{clip}.flac"
        write_clip(folder / name, samples, RATE)
        row = {"file_name": name, "label": label, "group": f"{label}-{source:02}"}
        rows.append({**row, "split": "train" if source < TRAIN_SOURCES else "test"})
    return rows

"""The recipes of the bundled speech models, run for a few steps on toy speech."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from analysis_lib.base import sha256_file
from analysis_lib.corpora import load_corpus
from analysis_lib.encoders import load_encoder
from analysis_lib.encoders.qwen2_audio_language import (
    PROMPT,
    mini_config,
    mini_processor,
)
from analysis_lib.zoo import (
    beats,
    measures,
    qwen2_audio,
    spoken,
    training,
    wav2vec2,
    whisper,
)

WORDS = {"ba": 300, "du": 700, "ki": 1500}


def toy_speech(split: str, *, held_out_words: bool = False) -> spoken.Spoken:
    """Words are tones, voices are detunings, utterances are two words in a row."""
    rng = np.random.default_rng(len(split) + held_out_words)
    waves, rows, phones = [], [], []
    for voice in range(3):
        for kind, n in (("words", 1), ("utterances", 2)):
            for first in WORDS:
                said = [first, *rng.choice(list(WORDS), n - 1)]
                tones = [
                    np.sin(2 * np.pi * WORDS[w] * 2 ** (voice / 12) * t)
                    for w in said
                    for t in [np.arange(6_000) / 16_000]
                ]
                wave = 0.3 * np.concatenate(tones) + 0.01 * rng.standard_normal(
                    6_000 * n
                )
                waves.append(wave.astype(np.float32))
                rows.append(
                    {"text": " ".join(said), "group": f"{split}{voice}", "kind": kind}
                )
                letters = "".join(said)
                step = 6_000 * n / 16_000 / len(letters)
                phones.append(
                    [(i * step, (i + 1) * step, p) for i, p in enumerate(letters)]
                )
    return spoken.Spoken(waves, pd.DataFrame(rows), phones, "toy")


@pytest.mark.parametrize("recipe", [wav2vec2, whisper, qwen2_audio])
def test_recipe_trains_resumes_and_vouches_for_its_weights(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "spoken", toy_speech)
    monkeypatch.setattr(recipe, "STEPS", 4)
    monkeypatch.setattr(wav2vec2, "GUIDED_STEPS", 2)
    monkeypatch.setattr(qwen2_audio, "LAST_STEPS", 2)
    monkeypatch.setattr(recipe, "BATCH", 4)
    monkeypatch.setattr(training, "cache_dir", lambda: tmp_path / "cache")
    whole_fit = recipe.fit
    monkeypatch.setattr(recipe, "fit", lambda *a, **k: whole_fit(*a, **k, every=2))
    lines: list[str] = []
    out = tmp_path / recipe.NAME
    card = recipe.train(out, log=lines.append)
    assert len(lines) == (2 if recipe is whisper else 3)  # of one or two stages
    on_disk = json.loads((out / "card.json").read_text())
    assert on_disk["sha256"] == sha256_file(out / "model.safetensors")
    assert on_disk["metrics"] == card["metrics"]
    assert recipe.evaluate(str(out)) == card["metrics"]
    # What the card measured comes from the file, and the file from the checkpoint.
    again = tmp_path / "again"
    assert recipe.train(again, log=lines.append) == card
    assert "resumed at step 4 of 4" in lines[2:]
    assert sha256_file(again / "model.safetensors") == on_disk["sha256"]
    encoder = load_encoder(str(out), device="cpu")
    clips = toy_speech("train").waves[3:5]
    together = encoder.prepare(clips)
    alone = encoder.prepare(clips[:1])
    n = int(alone.valid[0])  # type: ignore[index]
    outputs = [encoder.forward(batch) for batch in (together, alone)]
    values = [
        o if isinstance(o, torch.Tensor) else o.last_hidden_state for o in outputs
    ]
    torch.testing.assert_close(values[0][0, :n], values[1][0, :n], rtol=0, atol=1e-4)


def test_cut_off_training_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the masks that transformers draws from a generator of its own.
    monkeypatch.setattr(wav2vec2, "spoken", toy_speech)
    monkeypatch.setattr(wav2vec2, "STEPS", 4)
    monkeypatch.setattr(wav2vec2, "GUIDED_STEPS", 2)
    monkeypatch.setattr(wav2vec2, "BATCH", 4)
    whole_fit, sums = wav2vec2.fit, []

    def fit(*given: Any, **named: Any) -> Any:
        curve = whole_fit(*given, **named, every=2)
        sums.append([float(p.detach().double().sum()) for p in given[0].parameters()])
        return curve

    monkeypatch.setattr(wav2vec2, "fit", fit)
    monkeypatch.setattr(training, "cache_dir", lambda: tmp_path / "whole")
    wav2vec2.train(tmp_path / "a", log=lambda _: None)
    monkeypatch.setattr(training, "cache_dir", lambda: tmp_path / "cut")
    real_loss, calls = wav2vec2.ctc_loss, []

    def cut(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real_loss(*given, **named)

    monkeypatch.setattr(wav2vec2, "ctc_loss", cut)
    with pytest.raises(KeyboardInterrupt):
        wav2vec2.train(tmp_path / "b", log=lambda _: None)
    monkeypatch.setattr(wav2vec2, "ctc_loss", real_loss)
    wav2vec2.train(tmp_path / "b", log=lambda _: None)
    np.testing.assert_array_equal(sums[1], sums[-1])


def test_training_hears_what_the_whole_model_hears() -> None:
    said = toy_speech("train")
    processor = mini_processor(said.texts, vocab_size=280)
    torch.manual_seed(0)
    config = mini_config(
        processor, tower_layers=2, tower_width=32, text_layers=2, text_width=32
    )
    model = qwen2_audio.Qwen2AudioForConditionalGeneration(config).eval()
    with torch.no_grad():
        for value in model.model.audio_tower.parameters():
            if value.dim() == 2:
                value.mul_(5)
    waves, texts = said.waves[2:5], said.texts[2:5]
    made = qwen2_audio.lesson(processor, waves, texts)
    end = processor.tokenizer.eos_token
    whole = processor(
        text=[PROMPT + text + end for text in texts],
        audio=waves,
        sampling_rate=16_000,
        return_tensors="pt",
        padding=True,
        padding_side="right",
    )
    assert torch.equal(whole["input_ids"], made.ids)
    with torch.inference_mode():
        expected = model(**whole).logits
        logits, _ = qwen2_audio.next_tokens(model, made)
    present = made.present.bool()
    torch.testing.assert_close(logits[present], expected[present], rtol=0, atol=1e-4)
    asked = [processor.tokenizer.decode(row[row != -100]) for row in made.labels]
    assert asked == [text + end for text in texts]


def test_frames_are_named_by_the_phone_at_their_centre() -> None:
    phones = [(0.1, 0.2, "a"), (0.2, 0.35, "b")]
    times = np.array([0.05, 0.1, 0.19, 0.2, 0.34, 0.35])
    symbols = ["", "a", "b"]
    counts = torch.tensor([6, 4])
    codes = spoken.name_frames([phones] * 2, [1.0, 2.0], times, counts, symbols)
    assert codes[0].tolist() == [0, 1, 1, 2, 2, 0]
    assert codes[1].tolist() == [1, 2, 0, 0, -100, -100]  # heard at twice the speed


def test_vary_moves_sounds_by_the_speed_it_reports() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        wave = np.zeros(16_000, dtype=np.float32)
        wave[9_000:9_400] = 1.0
        changed, speed = spoken.vary(wave, rng)
        heard = np.flatnonzero(changed > 0.5)
        assert abs(heard.mean() / 16_000 * speed - 9_200 / 16_000) < 0.001
        assert spoken.SLOWER <= speed <= spoken.FASTER
        assert len(changed) == round(16_000 / speed)


def test_first_convolution_starts_as_a_filter_bank() -> None:
    model = wav2vec2.Wav2Vec2ForCTC(wav2vec2.config(5))
    layers = model.wav2vec2.feature_extractor.conv_layers
    wav2vec2.start_convolutions(layers)
    bank = layers[0].conv.weight.detach()[:, 0]
    peaks = torch.fft.rfft(bank, 4096).abs().argmax(-1) * 16_000 / 4096
    edges = wav2vec2.mel_edges(16_000, 40)
    np.testing.assert_allclose(peaks[::2], edges[1:-1], atol=60)
    even, odd = bank[0::2], bank[1::2]
    assert (even * odd).sum(1).abs().max() < 0.05 * (even**2).sum(1).min()


def test_strung_words_keep_their_phones_in_place() -> None:
    said = toy_speech("train")
    strung = spoken.string(said, 5, np.random.default_rng(0))
    for wave, text, phones in zip(
        strung.waves, strung.texts, strung.phones, strict=True
    ):
        assert 2 <= len(text.split()) <= 4
        assert "".join(phone for *_, phone in phones) == text.replace(" ", "")
        assert phones[-1][1] <= len(wave) / 16_000
        for word, start in zip(text.split(), phones[::2], strict=True):
            at = round(start[0] * 16_000)
            spectrum = np.abs(np.fft.rfft(wave[at : at + 4096]))
            found = spectrum.argmax() * 16_000 / 4096
            assert abs(np.log2(found / WORDS[word])) < 3 / 12


def test_spelling_round_trip_and_longest_text() -> None:
    letters = whisper.spell(["zero one", "no"])
    assert letters.shape == (2, 10)
    assert letters[1].tolist()[:4] == [whisper.START, 16 + 1, 17 + 1, whisper.END]
    assert (letters[1, 4:] == whisper.PAD).all()


def test_edit_distance_and_error_rate() -> None:
    assert measures.edit_distance("kitten", "sitting") == 3
    assert measures.edit_distance("", "abc") == 3
    assert measures.edit_distance("abc", "") == 3
    assert measures.edit_distance("abc", "abc") == 0
    said = [list("abc"), list("de"), list("fghij")] * 4
    heard = [list("abd"), list("de"), list("fghi")] * 4
    found = measures.error_rate(said, heard, ["u", "v", "w"] * 4)
    assert found["rate"] == pytest.approx(0.2)
    assert found["low"] <= 0.2 <= found["high"]
    assert found["chance"] > 0.5
    right = measures.share([True, True, False, True], ["u", "u", "v", "v"], 0.25)
    assert right["accuracy"] == 0.75
    assert right["low"] == 0.5
    assert right["high"] == 1.0


def test_random_tokens_tell_the_foreground_in_the_order_of_patches() -> None:
    image = torch.randn(1, 144, 128, generator=torch.Generator().manual_seed(0))
    tokenizer = beats.RandomTokenizer(image, 0)
    tokens = tokenizer(image)
    assert tokens.shape == (1, 72)
    assert len(tokens.unique()) > 36
    # A louder clip and a steady hum in some bands are background.
    background = 3.0 + torch.linspace(-2, 2, 128)
    assert (tokenizer(image + background) == tokens).float().mean() > 0.95
    # Token 8 t + f is band f of stretch t, as in the encoder.
    changed = image.clone()
    changed[0, 3 * 16 : 4 * 16, 5 * 16 : 6 * 16] += 30 * torch.linspace(-1, 1, 16)
    rows = foreground_change(image, changed)
    assert int(rows.argmax()) == 3 * 8 + 5
    # The rest of the band moves by what its mean over time has moved.
    assert set((rows > 1e-3).nonzero().flatten().tolist()) == {
        8 * t + 5 for t in range(9)
    }


def foreground_change(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return (beats.foreground(after) - beats.foreground(before)).abs().sum(-1)[0]


def test_beats_recipe_trains_both_stages_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    for name in ("otters", "finches", "sounds"):
        rng = np.random.default_rng(len(name))
        for label in ("high", "low"):
            for clip in range(3):
                pitch = (3_000 if label == "high" else 600) * 2 ** rng.uniform(0, 0.2)
                wave = np.sin(2 * np.pi * pitch * np.arange(24_000) / 16_000)
                wave = 0.3 * wave + 0.05 * rng.standard_normal(24_000)
                path = tmp_path / name / f"{name}-{label}" / f"{clip}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave, 16_000)
        heard.append(load_corpus(tmp_path / name))
    monkeypatch.setattr(beats, "training_corpora", lambda log: (heard, heard[:2]))
    monkeypatch.setattr(beats, "SSL_STEPS", 2)
    monkeypatch.setattr(beats, "STEPS", 2)
    monkeypatch.setattr(beats, "BATCH", 4)
    monkeypatch.setattr(training, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(
        beats, "evaluate", lambda name: {"print": load_encoder(name).fingerprint}
    )
    lines: list[str] = []
    card = beats.train(tmp_path / "beats-mini", log=lines.append)
    ssl = json.loads((tmp_path / "beats-mini-ssl" / "card.json").read_text())
    assert ssl["name"] == "beats-mini-ssl"
    assert ssl["metrics"]["print"] != card["metrics"]["print"]
    assert "masked_accuracy" in lines[0]
    assert "otters_accuracy" in lines[1]
    assert beats.train(tmp_path / "again" / "beats-mini", log=lines.append) == card
    encoder = load_encoder(str(tmp_path / "beats-mini"), device="cpu")
    assert len(encoder.taps) == 13 + 12 + 48
    assert sum(f.stat().st_size for f in (tmp_path / "beats-mini").iterdir()) < 4e6


def test_moving_and_mixing_keep_power_and_targets() -> None:
    image = torch.zeros(32, 128)
    image[:, 60] = 5.0
    for seed in range(5):
        moved = beats.move(image, np.random.default_rng(seed))
        place = moved.argmax(1)
        assert (place == place[0]).all()
        assert abs(int(place[0]) - 60) <= beats.HIGHER
    images = torch.randn(4, 144, 128, generator=torch.Generator().manual_seed(1))
    mixed, targets = beats.augment(images, torch.eye(4), np.random.default_rng(0))
    assert torch.isfinite(mixed).all()
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert (targets.argmax(1) == torch.arange(4)).all()

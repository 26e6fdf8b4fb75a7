"""Qwen2-Audio's frames: equal to the full model's, exact lengths and times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2AudioForConditionalGeneration

from analysis_lib.base import AnalysisError
from analysis_lib.encoders import load_encoder, qwen2_audio
from analysis_lib.encoders.encoder import Encoder, Site, record
from analysis_lib.encoders.qwen2_audio_language import (
    PROMPT,
    load_full,
    mini_config,
    mini_processor,
)

TEXTS = ["seven yellow boats", "a quiet garden", "measure the water"]


@pytest.fixture(scope="module")
def processor() -> Any:
    return mini_processor(TEXTS, vocab_size=280)


@pytest.fixture(scope="module")
def full(processor: Any) -> Any:
    torch.manual_seed(0)
    config = mini_config(
        processor, tower_layers=2, tower_width=32, text_layers=2, text_width=48
    )
    model = Qwen2AudioForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1 or "embed_positions" in name:
                value.add_(0.2 * torch.randn_like(value))
            elif "audio_tower.layers" in name:
                value.mul_(6)
    return model


@pytest.fixture(scope="module")
def folder(full: Any, processor: Any, tmp_path_factory: Any) -> Path:
    place = tmp_path_factory.mktemp("qwen2")
    full.save_pretrained(place)
    processor.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return load_encoder(str(folder), device="cpu")


def waves(*seconds: float, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        (0.1 * rng.standard_normal(round(16_000 * s))).astype(np.float32)
        for s in seconds
    ]


def activations(encoder: Encoder, clips: list[np.ndarray]) -> dict[str, Any]:
    batch = encoder.prepare(clips)
    with record(encoder, ["head", "block", "layer", "projector"]) as seen:
        encoder.forward(batch)
    return {
        tap.name: encoder.tokens(tap, seen[Site(tap.module, tap.side)], batch)
        for tap in encoder.taps.itertuples(index=False)
    }


def test_frames_equal_those_in_the_full_model(
    full: Any, processor: Any, encoder: Encoder
) -> None:
    clips = waves(1.0, 2.37, 0.5, 3.999)
    inputs = processor(
        text=[PROMPT] * 4,
        audio=clips,
        sampling_rate=16_000,
        return_tensors="pt",
        padding=True,
    )
    hooked: list[torch.Tensor] = []
    core = getattr(full, "model", full)
    handle = core.multi_modal_projector.register_forward_hook(
        lambda _m, _a, output: hooked.append(output)
    )
    with torch.inference_mode():
        full(**inputs)
    handle.remove()
    values, mask = activations(encoder, clips)["projector"]
    n_tokens = (inputs["input_ids"] == processor.audio_token_id).sum(1)
    assert torch.equal(mask.sum(1), n_tokens)
    assert n_tokens.tolist() == [25, 59, 12, 100]
    assert torch.equal(values[mask], hooked[0][mask])


def test_a_clip_has_the_same_frames_alone_and_beside_a_longer_one(
    encoder: Encoder,
) -> None:
    clips = waves(0.73, 2.0, 0.31, 3.1)
    together = activations(encoder, clips)
    for place, clip in enumerate(clips):
        for tap, (values, whole) in activations(encoder, [clip]).items():
            joint, mask = together[tap]
            assert int(mask[place].sum()) == int(whole.sum()) > 0
            scale = float(values.abs().max())
            torch.testing.assert_close(
                joint[place][mask[place]],
                values[0][whole[0]],
                rtol=0,
                atol=3e-5 * scale,
            )


def test_the_mask_matters(encoder: Encoder) -> None:
    batch = encoder.prepare(waves(1.0))
    everything = torch.ones_like(batch.inputs["feature_attention_mask"])
    with torch.inference_mode():
        right = encoder.forward(batch)[0, :25]
        wrong = encoder.module(batch.inputs["input_features"], everything)[0, :25]
    assert (wrong - right).norm() > 0.01 * right.norm()


def test_taps_are_the_towers_hidden_states_at_25_hz(encoder: Encoder) -> None:
    seen = activations(encoder, waves(3.0, 1.48))
    taps = encoder.taps
    assert set(seen) >= {"L0", "L1", "L2", "L2_B0", "L1_B0_H3", "projector"}
    assert (taps.query("granularity == 'head'")["width"] == 8).all()
    for values, mask in seen.values():
        assert values.shape[1] == 100
        assert mask.sum(1).tolist() == [75, 37]
    tower: Any = encoder.module.audio_tower
    linear: Any = encoder.module.multi_modal_projector
    layer = tower.layers[0]
    with torch.inference_mode():
        # L1 and L2 lie on either side of linear steps, which commute with the mean
        # over pairs: residual + W^O heads = block.
        block = seen["L0"][0] + layer.self_attn.out_proj(seen["L1_B0_H0"][0])
        for ours, expected in (
            (seen["L1_B0"][0], block),
            (seen["projector"][0], linear(seen["L2"][0])),
        ):
            scale = float(expected.abs().max())
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * scale)


def test_counts_and_errors(encoder: Encoder) -> None:
    # 1.0 s -> 100 mel -> 50 -> 25; 2.37 s -> 59; 30 s -> 750.
    counts = {16_000: 25, 37_920: 59, 480_000: 750, 321: 1, 640: 1, 320: 0, 1: 0}
    assert {n: qwen2_audio.n_frames(n) for n in counts} == counts
    tower: Any = encoder.module.audio_tower
    for n in (321, 960, 1_000, 37_920, 63_999):
        batch = encoder.prepare([np.ones(n, dtype=np.float32)])
        mel = batch.inputs["feature_attention_mask"].sum(-1)
        _, expected = tower._get_feat_extract_output_lengths(mel)
        assert batch.valid is not None
        assert batch.valid.tolist() == expected.tolist()
    assert encoder.max_seconds == 4
    assert encoder.prepare(waves(7.0)).valid.tolist() == [100]  # type: ignore[union-attr]
    with pytest.raises(AnalysisError, match=r"wave 1 .* 0\.0200 s; .* more than"):
        encoder.prepare(waves(1.0, 0.02))


def test_frame_times_point_at_the_sound(encoder: Encoder) -> None:
    times = encoder.frame_times(75)
    np.testing.assert_allclose(times[:3], [0.010, 0.050, 0.090])
    quiet = 0.01 * waves(3.0)[0]
    # The floor under the loudest moment must not move: keep one loud click in both.
    quiet[100] = 1.0
    for second in (0.5, 1.13, 2.21, 2.8):
        clicked = quiet.copy()
        clicked[round(16_000 * second)] += 1.0
        before, after = (activations(encoder, [w])["L0"][0] for w in (quiet, clicked))
        heard = int((after - before)[0, :75].abs().sum(-1).argmax())
        assert abs(times[heard] - second) <= 0.020 + 1e-9


def test_reads_old_keys_and_only_the_shards_that_matter(
    full: Any, folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    on_disk = load_file(folder / "model.safetensors")
    old = {key.removeprefix("model."): value for key, value in on_disk.items()}
    assert any(key.startswith("audio_tower.") for key in old)
    audio = {k: v for k, v in old.items() if k.startswith(qwen2_audio.PARTS)}
    first = dict(list(audio.items())[: len(audio) // 2])
    second = {k: v for k, v in audio.items() if k not in first}
    for place in ("config.json", "processor_config.json"):
        (tmp_path / place).write_text((folder / place).read_text())
    save_file(first, tmp_path / "model-00001-of-00003.safetensors")
    save_file(second, tmp_path / "model-00002-of-00003.safetensors")
    # The third shard holds the language model alone and need not even be there.
    where = dict.fromkeys(first, "model-00001-of-00003.safetensors")
    where |= dict.fromkeys(second, "model-00002-of-00003.safetensors")
    where |= {"language_model.model.norm.weight": "model-00003-of-00003.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    again = load_encoder(str(tmp_path), device="cpu")
    assert again.fingerprint == encoder.fingerprint
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(AnalysisError, match=r"00002-of-00003\.safetensors is missing"):
        load_encoder(str(tmp_path))
    index.write_text(json.dumps({"weight_map": {k: where[k] for k in first}}))
    with pytest.raises(AnalysisError, match="weights of the audio tower and projector"):
        load_encoder(str(tmp_path))


def test_twins_are_seeded(folder: Path, encoder: Encoder) -> None:
    prints = [
        load_encoder(str(folder), device="cpu", random=True, seed=seed).fingerprint
        for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]
    assert encoder.fingerprint not in prints


def test_full_model_and_processor_round_trip(
    full: Any, processor: Any, folder: Path
) -> None:
    model, again = load_full(str(folder))
    clips = waves(1.0, 0.6)
    given: dict[str, Any] = {
        "text": [PROMPT] * 2,
        "audio": clips,
        "sampling_rate": 16_000,
        "return_tensors": "pt",
        "padding": True,
    }
    inputs, same = processor(**given), again(**given)
    for key, value in inputs.items():
        assert torch.equal(value, same[key])
    with torch.inference_mode():
        expected = full(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=0)
    ids = again.tokenizer("a measure of zebras <|im_end|>")["input_ids"]
    assert again.tokenizer.decode(ids) == "a measure of zebras <|im_end|>"
    assert ids[-1] == again.tokenizer.eos_token_id != again.tokenizer.pad_token_id


def test_bad_folders_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"the folder has no config\.json"):
        load_full(str(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["max_source_positions"] = 100
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file in ("model.safetensors", "processor_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    with pytest.raises(AnalysisError, match=r"embed_positions"):
        load_encoder(str(tmp_path))
    with pytest.raises(AnalysisError, match="chunk_length must be 2"):
        load_encoder(str(tmp_path), random=True)

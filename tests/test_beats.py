"""BEATs: parity with avex, padding, the time-major trap, taps, checkpoints."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from analysis_lib.base import AnalysisError
from analysis_lib.encoders import beats, beats_checkpoints
from analysis_lib.encoders.beats import BEATs, BEATsConfig
from analysis_lib.encoders.encoder import Encoder, Site, record

SMALL = BEATsConfig(
    embed_dim=16,
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=64,
    encoder_layers=3,
    encoder_attention_heads=4,
    conv_pos=16,
    conv_pos_groups=4,
)


def small_model(config: BEATsConfig = SMALL, seed: int = 0) -> BEATs:
    """A model whose every parameter matters: gates and norms are moved, too."""
    torch.manual_seed(seed)
    model = BEATs(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1 or "grep" in name or "relative" in name:
                value.add_(0.3 * torch.randn_like(value))
    return model


def small_encoder(config: BEATsConfig = SMALL) -> Encoder:
    model = small_model(config)
    return beats_checkpoints.beats_encoder(
        "small", model, licence="none", source="random"
    )


def waves(*seconds: float, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        (0.1 * rng.standard_normal(round(16_000 * s))).astype(np.float32)
        for s in seconds
    ]


def avex_beats() -> ModuleType:
    """avex's BEATs package alone: avex itself imports much that BEATs does not use."""
    found = importlib.util.find_spec("avex")
    if found is None or found.origin is None:
        pytest.skip("avex is not installed")
    folder = Path(found.origin).parent / "models" / "beats"
    if "avex_beats" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "avex_beats",
            folder / "__init__.py",
            submodule_search_locations=[str(folder)],
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules["avex_beats"] = package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
    return importlib.import_module("avex_beats.beats")


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "variant", [{}, {"deep_norm": False, "layer_norm_first": True}]
)
def test_parity_with_avex_at_every_layer_full_size(padded: bool, variant: dict) -> None:
    module = avex_beats()
    torch.manual_seed(0)
    theirs = module.BEATs(module.BEATsConfig(finetuned_model=True, **variant)).eval()
    with torch.no_grad():
        for name, value in theirs.named_parameters():
            if value.dim() == 1 or "grep" in name or "relative" in name:
                value.add_(0.1 * torch.randn_like(value))
    ours = BEATs(BEATsConfig(**variant)).eval()
    state = beats_checkpoints.plain_state(theirs.state_dict(), source="avex")
    ours.load_state_dict(state, strict=True)

    # 5,600 samples are 33 frames and 2 stretches; 8,560 are 52 and 3; 10,960, 67 and
    # 4. Both ways of masking agree when a clip ends where a stretch does.
    lengths = [10_960, 8_560, 5_600] if padded else [10_960, 10_960]
    clips = waves(*(n / 16_000 for n in lengths))
    batch = beats.prepare(clips)
    source = torch.zeros(len(clips), max(lengths))
    for row, clip in zip(source, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    assert batch.valid is not None
    front_end = theirs.preprocess(source)[:, : batch.inputs["features"].shape[1]]
    for row, n, clip in zip(
        front_end, batch.valid, batch.inputs["features"], strict=True
    ):
        torch.testing.assert_close(clip[: 2 * n], row[: 2 * n], rtol=0, atol=1e-4)

    place = torch.arange(int(batch.valid.max()))
    padding = place[None] >= batch.valid[:, None]
    with torch.inference_mode():
        tokens = theirs.layer_norm(
            theirs.patch_embedding(batch.inputs["features"][:, None])
            .flatten(2)
            .transpose(1, 2)
        )
        _, expected = theirs.encoder.extract_features(
            theirs.post_extract_proj(tokens),
            padding_mask=padding if padded else None,
            tgt_layer=12,
        )
        encoder = beats_checkpoints.beats_encoder("b", ours, licence="", source="")
        with record(encoder, ["layer"]) as seen:
            encoder.forward(batch)
    assert len(expected) == len(seen) == 13
    for tap, (layer, _) in zip(
        encoder.taps.query("granularity == 'layer'").itertuples(), expected, strict=True
    ):
        values, mask = encoder.tokens(tap, seen[Site(tap.module, tap.side)], batch)
        assert torch.equal(mask, ~padding)
        # Layers are normalised: a vector's entries are of order 1.
        difference = (values - layer.transpose(0, 1))[mask].abs().max()
        assert difference <= 1e-4, f"{tap.name}: {difference}"


def test_full_size_shape() -> None:
    with torch.device("meta"):
        model = BEATs()
    # Microsoft gives 90.3 million.
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 90.3
    assert beats.n_tokens(16_000) == 6 * 8
    assert beats.n_tokens(160_000) == 62 * 8


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        BEATsConfig(**{**asdict(SMALL), "deep_norm": False, "layer_norm_first": True}),
        BEATsConfig(**{**asdict(SMALL), "gru_rel_pos": False}),
        BEATsConfig(**{**asdict(SMALL), "relative_position_embedding": False}),
    ],
)
def test_a_clip_has_the_same_vectors_alone_and_beside_a_longer_one(
    config: BEATsConfig,
) -> None:
    encoder = small_encoder(config)
    clips = waves(0.73, 2.0, 0.31, 1.04)
    everything = ["head", "block", "layer"]
    together = encoder.prepare(clips)
    with record(encoder, everything) as joint:
        encoder.forward(together)
    compared = 0
    for place, clip in enumerate(clips):
        alone = encoder.prepare([clip])
        with record(encoder, everything) as single:
            encoder.forward(alone)
        for site, tap in encoder.sites(everything).items():
            values, mask = encoder.tokens(tap, joint[site], together)
            expected, whole = encoder.tokens(tap, single[site], alone)
            assert whole.all()
            assert int(mask[place].sum()) == expected.shape[1]
            torch.testing.assert_close(
                values[place][mask[place]], expected[0], rtol=0, atol=1e-4
            )
            compared += 1
    assert compared == 4 * (1 + 3 * 3)


def test_time_major_layers_with_as_many_tokens_as_clips() -> None:
    # One second gives 48 tokens: in a batch of 48 clips the axes have equal length
    # and only the layout tells them apart.
    encoder = small_encoder()
    clips = waves(*[1.0] * 48)
    batch = encoder.prepare(clips)
    with record(encoder, ["layer"]) as seen:
        encoder.forward(batch)
    tap = next(encoder.taps.query("name == 'L2'").itertuples())
    activation = seen[Site(tap.module, tap.side)]
    assert activation.shape == (48, 48, 32)
    values, _ = encoder.tokens(tap, activation, batch)
    for place in (0, 17, 47):
        with record(encoder, ["layer"]) as single:
            alone = encoder.prepare([clips[place]])
            encoder.forward(alone)
        expected, _ = encoder.tokens(tap, single[Site(tap.module, tap.side)], alone)
        torch.testing.assert_close(
            values[place].mean(0), expected[0].mean(0), rtol=0, atol=1e-5
        )
        # The trap: averaging axis 1 of what the layer gives is another vector.
        wrong = activation.mean(1)[place]
        assert (wrong - expected[0].mean(0)).abs().max() > 0.1


def test_taps_are_what_they_are_called() -> None:
    encoder = small_encoder()
    model: BEATs = encoder.module  # type: ignore[assignment]
    batch = encoder.prepare(waves(0.9, 0.9))
    with record(encoder, ["head", "block", "layer"]) as seen, torch.inference_mode():
        output = encoder.forward(batch)
        taps = {
            tap.name: encoder.tokens(tap, seen[Site(tap.module, tap.side)], batch)[0]
            for tap in encoder.taps.itertuples()
        }
        torch.testing.assert_close(taps["L3"], output)
        layer = model.encoder.layers[0]
        # Heads through W^O, residual, norm: the block; block through the MLP: L1.
        attended = layer.self_attn.out_proj(taps["L1_B0_H0"])
        block = layer.self_attn_layer_norm(layer.alpha * taps["L0"] + attended)
        torch.testing.assert_close(taps["L1_B0"], block)
        hidden = layer.fc2(torch.nn.functional.gelu(layer.fc1(block)))
        after = layer.final_layer_norm(layer.alpha * block + hidden)
        torch.testing.assert_close(taps["L1"], after)
    names = set(encoder.taps["name"])
    assert {"L0", "L3", "L3_B0", "L1_B0_H3"} <= names
    assert len(names) == len(encoder.taps) == 4 + 3 + 3 * 4
    heads = encoder.taps.query("granularity == 'head'")
    assert (heads["width"] == 8).all()
    assert (heads["heads"] == 4).all()


def test_frame_times_point_at_the_sound() -> None:
    times = beats.frame_times(48)
    assert times.shape == (48,)
    np.testing.assert_allclose(times[:8], 0.0875)
    np.testing.assert_allclose(np.diff(times[::8]), 0.160)
    # The token most changed by a click is the one whose centre is nearest to it.
    model = small_model()
    quiet = waves(2.0)[0] * 1e-3
    for stretch in (1, 5, 9):
        clicked = quiet.copy()
        clicked[round(16_000 * (0.160 * stretch + 0.0875))] += 0.5
        with torch.inference_mode():
            before, after = (
                model.patch_embedding(beats.prepare([w]).inputs["features"][:, None])
                for w in (quiet, clicked)
            )
        moved = (after - before).norm(dim=1)[0].sum(1)
        assert int(moved.argmax()) == stretch


def test_too_short_a_clip_is_named() -> None:
    assert beats.n_tokens(2_799) == 0
    assert beats.n_tokens(2_800) == 8
    with pytest.raises(AnalysisError, match=r"wave 1 .* 0\.100 s; .* 0\.175 s"):
        beats.prepare(waves(1.0, 0.1))


def microsoft_form(model: BEATs) -> dict[str, torch.Tensor]:
    """The keys of Microsoft's files: old weight norm, a table in every layer."""
    state = {}
    names = {new: old for old, new in beats_checkpoints.WEIGHT_NORM.items()}
    for name, value in model.state_dict().items():
        state[names.get(name, name)] = value
        if name.endswith(beats_checkpoints.BIAS):
            for layer in range(1, model.config.encoder_layers):
                state[name.replace("layers.0", f"layers.{layer}")] = value
    return state


def test_reads_microsofts_and_avexs_files(tmp_path: Path) -> None:
    model = small_model()
    features = beats.prepare(waves(1.0)).inputs["features"]
    expected = model(features)
    cfg = asdict(SMALL) | {"encoder_layerdrop": 0.05, "finetuned_model": True}
    old = microsoft_form(model) | {"predictor.weight": torch.zeros(527, 32)}
    torch.save({"cfg": cfg, "model": old}, tmp_path / "BEATs_iter3_plus_AS2M.pt")
    new = {f"backbone.{k}": v.clone() for k, v in model.state_dict().items()}
    new |= {"backbone.fbank.window": torch.ones(400), "classifier.bias": torch.ones(3)}
    save_file(new, tmp_path / "esp-aves2.safetensors")
    torch.save({"model_state_dict": new}, tmp_path / "naturelm.pt")
    for file in ("BEATs_iter3_plus_AS2M.pt", "esp-aves2.safetensors", "naturelm.pt"):
        encoder = beats_checkpoints.load(str(tmp_path / file))
        # What weights cannot tell (max_distance, norms) is the published default.
        assert encoder.module.config == SMALL
        torch.testing.assert_close(encoder.module(features), expected)
    twin = beats_checkpoints.load(str(tmp_path / "naturelm.pt"), random=True, seed=3)
    again = beats_checkpoints.load(str(tmp_path / "naturelm.pt"), random=True, seed=3)
    assert twin.module.config == SMALL
    assert twin.fingerprint == again.fingerprint != encoder.fingerprint
    assert (twin.module(features) - expected).abs().max() > 0.1


def test_bad_checkpoints_are_named(tmp_path: Path) -> None:
    state = microsoft_form(small_model())
    table = f"encoder.layers.2.{beats_checkpoints.BIAS}"
    cases = {
        "unequal": (
            state | {table: torch.zeros(320, 4)},
            "different relative position",
        ),
        "foreign": ({"conv.weight": torch.ones(2, 2)}, "not the weights of a BEATs"),
        "part": ({"patch_embedding.weight": torch.ones(16, 1, 16, 16)}, "incomplete"),
        "lacking": (
            {k: v for k, v in state.items() if k != "encoder.layers.1.fc2.bias"},
            "lacks.*fc2.bias",
        ),
    }
    for name, (weights, message) in cases.items():
        torch.save({"model": weights}, tmp_path / f"{name}.pt")
        with pytest.raises(AnalysisError, match=message):
            beats_checkpoints.load(str(tmp_path / f"{name}.pt"))
    torch.save({"cfg": {"encoder_layers": 12}, "model": state}, tmp_path / "cfg.pt")
    with pytest.raises(
        AnalysisError, match=r"disagrees .* encoder_layers \(12, not 3\)"
    ):
        beats_checkpoints.load(str(tmp_path / "cfg.pt"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(AnalysisError, match="not a readable checkpoint"):
        beats_checkpoints.load(str(tmp_path / "cut.safetensors"))
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"model": Path("x")}, protocol=2))
    with pytest.raises(AnalysisError, match="not a readable checkpoint"):
        beats_checkpoints.load(str(tmp_path / "code.pt"))
    for name, message in (("beats", "random=True"), ("nonsense", "neither a file")):
        with pytest.raises(AnalysisError, match=message):
            beats_checkpoints.load(name)


def test_random_full_size_architecture_by_name() -> None:
    encoder = beats_checkpoints.load("beats", random=True)
    assert len(encoder.taps) == 13 + 12 + 12 * 12
    output = encoder.forward(encoder.prepare(waves(0.5)))
    assert output.shape == (1, 24, 768)
    assert torch.isfinite(output).all()


def test_impossible_configurations_are_named() -> None:
    with pytest.raises(AnalysisError, match="5 heads"):
        BEATsConfig(encoder_attention_heads=5)
    with pytest.raises(AnalysisError, match="'glu'"):
        BEATsConfig(activation_fn="glu")
    with pytest.raises(AnalysisError, match="layer_norm_first"):
        BEATsConfig(layer_norm_first=True)


def test_bfloat16_rounds_and_does_no_more() -> None:
    """Narrow groups and an even kernel: where oneDNN's convolution went wrong."""
    torch.manual_seed(0)
    model = BEATs(
        BEATsConfig(
            embed_dim=16,
            encoder_embed_dim=96,
            encoder_ffn_embed_dim=96,
            encoder_layers=2,
            encoder_attention_heads=4,
        )
    ).eval()
    features = torch.randn(4, 144, 128)
    with torch.inference_mode():
        exact = model(features)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(features)
    assert float((rounded - exact).norm() / exact.norm()) < 0.05

"""Encoders: finding a checkpoint, refusing a wrong one, the control."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ClapAudioModel, ClapConfig, ClapModel

from analysis_lib.base import AnalysisError, sha256_file
from analysis_lib.encoders import checkpoints, load_encoder, names
from analysis_lib.encoders.encoder import TAP_COLUMNS
from analysis_lib.encoders.htsat import MINI_FRONT_END, MSCLAP_FRONT_END, htsat_config
from analysis_lib.encoders.htsat_checkpoints import (
    convert_htsat,
    random_model,
    to_authors_names,
)


@pytest.fixture(scope="module")
def small():
    """A small HTS-AT with every kind of weight away from its initial zeros."""
    model = random_model(htsat_config(8), seed=3)
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        value.data += 0.05 * torch.randn(value.shape, generator=generator)
    return model


@pytest.fixture
def folder(small, tmp_path):
    """A local directory of a ClapAudioModel with its front end."""
    path = tmp_path / "small-htsat"
    small.save_pretrained(path)
    settings = MINI_FRONT_END.to_dict() | {"truncation": "fusion"}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return path


def wave(n, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def pooled(encoder, waves):
    return encoder.forward(encoder.prepare(waves)).pooler_output


def test_local_folder_gives_the_saved_weights(folder, small):
    encoder = load_encoder(str(folder), device="cpu")
    for name, value in encoder.module.state_dict().items():
        torch.testing.assert_close(value, small.state_dict()[name])
    assert encoder.sampling_rate == 44_100
    assert list(encoder.taps.columns) == list(TAP_COLUMNS)
    assert not encoder.module.training
    assert not any(p.requires_grad for p in encoder.module.parameters())


def test_audio_tower_of_a_whole_clap(small, folder, tmp_path):
    text = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    text |= {"num_attention_heads": 1, "intermediate_size": 8}
    config = ClapConfig(
        text_config=text,
        audio_config=small.config.to_dict(),
        projection_dim=8,
    )
    clap = ClapModel(config)
    clap.audio_model.load_state_dict(small.state_dict())
    clap.save_pretrained(tmp_path / "clap")
    shutil.copy(folder / "preprocessor_config.json", tmp_path / "clap")
    from_clap = load_encoder(str(tmp_path / "clap"), device="cpu")
    waves = [wave(88_200)]
    alone = load_encoder(str(folder), device="cpu")
    torch.testing.assert_close(pooled(from_clap, waves), pooled(alone, waves))


def authors_state(model, prefix):
    """Name the weights as the HTS-AT authors do, with what their file has besides."""
    named = to_authors_names(model.state_dict())
    state = {prefix + key: value.clone() for key, value in named.items()}
    for extra in (
        "spectrogram_extractor.stft.conv_real.weight",
        "tscam_conv.bias",
        "head.weight",
        "layers.0.blocks.1.attn_mask",
    ):
        state[prefix + extra] = torch.zeros(2)
    if prefix:
        state["caption_encoder.projection.linear1.weight"] = torch.zeros(2)
    return state


@pytest.mark.parametrize("prefix", ["audio_encoder.base.htsat.", "module.htsat.", ""])
def test_authors_names_are_converted_one_to_one(small, prefix):
    state = authors_state(small, prefix)
    assert any(key.endswith("layers.2.blocks.5.attn.qkv.weight") for key in state)
    assert any(key.endswith("layers.3.blocks.0.mlp.fc2.bias") for key in state)
    assert any(key.endswith("layers.1.blocks.0.attn.proj.weight") for key in state)
    assert any(key.endswith("layers.1.blocks.0.norm2.weight") for key in state)
    assert any(key.endswith("bn0.running_mean") for key in state)
    assert not any("attention" in key or "dense" in key for key in state)
    converted = convert_htsat(state)
    original = small.state_dict()
    assert converted.keys() == original.keys()
    for name, value in original.items():
        torch.testing.assert_close(converted[name], value)


def test_microsoft_file(tmp_path):
    model = random_model(htsat_config(), seed=1)
    path = tmp_path / "CLAP_weights_2023.pth"
    torch.save({"model": authors_state(model, "audio_encoder.base.htsat.")}, path)
    encoder = load_encoder(str(path), device="cpu")
    assert encoder.sampling_rate == MSCLAP_FRONT_END.sampling_rate == 44_100
    assert encoder.max_seconds == 7
    batch = encoder.prepare([wave(44_100 * 7)])
    with torch.inference_mode():
        expected = model.eval()(**batch.inputs).pooler_output
    torch.testing.assert_close(encoder.forward(batch).pooler_output, expected)


def test_random_twin_is_seeded_and_another_model(folder):
    twin = [
        load_encoder(str(folder), device="cpu", random=True, seed=s) for s in (0, 0, 1)
    ]
    trained = load_encoder(str(folder), device="cpu")
    assert twin[0].fingerprint == twin[1].fingerprint
    assert len({twin[0].fingerprint, twin[2].fingerprint, trained.fingerprint}) == 3
    assert twin[0].taps.equals(trained.taps)
    assert "random" in twin[0].source


def test_loading_leaves_the_random_state_alone(folder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_encoder(str(folder), device="cpu", random=True)
    torch.testing.assert_close(torch.rand(3), expected)


def test_htsat_base_is_the_published_size():
    encoder = load_encoder("htsat-base", random=True, device="cpu")
    count = encoder.taps["granularity"].value_counts()
    assert (count["head"], count["block"], count["layer"]) == (184, 12, 4)
    weights = sum(p.numel() for p in encoder.module.parameters())
    assert 27e6 < weights < 28e6


def test_bfloat16_is_close_but_not_equal(folder):
    exact = load_encoder(str(folder), device="cpu")
    fast = load_encoder(str(folder), device="cpu", dtype="bfloat16")
    a, b = pooled(exact, [wave(88_200)]), pooled(fast, [wave(88_200)]).float()
    assert 0 < (a - b).norm() / a.norm() < 0.05


@pytest.mark.parametrize("name", names())
def test_bundled_encoders_load_and_run(name):
    encoder = load_encoder(name, device="cpu")
    encoder.forward(encoder.prepare([wave(encoder.sampling_rate)]))
    assert encoder.licence
    assert encoder.name == name


@pytest.fixture
def bundle(folder, tmp_path, monkeypatch):
    """The small model as the only bundled one."""
    home = tmp_path / "weights" / "small"
    shutil.copytree(folder, home)
    card = {"licence": "MIT", "sha256": sha256_file(home / "model.safetensors")}
    (home / "card.json").write_text(json.dumps(card))
    monkeypatch.setattr(checkpoints, "WEIGHTS", tmp_path / "weights")
    return home


def test_bundled_weights_are_checked(bundle):
    assert names() == ["small"]
    assert load_encoder("small", device="cpu").licence == "MIT"
    weights = bundle / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-7] ^= 1
    weights.write_bytes(data)
    with pytest.raises(AnalysisError, match=r"small.*sha256"):
        load_encoder("small")


def test_unknown_name_lists_what_there_is(bundle):
    with pytest.raises(AnalysisError, match=r"'smal'.*mean 'small'.*htsat-base"):
        load_encoder("smal")


def test_architecture_without_weights_says_so():
    with pytest.raises(AnalysisError, match="random=True"):
        load_encoder("htsat-base")


def test_unreachable_hub_says_how_to_fetch_by_hand(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(AnalysisError, match=r"hf download some/model --local-dir"):
        load_encoder("some/model")
    with pytest.raises(AnalysisError, match=r"hf download microsoft/msclap"):
        load_encoder("microsoft/msclap")


def test_hub_cache_needs_no_network(folder, tmp_path, monkeypatch):
    commit = "0" * 40
    home = tmp_path / "hub" / "models--some--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    shutil.copytree(folder, home / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached = load_encoder("some/model", device="cpu")
    assert cached.fingerprint == load_encoder(str(folder), device="cpu").fingerprint


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "bert"}, "is of type 'bert'.*clap_audio_model"),
        ({"no": 1}, "does not say its model_type"),
        ("{", "cannot be read"),
    ],
)
def test_config_of_another_architecture(tmp_path, config, said):
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(AnalysisError, match=said):
        load_encoder(str(tmp_path))


def test_weights_of_another_architecture(folder, tmp_path):
    other = ClapAudioModel(htsat_config(4, depths=(1, 1, 1, 1)))
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(AnalysisError, match=r"small-htsat.*missing.*of another"):
        load_encoder(str(folder))


def test_folder_without_config_or_weights(tmp_path, folder):
    with pytest.raises(AnalysisError, match=r"no config\.json"):
        load_encoder(str(tmp_path))
    (folder / "model.safetensors").unlink()
    with pytest.raises(AnalysisError, match="small-htsat"):
        load_encoder(str(folder))


def test_truncated_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(AnalysisError, match="small-htsat"):
        load_encoder(str(folder))


class Payload:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


def test_pickles_with_code_are_refused(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    torch.save({"model": Payload()}, path)
    with pytest.raises(AnalysisError, match=r"weights\.pth.*refused"):
        load_encoder(str(path))
    assert "a pickle ran code" not in capsys.readouterr().out


def test_single_file_of_another_architecture(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"encoder.weight": torch.zeros(2)}, path)
    with pytest.raises(AnalysisError, match=r"weights\.pt.*encoder\.weight"):
        load_encoder(str(path))
    path.write_bytes(b"RIFF" * 50)
    with pytest.raises(AnalysisError, match=r"weights\.pt.*readable"):
        load_encoder(str(path))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"dtype": "float8"}, "float32"), ({"device": "abacus"}, "abacus")],
)
def test_wrong_options(options, said):
    with pytest.raises(AnalysisError, match=said):
        load_encoder("htsat-base", random=True, **options)


def test_missing_path_is_not_looked_up_on_the_hub():
    with pytest.raises(AnalysisError, match="no such folder"):
        load_encoder("./nowhere/model")


@pytest.mark.parametrize("waves", [[np.zeros((2, 100), np.float32)], [np.zeros(0)]])
def test_prepare_wants_mono_waveforms(folder, waves):
    with pytest.raises(AnalysisError, match="shape"):
        load_encoder(str(folder)).prepare(waves)


def test_every_family_module_exists():
    home = Path(sys.modules["analysis_lib.encoders"].__path__[0])
    families = {*checkpoints.MODEL_TYPES.values(), *checkpoints.KEY_MARKS.values()}
    assert {f for f in families if not (home / f"{f}.py").is_file()} == set()

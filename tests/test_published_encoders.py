"""Published layouts, written with random weights, read through our path."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis_lib.base import AnalysisError
from analysis_lib.encoders import checkpoints, load_encoder, memory
from analysis_lib.encoders.encoder import record
from analysis_lib.encoders.imitation import imitate
from analysis_lib.encoders.published import (
    ALIASES,
    AVEX,
    BEATS_MIRROR,
    MSCLAP_2023,
    PUBLISHED,
    weights,
)

# Layers, heads in all, width of the last layer, seconds between tokens.
SHAPES = {
    "laion/clap-htsat-unfused": (4, 184, 768),
    "laion/larger_clap_general": (4, 280, 1024),
    MSCLAP_2023: (4, 184, 768),
    AVEX: (12, 144, 768),
    BEATS_MIRROR: (12, 144, 768),
    "facebook/wav2vec2-base": (12, 144, 768),
    "facebook/wav2vec2-large-lv60": (24, 384, 1024),
    "facebook/hubert-base-ls960": (12, 144, 768),
    "facebook/hubert-large-ll60k": (24, 384, 1024),
    "microsoft/wavlm-base": (12, 144, 768),
    "microsoft/wavlm-large": (24, 384, 1024),
    "facebook/data2vec-audio-base": (12, 144, 768),
    "facebook/data2vec-audio-large": (24, 384, 1024),
    "openai/whisper-tiny": (4, 24, 384),
    "openai/whisper-base": (6, 48, 512),
    "openai/whisper-large-v3": (32, 640, 1280),
    "MIT/ast-finetuned-audioset-10-10-0.4593": (12, 144, 768),
    "Qwen/Qwen2-Audio-7B": (32, 640, 1280),
    "Qwen/Qwen2-Audio-7B-Instruct": (32, 640, 1280),
}
# Tokens of a clip of one second, where padding and silence are left out.
TOKENS = {
    AVEX: 6 * 8,
    BEATS_MIRROR: 6 * 8,
    "MIT/ast-finetuned-audioset-10-10-0.4593": 9 * 12,
    "Qwen/Qwen2-Audio-7B": 25,
    "Qwen/Qwen2-Audio-7B-Instruct": 25,
    **{name: 50 for name in PUBLISHED if name.startswith("openai/")},
    **{
        name: 49
        for name in PUBLISHED
        if name.startswith("facebook/") or "wavlm" in name
    },
}


@pytest.fixture
def folder():
    """A folder that is gone at once: full-size files would fill the disk."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
    gc.collect()


def wave(seconds, rate, seed=0):
    rng = np.random.default_rng(seed)
    return 0.1 * rng.standard_normal(round(seconds * rate)).astype(np.float32)


def outline(encoder):
    layers = encoder.taps[encoder.taps["granularity"] == "layer"]
    heads = encoder.taps[encoder.taps["granularity"] == "head"]
    last = layers.iloc[-1]
    count = len(layers) - (layers["name"].iloc[0] == "L0" and len(layers) > 4)
    return count, len(heads), int(last["width"])


def check_reading(name, folder, *, thin):
    """Load a checkpoint and run one clip through it; compare shapes and lengths."""
    encoder = load_encoder(folder, device="cpu")
    layers, heads, width = SHAPES[name]
    counted = outline(encoder)
    assert counted[:2] == (layers, heads)
    if not thin:
        assert counted[2] == width
        size = sum(value.numel() for value in encoder.module.parameters())
        assert size == weights(name)
    assert all(p.dtype == torch.float32 for p in encoder.module.parameters())
    assert not any(p.is_meta for p in encoder.module.parameters())
    batch = encoder.prepare([wave(1.0, encoder.sampling_rate)])
    with record(encoder, ["head", "layer"]) as found:
        encoder.forward(batch)
    sites = encoder.sites(["head", "layer"])
    for site, tap in sites.items():
        values, mask = encoder.tokens(tap, found[site], batch)
        wide = tap.width * (tap.heads if tap.granularity == "head" else 1)
        assert values.shape == (1, mask.shape[1], wide)
        assert torch.isfinite(values).all()
        if name in TOKENS:
            assert int(mask.sum()) == TOKENS[name]
    if name in TOKENS:
        times = encoder.frame_times(TOKENS[name])
        assert 0 <= times.min() <= times.max() <= 1.0
    return encoder


def test_every_published_encoder_has_its_shape_here():
    assert set(SHAPES) == set(PUBLISHED)
    assert set(ALIASES.values()) <= {*PUBLISHED, *checkpoints.REPOSITORIES}


# One of each layout; the rest are read at full size.
THIN = [
    "laion/clap-htsat-unfused",
    AVEX,
    BEATS_MIRROR,
    "facebook/wav2vec2-base",
    "microsoft/wavlm-large",
    "facebook/data2vec-audio-base",
    "openai/whisper-tiny",
    "MIT/ast-finetuned-audioset-10-10-0.4593",
    "Qwen/Qwen2-Audio-7B-Instruct",
]


@pytest.mark.parametrize("name", THIN)
def test_thin_checkpoint_of_the_published_layout(name, folder, capfd):
    place = imitate(name, folder, thin=True)
    written = {path.name for path in folder.iterdir()}
    assert set(PUBLISHED[name].files[:1]) <= written
    capfd.readouterr()
    check_reading(name, place, thin=True)
    assert capfd.readouterr() == ("", ""), "a page has no standard error"


FULL = [name for name in PUBLISHED if name != "Qwen/Qwen2-Audio-7B-Instruct"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", FULL)
def test_full_size_checkpoint_of_the_published_layout(name, folder):
    place = imitate(name, folder)
    need = memory.loading_bytes(place, checkpoints.find(place).family)
    expected = memory.loading_bytes(name, "")
    if name != MSCLAP_2023:  # whose text model is left out here
        assert expected is not None
        assert 0.4 * expected < need < 2.2 * expected
    check_reading(name, place, thin=False)


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("laion/clap-htsat-unfused", "ClapModel", 614_525_833),
        ("laion/larger_clap_general", "ClapModel", 776_000_000),
        ("facebook/wav2vec2-base", "Wav2Vec2ForPreTraining", 380_000_000),
        ("facebook/hubert-base-ls960", "HubertModel", 378_000_000),
        ("microsoft/wavlm-base", "WavLMModel", 378_000_000),
        ("openai/whisper-tiny", "WhisperForConditionalGeneration", 151_000_000),
        ("Qwen/Qwen2-Audio-7B", "Qwen2AudioForConditionalGeneration", 2 * 16.79e9),
    ],
)
def test_our_configurations_have_the_published_size(name, kind, size):
    """The whole model, on the meta device, against the size of the file on the hub."""
    import transformers

    found = PUBLISHED[name].config()
    if kind == "ClapModel":
        found = transformers.ClapConfig(audio_config=found)
    with torch.device("meta"):
        model = getattr(transformers, kind)(found)
    assert 4 * sum(p.numel() for p in model.parameters()) == pytest.approx(size, 0.005)


def in_hub_cache(hub, name, source):
    """Put files where the hub's library looks for what it has downloaded."""
    owner, model, *file = name.split("/")
    home, commit = hub / f"models--{owner}--{model}", "0" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    source = Path(source)
    if source.is_dir():
        shutil.copytree(source, home / "snapshots" / commit)
    else:
        (home / "snapshots" / commit).mkdir(parents=True)
        shutil.copy(source, home / "snapshots" / commit / (file or [source.name])[0])


def test_offline_cache_of_the_hub(tmp_path):
    """Every layout by its hub id or short name, in a process without a network."""
    names = {
        "laion/clap-htsat-unfused": "laion/clap-htsat-unfused",
        "esp_aves2_sl_beats_all": AVEX,
        "facebook/wav2vec2-base": "facebook/wav2vec2-base",
        "Qwen/Qwen2-Audio-7B": "Qwen/Qwen2-Audio-7B",
    }
    hub = tmp_path / "hub"
    for number, name in enumerate(names.values()):
        in_hub_cache(hub, name, imitate(name, tmp_path / str(number), thin=True))
    program = (
        "import json, sys\n"
        "from analysis_lib.encoders import load_encoder\n"
        "found = [load_encoder(name, device='cpu') for name in sys.argv[1:]]\n"
        "print(json.dumps([[e.name, e.licence, len(e.taps)] for e in found]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *names],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for (name, hub_id), row in zip(names.items(), json.loads(done.stdout), strict=True):
        assert row[0] == name
        assert row[1] == PUBLISHED[hub_id].licence
        assert row[2] > 24


def test_licence_of_a_model_card(folder, monkeypatch):
    place = imitate("openai/whisper-tiny", folder, thin=True)
    assert "not stated" in load_encoder(place, device="cpu").licence
    card = "---\nlanguage: en\nlicense: cc-by-4.0\ntags:\n- x\n---\n# A model\n"
    (folder / "README.md").write_text(card)
    assert load_encoder(place, device="cpu").licence == "cc-by-4.0 (model card)"
    hub = folder / "hub"
    again = imitate("openai/whisper-tiny", folder / "again", thin=True)
    in_hub_cache(hub, "some/whisper", again)
    (hub / "models--some--whisper/snapshots" / ("0" * 40) / "README.md").write_text(
        card
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert checkpoints.find("some/whisper").licence == "cc-by-4.0 (model card)"


def test_beats_of_a_mirror_must_be_the_published_file(tmp_path, monkeypatch):
    path = imitate(BEATS_MIRROR, tmp_path / "beats", thin=True)
    assert load_encoder(path, device="cpu").taps["layer"].max() == 12
    in_hub_cache(tmp_path / "hub", BEATS_MIRROR, path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AnalysisError, match="sha256 differs"):
        load_encoder("BEATs_iter3_plus_AS2M", device="cpu")


@pytest.mark.parametrize(
    "name", ["openai/whisper-tiny", "laion/clap-htsat-unfused", BEATS_MIRROR]
)
def test_what_does_not_fit_is_said_before_loading(name, folder, monkeypatch):
    place = imitate(name, folder, thin=True)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: _Free(1000))
    monkeypatch.setattr(memory.psutil, "swap_memory", lambda: _Free(0))
    read = []
    monkeypatch.setattr("analysis_lib.encoders.htsat_checkpoints.read_weights", read)
    with pytest.raises(AnalysisError, match=r"GB of memory to load and 0\.0 GB are"):
        load_encoder(place, device="cpu")


class _Free:
    def __init__(self, size):
        self.available = self.free = size


def test_memory_of_models_that_are_not_here():
    assert memory.loading_bytes("Qwen/Qwen2-Audio-7B", "") == pytest.approx(2.6e9, 0.02)
    assert memory.loading_bytes("some/unknown", "") is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes_are_the_readers_choice(dtype, folder):
    place = imitate("facebook/wav2vec2-base", folder, thin=True)
    encoder = load_encoder(place, device="cpu", dtype=dtype)
    found = encoder.forward(encoder.prepare([wave(1.0, 16_000)]))
    assert torch.isfinite(found.last_hidden_state).all()
    assert encoder.dtype == getattr(torch, dtype)
    assert next(encoder.module.parameters()).dtype == torch.float32

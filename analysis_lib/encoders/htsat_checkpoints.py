"""Published HTS-AT weights: CLAP in transformers' layout, and Microsoft CLAP 2023."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ClapAudioConfig, ClapAudioModel

from analysis_lib.base import AnalysisError
from analysis_lib.encoders.checkpoints import hub_file, read_weights
from analysis_lib.encoders.encoder import Encoder
from analysis_lib.encoders.htsat import (
    MSCLAP_FRONT_END,
    HTSATFrontEnd,
    htsat_config,
    htsat_encoder,
)

MSCLAP = "microsoft/msclap"
MSCLAP_FILE = "CLAP_weights_2023.pth"
# The HTS-AT authors' names -> transformers' names, applied in this order.
RENAMED = (
    (r"^bn0\.", "batch_norm."),
    (r"\bnorm1\.", "layernorm_before."),
    (r"\bnorm2\.", "layernorm_after."),
    (r"\bmlp\.fc1\.", "intermediate.dense."),
    (r"\bmlp\.fc2\.", "output.dense."),
    (r"\battn\.proj\.", "attention.output.dense."),
    (r"\battn\.relative_position_", "attention.self.relative_position_"),
)
# Parts that transformers computes anew, or that come after the encoder.
DROPPED = re.compile(
    r"attn_mask$|^(spectrogram_extractor|logmel_extractor|tscam_conv|head)\."
)


def convert_htsat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the HTS-AT authors' state dict to the keys of ``ClapAudioModel``.

    Parameters
    ----------
    state
        Keys with any outer prefix that ends in ``htsat.``, or none.

    Raises
    ------
    AnalysisError
        If it holds no HTS-AT.
    """
    anchor = "patch_embed.proj.weight"
    prefixes = [
        key.removesuffix(anchor)
        for key in state
        if key == anchor or key.endswith(f"htsat.{anchor}")
    ]
    if len(prefixes) != 1:
        raise AnalysisError(
            f"these are not the weights of an HTS-AT: {len(prefixes)} keys end in "
            f"'htsat.{anchor}', and one is needed."
        )
    converted: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith(prefixes[0]):
            continue
        name = key.removeprefix(prefixes[0])
        if DROPPED.search(name):
            continue
        for old, new in RENAMED:
            name = re.sub(old, new, name)
        if ".attn.qkv." in name:
            thirds = zip(("query", "key", "value"), value.chunk(3), strict=True)
            for part, third in thirds:
                own = name.replace(".attn.qkv.", f".attention.self.{part}.")
                converted[f"audio_encoder.{own}"] = third
        else:
            converted[f"audio_encoder.{name}"] = value
    return converted


def to_authors_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the keys of ``ClapAudioModel`` to those of the HTS-AT authors."""
    back = (
        ("audio_encoder.", ""),
        ("batch_norm.", "bn0."),
        ("layernorm_before.", "norm1."),
        ("layernorm_after.", "norm2."),
        ("attention.output.dense.", "attn.proj."),
        ("attention.self.relative_position_", "attn.relative_position_"),
        ("intermediate.dense.", "mlp.fc1."),
        ("output.dense.", "mlp.fc2."),
    )
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key
        for new, old in back:
            name = name.replace(new, old)
        if ".attention.self.query." in name:
            thirds = [
                state[key.replace(".query.", f".{part}.")]
                for part in ("query", "key", "value")
            ]
            found[name.replace("attention.self.query", "attn.qkv")] = torch.cat(thirds)
        elif ".attention.self." not in name:
            found[name] = value
    return found


def random_model(config: ClapAudioConfig, seed: int) -> ClapAudioModel:
    """HTS-AT as initialised, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ClapAudioModel(config)


def load(
    name: str,
    *,
    licence: str | None = None,
    random: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """Load HTS-AT.

    Parameters
    ----------
    name
        Folder or hub id of a ``ClapModel`` or ``ClapAudioModel``; a Microsoft CLAP
        file, ``microsoft/msclap`` or a file in it; or ``htsat-base`` for CLAP's
        architecture with random weights.
    licence
        Terms of the weights, where the caller knows them.
    random
        Keep configuration and front end but not the weights: the untrained twin.
    seed
        Of the random weights.

    Raises
    ------
    AnalysisError
        If the checkpoint is incomplete or of another architecture.
    """
    microsoft = Path(name).is_file() or name.split("/")[:2] == MSCLAP.split("/")
    if name == "htsat-base":
        config, front_end = htsat_config(), HTSATFrontEnd()
    elif microsoft:
        config, front_end = htsat_config(), MSCLAP_FRONT_END
    else:
        config, front_end = _settings(name)
    if random:
        model, licence = random_model(config, seed), "none (random weights)"
        source = f"random weights, seed {seed}, shaped as {Path(name).name}"
    elif microsoft:
        model, source = _microsoft(name, config), name
    else:
        model, source = _pretrained(name, config), name
    return htsat_encoder(
        name,
        model,
        front_end,
        licence=licence or "not stated: see the checkpoint's source",
        source=source,
        dtype=dtype,
    )


def _read(name: str, file: str) -> dict[str, Any]:
    path = Path(name) / file if Path(name).is_dir() else hub_file(name, file)
    if not path.is_file():
        raise AnalysisError(f"{name}: the folder has no {file}.")
    return json.loads(path.read_text(encoding="utf-8"))


def _settings(name: str) -> tuple[ClapAudioConfig, HTSATFrontEnd]:
    """Audio configuration and front end of a folder or hub id."""

    config = _read(name, "config.json")
    config = config.get("audio_config", config)
    try:
        front = _read(name, "preprocessor_config.json")
    except AnalysisError:
        # Where transformers 5 puts it when a whole processor is saved.
        front = _read(name, "processor_config.json")["feature_extractor"]
    front_end = HTSATFrontEnd.from_dict(front)
    known = ClapAudioConfig().to_dict()
    settings = ClapAudioConfig(**{k: v for k, v in config.items() if k in known})
    fused = settings.enable_fusion
    # Files say "fusion" for unfused models too, which then cannot take the result.
    truncation = "fusion" if fused else "rand_trunc"
    return settings, replace(front_end, truncation=truncation)


def _microsoft(name: str, config: ClapAudioConfig) -> ClapAudioModel:
    if Path(name).is_file():
        path = Path(name)
    else:
        path = hub_file(MSCLAP, "/".join(name.split("/")[2:]) or MSCLAP_FILE)
    try:
        state = convert_htsat(read_weights(path))
    except AnalysisError as error:
        raise AnalysisError(f"{path.name}: no Microsoft CLAP 2023: {error}") from None
    return fill(config, state, path.name)


def _pretrained(name: str, config: ClapAudioConfig) -> ClapAudioModel:
    files = ("model.safetensors", "pytorch_model.bin")
    if Path(name).is_dir():
        found = [Path(name) / file for file in files if (Path(name) / file).is_file()]
        if not found:
            raise AnalysisError(f"{name}: the folder has no {' or '.join(files)}.")
        path = found[0]
    else:
        try:
            path = hub_file(name, files[0])
        except AnalysisError:
            path = hub_file(name, files[1])
    state = read_weights(path)
    # A whole CLAP holds the encoder as audio_model, beside the text model.
    prefix = "audio_model." if any(k.startswith("audio_model.") for k in state) else ""
    own = {
        key.removeprefix(prefix): value
        for key, value in state.items()
        if key.startswith(f"{prefix}audio_encoder.")
    }
    return fill(config, own, name)


def fill(
    config: ClapAudioConfig, state: Mapping[str, Tensor], name: str
) -> ClapAudioModel:
    """Model with these weights, in float32.

    Raises
    ------
    AnalysisError
        If weights are missing, too many, or of other shapes than the configuration's.
    """
    with torch.random.fork_rng(devices=[]):
        model = ClapAudioModel(config)
    own = model.state_dict()
    # The position index follows from the window size; files need not hold it.
    lacking = [k for k in own if k not in state and not k.endswith("position_index")]
    surplus = [key for key in state if key not in own]
    other = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    if lacking or surplus or other:
        raise AnalysisError(
            f"{name}: these weights are not the HTS-AT its configuration describes: "
            f"{len(lacking)} missing, {len(surplus)} unknown, {len(other)} of another "
            f"shape (first: {[*lacking, *surplus, *other][0]}). Supported are "
            "ClapModel, ClapAudioModel and Microsoft CLAP 2023."
        )
    model.load_state_dict(dict(state), strict=False)
    return model

"""Any other audio encoder of the Hugging Face library, found out by trying it.

Its layers are its longest stack of like modules; its heads are read where a layer's
attention hands them to an output projection under a name that is known. Clips are run
in batches of equal length, so that nothing is padded.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from analysis_lib.base import AnalysisError
from analysis_lib.encoders.encoder import Batch, Encoder
from analysis_lib.encoders.own import wrap
from analysis_lib.encoders.quiet import quietly
from analysis_lib.encoders.speech import fetch

PROJECTIONS = ("out_proj", "o_proj", "linear_out", "to_out.0", "attention.output.dense")


def load(
    name: str,
    *,
    licence: str | None = None,
    random: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """Load an audio encoder of a type that no other module here knows.

    Parameters
    ----------
    name
        Folder or hub id with ``config.json``, weights and the settings of its feature
        extractor.
    licence, random, seed, dtype
        As in `load_encoder`.

    Raises
    ------
    AnalysisError
        If it is no audio model, weights are missing, it has no stack of layers, or it
        pads clips to a fixed length, so that padding cannot be told from sound.
    """
    config: Any = fetch(AutoConfig, name, "config.json")
    extractor: Any = fetch(AutoFeatureExtractor, name, "preprocessor_config.json")
    rate = getattr(extractor, "sampling_rate", None)
    if rate is None:
        raise AnalysisError(f"{name}: a {config.model_type!r} model hears no sound.")
    module = _model(name, config, random, seed)
    path = longest_stack(name, module)
    front_end = partial(_prepare, extractor=extractor, known=_arguments(module))
    lengths = [
        {key: value.shape for key, value in front_end([np.ones(n)]).inputs.items()}
        for n in (rate, 2 * rate)
    ]
    if lengths[0] == lengths[1]:
        raise AnalysisError(
            f"{name}: its front end pads every clip to one length, and a "
            f"{config.model_type!r} model does not tell which tokens are sound. Write "
            "a function of your own around it (analysis_lib.encoders.wrap)."
        )
    if random:
        licence, source = "none (random weights)", f"random weights, shaped as {name}"
    else:
        source = name
    encoder = wrap(
        name,
        module,
        tap_table(module, path, _heads(config)),
        rate,
        front_end=front_end,
        licence=licence or "not stated: see the checkpoint's source",
        source=source,
        settings=extractor.to_json_string(),
    )
    return replace(encoder, dtype=dtype)


def _model(name: str, config: Any, random: bool, seed: int) -> nn.Module:
    try:
        with quietly(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if random:
                model = AutoModel.from_config(config, dtype=torch.float32)
                lacking = []
            else:
                model, report = AutoModel.from_pretrained(
                    name, config=config, dtype=torch.float32, output_loading_info=True
                )
                lacking = [k for k in report["missing_keys"] if "masked_spec" not in k]
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AnalysisError(
            f"{name}: its weights are missing, damaged, or of a type that the "
            f"transformers library does not build ({reason})."
        ) from error
    if lacking:
        raise AnalysisError(
            f"{name}: {len(lacking)} weights are missing ({lacking[0]})."
        )
    return model.get_encoder() if config.is_encoder_decoder else model


def longest_stack(name: str, module: nn.Module) -> str:
    """Path of the list of like modules that holds most of a model's weights."""
    found: dict[str, int] = {}
    for path, child in module.named_modules():
        if not isinstance(child, nn.ModuleList) or len(child) < 2:
            continue
        if len({type(item) for item in child}) == 1:
            found[path] = sum(p.numel() for p in child.parameters())
    if not found:
        raise AnalysisError(f"{name}: it has no stack of layers to read.")
    return max(found, key=lambda path: found[path])


def _heads(config: Any) -> int:
    for key in ("num_attention_heads", "encoder_attention_heads"):
        if isinstance(getattr(config, key, None), int):
            return int(getattr(config, key))
    return 0


def tap_table(module: nn.Module, path: str, heads: int) -> pd.DataFrame:
    """``L0`` enters the stack, ``L1`` … leave its layers, ``L3_B0_H2`` is a head."""
    stack = module.get_submodule(path)
    rows: list[dict[str, Any]] = [
        {"name": "L0", "module": f"{path}.0", "side": "input", "granularity": "layer",
         "layer": 0, "block": -1, "head": -1, "heads": max(heads, 1)}
    ]  # fmt: skip
    for number, (key, layer) in enumerate(stack.named_children(), start=1):
        ends = [
            child
            for child, part in layer.named_modules()
            if child.endswith(PROJECTIONS)
            and isinstance(part, nn.Linear)
            and heads
            and part.in_features % heads == 0
        ]
        place = f"{path}.{key}"
        common = {"layer": number, "heads": max(heads, 1)}
        for head in range(heads if len(ends) == 1 else 0):
            rows.append(
                {"name": f"L{number}_B0_H{head}", "module": f"{place}.{ends[0]}",
                 "side": "input", "granularity": "head", "block": 0, "head": head,
                 **common}
            )  # fmt: skip
        rows.append(
            {"name": f"L{number}", "module": place, "side": "output",
             "granularity": "layer", "block": -1, "head": -1, **common}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _arguments(module: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(module.forward).parameters)


def _prepare(
    waves: Sequence[np.ndarray], extractor: Any, known: frozenset[str]
) -> Batch:
    lengths = {len(wave) for wave in waves}
    if len(lengths) > 1:
        raise AnalysisError(
            f"clips of a batch must be of equal length (here {min(lengths)} to "
            f"{max(lengths)} samples)."
        )
    plain = [np.asarray(wave, dtype=np.float32) for wave in waves]
    found = extractor(plain, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    return Batch({key: value for key, value in found.items() if key in known})

"""Qwen2-Audio: the frames that its language model hears, without that model.

The audio tower and the projector are 8 % of the full-size model; only they are read.
A frame is 40 ms; frame t of a clip is centred on 0.040 t + 0.010 s.

References
----------
Chu et al. (2024), "Qwen2-Audio Technical Report", arXiv:2407.10759.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    Qwen2AudioConfig,
    Qwen2AudioEncoder,
    WhisperFeatureExtractor,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.qwen2_audio.modeling_qwen2_audio import (
    Qwen2AudioMultiModalProjector,
)

from analysis_lib.base import AnalysisError
from analysis_lib.encoders.checkpoints import hub_file
from analysis_lib.encoders.encoder import (
    TAP_COLUMNS,
    Batch,
    Encoder,
    arrange_tokens,
    fingerprint,
)
from analysis_lib.encoders.speech import fetch

SAMPLING_RATE = 16_000
PARTS = ("audio_tower.", "multi_modal_projector.")


class AudioFrames(nn.Module):
    """Audio tower and projector, from log-mel spectrograms to the LM's input space."""

    def __init__(self, config: Qwen2AudioConfig) -> None:
        super().__init__()
        self.config = config
        tower: Any = config.audio_config
        self.audio_tower = Qwen2AudioEncoder(tower)
        self.multi_modal_projector = Qwen2AudioMultiModalProjector(config)

    def forward(self, input_features: Tensor, feature_attention_mask: Tensor) -> Tensor:
        """Encode a batch.

        Parameters
        ----------
        input_features : Tensor, shape (B, mels, M)
        feature_attention_mask : Tensor, shape (B, M)
            1 where a mel frame belongs to the clip. The tower's attention needs it:
            without it padding changes every frame.

        Returns
        -------
        Tensor, shape (B, M // 4, C)
            Rows beyond a clip's own frames are padding.
        """
        tower: Any = self.audio_tower
        lengths, _ = tower._get_feat_extract_output_lengths(
            feature_attention_mask.sum(-1)
        )
        place = torch.arange(input_features.shape[-1] // 2, device=lengths.device)
        shape = (len(lengths), len(place), 1)
        mask = create_bidirectional_mask(
            config=tower.config,
            attention_mask=(place[None] < lengths[:, None]).long(),
            inputs_embeds=torch.zeros(shape, device=lengths.device, dtype=tower.dtype),
        )
        frames = tower(input_features, attention_mask=mask).last_hidden_state
        return self.multi_modal_projector(frames)


def n_frames(n_samples: int) -> int:
    """Count the frames of a clip of ``n_samples`` at 16 kHz, as the tower does.

    Mel frames every 10 ms, a convolution of stride 2, and a mean over pairs.
    """
    mel = -(-n_samples // 160)
    return max(0, ((mel - 1) // 2 + 1 - 2) // 2 + 1)


def frame_times(n: int) -> np.ndarray:
    """Centres of the first ``n`` frames in seconds: 0.040 t + 0.010.

    Frame t is the mean of convolution outputs 2t and 2t + 1, which are centred on
    mel frames 4t and 4t + 2.
    """
    return 0.040 * np.arange(n) + 0.010


def prepare(waves: Sequence[np.ndarray], extractor: WhisperFeatureExtractor) -> Batch:
    """Turn waveforms into log-mel spectrograms of the tower's window, with a mask.

    What is longer than the window is cut. A log-mel is floored 8 (in tens of
    decibels) under the clip's own maximum, so a frame depends a little on the
    loudest moment of its clip.

    Raises
    ------
    AnalysisError
        If a clip is too short for one frame (320 samples or less).
    """
    samples = [min(len(wave), extractor.n_samples) for wave in waves]
    valid = [n_frames(n) for n in samples]
    if 0 in valid:
        place = valid.index(0)
        raise AnalysisError(
            f"Qwen2-Audio: wave {place} of the batch lasts "
            f"{samples[place] / SAMPLING_RATE:.4f} s; one frame needs more than "
            "0.0200 s. Pad or drop such clips."
        )
    inputs = extractor(
        [np.asarray(wave, dtype=np.float32) for wave in waves],
        sampling_rate=SAMPLING_RATE,
        padding="max_length",
        return_attention_mask=True,
        return_tensors="pt",
    )
    return Batch(
        {
            "input_features": inputs["input_features"],
            "feature_attention_mask": inputs["attention_mask"],
        },
        torch.tensor(valid),
        np.array(samples) / SAMPLING_RATE,
    )


def tap_table(config: Qwen2AudioConfig) -> pd.DataFrame:
    """List the taps; all are read at 25 Hz.

    ``L0`` is what enters the tower's first layer, ``L1`` … the layers' outputs, the
    last of them after the closing norm. Inside the tower there are 50 tokens a
    second; they are averaged in pairs, as the tower itself does before that norm.
    ``projector``, with granularity ``projector`` and numbered after the last layer,
    is what the language model hears.
    """
    tower: Any = config.audio_config
    text: Any = config.text_config
    width, heads, last = (
        tower.d_model,
        tower.encoder_attention_heads,
        tower.encoder_layers,
    )
    rows: list[tuple[Any, ...]] = []

    def tap(name: str, path: str, side: str, granularity: str, *numbers: int) -> None:
        rows.append((name, path, side, "btc", granularity, *numbers))

    tap("L0", "audio_tower.layers.0", "input", "layer", 0, -1, -1, heads, width)
    for number in range(1, last + 1):
        path, name = f"audio_tower.layers.{number - 1}", f"L{number}"
        out, size = f"{path}.self_attn.out_proj", width // heads
        for head in range(heads):
            tap(
                f"{name}_B0_H{head}", out, "input", "head", number, 0, head, heads, size
            )
        norm = f"{path}.final_layer_norm"
        tap(f"{name}_B0", norm, "input", "block", number, 0, -1, heads, width)
        end = "audio_tower.layer_norm" if number == last else path
        tap(name, end, "output", "layer", number, -1, -1, heads, width)
    numbers = (last + 1, -1, -1, -1, text.hidden_size)
    tap("projector", "multi_modal_projector", "output", "projector", *numbers)
    return pd.DataFrame(rows, columns=list(TAP_COLUMNS))


def arrange(tap: Any, activation: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Average 50 Hz tokens in pairs to 25 Hz frames; 25 Hz ones stay as they are."""
    if activation.shape[1] == batch.inputs["input_features"].shape[-1] // 2:
        activation = activation[:, : activation.shape[1] // 2 * 2]
        activation = activation.unflatten(1, (-1, 2)).mean(2)
    return arrange_tokens(tap, activation, batch)


def qwen2_audio_encoder(
    name: str,
    model: AudioFrames,
    extractor: WhisperFeatureExtractor,
    *,
    licence: str,
    source: str,
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """Wrap tower and projector as an `Encoder` with their taps."""
    config = model.config
    tower: Any = config.audio_config
    need = tower.max_source_positions * 2
    if extractor.nb_max_frames != need:
        raise AnalysisError(
            f"{name}: the front end makes {extractor.nb_max_frames} mel frames and the "
            f"tower takes {need}; chunk_length must be {need / 100:g}."
        )
    return Encoder(
        name=name,
        module=model,
        sampling_rate=SAMPLING_RATE,
        licence=licence,
        source=source,
        taps=tap_table(config),
        front_end=partial(prepare, extractor=extractor),
        times=frame_times,
        fingerprint=fingerprint(
            model,
            tower.to_json_string(use_diff=False),
            extractor.to_json_string(),
        ),
        max_seconds=float(extractor.chunk_length),
        dtype=dtype,
        arrange=arrange,
    )


def read_audio_weights(name: str) -> dict[str, Tensor]:
    """Read tower and projector, and nothing else, from a Qwen2-Audio checkpoint.

    Of a checkpoint in shards only the files that hold them are opened (or, on the
    hub, downloaded). Keys may start with ``model.`` or not.

    Parameters
    ----------
    name
        Folder or hub id.

    Returns
    -------
    dict
        State dict of `AudioFrames`, in float32.

    Raises
    ------
    AnalysisError
        If a shard is missing or damaged.
    """
    folder = Path(name) if Path(name).is_dir() else None

    def path_of(file: str) -> Path:
        return folder / file if folder else hub_file(name, file)

    shards = ["model.safetensors"]
    index = "model.safetensors.index.json"
    try:
        listed = path_of(index)
    except AnalysisError:
        listed = None  # of a small model, in one file; else that one is missed below
    if listed is not None and listed.is_file():
        places = json.loads(listed.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({f for key, f in places.items() if _own_key(key)})
    state: dict[str, Tensor] = {}
    for shard in shards:
        path = path_of(shard)
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    own = _own_key(key)
                    if own:
                        state[own] = file.get_tensor(key).float()
        except (SafetensorError, OSError) as error:
            raise AnalysisError(
                f"{name}: {shard} is missing or damaged "
                f"({str(error).splitlines()[0]}). Fetch it again."
            ) from error
    return state


def _own_key(key: str) -> str | None:
    key = key.removeprefix("model.")
    return key if key.startswith(PARTS) else None


def load(
    name: str,
    *,
    licence: str | None = None,
    random: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """Load tower and projector of a Qwen2-Audio model.

    Parameters
    ----------
    name
        Folder or hub id of a ``Qwen2AudioForConditionalGeneration``, with
        safetensors weights.
    licence
        Terms of the weights, where the caller knows them.
    random
        Keep configuration and front end but not the weights: the untrained twin.
    seed
        Of the random weights.

    Raises
    ------
    AnalysisError
        If files are missing or damaged, or it is another model.
    """
    config = fetch(AutoConfig, name, "config.json")
    if config.model_type != "qwen2_audio":
        raise AnalysisError(
            f"{name}: a model of type {config.model_type!r}; a whole Qwen2-Audio "
            "checkpoint (tower, projector, language model) is needed."
        )
    extractor = fetch(AutoFeatureExtractor, name, "preprocessor_config.json")
    if random:
        model = random_frames(config, seed)
        licence = "none (random weights)"
        source = f"random weights, seed {seed}, shaped as {Path(name).name}"
    else:
        with torch.device("meta"):
            model = AudioFrames(config)
        state, source = read_audio_weights(name), name
        lacking = sorted(
            key
            for key, value in model.state_dict().items()
            if key not in state or state[key].shape != value.shape
        )
        if lacking:
            raise AnalysisError(
                f"{name}: {len(lacking)} weights of the audio tower and projector are "
                f"missing or of another shape ({', '.join(lacking[:3])} …); the "
                "checkpoint does not fit its config.json."
            )
        model.load_state_dict(state, assign=True, strict=False)
    return qwen2_audio_encoder(
        name,
        model,
        extractor,
        licence=licence or "not stated: see the checkpoint's source",
        source=source,
        dtype=dtype,
    )


def random_frames(config: Qwen2AudioConfig, seed: int = 0) -> AudioFrames:
    """Tower and projector as initialised, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AudioFrames(config)
        tower: Any = config.audio_config
        linear = model.multi_modal_projector.linear
        nn.init.normal_(linear.weight, std=tower.initializer_range)
        nn.init.zeros_(linear.bias)
    return model

"""Speech and audio transformers of the Hugging Face library.

wav2vec 2.0, HuBERT, WavLM and data2vec-audio hear the waveform through a stack of
convolutions; the Whisper encoder and AST hear a log-mel spectrogram of fixed length.
Of every clip only its own frames are returned: padding never reaches a mean.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    ASTFeatureExtractor,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    PretrainedConfig,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)
from transformers.models.wavlm.modeling_wavlm import WavLMAttention
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from analysis_lib.base import AnalysisError
from analysis_lib.encoders.checkpoints import unreachable
from analysis_lib.encoders.encoder import (
    TAP_COLUMNS,
    Encoder,
    arrange_tokens,
    fingerprint,
)
from analysis_lib.encoders.quiet import quietly
from analysis_lib.encoders.speech_front_ends import (
    SAMPLING_RATE,
    ASTGrid,
    WaveformFrontEnd,
    prepare_whisper,
    whisper_times,
)


@dataclass(frozen=True)
class Layout:
    """Where a family keeps its layers, and what lies in them."""

    layers: str
    out_proj: str
    # The module before the MLP when the layer norm comes first, its input; and when
    # it comes last, the norm whose output the MLP reads.
    second_norm: str
    first_norm: str = ""
    # Set where hidden_states[-1] is taken after a closing norm.
    closing: str = ""


_CONVOLUTIONAL = Layout(
    "encoder.layers", "attention.out_proj", "final_layer_norm", "layer_norm"
)
LAYOUTS = {
    "wav2vec2": _CONVOLUTIONAL,
    "hubert": _CONVOLUTIONAL,
    "wavlm": _CONVOLUTIONAL,
    "data2vec-audio": _CONVOLUTIONAL,
    "whisper": Layout(
        "layers", "self_attn.out_proj", "final_layer_norm", closing="layer_norm"
    ),
    "audio-spectrogram-transformer": Layout(
        "layers", "attention.o_proj", "layernorm_after"
    ),
}


def tap_table(config: PretrainedConfig) -> pd.DataFrame:
    """List the taps of a model with this configuration.

    ``L0`` … ``L12`` are transformers' ``hidden_states``: what enters the first layer
    and what each layer gives (for Whisper the last one after the closing norm).
    ``L3_B0`` is the residual stream that the MLP of layer 3 reads, before its norm in
    a pre-norm layer and after it in a post-norm one. ``L3_B0_H2`` is head 2 of layer
    3 before the output projection.
    """
    layout = LAYOUTS[config.model_type]
    width, heads = config.hidden_size, config.num_attention_heads
    last = config.num_hidden_layers
    # The convolutional families say whether the norm comes first; the others' does.
    post_norm = layout.first_norm and not getattr(config, "do_stable_layer_norm", False)
    fork = layout.first_norm if post_norm else layout.second_norm
    fork_side = "output" if post_norm else "input"
    rows: list[tuple[Any, ...]] = []

    def tap(name: str, path: str, side: str, granularity: str, *numbers: int) -> None:
        rows.append((name, path, side, "btc", granularity, *numbers))

    tap("L0", f"{layout.layers}.0", "input", "layer", 0, -1, -1, heads, width)
    for number in range(1, last + 1):
        path, name = f"{layout.layers}.{number - 1}", f"L{number}"
        out, size = f"{path}.{layout.out_proj}", width // heads
        for head in range(heads):
            tap(
                f"{name}_B0_H{head}", out, "input", "head", number, 0, head, heads, size
            )
        block = (number, 0, -1, heads, width)
        tap(f"{name}_B0", f"{path}.{fork}", fork_side, "block", *block)
        end = layout.closing if layout.closing and number == last else path
        tap(name, end, "output", "layer", number, -1, -1, heads, width)
    return pd.DataFrame(rows, columns=list(TAP_COLUMNS))


class GatedBiasAttention(WavLMAttention):
    """WavLM's attention with its output projection called as a module.

    The parent hands the projection's weights to a fused function, where no hook can
    read the heads; the arithmetic is the same.
    """

    def torch_multi_head_self_attention(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        gated_position_bias: Tensor,
    ) -> Any:
        """Attend over (B, T, C) with a bias (B * heads, T, T)."""
        split = (*hidden_states.shape[:2], self.num_heads, self.head_dim)
        q, k, v = (
            project(hidden_states).view(split).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = gated_position_bias.unflatten(0, (-1, self.num_heads)).to(q.dtype)
        if attention_mask is not None:
            bias = bias.masked_fill(attention_mask.ne(1)[:, None, None], -torch.inf)
        dropout = self.dropout if self.training else 0.0
        heard = scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        return self.out_proj(heard.transpose(1, 2).flatten(2)), None


def speech_encoder(
    name: str,
    model: nn.Module,
    extractor: Any,
    *,
    licence: str,
    source: str,
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """Wrap a model of one of the families as an `Encoder` with its taps.

    Parameters
    ----------
    model
        A bare model (``Wav2Vec2Model``, …), or Whisper's encoder.
    extractor
        Its feature extractor.
    """
    config: Any = model.config
    pads, seconds, arrange = True, None, arrange_tokens
    front_end: Any
    times: Any
    if config.model_type == "whisper":
        _fit_window(model, extractor.nb_max_frames // 2)
        front_end = partial(prepare_whisper, extractor=extractor)
        times, seconds = whisper_times, float(extractor.chunk_length)
        settings = extractor.to_json_string()
    elif config.model_type == "audio-spectrogram-transformer":
        grid = ASTGrid.of(config)
        front_end = partial(grid.prepare, extractor=extractor)
        times, arrange = grid.times, grid.arrange
        seconds = (160 * config.max_length + 240) / SAMPLING_RATE
        settings = extractor.to_json_string()
    else:
        for module in model.modules():
            if type(module) is WavLMAttention:
                module.__class__ = GatedBiasAttention
        # Group norm runs over time, padding included. data2vec, which does not have
        # that setting, normalises between its position convolutions, so what a
        # clip's end spills into the padding comes back.
        pads = getattr(config, "feat_extract_norm", "none") == "layer"
        front_end = WaveformFrontEnd(
            extractor.do_normalize,
            pads,
            tuple(config.conv_kernel),
            tuple(config.conv_stride),
        )
        times = front_end.times
        settings = json.dumps(asdict(front_end))
    return Encoder(
        name=name,
        module=model,
        sampling_rate=SAMPLING_RATE,
        licence=licence,
        source=source,
        taps=tap_table(config),
        front_end=front_end,
        times=times,
        fingerprint=fingerprint(model, config.to_json_string(use_diff=False), settings),
        pads=pads,
        max_seconds=seconds,
        dtype=dtype,
        arrange=arrange,
    )


def _fit_window(encoder: Any, positions: int) -> None:
    """Let Whisper's encoder hear a shorter window than it was trained on.

    Its front end decides: ``chunk_length`` seconds. The positions are absolute, so
    the first ones stay as they are.
    """
    have = encoder.config.max_source_positions
    if positions > have:
        raise AnalysisError(
            f"the front end makes {positions} frames and Whisper's encoder has "
            f"positions for {have}: lower chunk_length to {have // 50}."
        )
    if positions < have:
        weight = encoder.embed_positions.weight[:positions].detach().clone()
        encoder.embed_positions = nn.Embedding.from_pretrained(weight)
        encoder.config.max_source_positions = positions


def default_extractor(config: PretrainedConfig) -> Any:
    """Build the front end that a configuration implies, with its family's defaults."""
    if config.model_type == "whisper":
        chunk = config.max_source_positions // 50
        return WhisperFeatureExtractor(
            feature_size=config.num_mel_bins, chunk_length=chunk
        )
    if config.model_type == "audio-spectrogram-transformer":
        return ASTFeatureExtractor(
            num_mel_bins=config.num_mel_bins, max_length=config.max_length
        )
    return Wav2Vec2FeatureExtractor(do_normalize=True)


def load(
    name: str,
    *,
    licence: str | None = None,
    random: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """Load a speech encoder from a folder or the Hugging Face hub.

    Parameters
    ----------
    name
        Folder or hub id with ``config.json``, weights and the settings of its
        feature extractor. Of Whisper only the encoder is kept.
    licence
        Terms of the weights, where the caller knows them.
    random
        Keep configuration and front end but not the weights: the untrained twin.
    seed
        Of the random weights.

    Raises
    ------
    AnalysisError
        If files are missing or damaged, or the family is not supported.
    """
    config = fetch(AutoConfig, name, "config.json")
    if config.model_type not in LAYOUTS:
        raise AnalysisError(
            f"{name}: a model of type {config.model_type!r}; supported are "
            f"{', '.join(LAYOUTS)}."
        )
    extractor = fetch(AutoFeatureExtractor, name, "preprocessor_config.json")
    if extractor.sampling_rate != SAMPLING_RATE:
        raise AnalysisError(
            f"{name}: its front end wants {extractor.sampling_rate} Hz; only models "
            f"at {SAMPLING_RATE} Hz are supported."
        )
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # A checkpoint kept in half precision says so in its config.
            model = AutoModel.from_config(config, dtype=torch.float32)
        if config.model_type == "whisper":
            model = model.encoder
        licence = "none (random weights)"
        source = f"random weights, seed {seed}, shaped as {Path(name).name}"
    else:
        model, source = _pretrained(name, config), name
    return speech_encoder(
        name,
        model,
        extractor,
        licence=licence or "not stated: see the checkpoint's source",
        source=source,
        dtype=dtype,
    )


def fetch(kind: Any, name: str, file: str) -> Any:
    try:
        return kind.from_pretrained(name)
    except (OSError, ValueError) as error:
        if Path(name).is_dir():
            reason = str(error).splitlines()[0]
            raise AnalysisError(f"{name}: no readable {file} ({reason}).") from error
        raise AnalysisError(unreachable(name)) from error


def _pretrained(name: str, config: PretrainedConfig) -> Any:
    kind: Any = AutoModel
    options: dict[str, Any] = {}
    if config.model_type == "whisper":
        # The decoder, more than half of the weights, stays on disk.
        kind, options = WhisperEncoder, {"key_mapping": {r"^(model\.)?encoder\.": ""}}
    try:
        with quietly():
            model, report = kind.from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AnalysisError(
            f"{name}: its weights are missing, damaged, or do not fit its config.json "
            f"({reason})."
        ) from error
    spare = ("masked_spec_embed", "pooler.")  # used in pre-training only
    lacking = [key for key in report["missing_keys"] if not key.startswith(spare)]
    lacking += [key for key, *_ in report["mismatched_keys"]]
    if lacking:
        raise AnalysisError(
            f"{name}: {len(lacking)} weights are missing or of another shape "
            f"({', '.join(sorted(lacking)[:3])} …); the checkpoint does not fit its "
            "config.json."
        )
    return model

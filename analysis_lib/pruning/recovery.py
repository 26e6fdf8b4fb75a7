"""What a short training gives back to a pruned encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from analysis_lib.base import AnalysisError
from analysis_lib.encoders.encoder import Batch, Encoder, first_tensor
from analysis_lib.pruning.surgery import layer_stack, renewed


def fine_tune(
    encoder: Encoder,
    head: nn.Module,
    batches: Iterable[tuple[Batch, Any]],
    loss: Callable[[Tensor, Batch, Any], Tensor],
    *,
    lr: float = 5e-4,
    clip_norm: float = 1.0,
) -> tuple[Encoder, nn.Module]:
    """Train a copy of an encoder's layers, and of a head on them, for a few steps.

    What comes before the layers stays as it is. Dropout and masking stay off, so the
    same batches give the same weights.

    Parameters
    ----------
    encoder, head
        Are left as they are. The head takes the encoder's output, (B, T, C).
    batches
        Pairs of a prepared batch and what the loss needs with it; one step each.
    loss
        ``loss(head's output, batch, wanted)``, a scalar.
    lr, clip_norm
        Adam's peak step, which rises over the first tenth of the batches and falls to
        zero; and the gradient norm's ceiling.

    Returns
    -------
    Encoder, nn.Module
        The trained copies.

    Raises
    ------
    AnalysisError
        If the loss is not finite.
    """
    module, head = copy.deepcopy(encoder.module), copy.deepcopy(head)
    path = layer_stack(encoder)[0]
    module.requires_grad_(False)
    trained = [module.get_submodule(path), head]
    weights = [w for part in trained for w in part.requires_grad_(True).parameters()]
    optimizer = torch.optim.Adam(weights, lr=lr)
    steps = list(batches)
    for step, (batch, wanted) in enumerate(steps):
        rise, fall = (step + 1) / max(1, len(steps) // 10), 1 - step / len(steps)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, rise, fall)
        inputs = {name: value.clone() for name, value in batch.inputs.items()}
        value = loss(head(first_tensor(module(**inputs))), batch, wanted)
        if not torch.isfinite(value):
            raise AnalysisError(
                f"{encoder.name}: the loss is {value.item()} at step {step + 1} of "
                f"fine-tuning: lower lr (now {lr:g})."
            )
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(weights, clip_norm)
        optimizer.step()
    module.requires_grad_(False)
    change = f"{len(steps)} steps of fine-tuning"
    return renewed(encoder, module, encoder.taps, change), head.requires_grad_(False)

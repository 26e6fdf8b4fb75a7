"""One training loop for every bundled model: seeded, resumable, with its curve kept.

A recipe gives a model, a function from step to batch, and a loss. Everything random
is drawn anew from ``(seed, step)``, so a run that was cut off goes on from its last
checkpoint to the weights it would have had.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from analysis_lib.base import cache_dir, digest, sha256_file, write_atomically

Log = Callable[[str], None]


def fit(
    model: nn.Module,
    batch: Callable[[np.random.Generator], Any],
    loss: Callable[[Any], Tensor],
    *,
    steps: int,
    lr: float,
    work: Path,
    seed: int = 0,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    clip_norm: float = 1.0,
    evaluate: Callable[[], dict[str, float]] | None = None,
    every: int = 200,
    resume: bool = True,
    log: Log = print,
) -> pd.DataFrame:
    """Train ``model`` in place with AdamW, a linear warm-up and a cosine decay.

    Parameters
    ----------
    model : nn.Module
        Trained in place; put in training mode for each step.
    batch : callable
        ``batch(rng)`` draws one batch; called once a step with a fresh generator.
    loss : callable
        ``loss(batch)`` runs the model and returns a scalar tensor.
    steps, lr, weight_decay, warmup, clip_norm
        Length of training, peak learning rate, AdamW's decay (matrices only), the
        share of steps spent warming up, and the gradient norm's ceiling.
    work : Path
        Folder of the checkpoint and of ``curve.csv``. A checkpoint that another recipe
        left there is not resumed.
    evaluate : callable, optional
        Gives held-out metrics for the curve; run with the model in eval mode.
    every : int
        Steps between checkpoints and rows of the curve.

    Returns
    -------
    DataFrame
        A row for every ``every`` steps: step, mean loss since the last row, metrics.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint, curve_path = work / "checkpoint.pt", work / "curve.csv"
    optimizer = torch.optim.AdamW(_groups(model, weight_decay), lr=lr, fused=True)
    start, rows = 0, []
    recipe = _recipe(model, batch, steps, lr, seed, weight_decay, warmup, clip_norm)
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state.get("recipe") == recipe:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            start, rows = state["step"], state["curve"]
            log(f"resumed at step {start} of {steps}")
        else:
            log(f"{checkpoint} is of another recipe: starting anew")
    losses: list[float] = []
    for step in range(start, steps):
        rng = np.random.default_rng((seed, step))
        torch.manual_seed(int(rng.integers(2**31)))
        for group in optimizer.param_groups:
            group["lr"] = lr * _cosine(step, steps, warmup)
        model.train()
        value = loss(batch(rng))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} at step {step}")
        if (step + 1) % every and step + 1 < steps:
            continue
        row: dict[str, float] = {"step": step + 1, "loss": float(np.mean(losses))}
        losses.clear()
        if evaluate is not None:
            model.eval()
            with torch.inference_mode():
                row |= evaluate()
        rows.append(row)
        log("  ".join(f"{name} {number:.4g}" for name, number in row.items()))
        with write_atomically(checkpoint) as draft:
            torch.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "curve": rows,
                    "recipe": recipe,
                },
                draft,
            )
        with write_atomically(curve_path) as draft:
            pd.DataFrame(rows).to_csv(draft, index=False)
    model.eval()
    return pd.DataFrame(rows)


def keep_float32(module: nn.Module) -> None:
    """Run a module in float32 also within autocast.

    Grouped convolutions of even width in bfloat16 come out wrong, by their own size, on
    CPUs with AMX where a group has fewer than 16 channels (PyTorch 2.13).
    """
    forward = module.forward

    def exact(values: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(values.float())

    module.forward = exact


def workspace(name: str, seed: int) -> Path:
    """Folder of the checkpoints of one training."""
    return cache_dir() / "zoo" / f"{name}-{seed}"


def finish(
    model: nn.Module,
    out: Path,
    curve: pd.DataFrame,
    evaluate: Callable[[str], dict[str, Any]],
    **about: Any,
) -> dict[str, Any]:
    """Write weights, curve and card to ``out``, and measure what was written.

    Parameters
    ----------
    evaluate : callable
        ``evaluate(folder)`` gives the metrics of the card.
    **about
        What the card says besides: ``name``, ``architecture``, ``learns``, …

    Returns
    -------
    dict
        The card.
    """
    save_weights(model, out, about)
    curve.to_csv(out / "curve.csv", index=False, float_format="%.4g")
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    card["metrics"] = evaluate(str(out))
    _write_card(out, card)
    return card


def save_weights(model: nn.Module, folder: Path, card: dict[str, Any]) -> None:
    """Write float16 weights and the card that vouches for them (with their sha256).

    Buffers that float16 would harm (integers, statistics of batch norm) stay as
    they are.
    """
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    parameters = model.named_parameters(remove_duplicate=False)  # tied ones stay equal
    matrices = {name for name, value in parameters if value.dim() > 1}
    halved = {
        name: value.half() if name in matrices else value.clone()
        for name, value in tensors.items()
    }
    with write_atomically(folder / "model.safetensors") as draft:
        save_file(halved, draft, metadata={"format": "pt"})
    _write_card(folder, card | {"sha256": sha256_file(folder / "model.safetensors")})


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    with write_atomically(folder / "card.json") as draft:
        draft.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _recipe(model: nn.Module, batch: Callable[..., Any], *settings: float) -> str:
    """Hash what decides the weights: the recipe's program text, network, settings."""
    module = inspect.getmodule(batch)
    source = inspect.getsource(module) if module else ""
    return digest(source, str(model), repr(settings))


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay matrices, not biases, norms or scales."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    return [
        {
            "params": [value for value in parameters if value.dim() > 1],
            "weight_decay": weight_decay,
        },
        {
            "params": [value for value in parameters if value.dim() <= 1],
            "weight_decay": 0.0,
        },
    ]


def _cosine(step: int, steps: int, warmup: float) -> float:
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

"""Steps of gradient descent that can be interrupted and give the same weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from analysis_lib.base import digest, write_atomically

Progress = Callable[[int, int], None]
_HERE = Path(__file__).parent
_CODE = ("classifier", "codebook", "frontend", "modules", "quantization", "train",
         "training")  # fmt: skip


def optimize(
    model: nn.Module,
    loss_at: Callable[[int, torch.Generator], tuple[Tensor, Mapping[str, float]]],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    key: str = "",
    save_every: int = 100,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Run AdamW under a one-cycle learning rate.

    Parameters
    ----------
    model : Module
        What is trained, in place.
    loss_at : callable
        ``(step, generator) -> (loss, what to log)``. All its randomness must come from
        the generator, whose state is kept with the weights.
    steps, lr, weight_decay, seed
        Of the optimization; ``lr`` is the peak.
    checkpoint : path, optional
        Folder for the state; a run of the same ``key`` found there is resumed, a
        finished one returned as it is.
    key : str
        Digest of everything that decides the result but the code that trains, which is
        added.
    save_every : int
        Steps between checkpoints.
    progress : callable, optional
        Called with (step, steps).

    Returns
    -------
    DataFrame
        A row a step: ``step`` and what was logged.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps + 1, pct_start=0.25
    )
    log: list[dict[str, float]] = []
    key = digest(key, *(_HERE.joinpath(f"{name}.py").read_bytes() for name in _CODE))
    path = Path(checkpoint) / f"{key[:24]}.pt" if checkpoint is not None else None
    if path is not None and path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        log = state["log"]
    for step in range(len(log), steps):
        loss, values = loss_at(step, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        log.append({"step": step, **values})
        if path is not None and ((step + 1) % save_every == 0 or step + 1 == steps):
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "generator": generator.get_state(),
                "log": log,
            }
            with write_atomically(path) as draft:
                torch.save(state, draft)
        if progress is not None:
            progress(step + 1, steps)
    return pd.DataFrame(log)

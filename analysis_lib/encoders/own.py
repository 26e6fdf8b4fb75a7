"""A model of the reader's own as an encoder: any ``nn.Module``, and a table of taps.

In a chapter it is named as ``FILE.py:FUNCTION``. The function returns the encoder, and
takes ``random`` and ``seed``, since chapters compare a model with its untrained twin::

    def build(random=False, seed=0):
        torch.manual_seed(seed)
        model = MyNetwork()
        if not random:
            model.load_state_dict(torch.load("mine.pt", weights_only=True))
        taps = pd.DataFrame({"name": ["L1", "L2"], "module": ["body.0", "body.1"]})
        return wrap("mine", model, taps, sampling_rate=16_000)
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from analysis_lib.base import AnalysisError
from analysis_lib.encoders.encoder import (
    TAP_COLUMNS,
    Batch,
    Encoder,
    fingerprint,
    record,
)

FrontEnd = Callable[[Sequence[np.ndarray]], Batch]


def wrap(
    name: str,
    module: nn.Module,
    taps: pd.DataFrame,
    sampling_rate: int,
    *,
    front_end: FrontEnd | None = None,
    licence: str = "not stated",
    source: str = "a model of the reader's own",
    max_seconds: float | None = None,
    settings: str = "",
) -> Encoder:
    """Make an encoder of a module and a table of places in it.

    Two short noises are run through the module: from them follow the width of every
    tap, its layout, and the time between tokens.

    Parameters
    ----------
    name
        For pages.
    module
        Takes the front end's inputs.
    taps
        A row a tap. ``name`` (``L0``, ``L3_B0``, ``L3_B0_H2``) and ``module`` (dotted
        path) are needed; the rest has defaults: ``side`` (``output``), ``layout``
        (``btc``, or ``tbc`` as found), ``granularity`` (``layer``), ``layer`` (its
        number in the table), ``block`` and ``head`` (-1), ``heads`` (1; of the site)
        and ``width`` (as found, divided by ``heads`` at a head).
    sampling_rate
        Rate of the waveforms in hertz.
    front_end
        Waveforms of equal length to a `Batch`; by default they are stacked, (B,
        samples), for the first argument of ``module.forward``.
    licence, source, max_seconds
        As in `Encoder`.
    settings
        Of the front end, for the fingerprint.

    Raises
    ------
    AnalysisError
        If the table lacks a column, names a module that is not there or not run, or a
        tap holds no tokens (B, T, C).
    """
    missing = [column for column in ("name", "module") if column not in taps]
    if missing:
        raise AnalysisError(f"{name}: the table of taps lacks {', '.join(missing)}.")
    known = dict(module.named_modules())
    for path in taps["module"]:
        if path not in known:
            raise AnalysisError(f"{name}: the model has no module {path!r}.")
    table = taps.reset_index(drop=True).copy()
    defaults: dict[str, str | int] = {
        "side": "output", "layout": "btc", "granularity": "layer", "block": -1,
        "head": -1, "heads": 1, "width": -1,
    }  # fmt: skip
    for column, value in defaults.items():
        if column not in table:
            table[column] = value
    if "layer" not in table:
        table["layer"] = range(len(table))
    encoder = Encoder(
        name=name,
        module=module,
        sampling_rate=sampling_rate,
        licence=licence,
        source=source,
        taps=table[list(TAP_COLUMNS)],
        front_end=front_end or partial(_stack, argument=_first_argument(module)),
        times=partial(_times, hop=1.0),
        fingerprint=fingerprint(module, settings, table.to_csv(index=False)),
        pads=False,
        max_seconds=max_seconds,
    )
    return _surveyed(encoder)


def _surveyed(encoder: Encoder) -> Encoder:
    """Fill in what two clips of one second and two of two seconds tell."""
    table = encoder.taps.copy()
    shapes: list[dict[tuple[str, str], torch.Size]] = []
    for seconds in (1, 2):
        rng = np.random.default_rng(0)
        n = seconds * encoder.sampling_rate
        waves = [0.1 * rng.standard_normal(n).astype(np.float32) for _ in range(2)]
        kinds = set(table["granularity"])
        with record(encoder, kinds, lambda _tap, a: a.shape) as found:
            encoder.forward(encoder.prepare(waves))
        shapes.append({(site.module, site.side): s for site, s in found.items()})
    counts = [0, 0]
    rows: Any = table.itertuples()
    for row in rows:
        site = (str(row.module), str(row.side))
        first, second = (run.get(site) for run in shapes)
        if first is None or second is None:
            raise AnalysisError(f"{encoder.name}: {row.module} is not run.")
        axes = [
            k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b
        ]
        if len(first) != 3 or (axes and axes not in ([0], [1])):
            raise AnalysisError(
                f"{encoder.name}: {row.module} ({row.side}) gives {tuple(first)} for "
                "two clips; tokens (clip, time, channel) or (time, clip, channel) are "
                "needed."
            )
        time_axis = axes[0] if axes else (1 if row.layout == "btc" else 0)
        table.loc[row.Index, "layout"] = "tbc" if time_axis == 0 else "btc"
        heads = int(row.heads) if row.granularity == "head" else 1
        if row.width == -1:
            table.loc[row.Index, "width"] = first[2] // heads
        counts = [first[time_axis], second[time_axis]]
    more = counts[1] - counts[0]
    # A model that always gives as many tokens spreads them over its window.
    hop = 1.0 / more if more > 0 else (encoder.max_seconds or 1.0) / counts[0]
    return replace(encoder, taps=table, times=partial(_times, hop=hop))


def _times(n: int, hop: float) -> np.ndarray:
    return (np.arange(n) + 0.5) * hop


def _first_argument(module: nn.Module) -> str:
    return next(iter(inspect.signature(module.forward).parameters))


def _stack(waves: Sequence[np.ndarray], argument: str) -> Batch:
    stacked = torch.from_numpy(np.stack(waves).astype(np.float32))
    return Batch({argument: stacked})


def is_own(name: str) -> bool:
    """Whether a name is ``FILE.py:FUNCTION``."""
    file, _, function = name.rpartition(":")
    return file.endswith(".py") and function.isidentifier()


def load(name: str, *, random: bool = False, seed: int = 0) -> Encoder:
    """Call the function that ``FILE.py:FUNCTION`` names; it runs the file.

    Raises
    ------
    AnalysisError
        If there is no such file or function, or it does not return an `Encoder`.
    """
    file, _, function = name.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise AnalysisError(f"{name}: there is no file {file}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if build is None:
        raise AnalysisError(f"{name}: {file} defines no {function}.")
    if not {"random", "seed"} <= set(inspect.signature(build).parameters):
        raise AnalysisError(
            f"{name}: {function} must take random and seed: chapters compare a model "
            "with its untrained twin."
        )
    with torch.random.fork_rng(devices=[]):
        encoder = build(random=random, seed=seed)
    if not isinstance(encoder, Encoder):
        raise AnalysisError(
            f"{name}: {function} returned a {type(encoder).__name__}; return "
            "analysis_lib.encoders.wrap(…)."
        )
    return encoder

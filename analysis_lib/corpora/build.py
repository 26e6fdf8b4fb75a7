"""Make a bundled corpus once: in parallel, in a draft folder, renamed when whole."""

from __future__ import annotations

import importlib
import inspect
import shutil
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import joblib
import numpy as np
import pandas as pd
import soundfile

from analysis_lib.base import AnalysisError, cache_dir, digest
from analysis_lib.corpora import synthesis
from analysis_lib.corpora.synthesis import Array

RECIPES = ("environment", "calls", "words", "utterances")
Row = dict[str, Any]

PUBLIC_DOMAIN = """CC0 1.0 Universal (public domain dedication)

Every sound in this folder was computed by a recipe of the analysis_lib package;
no recording was used. To the extent possible under law, the authors of the recipe
waive all copyright and related rights to these files:
https://creativecommons.org/publicdomain/zero/1.0/
"""


def recipe(name: str) -> ModuleType:
    """The module that makes corpus ``name``.

    It has ``jobs() -> list[tuple]`` and ``make_clips(folder, *job) -> list[Row]``,
    which writes the files of one job below ``folder`` and returns their rows of
    ``metadata.csv``, and ``LICENCE``. If it has them, ``PARTS`` are further modules
    that decide the sound, and ``versions()`` names other programs that do.
    """
    return importlib.import_module(f"analysis_lib.corpora.{name}")


def recipe_fingerprint(name: str) -> str:
    """Hash of the program text that decides how the corpus sounds."""
    module = recipe(name)
    parts = [module, synthesis, *getattr(module, "PARTS", ())]
    versions = module.versions() if hasattr(module, "versions") else ""
    return digest(name, versions, *(inspect.getsource(part) for part in parts))


def corpus_folder(name: str) -> Path:
    """Where the finished corpus lies, or will."""
    return cache_dir() / "corpora" / f"{name}-{recipe_fingerprint(name)[:12]}"


def write_clip(path: Path, samples: Array, rate: int) -> None:
    """Write 16-bit mono; the format follows from the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    soundfile.write(path, whole, rate, subtype="PCM_16")


def build_corpus(name: str, workers: int | None = None) -> Path:
    """Make the corpus unless it is there; return its folder.

    The files appear under their final name only when all are written: an
    interrupted build leaves nothing that could be taken for a corpus, and the next
    one starts clean. The bytes do not depend on ``workers``.

    Parameters
    ----------
    name
        Name of a bundled corpus.
    workers
        Processes that render; all cores by default.

    Raises
    ------
    AnalysisError
        If the cache folder cannot be written.
    """
    final = corpus_folder(name)
    if final.is_dir():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_drafts(final.parent)
        draft = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{name}-"))
        try:
            _fill(draft, name, workers or joblib.cpu_count())
            _publish(draft, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise AnalysisError(
            f"Corpus {name!r} cannot be written below {final.parent}: {error}. "
            "Free some space there, or set ANALYSIS_CACHE to a folder you may write."
        ) from error
    return final


def _fill(draft: Path, name: str, workers: int) -> None:
    module = recipe(name)
    make = joblib.delayed(module.make_clips)
    made = joblib.Parallel(n_jobs=workers)(make(draft, *job) for job in module.jobs())
    rows: list[Row] = [row for part in made for row in part]
    (draft / "LICENSE").write_text(module.LICENCE, encoding="utf-8")
    pd.DataFrame(rows).to_csv(draft / "metadata.csv", index=False, lineterminator="\n")


def _publish(draft: Path, final: Path) -> None:
    draft.chmod(0o755)
    try:
        draft.rename(final)
    except OSError:
        # Another process was quicker; its bytes are the same.
        if not final.is_dir():
            raise


def _remove_stale_drafts(folder: Path, hours: float = 1.0) -> None:
    """Drop drafts of killed builds; younger ones may belong to a running one."""
    for draft in folder.glob(".*-*"):
        if draft.is_dir() and time.time() - draft.stat().st_mtime > hours * 3600:
            shutil.rmtree(draft, ignore_errors=True)

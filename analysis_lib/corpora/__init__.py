"""Corpora: where clips come from, and what is known about them."""

from __future__ import annotations

import os

from analysis_lib.base import AnalysisError
from analysis_lib.corpora.audiofolder import OnError, read_audiofolder
from analysis_lib.corpora.build import RECIPES, build
from analysis_lib.corpora.corpus import Corpus

__all__ = ["Corpus", "load_corpus", "make", "names"]


def names() -> list[str]:
    """Names of the bundled corpora."""
    return list(RECIPES)


def make(name: str, workers: int | None = None) -> Corpus:
    """Make a bundled corpus unless it is there, and load it."""
    if name not in RECIPES:
        raise AnalysisError(
            f"{name!r} is not a bundled corpus: choose one of {', '.join(RECIPES)}."
        )
    return read_audiofolder(build(name, workers), name=name)


def load_corpus(
    name_or_path: str | os.PathLike[str], *, on_error: OnError = "raise"
) -> Corpus:
    """Load a corpus by its name, or any folder of labelled sound.

    Parameters
    ----------
    name_or_path
        A bundled name (see :func:`names`; made on first use), or the path of an
        AudioFolder: one subfolder a class, or a ``metadata.csv``.
    on_error
        ``"raise"`` stops at the first bad clip; ``"skip"`` drops bad clips and keeps
        a sentence about each in ``Corpus.skipped``.

    Raises
    ------
    AnalysisError
        If there is no such corpus, or it holds bad clips.
    """
    name = os.fspath(name_or_path)
    if name in RECIPES:
        return make(name)
    if not os.path.exists(name) and os.path.basename(name) == name:
        raise AnalysisError(
            f"There is no corpus {name!r}: give the path of a folder of sounds, or "
            f"one of {', '.join(RECIPES)}."
        )
    return read_audiofolder(name, on_error=on_error)

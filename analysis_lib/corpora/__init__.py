"""Corpora: where clips come from, and what is known about them."""

from __future__ import annotations

import os
from dataclasses import replace

from analysis_lib.base import AnalysisError
from analysis_lib.corpora.annotation import read_tier, segments
from analysis_lib.corpora.audiofolder import OnError, read_audiofolder
from analysis_lib.corpora.build import RECIPES, build_corpus
from analysis_lib.corpora.catalogue import CATALOGUE
from analysis_lib.corpora.corpus import Corpus
from analysis_lib.corpora.published import install
from analysis_lib.corpora.report import chance_level, check, class_table, describe

__all__ = [
    "CATALOGUE",
    "Corpus",
    "chance_level",
    "check",
    "class_table",
    "describe",
    "load_corpus",
    "make",
    "names",
    "read_tier",
    "segments",
]


# Parts of a bundled corpus that have a name: corpus, column, value.
PARTS = {
    "otters": ("calls", "species", "otter"),
    "finches": ("calls", "species", "finch"),
}


def names() -> list[str]:
    """Names of the bundled corpora and their parts."""
    return [*RECIPES, *PARTS]


def make(name: str, workers: int | None = None) -> Corpus:
    """Make a bundled corpus unless it is there, and load it.

    Parameters
    ----------
    name
        One of :func:`names`.
    workers
        Processes that render; all cores by default. The result is the same.
    """
    if name in PARTS:
        whole, column, value = PARTS[name]
        corpus = make(whole, workers)
        return replace(corpus.select(corpus.table[column] == value), name=name)
    if name not in RECIPES:
        raise AnalysisError(
            f"{name!r} is not a bundled corpus: choose one of {', '.join(names())}."
        )
    return read_audiofolder(build_corpus(name, workers), name=name)


def load_corpus(
    name_or_path: str | os.PathLike[str], *, on_error: OnError = "raise"
) -> Corpus:
    """Load a corpus by its name, or any folder of labelled sound.

    Parameters
    ----------
    name_or_path
        A bundled name (see :func:`names`; made on first use); the name of a published
        corpus (``catalogue.CATALOGUE``; fetched on first use); or the path of an
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
    if name in names():
        return make(name)
    if name in CATALOGUE:
        return read_audiofolder(install(name), name=name, on_error=on_error)
    if not os.path.exists(name) and os.path.basename(name) == name:
        raise AnalysisError(
            f"There is no corpus {name!r}: give the path of a folder of sounds, or "
            f"one of {', '.join([*names(), *CATALOGUE])}."
        )
    return read_audiofolder(name, on_error=on_error)

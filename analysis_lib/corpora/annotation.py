"""TextGrids (Boersma, Praat) beside the audio: who says what when."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import textgrid

from analysis_lib.base import AnalysisError
from analysis_lib.corpora.corpus import Corpus

TOLERANCE = 1e-3


def read_tier(
    path: str | Path, tier: str = "phones", seconds: float | None = None
) -> pd.DataFrame:
    """Read the labelled intervals of one tier.

    Parameters
    ----------
    path
        A TextGrid file.
    tier
        Name of an interval tier.
    seconds
        Length of the audio; the TextGrid must agree within a millisecond.

    Returns
    -------
    pandas.DataFrame
        A row an interval that has a label, in order: ``start``, ``end`` (s), ``label``.

    Raises
    ------
    AnalysisError
        If the file cannot be read, has no such tier, or ends elsewhere than the audio.
    """
    grid = _read(path)
    if seconds is not None and (problem := _length_problem(grid, seconds)):
        raise AnalysisError(f"{path} {problem}.")
    tiers = {t.name: t for t in grid.tiers if isinstance(t, textgrid.IntervalTier)}
    if tier not in tiers:
        raise AnalysisError(
            f"{path} has no interval tier {tier!r}: choose one of "
            f"{', '.join(tiers) or 'none at all'}."
        )
    rows = [(i.minTime, i.maxTime, i.mark) for i in tiers[tier] if i.mark]
    return pd.DataFrame(rows, columns=pd.Index(["start", "end", "label"]))


def segments(corpus: Corpus, tier: str = "phones") -> pd.DataFrame:
    """Read the labelled intervals of all clips that have a TextGrid beside them.

    Returns
    -------
    pandas.DataFrame
        ``clip`` (its row in the corpus), ``start``, ``end`` (s), ``label``.
    """
    rows = [
        (i, *row)
        for i in range(len(corpus))
        if (path := corpus.textgrid(i)) is not None
        for row in read_tier(path, tier).itertuples(index=False, name=None)
    ]
    return pd.DataFrame(rows, columns=pd.Index(["clip", "start", "end", "label"]))


def textgrid_problem(path: str | Path, seconds: float) -> str:
    """A sentence about what is wrong with a TextGrid for audio of this length."""
    try:
        problem = _length_problem(_read(path), seconds)
    except AnalysisError as error:
        return str(error)
    return f"{path} {problem}." if problem else ""


def _read(path: str | Path) -> textgrid.TextGrid:
    try:
        return textgrid.TextGrid.fromFile(str(path))
    except Exception as error:  # The reader raises whatever a broken line leads to.
        raise AnalysisError(
            f"{path} cannot be read as a TextGrid ({error}): "
            "save it again from Praat in the long text format."
        ) from error


def _length_problem(grid: textgrid.TextGrid, seconds: float) -> str:
    ends = [tier.maxTime for tier in grid.tiers] + [grid.maxTime]
    worst = max((abs(end - seconds), end) for end in ends if end is not None)
    if worst[0] <= TOLERANCE:
        return ""
    return (
        f"ends at {worst[1]:g} s but its audio at {seconds:g} s: "
        "annotate the same recording, or cut both alike"
    )

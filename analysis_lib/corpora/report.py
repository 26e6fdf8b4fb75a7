"""What there is to say about a corpus, in words and in a table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis_lib.corpora.annotation import textgrid_problem
from analysis_lib.corpora.corpus import Corpus


def class_table(corpus: Corpus) -> pd.DataFrame:
    """A row a class: ``clips``, ``groups`` and ``seconds`` in all."""
    table = pd.DataFrame(
        {
            "label": corpus.labels,
            "group": corpus.groups,
            "seconds": corpus.table["seconds"].to_numpy(),
        }
    )
    by_label = table.groupby("label")
    return pd.DataFrame(
        {
            "clips": by_label.size(),
            "groups": by_label["group"].nunique(),
            "seconds": by_label["seconds"].sum().round(1),
        }
    )


def chance_level(corpus: Corpus) -> float:
    """Accuracy of always naming the largest class."""
    return float(corpus.table["label"].value_counts(normalize=True).max())


def describe(corpus: Corpus) -> str:
    """Sizes, splits, licence and fingerprint of a corpus; its classes as a table."""
    table, counts = corpus.table, class_table(corpus)
    rates = ", ".join(f"{rate} Hz" for rate in sorted(set(table["sampling_rate"])))
    lines = [
        f"{corpus.name}: {len(corpus)} clips of {len(counts)} classes from "
        f"{len(set(corpus.groups))} groups, {table['seconds'].sum() / 60:.1f} min, "
        f"{rates}",
        f"columns: {', '.join(table.columns)}",
    ]
    for column in ("fold", "split", "species"):
        if column in table:
            parts = table[column].value_counts(sort=False).sort_index()
            sizes = ", ".join(f"{name} {count}" for name, count in parts.items())
            lines.append(f"{column}: {sizes}")
    lines += [
        f"chance: {chance_level(corpus):.3f} (always the largest class)",
        f"fingerprint: {corpus.fingerprint}",
        f"licence: {corpus.licence or 'none found in the folder'}",
        *(f"skipped: {sentence}" for sentence in corpus.skipped),
    ]
    return "\n".join([*lines, "", counts.to_string()])


def check(corpus: Corpus) -> list[str]:
    """Look at every clip and its annotation; return a sentence for each problem.

    Sought are clips that were skipped at loading, digital silence, TextGrids that are
    broken or disagree with the length of their audio, given splits that cut through a
    group, and classes that no split can do without such a cut.
    """
    problems = list(corpus.skipped)
    for i, wave in corpus.stream():
        row = corpus.table.iloc[i]
        if not np.any(wave):
            problems.append(f"{row['path']} is silent: replace it or drop it.")
        grid = corpus.textgrid(i)
        if grid is not None and not {"start", "end"} & set(row.index):
            problem = textgrid_problem(grid, len(wave) / row["sampling_rate"])
            problems += [problem] if problem else []
    for number, pair in enumerate(corpus.given_folds(), start=1):
        shared = corpus.shared_groups(*pair)
        if shared:
            problems.append(
                f"Split {number} of {corpus.name} has {len(shared)} groups on both "
                f"sides, {shared[0]!r} first: folds of whole groups are drawn instead."
            )
    counts = class_table(corpus)["groups"]
    problems += [
        f"Class {label!r} of {corpus.name} comes from one group only: add another, or "
        "it cannot be tested on what was not heard."
        for label in counts.index[counts < 2]
    ]
    return problems

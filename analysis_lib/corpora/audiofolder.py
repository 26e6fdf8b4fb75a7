"""Read a folder of sound: class subfolders, or ``metadata.csv``."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import soundfile

from analysis_lib.base import AnalysisError
from analysis_lib.corpora.corpus import Corpus
from analysis_lib.corpora.inspection import MISSING, FileFacts, inspect_files

OnError = Literal["raise", "skip"]
MORE_SUFFIXES = {".aif", ".aifc", ".oga", ".opus"}
SUFFIXES = {f".{f.lower()}" for f in soundfile.available_formats()} | MORE_SUFFIXES
SPLITS = {"train": "train", "test": "test", "validation": "validation"}
SPLITS |= {"training": "train", "testing": "test"}
SPLITS |= {"valid": "validation", "val": "validation", "dev": "validation"}
# As the Hugging Face `datasets` library has them.
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# Columns that reading fills in; the folder's own of that name give way.
MEASURED = ("clip", "path", "seconds", "sampling_rate", "sha256")
HOW = (
    "put the clips of each class in a subfolder named after it, or add a "
    "metadata.csv with the columns file_name,label"
)


def read_audiofolder(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    on_error: OnError = "raise",
) -> Corpus:
    """Read a folder of clips in the AudioFolder layout.

    Parameters
    ----------
    path
        A folder with one subfolder a class, or with ``metadata.csv``, ``.jsonl`` or
        ``.parquet`` (``file_name,label`` and, if known, ``group``, ``split``, ``fold``,
        ``start``, ``end`` in seconds, and anything else); either may lie in
        ``train``/``test`` subfolders. Or a ``.csv`` file, with paths relative to it.
    name
        Of the corpus; the folder's by default.
    on_error
        ``"skip"`` drops bad clips and keeps a sentence about each in
        ``Corpus.skipped``; ``"raise"`` stops at the first.

    Raises
    ------
    AnalysisError
        If the folder holds no labelled clips, or a clip is bad.
    """
    if on_error not in ("raise", "skip"):
        raise AnalysisError(f'on_error must be "raise" or "skip", not {on_error!r}.')
    given = Path(path).expanduser().absolute()
    if not given.exists():
        raise AnalysisError(f"{given} does not exist: check the path of the corpus.")
    is_table = given.is_file() and given.suffix.lower() == ".csv"
    if not (given.is_dir() or is_table):
        raise AnalysisError(
            f"{given} is neither a folder nor a .csv file: give the folder that "
            "holds the clips."
        )
    root = given.parent if is_table else given
    listed = _read_table(given, root) if is_table else _list_folder(root)
    table, sentences = _without_bad_rows(listed, root, on_error)
    counts = table["label"].value_counts()
    if len(counts) < 2:
        only = f"only the class {counts.index[0]!r}" if len(counts) else "no good clip"
        raise AnalysisError(
            f"{given} has {only}; an analysis compares at least two: {HOW}."
        )
    return Corpus(name or given.stem, table, read_licence(root), tuple(sentences))


def read_licence(root: Path) -> str:
    """The text of LICENSE*, LICENCE* or COPYING*, else of README*, else empty."""
    for stems in (("license", "licence", "copying"), ("readme",)):
        for path in sorted(root.iterdir()):
            if path.is_file() and path.name.lower().startswith(stems):
                return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""


def _list_folder(root: Path) -> pd.DataFrame:
    for file in METADATA:
        if (root / file).is_file():
            return _read_table(root / file, root)
    parts = sorted(part for file in METADATA for part in root.glob(f"*/{file}"))
    if parts:
        tables = []
        for part in parts:
            table = _read_table(part, root)
            if "split" not in table and part.parent.name.lower() in SPLITS:
                table["split"] = SPLITS[part.parent.name.lower()]
            tables.append(table)
        return pd.concat(tables, ignore_index=True)
    names = sorted(
        path.relative_to(root)
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not names:
        raise AnalysisError(
            f"{root} holds no sound file that libsndfile reads (WAV, FLAC, Ogg, MP3 …):"
            " check the path of the corpus."
        )
    flat = [name for name in names if len(name.parts) == 1]
    if flat:
        raise AnalysisError(
            f"{root} has sound files without a class, {flat[0]} first of {len(flat)}: "
            f"{HOW}."
        )
    table = pd.DataFrame({"file_name": [name.as_posix() for name in names]})
    if all(n.parts[0].lower() in SPLITS and len(n.parts) > 2 for n in names):
        table["label"] = [name.parts[1] for name in names]
        table["split"] = [SPLITS[name.parts[0].lower()] for name in names]
    else:
        table["label"] = [name.parts[0] for name in names]
    return table


def _read_table(path: Path, root: Path) -> pd.DataFrame:
    """Rows of one metadata file, ``file_name`` relative to ``root``."""
    try:
        table = _read_cells(path)
    except (ValueError, OSError) as error:
        raise AnalysisError(
            f"{path} cannot be read as a table ({error}): save it as CSV in UTF-8."
        ) from error
    table.columns = [str(column).strip() for column in table.columns]
    missing = [column for column in ("file_name", "label") if column not in table]
    if missing:
        raise AnalysisError(
            f"{path} has no column {' and no column '.join(missing)} (it has "
            f"{', '.join(table.columns)}): add it, or rename the one that holds it."
        )
    if table.empty:
        raise AnalysisError(f"{path} lists no clip: add a row for every sound file.")
    for column in {"start", "end"} & set(table.columns):
        seconds = pd.to_numeric(table[column].replace("", "nan"), errors="coerce")
        wrong = seconds.isna() & ~table[column].isin(["", "nan"])
        if wrong.any():
            row = table[wrong].iloc[0]
            raise AnalysisError(
                f"{path} has {column}={row[column]!r} for {row['file_name']}: "
                f"give {column} in seconds, or leave it empty."
            )
        table[column] = seconds
    if "fold" in table:
        numbers = pd.to_numeric(table["fold"], errors="coerce")
        table["fold"] = table["fold"] if numbers.isna().any() else numbers.astype(int)
    prefix = path.parent.relative_to(root)
    names = [
        (prefix / name.strip().replace("\\", "/")).as_posix()
        for name in table["file_name"]
    ]
    return table.assign(file_name=names)


def _read_cells(path: Path) -> pd.DataFrame:
    """A table of text, whatever the format; cells without a value are empty."""
    if path.suffix == ".csv":
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
    else:
        table = pd.read_json(path, lines=True, dtype=False)
    return table.astype(object).where(table.notna(), "").astype(str)


def _without_bad_rows(
    listed: pd.DataFrame, root: Path, on_error: OnError
) -> tuple[pd.DataFrame, list[str]]:
    """Check every row against its file; return good rows and sentences on bad ones."""
    names = list(dict.fromkeys(listed["file_name"]))
    facts = dict(zip(names, inspect_files(root, names), strict=True))
    rows: list[dict[str, Any]] = []
    sentences: list[str] = []

    def drop(sentence: str) -> None:
        if on_error == "raise":
            raise AnalysisError(sentence)
        sentences.append(sentence)

    seen: set[str] = set()
    for record in listed.to_dict("records"):
        row = {str(key): value for key, value in record.items()}
        name = row.pop("file_name")
        fact = facts[name]
        start, end = _span(row, fact)
        clip = name + _segment(row)
        if problem := _row_problem(row, start, end, clip in seen, fact):
            drop(f"{root / name} {problem}.")
            continue
        seen.add(clip)
        if "group" in row and not row["group"]:
            row["group"] = clip  # Nothing is known to go with it.
        row |= {"clip": clip, "path": str(root / name), "seconds": end - start}
        row |= {"sampling_rate": fact.sampling_rate, "sha256": fact.sha256}
        rows.append(row)
    counts = Counter(row["label"] for row in rows)
    lonely = [row for row in rows if counts[row["label"]] == 1 < len(rows)]
    for row in lonely:
        drop(
            f"Class {row['label']!r} of {root} has one clip only, {row['clip']}, "
            "which cannot be both learnt from and tested on: add clips, or "
            'leave the class out (on_error="skip" does).'
        )
    kept = [row for row in rows if counts[row["label"]] > 1 or len(rows) == 1]
    given = [column for column in listed if column not in ("file_name", *MEASURED)]
    columns = pd.Index([*MEASURED[:2], *given, *MEASURED[2:]])
    return pd.DataFrame(kept, columns=columns), sentences


def _span(row: dict[str, Any], fact: FileFacts) -> tuple[float, float]:
    """Start and end of a clip in its file, in seconds."""
    start, end = row.get("start"), row.get("end")
    length = fact.frames / fact.sampling_rate if fact.sampling_rate else 0.0
    return (
        0.0 if start is None or pd.isna(start) else float(start),
        length if end is None or pd.isna(end) else float(end),
    )


def _segment(row: dict[str, Any]) -> str:
    """The part of a clip's id that says which stretch of the file it is."""
    ends = (row.get("start"), row.get("end"))
    if all(end is None or pd.isna(end) for end in ends):
        return ""
    return "#" + "-".join("" if pd.isna(end) else f"{end:.10g}" for end in ends)


def _row_problem(
    row: dict[str, Any], start: float, end: float, listed_twice: bool, fact: FileFacts
) -> str:
    """What is wrong with one row and what to do; empty if nothing."""
    if fact.problem == MISSING:
        return "is listed in the metadata but does not exist: add it or drop the row"
    if fact.problem:
        return f"{fact.problem}: replace the file or drop it from the corpus"
    if listed_twice:
        return "is listed twice in the metadata: keep one row"
    if not row["label"]:
        return "has no label: fill it in or drop the row"
    length = fact.frames / fact.sampling_rate
    # Half a sample of grace: annotation tools round.
    if not 0 <= start < end <= length + 0.5 / fact.sampling_rate + 1e-6:
        return (
            f"is {length:g} s long but its row asks for {start:g} to {end:g} s: "
            "mend start and end (seconds)"
        )
    return ""

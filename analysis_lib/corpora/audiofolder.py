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
        A folder with one subfolder a class, or with ``metadata.csv``
        (``file_name,label`` and, if known, ``group``, ``split``, ``fold``, ``start``,
        ``end`` in seconds, and anything else); either may lie in ``train``/``test``
        subfolders. Or a ``.csv`` file whose paths are relative to it.
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
    if (root / "metadata.csv").is_file():
        return _read_table(root / "metadata.csv", root)
    parts = sorted(root.glob("*/metadata.csv"))
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
        table = pd.read_csv(
            path, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
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
    names = [(prefix / Path(name)).as_posix() for name in table["file_name"]]
    return table.assign(file_name=names)


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
        fact = facts[row["file_name"]]
        clip = row["file_name"] + _segment(row)
        if problem := _row_problem(row, clip in seen, fact):
            drop(f"{root / row['file_name']} {problem}.")
            continue
        seen.add(clip)
        length = fact.frames / fact.sampling_rate
        start, end = row.get("start", 0.0), row.get("end", length)
        start, end = (0.0 if start != start else start), (length if end != end else end)
        path = str(root / row.pop("file_name"))
        row = {"clip": clip, "path": path, **row, "seconds": end - start}
        rows.append({**row, "sampling_rate": fact.sampling_rate, "sha256": fact.sha256})
    counts = Counter(row["label"] for row in rows)
    for row in [row for row in rows if counts[row["label"]] == 1 < len(rows)]:
        drop(
            f"Class {row['label']!r} of {root} has one clip only, {row['clip']}, "
            "which cannot be both learnt from and tested on: add clips, or "
            'leave the class out (on_error="skip" does).'
        )
        rows.remove(row)
    columns = ["clip", "path", *listed.columns.drop("file_name")]
    columns += ["seconds", "sampling_rate", "sha256"]
    return pd.DataFrame(rows, columns=pd.Index(dict.fromkeys(columns))), sentences


def _segment(row: dict[str, Any]) -> str:
    """The part of a clip's id that says which stretch of the file it is."""
    start, end = row.get("start", float("nan")), row.get("end", float("nan"))
    if start != start and end != end:
        return ""
    return f"#{0 if start != start else start:g}-{'' if end != end else f'{end:g}'}"


def _row_problem(row: dict[str, Any], listed_twice: bool, fact: FileFacts) -> str:
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
    start, end = row.get("start", float("nan")), row.get("end", float("nan"))
    start, end = (0.0 if start != start else start), (length if end != end else end)
    if not 0 <= start < end or end > length + 0.5 / fact.sampling_rate + 1e-6:
        return (
            f"is {length:g} s long but its row asks for {start:g} to {end:g} s: "
            "mend start and end (seconds)"
        )
    return ""

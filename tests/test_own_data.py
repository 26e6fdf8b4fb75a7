"""The reader's own recordings, in every form that the book promises to take."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import soundfile

from analysis_lib.base import AnalysisError
from analysis_lib.corpora import load_corpus


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ANALYSIS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sounds(tmp_path):
    """Eight clips in one folder, and what is known of them."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for k in range(8):
        soundfile.write(folder / f"{k}.wav", 0.1 * rng.standard_normal(4000), 8000)
        label = ("robin", "wren")[k % 2]
        rows.append({"file_name": f"{k}.wav", "label": label, "group": f"day {k // 4}"})
    return folder, pd.DataFrame(rows)


def write(table, path):
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        lines = [json.dumps(row) for row in table.to_dict("records")]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_folder_of_wavs(sounds):
    folder, table = sounds
    for row in table.itertuples():
        (folder / row.label).mkdir(exist_ok=True)
        (folder / row.file_name).rename(folder / row.label / row.file_name)
    corpus = load_corpus(folder)
    assert (corpus.name, corpus.classes, len(corpus)) == (
        "sounds",
        ["robin", "wren"],
        8,
    )


def test_a_csv_of_any_name(sounds):
    folder, table = sounds
    write(table, folder / "birds.csv")
    corpus = load_corpus(folder / "birds.csv")
    assert corpus.name == "birds"
    assert set(corpus.groups) == {"day 0", "day 1"}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("splits", [True, False])
def test_an_audiofolder_of_hugging_face(sounds, suffix, splits):
    folder, table = sounds
    table = table.assign(day=range(8), start=[0.1] + [None] * 7)
    if splits:
        for number, split in enumerate(("train", "test")):
            (folder / split).mkdir()
            half = table.iloc[4 * number : 4 * number + 4]
            for name in half["file_name"]:
                (folder / name).rename(folder / split / name)
            write(half, folder / split / f"metadata.{suffix}")
    else:
        write(table, folder / f"metadata.{suffix}")
    corpus = load_corpus(folder)
    assert corpus.labels.tolist().count("robin") == 4
    assert len(corpus.audio(int(corpus.table["start"].argmax()))) == 3200
    if splits:
        ((train, test),) = corpus.folds()
        assert set(corpus.groups[train]) == {"day 0"}
        assert set(corpus.groups[test]) == {"day 1"}
    assert len(corpus.table.groupby("day")) == 8


def test_a_damaged_table_is_named(sounds):
    folder, _ = sounds
    for name in ("metadata.jsonl", "metadata.parquet"):
        (folder / name).write_text("{no table")
        with pytest.raises(AnalysisError, match=f"{name} cannot be read as a table"):
            load_corpus(folder)
        (folder / name).unlink()

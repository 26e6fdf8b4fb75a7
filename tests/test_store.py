"""The store: interruption, damage, other formats, a disk that refuses."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from toy_encoder import toy_corpus, toy_encoder

from analysis_lib import passes, store
from analysis_lib.base import AnalysisError
from analysis_lib.extract import extract, vectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus")
    toy_corpus(path)
    return path


@pytest.fixture(scope="module")
def corpus(folder):
    return toy_corpus(folder)


def files_of(path):
    """Every file of a store and the hash of its bytes."""
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def interrupted(encoder, corpus, path, pool, after, monkeypatch, when):
    """Run until ``after`` chunks are done; then fail before or amid the writing."""
    name = "append" if pool == "frames" else "write"
    original = getattr(store, name)

    def failing(path, number, values, *rest):
        if number < after:
            return original(path, number, values, *rest)
        if when == "amid writing":
            with monkeypatch.context() as patch:
                patch.setattr(store, "_finish", stop)
                original(path, number, values, *rest)
        raise KeyboardInterrupt

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, name, failing)
        with pytest.raises(KeyboardInterrupt):
            extract(encoder, corpus, ["layer"], pool, chunk=3, store=path)


@pytest.mark.parametrize("pool", ["mean", "frames"])
@pytest.mark.parametrize("when", ["before writing", "amid writing"])
def test_interrupted_run_ends_with_the_same_bytes(
    corpus, tmp_path, monkeypatch, pool, when
):
    encoder = toy_encoder()
    whole, cut = tmp_path / "whole.zarr", tmp_path / "cut.zarr"
    extract(encoder, corpus, ["layer"], pool, chunk=3, store=whole)
    interrupted(encoder, corpus, cut, pool, 2, monkeypatch, when)
    chunks = []
    original = passes.run_chunk

    def counted(encoder, corpus, todo, path, number, *rest):
        chunks.append(number)
        return original(encoder, corpus, todo, path, number, *rest)

    monkeypatch.setattr("analysis_lib.extract.run_chunk", counted)
    extract(encoder, corpus, ["layer"], pool, chunk=3, store=cut)
    assert chunks == [2, 3]
    assert files_of(cut) == files_of(whole)


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from toy_encoder import toy_encoder
from analysis_lib import store
from analysis_lib.corpora import load_corpus
from analysis_lib.extract import extract

original = store.write
def slow(path, number, *rest):
    original(path, number, *rest)
    print("chunk", number, flush=True)
    time.sleep(0.3)
store.write = slow
print("ready", flush=True)
corpus = load_corpus(sys.argv[2])
extract(toy_encoder(), corpus, ["layer"], chunk=2, store=sys.argv[3])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_run_ends_with_the_same_bytes(folder, tmp_path):
    whole, cut = tmp_path / "whole.zarr", tmp_path / "cut.zarr"
    encoder, corpus = toy_encoder(), toy_corpus(folder)
    extract(encoder, corpus, ["layer"], chunk=2, store=whole)
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, script, Path(__file__).parent, folder, cut],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("chunk 1"):
            break
    time.sleep(0.31)  # about when the third chunk is computed and written
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert cut.exists()
    left = store.unfinished(cut)
    assert 2 <= len(left) <= 4  # of six
    assert left == list(range(left[0], 6))
    extract(encoder, corpus, ["layer"], chunk=2, store=cut)
    assert files_of(cut) == files_of(whole)


def test_files_of_a_write_that_was_killed_are_swept(corpus, tmp_path):
    path = tmp_path / "x.zarr"
    extract(toy_encoder(), corpus, ["layer"], store=path)
    before = files_of(path)
    (path / "layer" / "L0" / "features" / "c" / "0" / "0.abc.partial").write_text("x")
    extract(toy_encoder(), corpus, ["layer"], store=path)
    assert files_of(path) == before


def test_a_flipped_byte_is_found_and_named(corpus, tmp_path):
    path = tmp_path / "x.zarr"
    tree = extract(toy_encoder(), corpus, ["layer"], chunk=4, store=path)
    good, before = vectors(tree, "L7"), files_of(path)
    piece = path / "layer" / "L7" / "features" / "c" / "1" / "0"
    data = bytearray(piece.read_bytes())
    data[9] ^= 4
    piece.write_bytes(data)
    with pytest.raises(AnalysisError, match=r"L7/features/c/1/0 is damaged") as caught:
        extract(toy_encoder(), corpus, ["layer"], chunk=4, store=path)
    # The remedy it names repairs the store.
    assert f"Delete {piece} " in str(caught.value)
    piece.unlink()
    assert store.unfinished(path) == [1]
    again = extract(toy_encoder(), corpus, ["layer"], chunk=4, store=path)
    np.testing.assert_array_equal(vectors(again, "L7"), good)
    assert files_of(path) == before


def test_a_truncated_piece_is_found(corpus, tmp_path):
    path = tmp_path / "x.zarr"
    extract(toy_encoder(), corpus, ["layer"], "frames", store=path)
    piece = path / "layer" / "L0" / "time" / "c" / "0"
    piece.write_bytes(piece.read_bytes()[:-3])
    with pytest.raises(AnalysisError, match=rf"Delete {path} and run again"):
        extract(toy_encoder(), corpus, ["layer"], "frames", store=path)


def test_store_of_another_format_is_refused(corpus, tmp_path):
    path = tmp_path / "x.zarr"
    extract(toy_encoder(), corpus, ["layer"], store=path)
    meta = json.loads((path / "zarr.json").read_text())
    meta["attributes"]["format"] = 0
    (path / "zarr.json").write_text(json.dumps(meta))
    before = files_of(path)
    with pytest.raises(AnalysisError, match=r"format 0; this version reads format 1"):
        extract(toy_encoder(), corpus, ["layer"], store=path)
    assert files_of(path) == before


def test_store_of_other_results_is_refused(corpus, tmp_path):
    path = tmp_path / "x.zarr"
    extract(toy_encoder(), corpus, ["layer"], store=path)
    before = files_of(path)
    with pytest.raises(AnalysisError, match=r"x\.zarr holds other representations"):
        extract(toy_encoder(seed=1), corpus, ["layer"], store=path)
    assert files_of(path) == before


def test_what_is_no_store_is_left_alone(corpus, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(AnalysisError, match="is no store of representations"):
        extract(toy_encoder(), corpus, ["layer"], store=tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_a_place_that_cannot_be_written(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AnalysisError, match=r"cannot be written.*store="):
        extract(toy_encoder(), corpus, ["layer"], store=tmp_path / "file" / "x.zarr")


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind"
)
def test_a_folder_without_write_permission(corpus, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(AnalysisError, match="cannot be written"):
            extract(toy_encoder(), corpus, ["layer"], store=tmp_path / "x.zarr")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit")
def test_full_disk_keeps_what_is_done(corpus, tmp_path):
    """A limit on file size stands in for a full disk: the system refuses to write."""
    import resource

    path, encoder = tmp_path / "x.zarr", toy_encoder()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    original = store.write

    def limited(path, number, *rest):
        if number == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
        original(path, number, *rest)

    store.write = limited
    try:
        with pytest.raises(AnalysisError, match=r"cannot be written.*are kept"):
            extract(encoder, corpus, ["layer"], chunk=3, store=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        store.write = original
    assert store.unfinished(path) == [2, 3]
    extract(encoder, corpus, ["layer"], chunk=3, store=path)
    whole = tmp_path / "whole.zarr"
    extract(encoder, corpus, ["layer"], chunk=3, store=whole)
    assert files_of(path) == files_of(whole)


def test_labels_are_those_of_the_corpus_at_hand(folder, corpus, tmp_path):
    """The same sounds under other file names reuse the store, with the new names."""
    import dataclasses

    path = tmp_path / "x.zarr"
    extract(toy_encoder(), corpus, ["layer"], store=path)
    table = corpus.table.assign(clip=[f"new-{i}" for i in range(len(corpus))])
    renamed = dataclasses.replace(corpus, table=table)
    tree = extract(toy_encoder(), renamed, ["layer"], store=path)
    assert list(tree["layer/L0"]["clip"].values)[:2] == ["new-0", "new-1"]


def test_other_programs_can_read_it(corpus, tmp_path):
    import xarray as xr

    path = tmp_path / "x.zarr"
    tree = extract(toy_encoder(), corpus, ["head", "layer"], store=path)
    plain = xr.open_datatree(path, engine="zarr", consolidated=False)
    np.testing.assert_array_equal(
        plain["head/L2/features"].values, tree["head/L2"]["features"].values
    )
    assert list(plain["label"].values) == list(corpus.table["label"])

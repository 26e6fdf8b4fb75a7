"""Extraction: the numbers, the tree, what counts as another run, export."""

import dataclasses
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from toy_encoder import HOP, LAYERS, RATE, toy_corpus, toy_encoder

from analysis_lib import passes
from analysis_lib.base import AnalysisError
from analysis_lib.encoders.encoder import Batch
from analysis_lib.encoders.htsat import MINI_FRONT_END, htsat_config, htsat_encoder
from analysis_lib.encoders.htsat_checkpoints import random_model
from analysis_lib.extract import (
    clip_means,
    export,
    extract,
    segment_means,
    tap_names,
    vectors,
)

BOTH = ("head", "layer")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return toy_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANALYSIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def passes_made(monkeypatch):
    """Sizes of the batches that were run."""
    sizes = []
    original = passes.pool_batch

    def counted(encoder, todo, waves):
        sizes.append(len(waves))
        return original(encoder, todo, waves)

    monkeypatch.setattr(passes, "pool_batch", counted)
    return sizes


def by_hand(encoder, wave):
    """Outputs of the layers of one clip alone, (layers, T, C)."""
    batch = encoder.prepare([wave])
    x = encoder.module.embed(batch.inputs["frames"][0])
    outputs = []
    for layer in encoder.module.layers:
        x = layer(x)
        outputs.append(x)
    return torch.stack(outputs).numpy()


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("pads", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_pooling_is_over_each_clips_own_frames(corpus, pool, pads, batch_size):
    encoder = toy_encoder(pads=pads)
    tree = extract(encoder, corpus, "layer", pool, batch_size=batch_size, chunk=4)
    for i in range(len(corpus)):
        with torch.inference_mode():
            outputs = by_hand(encoder, corpus.audio(i, RATE))
        expected = getattr(outputs, pool)(axis=1)
        for k in range(LAYERS):
            mine = vectors(tree, f"L{k}")[i]
            np.testing.assert_allclose(mine, expected[k], atol=1e-5)


def test_heads_are_slices_of_what_w_o_reads(corpus):
    encoder = toy_encoder()
    tree = extract(encoder, corpus, BOTH, chunk=4)
    with torch.inference_mode():
        outputs = by_hand(encoder, corpus.audio(3, RATE))
    # W^O of layer k reads the tanh of layer k-1's output.
    for head in range(3):
        mine = vectors(tree, f"L5_B0_H{head}")[3]
        columns = slice(2 * head, 2 * head + 2)
        expected = np.tanh(outputs[4]).mean(0)[columns]
        np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_tree_is_labelled(corpus):
    tree = extract(toy_encoder(), corpus, BOTH)
    heads = tree["head/L3"]
    assert heads["features"].dims == ("clip", "block", "head", "feature")
    assert heads["features"].shape == (11, 1, 3, 2)
    assert heads["features"].dtype == np.float32
    assert list(heads["clip"].values) == list(corpus.table["clip"])
    assert list(heads["label"].values) == list(corpus.table["label"])
    assert tree["layer/L11"]["features"].dims == ("clip", "feature")
    assert tree.attrs["corpus_fingerprint"] == corpus.fingerprint
    assert tree.attrs["skipped"] == []


def test_names_are_in_numeric_order(corpus):
    tree = extract(toy_encoder(), corpus, BOTH)
    assert tap_names(tree, "layer") == [f"L{k}" for k in range(LAYERS)]
    heads = tap_names(tree, "head")
    assert heads[:4] == ["L0_B0_H0", "L0_B0_H1", "L0_B0_H2", "L1_B0_H0"]
    assert heads[-1] == "L11_B0_H2"


def test_unknown_taps_are_named(corpus):
    tree = extract(toy_encoder(), corpus, "layer")
    with pytest.raises(AnalysisError, match=r"'L0_B7'.*from L0 to L11"):
        vectors(tree, "L0_B7")
    with pytest.raises(AnalysisError, match="'head'; it has layer"):
        tap_names(tree, "head")
    with pytest.raises(AnalysisError, match="'neuron'"):
        extract(toy_encoder(), corpus, ["neuron"])


def test_frames_are_every_clips_own(corpus):
    encoder = toy_encoder()
    tree = extract(encoder, corpus, BOTH, pool="frames", chunk=4)
    node = tree["layer/L7"]
    of_clip, seconds = node["clip_index"].values, node["time"].values
    for i in range(len(corpus)):
        wave = corpus.audio(i, RATE)
        with torch.inference_mode():
            outputs = by_hand(encoder, wave)
        own = of_clip == i
        assert own.sum() == len(wave) // HOP
        np.testing.assert_allclose(vectors(tree, "L7")[own], outputs[7], atol=1e-5)
        np.testing.assert_allclose(seconds[own], (np.arange(own.sum()) + 0.5) * 0.01)
        assert set(node["label"].values[own]) == {corpus.table["label"].iloc[i]}
    assert tree["head/L7"]["features"].shape == (len(of_clip), 1, 3, 2)


def test_means_of_frames_are_means_by_hand(corpus):
    tree = extract(toy_encoder(), corpus, ["layer"], pool="frames", chunk=4)
    frames, node = vectors(tree, "L3"), tree["layer/L3"]
    of_clip, seconds = node["clip_index"].values, node["time"].values
    means = clip_means(tree, "L3")
    assert means.shape == (len(corpus), frames.shape[1])
    pieces = pd.DataFrame(
        {
            "clip": [1, 0, len(corpus) - 1, 1],
            "start": [0.02, 0.0, 0.01, 0.0311],
            "end": [0.05, 0.03, 0.04, 0.0312],  # the last is shorter than a frame
        }
    )
    found = segment_means(tree, "L3", pieces)
    for i in range(len(corpus)):
        np.testing.assert_allclose(means[i], frames[of_clip == i].mean(0), atol=1e-6)
    for row, mean in zip(pieces.itertuples(), found, strict=True):
        own = of_clip == row.clip
        inside = own & (seconds >= row.start) & (seconds < row.end)
        if not inside.any():
            gap = np.where(own, np.abs(seconds - (row.start + row.end) / 2), np.inf)
            inside = np.arange(len(frames)) == gap.argmin()
        np.testing.assert_allclose(mean, frames[inside].mean(0), atol=1e-6)
    pooled = extract(toy_encoder(), corpus, ["layer"])
    np.testing.assert_allclose(means, vectors(pooled, "L3"), atol=1e-5)
    with pytest.raises(AnalysisError, match="not a frame"):
        clip_means(pooled, "L3")


def test_frames_of_htsat_leave_repetitions_out(corpus):
    model = random_model(htsat_config(8), seed=0)
    encoder = htsat_encoder("x", model, MINI_FRONT_END, licence="", source="")
    few = corpus.select([0, 1, 2])
    tree = extract(encoder, few, ["layer"], pool="frames")
    for i in range(3):
        duration = len(few.audio(i, RATE)) / RATE
        node = tree["layer/L0"]
        own = node["time"].values[node["clip_index"].values == i]
        assert own.max() < duration
        np.testing.assert_allclose(len(own), 1024 * duration / 2, rtol=0.02)


def test_htsat_means_are_means_of_its_tokens(corpus):
    model = random_model(htsat_config(8), seed=0)
    encoder = htsat_encoder("x", model, MINI_FRONT_END, licence="", source="")
    few = corpus.select([0, 1, 2])
    tree = extract(encoder, few, ["head", "block", "layer", "layer_premerge"])
    assert len(tap_names(tree, "head")) == 184
    assert vectors(tree, "L0_premerge").shape == (3, 8)
    from analysis_lib.encoders import record

    for i in range(3):
        with record(encoder, ["head", "layer"]) as found:
            batch = encoder.prepare([few.audio(i, 44_100)])
            encoder.forward(batch)
        for site, tap in encoder.sites(["head", "layer"]).items():
            values, mask = encoder.tokens(tap, found[site], batch)
            mean = values[0][mask[0]].mean(0)[: tap.width]
            mine = vectors(tree, tap.name)[i]
            np.testing.assert_allclose(mine, mean, rtol=1e-4, atol=1e-5)


def test_finished_work_is_reused(corpus, passes_made, monkeypatch):
    first = extract(toy_encoder(), corpus, "layer")
    made = len(passes_made)
    assert made > 0
    again = extract(toy_encoder(), corpus, "layer")
    assert len(passes_made) == made
    np.testing.assert_array_equal(vectors(first, "L3"), vectors(again, "L3"))


CHANGES = {
    "weights": lambda e, c: (toy_encoder(seed=1), c, "layer", "mean"),
    "clips": lambda e, c: (e, c.select(range(10)), "layer", "mean"),
    "order": lambda e, c: (e, c.select([1, 0, *range(2, 11)]), "layer", "mean"),
    "taps": lambda e, c: (e, c, "head", "mean"),
    "pool": lambda e, c: (e, c, "layer", "max"),
    "dtype": lambda e, c: (toy_encoder(dtype=torch.bfloat16), c, "layer", "mean"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_is_computed_anew(corpus, passes_made, cache, change):
    extract(toy_encoder(), corpus, "layer")
    made = len(passes_made)
    extract(*CHANGES[change](toy_encoder(), corpus))
    assert len(passes_made) > made
    assert len(list((cache / "representations").glob("*.zarr"))) == 2


def test_other_code_is_another_key(corpus, passes_made, monkeypatch):
    extract(toy_encoder(), corpus, "layer")
    made = len(passes_made)
    monkeypatch.setattr("analysis_lib.extract.code_version", lambda: "other")
    extract(toy_encoder(), corpus, "layer")
    assert len(passes_made) == 2 * made


def test_clips_of_one_length_share_a_batch_where_padding_would_harm(corpus):
    waves = {i: corpus.audio(i, RATE) for i in range(len(corpus))}
    for batch in passes.batches(waves, 3, pads=False):
        assert len({len(waves[i]) for i in batch}) == 1
        assert len(batch) <= 3
    flat = [i for batch in passes.batches(waves, 3, pads=True) for i in batch]
    assert sorted(flat) == list(range(11))


def broken(encoder, poison):
    """The encoder, but clips with this many samples come out as NaN."""

    def front_end(waves):
        batch = encoder.front_end(waves)
        frames = batch.inputs["frames"].clone()
        for k, wave in enumerate(waves):
            if len(wave) == poison:
                frames[k] = torch.nan
        return Batch({"frames": frames}, batch.valid)

    return dataclasses.replace(encoder, front_end=front_end)


def test_a_clip_without_finite_numbers_is_named(corpus):
    lengths = [len(corpus.audio(i, RATE)) for i in range(len(corpus))]
    encoder = broken(toy_encoder(), 6000)
    bad = [i for i, n in enumerate(lengths) if n == 6000]
    assert 0 < len(bad) < len(lengths)
    names = list(corpus.table["clip"])
    with pytest.raises(AnalysisError, match="no finite numbers") as caught:
        extract(encoder, corpus, "layer")
    assert any(names[i] in str(caught.value) for i in bad)
    tree = extract(encoder, corpus, "layer", on_error="skip", chunk=4)
    assert len(tree.attrs["skipped"]) == len(bad)
    kept = [name for i, name in enumerate(names) if i not in bad]
    assert list(tree["layer/L0"]["clip"].values) == kept
    assert np.isfinite(vectors(tree, "L11")).all()
    assert len(tree.attrs["labels"]) == len(kept) == len(vectors(tree, "L11"))


@pytest.mark.parametrize("pool", ["mean", "frames"])
def test_a_file_that_went_away(tmp_path, pool):
    corpus = toy_corpus(tmp_path / "sounds", clips=6)
    gone = tmp_path / "sounds" / "a" / "clip-02.wav"
    gone.unlink()
    encoder = toy_encoder()
    with pytest.raises(AnalysisError, match=r"clip-02\.wav"):
        extract(encoder, corpus, ["layer"], pool)
    tree = extract(encoder, corpus, ["layer"], pool, on_error="skip")
    assert len(tree.attrs["clips"]) == 5
    assert "clip-02" in tree.attrs["skipped"][0]
    if pool == "frames":
        node = tree["layer/L0"]
        assert sorted(set(node["clip_index"].values)) == list(range(5))
        wanted = np.asarray(tree.attrs["clips"], dtype=object)
        assert (node["clip"].values == wanted[node["clip_index"].values]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pool": "median"}, "'median'.*mean, max, frames"),
        ({"on_error": "ignore"}, "raise or skip"),
        ({"chunk": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_wrong_options(corpus, options, said):
    with pytest.raises(AnalysisError, match=said):
        extract(toy_encoder(), corpus, BOTH, **options)


def test_export_to_npz(corpus, tmp_path):
    tree = extract(toy_encoder(), corpus, BOTH)
    with np.load(export(tree, tmp_path / "x.npz")) as file:
        names = [name for name in file.files if name not in ("clip", "label")]
        assert names == tap_names(tree, "head") + tap_names(tree, "layer")
        assert list(file["label"]) == list(corpus.table["label"])
        np.testing.assert_array_equal(file["L2_B0_H1"], vectors(tree, "L2_B0_H1"))


def test_export_to_parquet(corpus, tmp_path):
    tree = extract(toy_encoder(), corpus, BOTH)
    table = pq.read_table(export(tree, tmp_path / "x.parquet"))
    assert table.column_names[:3] == ["clip", "label", "L0_B0_H0"]
    assert table["clip"].to_pylist() == list(corpus.table["clip"])
    np.testing.assert_array_equal(table["L4"].to_pylist(), vectors(tree, "L4"))


@pytest.mark.parametrize("pool", ["mean", "frames"])
def test_export_to_safetensors(corpus, tmp_path, pool):
    tree = extract(toy_encoder(), corpus, BOTH, pool)
    path = export(tree, tmp_path / "x.safetensors")
    with safe_open(path, framework="numpy") as file:
        np.testing.assert_array_equal(
            file.get_tensor("L9_B0_H2"), vectors(tree, "L9_B0_H2")
        )
        assert corpus.table["clip"].iloc[0] in file.metadata()["clip"]
        if pool == "frames":
            index = file.get_tensor("clip_index/layer/L0")
            assert index.shape == (len(vectors(tree, "L0")),)


def test_export_elsewhere_is_refused(corpus, tmp_path):
    tree = extract(toy_encoder(), corpus, BOTH)
    with pytest.raises(AnalysisError, match=r"\.csv.*npz, .*parquet"):
        export(tree, tmp_path / "x.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(AnalysisError, match="cannot be written"):
        export(tree, tmp_path / "file" / "x.npz")


def test_progress_only_where_asked_or_in_a_terminal(corpus, capsys, monkeypatch):
    extract(toy_encoder(), corpus, "layer")
    assert capsys.readouterr().err == ""
    extract(toy_encoder(seed=1), corpus, "layer", progress=True)
    assert "clip" in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    extract(toy_encoder(seed=2), corpus, "layer")
    assert "clip" in capsys.readouterr().err


def test_dask_workers_write_the_same_numbers(corpus, cache, passes_made):
    distributed = pytest.importorskip("distributed")
    alone = extract(toy_encoder(), corpus, "layer", chunk=3)
    alone_values = vectors(alone, "L8")
    made = len(passes_made)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        shared = extract(
            toy_encoder(), corpus, "layer", chunk=3, client=client,
            store=cache / "shared.zarr",
        )  # fmt: skip
    assert len(passes_made) == 2 * made
    np.testing.assert_array_equal(vectors(shared, "L8"), alone_values)
    with pytest.raises(AnalysisError, match="in order"):
        extract(toy_encoder(), corpus, "layer", "frames", client=object())


def test_memory_does_not_grow_with_the_number_of_clips(corpus):
    """Of ten times the clips, no more than a chunk is in memory at once."""
    import tracemalloc

    many = corpus.select(np.arange(440) % 11)
    encoder = toy_encoder()
    extract(encoder, corpus, "layer", chunk=8)  # imports and caches
    peaks = []
    for clips in (many.select(range(44)), many):
        tracemalloc.start()
        extract(encoder, clips, "layer", chunk=8)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # What grows is the table of clips, not their sound.
    sound = sum(len(wave) * wave.itemsize for _, wave in many.stream())
    assert peaks[1] - peaks[0] < 0.2 * sound

"""The corpora that the book makes itself: same bytes, true times, honest splits."""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import soundfile
import textgrid
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis_lib import corpora
from analysis_lib.acoustics import log_mel_features
from analysis_lib.base import AnalysisError
from analysis_lib.corpora import build as building
from analysis_lib.corpora import calls, environment, espeak, read_tier, words
from analysis_lib.corpora.espeak import Utterance, speak_all


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ANALYSIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def few(monkeypatch):
    """Bundled corpora of a few jobs only."""
    monkeypatch.setattr(
        environment, "jobs", lambda: [("bell", 0), ("rain", 0), ("rain", 14)]
    )
    monkeypatch.setattr(
        calls, "jobs", lambda: [("otter", 0), ("otter", 5), ("finch", 0), ("finch", 1)]
    )


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_same_bytes_for_any_number_of_workers(cache, few, tmp_path, monkeypatch):
    first = contents(building.build_corpus("environment", workers=1))
    monkeypatch.setenv("ANALYSIS_CACHE", str(tmp_path / "other"))
    second = contents(building.build_corpus("environment", workers=2))
    assert len(first) == 3 * environment.CLIPS + 2
    assert first == second


def test_a_made_corpus_is_a_folder_anyone_can_read(cache, few):
    corpus = corpora.make("environment")
    again = corpora.load_corpus(building.corpus_folder("environment"))
    assert corpus.fingerprint == again.fingerprint
    assert "CC0" in corpus.licence
    assert set(corpus.table["sampling_rate"]) == {44100}
    assert set(corpus.table["seconds"]) == {2.0}


def test_a_finished_corpus_is_not_made_again(cache, few, monkeypatch):
    folder = building.build_corpus("environment", workers=1)
    monkeypatch.delattr(environment, "make_clips")
    assert building.build_corpus("environment") == folder


def test_a_changed_recipe_is_another_corpus(cache, monkeypatch):
    before = building.corpus_folder("environment")
    source = building.inspect.getsource
    monkeypatch.setattr(building.inspect, "getsource", lambda m: source(m) + "#")
    assert building.corpus_folder("environment") != before


def test_an_interrupted_build_leaves_nothing(cache, few, monkeypatch):
    make = environment.make_clips

    def interrupted(folder, label, source):
        if source == 14:
            raise KeyboardInterrupt
        return make(folder, label, source)

    monkeypatch.setattr(environment, "make_clips", interrupted)
    with pytest.raises(KeyboardInterrupt):
        building.build_corpus("environment", workers=1)
    assert list((cache / "corpora").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_build_is_never_taken_for_a_corpus(cache, few):
    code = (
        "from analysis_lib.corpora import build, environment\n"
        "environment.jobs = lambda: [('rain', k) for k in range(1000)]\n"
        "build.build_corpus('environment', workers=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        while not list((cache / "corpora").glob(".*/rain/*.flac")):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    final = building.corpus_folder("environment")
    (draft,) = final.parent.glob(".environment-*")
    assert not final.exists()
    assert len(corpora.make("environment", workers=1)) == 3 * environment.CLIPS
    assert draft.exists()  # so young that it could be another process's
    os.utime(draft, (time.time() - 7200,) * 2)
    final.rename(final.with_name("away"))
    building.build_corpus("environment", workers=1)
    assert not draft.exists()


def test_no_permission_says_where_and_what_to_do(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("ANALYSIS_CACHE", str(blocked / "cache"))
    with pytest.raises(AnalysisError, match=r"'environment' cannot be written below"):
        corpora.make("environment")


def test_names_and_parts(cache, few):
    assert {"environment", "calls", "words", "utterances"} <= set(corpora.names())
    with pytest.raises(AnalysisError, match=r"'whales' is not a bundled corpus.*calls"):
        corpora.make("whales")
    whole = corpora.load_corpus("calls")
    otters, finches = corpora.load_corpus("otters"), corpora.load_corpus("finches")
    assert set(otters.table["species"]) == {"otter"}
    assert set(finches.table["species"]) == {"finch"}
    assert len(otters) + len(finches) == len(whole)
    assert otters.name == "otters"


# What the recipes promise


def test_environment_is_as_large_as_promised():
    jobs = environment.jobs()
    assert len(environment.CLASSES) >= 12
    assert len(jobs) == len(set(jobs))
    per_class = len(jobs) / len(environment.CLASSES) * environment.CLIPS
    assert per_class >= 40


@pytest.mark.parametrize("label", environment.CLASSES)
def test_every_class_renders_sound(label):
    clips = environment.render_source(label, 1)
    assert len(clips) == environment.CLIPS
    for clip in clips:
        assert clip.shape == (88200,)
        assert np.isfinite(clip).all()
        assert 0.2 <= np.abs(clip).max() <= 0.9
        assert clip.std() > 1e-3
    assert not np.array_equal(clips[0], clips[1])


def test_helicopter_beats_at_its_rate():
    draw = np.random.default_rng(3)
    render = environment.helicopter(draw)
    level = np.abs(render(np.random.default_rng(0))).reshape(-1, 441).mean(1)
    spectrum = np.abs(np.fft.rfft(level - level.mean()))
    assert 8.5 <= np.fft.rfftfreq(len(level), 0.01)[spectrum.argmax()] <= 20


def test_calls_label_types_and_birds_group_animals_and_sessions(cache, few):
    table = corpora.load_corpus("calls").table
    otters = table[table["species"] == "otter"]
    finches = table[table["species"] == "finch"]
    assert set(otters["label"]) == set(calls.CALL_TYPES)
    assert set(otters["group"]) == {"otter-00", "otter-05"}
    assert set(finches["label"]) == {"finch-00", "finch-01"}
    assert (finches["group"] == finches["recording"]).all()
    assert finches.groupby("label")["group"].nunique().eq(calls.SESSIONS).all()
    assert table.groupby("group")["fold"].nunique().eq(1).all()
    assert len(calls.CALL_TYPES) >= 6
    assert calls.OTTERS >= 8
    assert calls.BIRDS >= 8


def test_pupils_of_one_tutor_sing_its_syllables_in_opposite_order(monkeypatch):
    def order(bird):
        """Which syllables sound: the k-th one drawn is 100·(k + 1) samples long."""
        drawn = itertools.count(1)

        def syllable(draw):
            number = next(drawn)
            return lambda rng: np.ones(100 * number)

        monkeypatch.setattr(calls, "syllable", syllable)
        song = calls.motif(bird)(np.random.default_rng(0)) > 0
        edges = np.flatnonzero(np.diff(np.r_[False, song, False]))
        return (np.diff(edges)[::2] // 100).tolist()

    for bird in range(0, calls.BIRDS, 2):
        assert len(order(bird)) >= 4
        assert order(bird + 1) == order(bird)[::-1] != order(bird)


def test_a_motif_is_stereotyped_but_never_the_same_twice():

    def spectrum(bird, rendition):
        song = calls.motif(bird)(np.random.default_rng(rendition))
        whole = np.abs(np.fft.rfft(song, 1 << 15))[:12288].reshape(-1, 128).mean(1)
        return np.log(whole)

    for bird in range(calls.BIRDS):
        one, other = spectrum(bird, 0), spectrum(bird, 1)
        stranger = spectrum((bird + 2) % calls.BIRDS, 0)
        assert not np.allclose(one, other)
        assert np.corrcoef(one, other)[0, 1] > np.corrcoef(one, stranger)[0, 1]


# Spoken words


def test_speech_depends_on_the_list_alone():
    said = [Utterance(w, f"en-us+{v}", 5) for w in ("six", "two") for v in ("f1", "m3")]
    for one, other in zip(speak_all(said), speak_all(said), strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
        assert one.marks == other.marks


def test_events_are_where_the_sound_changes():
    """Of every s and z against the vowel after it, the energy above 3.5 kHz."""
    (speech,) = speak_all([Utterance("seven zebra six", "en-us+m1", 5)])
    phones = [mark for mark in speech.marks if not mark.is_word]
    power = np.abs(
        np.fft.rfft(
            np.lib.stride_tricks.sliding_window_view(speech.samples.astype(float), 220)[
                ::55
            ]
            * np.hanning(220)
        )
    )
    share = power[:, 35:].sum(1) / (power.sum(1) + 1e-9)
    centre = (np.arange(len(share)) * 55) + 110
    checked = 0
    for here, after in pairwise(phones):
        if here.name in ("s", "z") and after.name.startswith("ˈ"):
            inside = (centre > here.sample + 300) & (centre < after.sample - 200)
            vowel = (centre > after.sample + 200) & (centre < after.sample + 1200)
            assert share[inside].min() > share[vowel].max()
            checked += 1
    assert checked == 3


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoken")
    texts = ["zebra", "six fire seven", "happy moon"]
    return folder, texts, words.speak_clips(folder, "f4", texts, seed=1)


def test_textgrids_hold_the_event_positions(spoken):
    folder, texts, rows = spoken
    # The textgrid package rounds to 10 µs when it reads.
    rngs = [np.random.default_rng([1, len(words.VOICES), k]) for k in range(3)]
    wanted = [words.utterance(r, t, "f4") for r, t in zip(rngs, texts, strict=True)]
    for row, text, speech in zip(rows, texts, speak_all(wanted), strict=True):
        path = (folder / row["file_name"]).with_suffix(".TextGrid")
        seconds = soundfile.info(folder / row["file_name"]).duration
        phones = read_tier(path, "phones", seconds)
        tier = read_tier(path, "words", seconds)
        assert tier["label"].tolist() == text.split()
        assert " ".join(phones["label"]) == row["phones"]
        events = [m for m in speech.marks if not m.is_word]
        named = [m for m in events if m.name.strip("ˈˌ")]
        starts = np.array([m.sample for m in named]) / speech.rate
        lead = phones["start"][0] - starts[0]
        assert 0.03 <= lead < seconds
        np.testing.assert_allclose(phones["start"], lead + starts, atol=2e-5)
        follow = [b.sample for a, b in pairwise(events) if a.name.strip("ˈˌ")]
        ends = np.array(follow) / speech.rate
        np.testing.assert_allclose(phones["end"], lead + ends, atol=2e-5)
        assert set(tier["start"]) <= set(phones["start"])
        assert set(tier["end"]) <= set(phones["end"])


def test_the_sound_lies_where_the_textgrid_says(spoken):
    folder, _, rows = spoken
    for row in rows:
        wave, rate = soundfile.read(folder / row["file_name"])
        path = (folder / row["file_name"]).with_suffix(".TextGrid")
        span = read_tier(path, "words")
        start, end = int(span["start"].min() * rate), int(span["end"].max() * rate)
        assert wave[start:end].std() > 1.5 * wave[: start - 200].std()


def test_held_out_words_need_no_unheard_phone():
    known = [*words.WORDS, *words.HELD_OUT_WORDS]
    assert len(known) >= 57
    assert len(set(known)) == len(known)
    said = speak_all([Utterance(word, "en-us+m1", 5) for word in known])
    phones = {
        word: {m.name.strip("ˈˌ") for m in speech.marks if not m.is_word}
        for word, speech in zip(known, said, strict=True)
    }
    heard = set().union(*(phones[word] for word in words.WORDS))
    assert set().union(*(phones[word] for word in words.HELD_OUT_WORDS)) <= heard
    assert len(heard) >= 40


def test_rows_mark_held_out_voices_and_words(spoken):
    _, _, rows = spoken
    assert [row["held_out_word"] for row in rows] == [False, True, True]
    assert {row["split"] for row in rows} == {"test"}
    assert {row["group"] for row in rows} == {"f4"}
    assert len(words.VOICES) >= 16
    assert not set(words.VOICES) & set(words.HELD_OUT_VOICES)


def test_joined_words_are_refused():
    (speech,) = speak_all([Utterance("no one", "en-us+f1", 5)])
    with pytest.raises(AnalysisError, match="marked 1 words in 'no one'"):
        words.annotate(speech, ["no", "one"], 0.1, 1.0)


def test_a_missing_espeak_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "espeakng_loader.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(AnalysisError, match=r"not here.*pip install.*espeakng-loader"):
        speak_all([Utterance("six", "en-us+f1", 5)])


def test_a_dying_espeak_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "espeakng_loader.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(AnalysisError, match=r"stopped with code 7.*pip install"):
        speak_all([Utterance("six", "en-us+f1", 5)])


def test_an_old_espeak_says_so(monkeypatch):
    class Info:
        def __call__(self, _):
            return b"1.49.2 of long ago"

    class Old:
        espeak_Info = Info()

    monkeypatch.setattr(ctypes, "CDLL", lambda path: Old())
    with pytest.raises(AnalysisError, match=r"too old.*espeak_ng_SetRandSeed.*pip"):
        espeak._library.__wrapped__()


def test_an_unknown_voice():
    with pytest.raises(AnalysisError, match="no voice 'xx-nowhere'"):
        speak_all([Utterance("six", "xx-nowhere", 5)])


# Reports


@pytest.fixture
def annotated(tmp_path, cache):
    for label in "ab":
        for k in range(2):
            path = tmp_path / "own" / label / f"{k}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, np.full(8000, 0.1), 8000)
            grid = textgrid.TextGrid(maxTime=1.0)
            tier = textgrid.IntervalTier("words", 0, 1.0)
            tier.add(0.25, 0.5, "hello")
            grid.append(tier)
            grid.write(str(path.with_suffix(".TextGrid")))
    return tmp_path / "own"


def test_a_good_corpus_has_no_problem(annotated):
    assert corpora.check(corpora.load_corpus(annotated)) == []


def test_a_textgrid_that_disagrees_with_its_audio(annotated):
    soundfile.write(annotated / "b" / "1.wav", np.full(6000, 0.1), 8000)
    (problem,) = corpora.check(corpora.load_corpus(annotated))
    assert "1.TextGrid ends at 1 s but its audio at 0.75 s" in problem
    with pytest.raises(AnalysisError, match=r"ends at 1 s but its audio at 0\.75 s"):
        read_tier(annotated / "b" / "1.TextGrid", "words", 0.75)


def test_a_broken_textgrid_and_a_missing_tier(annotated):
    path = annotated / "a" / "0.TextGrid"
    with pytest.raises(AnalysisError, match=r"no interval tier 'phones'.*words"):
        read_tier(path)
    path.write_text("File type = nonsense\n1\n2")
    (problem,) = corpora.check(corpora.load_corpus(annotated))
    assert "cannot be read as a TextGrid" in problem


def test_silence_shared_groups_and_lonely_groups_are_reported(annotated):
    soundfile.write(annotated / "a" / "0.wav", np.zeros(8000), 8000)
    names = ["a/0.wav", "a/1.wav", "b/0.wav", "b/1.wav"]
    pd.DataFrame(
        {"file_name": names, "label": list("aabb"), "group": list("xyzz"),
         "split": ["train", "test"] * 2}
    ).to_csv(annotated / "metadata.csv", index=False)  # fmt: skip
    problems = corpora.check(corpora.load_corpus(annotated))
    assert [p for p in problems if "0.wav is silent" in p]
    assert [
        p for p in problems if "1 groups on both sides, z first" in p.replace("'", "")
    ]
    assert [p for p in problems if "Class 'b'" in p and "one group only" in p]
    assert len(problems) == 3


def test_describe_counts_what_is_there(annotated):
    text = corpora.describe(corpora.load_corpus(annotated))
    assert "own: 4 clips of 2 classes from 4 groups" in text
    assert "chance: 0.500" in text
    assert "8000 Hz" in text
    assert "none found" in text


# Whole corpora, as the book uses them


def log_mel_probe(corpus):
    """Accuracy of a logistic probe on mean and deviation of log-mels, unseen groups."""
    features = np.array(
        [
            log_mel_features(wave, int(corpus.table["sampling_rate"][i]))
            for i, wave in corpus.stream()
        ]
    )
    labels, right = corpus.labels, []
    splits = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for train, test in splits.split(features, labels, corpus.groups):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
        probe.fit(features[train], labels[train])
        right.extend(probe.predict(features[test]) == labels[test])
    return np.mean(right)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["environment", "otters", "finches"])
def test_log_mel_statistics_help_but_leave_something_to_learn(name):
    corpus = corpora.load_corpus(name)
    assert len(corpus.table.groupby("label")["group"].nunique()) == len(corpus.classes)
    accuracy = log_mel_probe(corpus)
    assert corpora.chance_level(corpus) + 0.15 < accuracy < 0.85


@pytest.mark.slow
def test_whole_environment():
    corpus = corpora.load_corpus("environment")
    counts = corpora.class_table(corpus)
    assert len(counts) >= 12
    assert counts["clips"].min() >= 40
    assert (counts["groups"] == environment.SOURCES).all()
    assert corpora.check(corpus) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["words", "utterances"])
def test_whole_spoken_corpora(name):
    corpus = corpora.load_corpus(name)
    table = corpus.table
    assert table["label"].nunique() >= 30
    assert table["group"].nunique() >= 12
    assert table["clip"].nunique() == len(table)
    assert all(corpus.textgrid(i) for i in range(len(corpus)))
    assert corpora.check(corpus) == []
    ((train, test),) = corpus.folds()
    assert corpus.shared_groups(train, test) == []

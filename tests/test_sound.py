import base64
import io
import re

import numpy as np
import pytest
import soundfile

from analysis_lib import sound


@pytest.fixture
def shown(monkeypatch):
    """Collect what is displayed."""
    kept = []
    monkeypatch.setattr(sound, "display", kept.append)
    return kept


def tone(seconds=1.0, rate=16000, level=0.5):
    return level * np.sin(2 * np.pi * 1000 * np.arange(int(seconds * rate)) / rate)


def decoded(markup):
    data = re.search(r"data:audio/flac;base64,([^\"]+)", markup)[1]
    return soundfile.read(io.BytesIO(base64.b64decode(data)))


def test_player_carries_the_sound_and_its_label(shown):
    sound.player(tone(), 16000, label='A "tone"', caption="Steady & pure.")
    markup = shown[0]._repr_html_()
    wave, rate = decoded(markup)
    assert rate == 16000
    np.testing.assert_allclose(wave, tone(), atol=2**-15)
    assert 'aria-label="A &quot;tone&quot;"' in markup
    assert "Steady &amp; pure." in markup
    assert repr(shown[0]) == 'Sound: A "tone"'


def test_loud_sound_is_scaled_not_clipped(shown):
    sound.player(tone(level=4.0), 16000, label="loud")
    wave, _ = decoded(shown[0].markup)
    np.testing.assert_allclose(wave, tone(level=1.0), atol=2**-14)


def test_long_sound_is_cut_and_says_so(shown):
    sound.player(tone(12.5), 16000, label="long", caption="A tone.")
    wave, rate = decoded(shown[0].markup)
    assert len(wave) == sound.PAGE_SECONDS * rate
    assert "A tone. First 10 s of 12.5 s." in shown[0].markup


def test_same_sound_same_bytes():
    assert sound.flac(tone(), 16000) == sound.flac(tone(), 16000)


def test_gallery_has_a_label_each(shown):
    sound.players([(tone(), 16000, "one", ""), (tone(), 16000, "two", "lower")])
    assert shown[0].markup.count("<audio") == 2
    assert repr(shown[0]) == "Sounds: one; two"


@pytest.mark.parametrize(
    ("wave", "label", "words"),
    [
        (np.zeros((2, 10)), "x", r"mono wave \(T,\), got shape \(2, 10\)"),
        (np.zeros(0), "x", "mono wave"),
        (np.array([0.0, np.nan]), "x", "finite"),
        (np.zeros(10), " ", "needs a label"),
    ],
)
def test_what_cannot_be_played_is_refused(wave, label, words):
    with pytest.raises(ValueError, match=words):
        sound.player(wave, 16000, label=label)


@pytest.mark.parametrize("n_mels", [None, 40])
def test_spectrogram_peaks_at_the_tone(n_mels):
    figure = sound.spectrogram(tone(), 16000, n_mels=n_mels)
    mesh = figure.axes[0].collections[0]
    level = np.asarray(mesh.get_array()).reshape(
        mesh.get_coordinates().shape[0] - 1, -1
    )
    row = int(level.mean(axis=1).argmax())
    if n_mels is None:
        assert abs(row * 16000 / 400 - 1000) <= 40  # one bin
    else:
        edges = 2595 * np.log10(1 + np.array([1000, 8000]) / 700)
        assert abs(row - (edges[0] / edges[1] * 41 - 1)) <= 1
    assert level.max() == pytest.approx(0)


def test_spectrogram_of_less_than_a_window():
    sound.spectrogram(np.ones(10), 16000)

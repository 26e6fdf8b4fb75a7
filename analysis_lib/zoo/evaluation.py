"""What the cards of the bundled encoders say: probes by layer, beside a baseline."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis_lib.acoustics import log_mel_features
from analysis_lib.corpora import Corpus
from analysis_lib.encoders import Encoder
from analysis_lib.extract import extract, tap_names, vectors
from analysis_lib.probing import ProbeResult, linear_probe


def unheard(corpus: Corpus) -> Corpus:
    """The test split: groups that the bundled encoders have not been trained on."""
    return corpus.select((corpus.table["split"] == "test").to_numpy())


def probe_layers(encoder: Encoder, corpus: Corpus) -> dict[str, Any]:
    """Probe every layer of an encoder, and log-mel features, on the same folds.

    Returns
    -------
    dict
        ``layers`` (name -> figures), ``best_layer``, ``log_mel``, ``chance``,
        ``clips``, ``groups``. Figures are balanced ``accuracy`` with the ends of its
        95 % interval.
    """
    tree = extract(encoder, corpus, granularities=("layer",))
    layers = {
        name: _figures(_probe(vectors(tree, name), corpus))
        for name in tap_names(tree, "layer")
    }
    rate = encoder.sampling_rate
    spectra = np.stack(
        [log_mel_features(wave, rate) for _, wave in corpus.stream(rate)]
    )
    baseline = _probe(spectra, corpus)
    return {
        "layers": layers,
        "best_layer": max(layers, key=lambda name: layers[name]["accuracy"]),
        "log_mel": _figures(baseline),
        "chance": round(baseline.chance, 4),
        "clips": len(corpus),
        "groups": len(set(corpus.groups)),
    }


def _probe(X: np.ndarray, corpus: Corpus) -> ProbeResult:
    return linear_probe(X, corpus.labels, corpus.groups, n_permutations=0)


def _figures(result: ProbeResult) -> dict[str, float]:
    low, high = result.interval
    numbers = {"accuracy": result.accuracy, "low": low, "high": high}
    return {name: round(value, 4) for name, value in numbers.items()}

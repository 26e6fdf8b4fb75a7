"""Chapters on real recordings, where there are any; the book uses bundled sounds."""

import os
from pathlib import Path

import pytest
from project import ROOT

from analysis_lib.runner import execute, plan

DATA = os.environ.get("ANALYSIS_DATA")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not DATA, reason="ANALYSIS_DATA names no folder"),
]


def run(name, tmp_path, **values):
    """Execute a chapter on other parameters; give its glued values."""
    planned = plan(ROOT, name, values=values)
    output = tmp_path / planned.output.name
    return execute(type(planned)(**vars(planned) | {"output": output}))["glued"]


def test_htsat_on_real_environmental_sounds(tmp_path):
    found = run(
        "htsat",
        tmp_path,
        corpus=str(Path(str(DATA)) / "esc10"),
        n_per_class=12,
        permutations=100,
        ablation_clips=24,
        random_draws=1,
    )
    assert found["n_classes"] == 10
    assert found["n_clips"] == 120
    assert found["n_heads"] == 184
    # Classes of real sounds differ in their spectra: heads tell them apart.
    assert found["best_fisher"] > 3 * found["permutation_null"]


def test_data_page_of_real_environmental_sounds(tmp_path):
    found = run("corpus", tmp_path, corpus=str(Path(str(DATA)) / "esc10"))
    # Measured elsewhere: time-averaged log-mel features stay well below an encoder.
    assert 3 * found["chance"] < found["log_mel"] < 0.95

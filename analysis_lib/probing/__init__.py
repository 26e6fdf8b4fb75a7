"""Probes: small supervised models that ask what a representation makes readable."""

from analysis_lib.probing.folds import ProbeWarning, group_folds
from analysis_lib.probing.linear import linear_probe
from analysis_lib.probing.results import (
    Comparison,
    Null,
    ProbeResult,
    best_set,
    compare,
)

__all__ = [
    "Comparison",
    "Null",
    "ProbeResult",
    "ProbeWarning",
    "best_set",
    "compare",
    "group_folds",
    "linear_probe",
]

"""Probes: small supervised models that ask what a representation makes readable."""

from analysis_lib.probing.controls import (
    OnlineCode,
    Selectivity,
    online_code,
    sample_efficiency,
    selectivity,
)
from analysis_lib.probing.folds import ProbeWarning, group_folds
from analysis_lib.probing.linear import linear_probe
from analysis_lib.probing.regression import RegressionResult, regression_probe
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
    "OnlineCode",
    "ProbeResult",
    "ProbeWarning",
    "RegressionResult",
    "Selectivity",
    "best_set",
    "compare",
    "group_folds",
    "linear_probe",
    "online_code",
    "regression_probe",
    "sample_efficiency",
    "selectivity",
]

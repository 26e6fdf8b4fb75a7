"""Pruning: which layers or heads of an encoder can go, and what that costs and saves.

`removal_order` picks layers, `prune_layers` and `prune_heads` take them out of a copy,
`pruning_curve` measures what is left, and `rank_agreement` tells whether the predictor
that picked them was right.
"""

from analysis_lib.pruning.selection import (
    RankAgreement,
    forward_seconds,
    pruning_curve,
    rank_agreement,
    removal_order,
    size,
)
from analysis_lib.pruning.surgery import n_layers, prune_heads, prune_layers

__all__ = [
    "RankAgreement",
    "forward_seconds",
    "n_layers",
    "prune_heads",
    "prune_layers",
    "pruning_curve",
    "rank_agreement",
    "removal_order",
    "size",
]

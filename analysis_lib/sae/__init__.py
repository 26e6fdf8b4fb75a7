"""Sparse dictionaries of frames: training, evaluation, alignment, intervention."""

from .checkpoint import check_frames, load_sae, save_sae
from .evaluate import SAEEvaluation, evaluate_sae, pareto_grid
from .model import SparseAutoencoder
from .train import train_sae

__all__ = [
    "SAEEvaluation",
    "SparseAutoencoder",
    "check_frames",
    "evaluate_sae",
    "load_sae",
    "pareto_grid",
    "save_sae",
    "train_sae",
]

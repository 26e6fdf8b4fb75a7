"""Sparse dictionaries of frames: training, evaluation, alignment, intervention."""

from .model import SparseAutoencoder
from .train import train_sae

__all__ = ["SparseAutoencoder", "train_sae"]

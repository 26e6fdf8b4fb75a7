"""Audio models, their front ends, and their tables of taps."""

from analysis_lib.encoders.encoder import Batch, Encoder, ablate, record, select_taps

__all__ = ["Batch", "Encoder", "ablate", "record", "select_taps"]

"""How many bits a latent's firing tells about what is being said."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from .association import Floats, check_rows, encode_classes, one_hot


def mutual_information(
    codes: sp.csr_array, labels: ArrayLike, given: ArrayLike | None = None
) -> Floats:
    """Bits that each latent's firing tells about the label.

    Plug-in estimate of I(fires; label), or of I(fires; label | given), minus the bias
    ``(K_xy - K_x - K_y + 1) / 2N`` nats of occupied cells ([1]_); it may fall slightly
    below 0.

    Parameters
    ----------
    codes : csr_array, shape (N, H)
    labels, given : array_like, shape (N,)
        "" leaves a frame out. With words as ``labels`` and phones as ``given``: what a
        latent knows of the word beyond the phone.

    Returns
    -------
    ndarray, shape (H,)
        Bits per frame.

    References
    ----------
    .. [1] Miller (1955). Note on the bias of information estimates. In Information
       theory in psychology.
    """
    y, names = encode_classes(labels)
    z = np.zeros(len(y), np.int64) if given is None else encode_classes(given)[0]
    check_rows(codes, y)
    fires = sp.csr_array(codes > 0, dtype=np.float64)
    keep = (y >= 0) & (z >= 0)
    bits = np.zeros(codes.shape[1])
    for value in np.unique(z[keep]):
        rows = np.flatnonzero(keep & (z == value))
        on = (fires[rows].T @ one_hot(y[rows], len(names))).toarray()
        per_label = np.bincount(y[rows], minlength=len(names)).astype(float)
        joint = np.stack([on, per_label - on])
        bits += len(rows) * _information(joint)
    return bits / max(1, keep.sum())


def _information(joint: Floats) -> Floats:
    """Bits between axis 0 and axis 2 of counts (2, H, P), bias removed."""
    n = joint.sum((0, 2), keepdims=True)

    def entropy(counts: Floats, axis: tuple[int, ...]) -> Floats:
        share = counts / n
        with np.errstate(divide="ignore", invalid="ignore"):
            return -np.where(share > 0, share * np.log(share), 0).sum(axis)

    fires, label = joint.sum(2, keepdims=True), joint.sum(0, keepdims=True)
    plug_in = entropy(fires, (0, 2)) + entropy(label, (0, 2)) - entropy(joint, (0, 2))
    cells = [(c > 0).sum((0, 2)) for c in (joint, fires, label)]
    bias = (cells[0] - cells[1] - cells[2] + 1) / (2 * n[0, :, 0])
    return np.asarray((plug_in - bias) / np.log(2))

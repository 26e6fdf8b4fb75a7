"""Exact nearest neighbours, shared by similarity (who is near) and convexity (paths).

Approximate neighbours are not good enough here: 1 % of missed neighbours has been
seen to cost 10 % of a graph's convexity.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Metric = Literal["euclidean", "cosine", "dot"]

_BLOCK_BYTES = 64 * 2**20
_SPARE = 8  # candidates beyond k that single precision hands to double precision


class Neighbors(NamedTuple):
    """The k nearest other points of each point, nearest first."""

    indices: NDArray[np.int64]  # (N, k)
    distances: Floats  # (N, k); minus the inner product for metric "dot"


def nearest_neighbors(
    X: Floats, n_neighbors: int, metric: Metric = "euclidean"
) -> Neighbors:
    """Find the k nearest other rows of each row, exactly.

    Single precision proposes k + 8 candidates and double precision ranks them; rows
    where rounding could have hidden a nearer one are searched again in double.

    Parameters
    ----------
    X
        ``(N, D)``, finite.
    n_neighbors
        k, from 1 to N - 1. A point is not its own neighbour; its duplicate is.
    metric
        "euclidean"; "cosine" (Euclidean between rows of length 1, the same order as
        the angle); "dot" (largest inner product first).

    Returns
    -------
    Neighbors
        ``.indices`` and ``.distances``, both ``(N, k)``; equal distances in order
        of index.

    Raises
    ------
    ValueError
        If k does not lie between 1 and N - 1, or a row has no direction to take a
        cosine of.
    """
    n = len(X)
    if not 1 <= n_neighbors < n:
        raise ValueError(
            f"{n_neighbors} neighbours of {n} clips: choose between 1 and {n - 1}"
        )
    if metric not in ("euclidean", "cosine", "dot"):
        raise ValueError(f"metric={metric!r}: choose 'euclidean', 'cosine' or 'dot'")
    points = unit_rows(X) if metric == "cosine" else np.asarray(X, dtype=np.float64)
    if metric != "dot":
        points = points - points.mean(axis=0)  # less cancellation in ‖x‖² - 2xy + ‖y‖²
    squares = np.einsum("nd,nd->n", points, points)
    # Larger is nearer: x·y, or x·y - ‖y‖²/2, which orders as the distance does.
    bias = np.zeros(n) if metric == "dot" else squares / 2
    scale = np.sqrt(squares.max()) or 1.0
    narrow = (points / scale).astype(np.float32)
    narrow_bias = (bias / scale**2).astype(np.float32)
    # Rounding of a D-term sum in single precision, with a margin of two.
    unsure = 2 * (points.shape[1] + 4) * np.finfo(np.float32).eps
    lengths = np.sqrt(squares) / scale

    indices = np.empty((n, n_neighbors), dtype=np.int64)
    distances = np.empty((n, n_neighbors))
    wanted = min(n_neighbors + _SPARE, n - 1)
    step = int(np.clip(_BLOCK_BYTES // (4 * n), 1, n))
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        near = narrow[rows] @ narrow.T - narrow_bias
        near[np.arange(len(rows)), rows] = -np.inf
        kept = np.argpartition(-near, wanted - 1, axis=1)[:, :wanted]
        worst = np.take_along_axis(near, kept, axis=1).min(axis=1)
        found, value = _rank(points, bias, rows, kept, n_neighbors, metric)
        # Nothing left out can be nearer than the worst candidate, but for rounding.
        certain = value / scale**2 > worst + unsure * (lengths[rows] + 0.01)
        if wanted < n - 1 and not certain.all():
            again = rows[~certain]
            close = points[again] @ points.T - bias
            close[np.arange(len(again)), again] = -np.inf
            kept = np.argpartition(-close, wanted - 1, axis=1)[:, :wanted]
            found[~certain] = _rank(points, bias, again, kept, n_neighbors, metric)[0]
        indices[rows] = found
        distances[rows] = _distances(points, rows, found, metric)
    return Neighbors(indices, distances)


def _rank(
    points: Floats,
    bias: Floats,
    rows: NDArray[np.int64],
    candidates: NDArray[np.int64],
    k: int,
    metric: Metric,
) -> tuple[NDArray[np.int64], Floats]:
    """Keep each row's k nearest candidates in double precision; score the k-th."""
    far = _distances(points, rows, candidates, metric)
    order = np.lexsort((candidates, far), axis=1)[:, :k]
    found = np.take_along_axis(candidates, order, axis=1)
    last = found[:, -1]
    return found, np.einsum("nd,nd->n", points[rows], points[last]) - bias[last]


def _distances(
    points: Floats, rows: NDArray[np.int64], others: NDArray[np.int64], metric: Metric
) -> Floats:
    """Distance of each row to its own list of others, from the differences."""
    result = np.empty(others.shape)
    step = max(1, _BLOCK_BYTES // (8 * others.shape[1] * points.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        mine, theirs = points[rows[part], None], points[others[part]]
        if metric == "dot":
            result[part] = -np.einsum("nod,nkd->nk", mine, theirs)
        else:
            gap = theirs - mine
            result[part] = np.sqrt(np.einsum("nkd,nkd->nk", gap, gap))
    return result


def unit_rows(X: Floats, name: str = "X") -> Floats:
    """Scale every row to length 1; a zero row has no direction and is refused."""
    X = np.asarray(X, dtype=np.float64)
    largest = np.abs(X).max(axis=1, keepdims=True)
    if (largest == 0).any():
        raise ValueError(
            f"{name} is zero in row {int(largest.argmin())}: a zero vector has no "
            "direction, so leave the clip out or use a measure without cosines"
        )
    scaled = X / largest
    result: Floats = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    return result

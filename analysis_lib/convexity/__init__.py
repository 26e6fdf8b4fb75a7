"""Convexity of classes in a representation, on its neighbour graph and in its space.

`graph_convexity` scores one layer; show it with `convexity_sweep` over k and with
`convexity_interval`. `euclidean_convexity` asks the rest of the network instead.
"""

from analysis_lib.convexity.euclidean import EuclideanConvexity, euclidean_convexity
from analysis_lib.convexity.graph import (
    GraphConvexity,
    convexity_sweep,
    graph_convexity,
    neighbor_graph,
)
from analysis_lib.convexity.uncertainty import ConvexityInterval, convexity_interval

__all__ = [
    "ConvexityInterval",
    "EuclideanConvexity",
    "GraphConvexity",
    "convexity_interval",
    "convexity_sweep",
    "euclidean_convexity",
    "graph_convexity",
    "neighbor_graph",
]

"""A graph small enough to know by heart."""

import numpy as np

from bandits.graph import Graph


def small_graph() -> Graph:
    """Three clusters in the plane, three items, two of them for each cluster."""
    centroids = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    return Graph(centroids, np.array([0, 2, 4, 6]), np.array([0, 1, 1, 2, 0, 2], np.uint32), ("318", "296", "a/b c"))

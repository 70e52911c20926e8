"""Depth of a model in layers: 0 is the embedding, i the residual after block i - 1, L the last block's."""

PERCENTILES = (25, 50, 75)
REFERENCE_LAYERS = 32  # the depth of the models that limits in layers were set for


def depth_layer(n_layers: int, percent: int) -> int:
    """The layer at a percentile of depth, rounded half to even, and never the embedding: it has no translator."""
    return min(max(round(n_layers * percent / 100), 1), n_layers)


def scaled_layers(limit: float, n_layers: int) -> float:
    """A limit in layers, at the same share of a shallower model: four layers of six are not four of thirty-two."""
    return min(limit, max(1.0, float(round(limit * n_layers / REFERENCE_LAYERS))))

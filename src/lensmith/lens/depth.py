"""Depth of a model in layers: 0 is the embedding, i the residual after block i - 1, L the last block's."""

PERCENTILES = (25, 50, 75)
REFERENCE_LAYERS = 32  # depth of the models for which limits in layers were set


def depth_layer(n_layers: int, percent: int) -> int:
    """The layer at a percentile of depth, rounded half to even, at least 1: the embedding has no translator."""
    return min(max(round(n_layers * percent / 100), 1), n_layers)


def scaled_layers(limit: float, n_layers: int) -> float:
    """A limit in layers as the same share of a shallower model, at least one layer."""
    return min(limit, max(1.0, float(round(limit * n_layers / REFERENCE_LAYERS))))

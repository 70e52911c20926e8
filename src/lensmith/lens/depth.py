"""Rows of a model's depth: 0 is the embedding, i is after block i - 1, L is the last block."""

PERCENTILES = (25, 50, 75)
PLAN_LAYERS = 32  # the depth of the models that the plan's limits in layers were set for


def depth_row(n_layers: int, percent: int) -> int:
    """The row at a percentile of depth, as the plan rounds it, and never the embedding: a tuned lens has no row 0."""
    return min(max(round(n_layers * percent / 100), 1), n_layers)


def scaled_layers(limit: float, n_layers: int) -> float:
    """A limit in layers, at the same share of a shallower model: four layers of six are not four of thirty-two."""
    return min(limit, max(1.0, float(round(limit * n_layers / PLAN_LAYERS))))

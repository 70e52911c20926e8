"""Depth of a model in layers: 0 is the embedding, i the residual after block i - 1, L the last block's."""

from collections.abc import Collection

from lensmith.process.errors import InputError

PERCENTILES = (25, 50, 75)
REFERENCE_LAYERS = 32  # depth of the models for which limits in layers were set


def depth_layer(n_layers: int, percent: int) -> int:
    """The layer at a percentile of depth, rounded half to even, at least 1: the embedding has no translator."""
    return min(max(round(n_layers * percent / 100), 1), n_layers)


def layers(n_layers: int, absent: Collection[int] = ()) -> tuple[int, ...]:
    """The layers 1..L that a lens reads: all that are not absent."""
    return tuple(layer for layer in range(1, n_layers + 1) if layer not in absent)


def check_layer(layer: object, n_layers: int, absent: Collection[int]) -> None:
    """InputError where a lens of L layers does not read `layer`."""
    if type(layer) is not int or not 1 <= layer <= n_layers:
        raise InputError(f"layer is {layer!r}, must be in 1..{n_layers}; layer i is the stream after block i - 1")
    if layer in absent:
        present = ", ".join(map(str, layers(n_layers, absent)))
        raise InputError(f"layer is {layer}, must be one that the lens has: {present}")


def scaled_layers(limit: float, n_layers: int) -> float:
    """A limit in layers as the same share of a shallower model, at least one layer."""
    return min(limit, max(1.0, float(round(limit * n_layers / REFERENCE_LAYERS))))

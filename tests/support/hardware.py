"""A machine with bfloat16 products, or without: what `products: auto` finds, whatever machine runs the tests."""

import torch

from lensmith.lens import recipe
from lensmith.source import skeleton

CAPABILITIES = ("none", "bf16")


def force(capabilities: str, replace=setattr) -> None:
    """Let `auto` take bfloat16 for every head, the smallest included, or for none."""
    assert capabilities in CAPABILITIES
    replace(skeleton, "has_fast_bf16", lambda _: capabilities == "bf16")
    replace(recipe, "LARGE_HEAD", 0)


def taken(capabilities: str) -> torch.dtype:
    """The products that a fit then takes."""
    return torch.bfloat16 if capabilities == "bf16" else torch.float32

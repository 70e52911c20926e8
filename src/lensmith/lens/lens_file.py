"""The form of a lens on disk, for readers that need no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensmith.files import untrusted
from lensmith.process.errors import IntegrityError, shown

WEIGHTS = "weights.safetensors"
TENSORS = ("U", "V", "c", "log_tau", "scale")

LADDER = "ladder"  # folder of the smaller kinds, beside the lens
PRISM = "prism.safetensors"
PRISM_TENSORS = ("mean", "inv_scale", "rotation")

Shapes = Mapping[str, tuple[int, ...]]


def read_header(path: Path) -> tuple[Shapes, dict[str, Any]]:
    """Shapes by name of a lens file's tensors, and what it says about itself: kind, norm, placement. No number is read.

    Raises:
        IntegrityError: the file is not whole, holds other tensors than a lens has, or does not say what kind it is.
    """
    shapes, about = untrusted.read_header(path, TENSORS)
    check_shapes(shapes, path)
    if not isinstance(about, dict) or not {"kind", "norm"} <= about.keys():
        raise IntegrityError(f"{path}: does not say its kind and norm")
    # Files of before there was another placement have no word for it.
    placement = about.get("placement", "normed")
    return shapes, {"kind": about["kind"], "norm": about["norm"], "placement": placement}


def check_shapes(shapes: Shapes, path: Path) -> None:
    """IntegrityError where the tensors are not those of one lens: U of (n_layers, d_model, rank), the others by it."""
    U = shapes["U"]
    if len(U) != 3 or 0 in U[:2] or U[2] > U[1]:
        raise IntegrityError(f"{path}: U is {U}, must be (n_layers, d_model, rank) with a rank of at most d_model")
    n_layers, d_model, _ = U
    wanted = {"V": U, "c": (n_layers, d_model), "scale": (n_layers, d_model), "log_tau": (n_layers,)}
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise IntegrityError(f"{path}: {name} is {shown(shapes[name])}, U asks for {shape}")

"""The form of a lens on disk, for readers that need no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from lensmith.files import untrusted
from lensmith.process.errors import IntegrityError, shown
from lensmith.settings.sections import FitParams

WEIGHTS = "weights.safetensors"
TENSORS = ("U", "V", "c", "log_tau", "scale", "center")
OPTIONAL = ("V", "center")  # V is missing where it is 1: maps of d_model x d_model stand in U alone
HALVES = ("U",)  # in float16 where a Jacobian lens has its maps there
TranslatorPlacement = Literal["normed", "residual"]  # a translator reads N(resid_post), or resid_post itself
# What the metadata of a lens file may say.
FORMS = {
    "kind": get_args(FitParams.model_fields["kind"].annotation),
    "norm": get_args(FitParams.model_fields["norm"].annotation),
    "placement": get_args(TranslatorPlacement),
}

LADDER = "ladder"  # folder of the smaller kinds, beside the lens
RANK_CURVE = "rank_curve.csv"
FIT_LOG = "fit_log.csv"
PRISM = "prism.safetensors"
PRISM_TENSORS = ("mean", "inv_scale", "rotation")

Shapes = Mapping[str, tuple[int, ...]]


def read_header(path: Path) -> tuple[Shapes, dict[str, Any]]:
    """Shapes of a lens file's tensors by name; kind, norm, placement and absent, as arguments of Lens. Reads no number.

    Raises:
        IntegrityError: the file is not whole, holds other tensors than a lens has, or does not say what kind it is.
    """
    shapes, about = untrusted.read_header(path, TENSORS, optional=OPTIONAL, halves=HALVES)
    check_shapes(shapes, path)
    if not isinstance(about, dict) or not {"kind", "norm"} <= about.keys():
        raise IntegrityError(f"{path}: does not say its kind and norm")
    # Older files have no placement: all were normed.
    form = {"kind": about["kind"], "norm": about["norm"], "placement": about.get("placement", "normed")}
    for name, allowed in FORMS.items():
        if form[name] not in allowed:
            raise IntegrityError(f"{path}: {name} is {shown(form[name])!r}, must be one of {', '.join(allowed)}")
    absent, inner = about.get("absent", []), range(1, shapes["U"][0])
    if type(absent) is not list or any(type(layer) is not int or layer not in inner for layer in absent):
        raise IntegrityError(f"{path}: absent is {shown(absent)}, must be a list of layers 1..{len(inner)}")
    return shapes, form | {"absent": tuple(absent)}


def check_shapes(shapes: Shapes, path: Path) -> None:
    """IntegrityError where the tensors are not those of one lens; U, (n_layers, d_model, rank), decides all shapes."""
    U = shapes["U"]
    if len(U) != 3 or 0 in U[:2] or U[2] > U[1]:
        raise IntegrityError(f"{path}: U is {U}, must be (n_layers, d_model, rank) with a rank of at most d_model")
    n_layers, d_model, rank = U
    if "V" not in shapes and rank != d_model:
        raise IntegrityError(f"{path}: has no V, so U must be (n_layers, d_model, d_model), it is {U}")
    vectors = (n_layers, d_model)
    wanted = {"V": U, "c": vectors, "scale": vectors, "center": vectors, "log_tau": (n_layers,)}
    for name, shape in wanted.items():
        if name not in shapes:
            continue
        if shapes[name] != shape:
            raise IntegrityError(f"{path}: {name} is {shown(shapes[name])}, U asks for {shape}")

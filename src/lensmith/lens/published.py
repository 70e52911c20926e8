"""Lenses published by the package tuned-lens, as lenses of ours.

Its translator i reads the input of block i, which is resid_post[i - 1], and stands before the final norm:

    z = g( N(h + h A_i^T + b_i) W_U + bias )        A_i (d_model, d_model), b_i (d_model)

So it is our placement `residual` with U = A_i^T, V = 1, c = b_i at block i - 1, and the last block, which has no
translator there, is the identity. Translator 0 reads the embedding, for which our lenses have no row: it is left out.

    config.json   d_model, num_hidden_layers, bias, unembed_hash, lens_type, base_model_name_or_path, …
    params.pt     a dictionary of tensors as torch saves it, <i>.weight and <i>.bias: read by files/torch_file.py
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensmith.files import torch_file, untrusted
from lensmith.hub.pins import LENS_CONFIG, LENS_PARAMS, LensPin, lens_folder
from lensmith.lens import training
from lensmith.lens.lens import LARGEST, Lens
from lensmith.process.errors import InputError, IntegrityError, NumericError, shown
from lensmith.settings.sections import FitParams
from lensmith.source.backbone import Backbone
from lensmith.source.head import Head
from lensmith.source.residuals import Residuals

LENS_TYPE = "linear_tuned_lens"
UNREAD = "Nothing was imported."


def load(pin: LensPin | None, backbone: Backbone) -> tuple[Lens, dict[str, Any]]:
    """The lens of a pin, for the model that it was made for, and what its provenance says of where it comes from.

    Raises:
        InputError: not a linear lens of tuned-lens.
        IntegrityError: a file is broken or changed, the lens is another model's, or prefetch pinned none.
        NumericError: a number is not finite.
    """
    if pin is None:
        raise IntegrityError(f"fit.kind is imported, but the corpus has no pinned lens. Run prefetch again. {UNREAD}")
    folder = lens_folder(pin)
    config = _config(folder / LENS_CONFIG, pin.place)
    _check_model(config, backbone, pin.place)
    tensors = _tensors(folder / LENS_PARAMS, config, backbone.d_model, pin.place)
    about = pin.model_dump(mode="json") | {
        "config": config,
        "left_out": "translator 0, which reads the embedding",
        "unembed_hash_checked": config.get("unembed_hash") is not None,
    }
    return _lens(tensors, backbone.n_layers, backbone.d_model), about


def measure(head: Head, lens: Lens, held_out: Residuals, settings: FitParams) -> training.Fit:
    """The Fit of a lens that is not trained: validated once, no step taken, no training token read."""
    untrained = settings.model_copy(update={"kind": "identity"})
    return replace(training.fit(head, held_out, held_out, untrained, lens), tokens_forwarded=0, settings=settings)


def unembed_hash(W_U: Tensor) -> str:
    """What tuned-lens calls the hash of W_U (d_vocab, d_model): of how NumPy prints it, so dtypes hardly change it."""
    printed = np.array_str(W_U.float().cpu().numpy(), precision=1)
    return hashlib.sha256(printed.encode()).hexdigest()


def _config(path: Path, place: str) -> dict[str, Any]:
    config = untrusted.read_json(path)
    if not isinstance(config, dict) or not {"d_model", "num_hidden_layers"} <= config.keys():
        raise InputError(f"imported lens {place}: {path.name} has no d_model and num_hidden_layers. {UNREAD}")
    if (kind := config.get("lens_type", LENS_TYPE)) != LENS_TYPE:
        raise InputError(f"imported lens {place}: lens_type is {shown(kind)!r}, only {LENS_TYPE} is read. {UNREAD}")
    return config


def _check_model(config: dict[str, Any], backbone: Backbone, place: str) -> None:
    shape = (config["num_hidden_layers"], config["d_model"])
    if shape != (backbone.n_layers, backbone.d_model):
        raise IntegrityError(
            f"imported lens {place}: made for a model of (n_layers, d_model) {shape}, this one has "
            f"{(backbone.n_layers, backbone.d_model)}. {UNREAD}"
        )
    recorded, found = config.get("unembed_hash"), unembed_hash(backbone.head.W_U)
    if recorded is not None and recorded != found:
        raise IntegrityError(
            f"imported lens {place}: made for {config.get('base_model_name_or_path')} with unembed_hash {recorded}, "
            f"this model's is {found}. Another revision, or another source.dtype, may be the right one. {UNREAD}"
        )


def _tensors(path: Path, config: dict[str, Any], d_model: int, place: str) -> dict[str, Tensor]:
    count = config["num_hidden_layers"] * (d_model * d_model + d_model)
    try:
        stored = torch_file.read(path, torch_file.SLACK + torch_file.LARGEST_NUMBER * count)
    except IntegrityError as error:
        raise IntegrityError(f"imported lens {place}: {error}. {UNREAD}") from None
    indices, is_biased = range(config["num_hidden_layers"]), config.get("bias", True)
    wanted: dict[str, tuple[int, ...]] = {f"{i}.weight": (d_model, d_model) for i in indices}
    wanted |= {f"{i}.bias": (d_model,) for i in indices if is_biased}
    found = {name: array.shape for name, array in stored.items()}
    if found != wanted:
        name = min(key for key in (found.keys() | wanted.keys()) if found.get(key) != wanted.get(key))
        raise InputError(
            f"imported lens {place}: {path.name}: {shown(name)} is {found.get(name, 'missing')}, must be "
            f"{wanted.get(name, 'absent')}; only full linear translators are read, no low-rank or MLP ones. {UNREAD}"
        )
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in stored.items()}
    for name, tensor in tensors.items():
        if not (tensor.abs() <= LARGEST).all():  # so that NaN fails
            raise NumericError(
                f"imported lens {place}: {name} holds a number that is not finite, or above {LARGEST:g}. {UNREAD}"
            )
    return tensors


def _lens(tensors: dict[str, Tensor], n_layers: int, d_model: int) -> Lens:
    U, V = torch.zeros(n_layers, d_model, d_model), torch.zeros(n_layers, d_model, d_model)
    c = torch.zeros(n_layers, d_model)
    for i in range(1, n_layers):
        U[i - 1] = tensors[f"{i}.weight"].T
        V[i - 1] = torch.eye(d_model)
        if f"{i}.bias" in tensors:
            c[i - 1] = tensors[f"{i}.bias"]
    return Lens("imported", "final", U, V, c, torch.ones(n_layers, d_model), torch.zeros(n_layers), "residual")

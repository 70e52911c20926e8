"""Read a lens of the package tuned-lens, untrusted, as a lens of ours.

Translator i reads the input of block i, which is resid_post[i - 1], and acts before the final norm. It is our
U = A_i^T, c = b_i, scale 1 at block i - 1, of placement `residual`. The last block has no translator there and gets the
identity. Translator 0, which reads the embedding, is left out: our lenses have none there.

    z = g( N(h + h A_i^T + b_i) W_U + bias )        A_i (d_model, d_model), b_i (d_model)
    config.json   d_model, num_hidden_layers, bias, unembed_hash, lens_type, base_model_name_or_path, …
    params.pt     a dictionary of tensors as torch saves it, <i>.weight and <i>.bias
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensmith.files import untrusted
from lensmith.hub.pins import LENS_CONFIG, LENS_PARAMS
from lensmith.lens import torch_file
from lensmith.lens.lens import LARGEST, Lens
from lensmith.lens.torch_file import LARGEST_NUMBER, SLACK
from lensmith.process.errors import InputError, IntegrityError, NumericError, shown
from lensmith.source.backbone import Backbone

LENS_TYPE = "linear_tuned_lens"


def read(folder: Path, backbone: Backbone) -> tuple[Lens, dict[str, Any]]:
    """A lens of tuned-lens, and what its files say of it."""
    config = read_config(folder / LENS_CONFIG, backbone)
    n, d_model = backbone.n_layers, backbone.d_model
    tensors = _translators(folder / LENS_PARAMS, config, d_model)
    maps, c = torch.zeros(n - 1, d_model, d_model), torch.zeros(n - 1, d_model)
    for i in range(1, n):
        maps[i - 1] = tensors[f"{i}.weight"].T
        if f"{i}.bias" in tensors:
            c[i - 1] = tensors[f"{i}.bias"]
    return Lens.of_maps("imported", maps, scale=1.0, c=c), {
        "config": config,
        "left_out": "translator 0, which reads the embedding",
        "unembed_hash_checked": config.get("unembed_hash") is not None,
    }


def read_config(path: Path, backbone: Backbone) -> dict[str, Any]:
    """config.json of a linear lens of this model."""
    config = untrusted.read_json(path)
    if not isinstance(config, dict) or not {"d_model", "num_hidden_layers"} <= config.keys():
        raise InputError(f"{path.name} has no d_model and num_hidden_layers")
    if (kind := config.get("lens_type", LENS_TYPE)) != LENS_TYPE:
        raise InputError(f"lens_type is {shown(kind)!r}, only {LENS_TYPE} is read")
    shape = (config["num_hidden_layers"], config["d_model"])
    if shape != (backbone.n_layers, backbone.d_model):
        raise IntegrityError(
            f"made for a model of (n_layers, d_model) {shape}, this one has {(backbone.n_layers, backbone.d_model)}"
        )
    recorded, computed = config.get("unembed_hash"), unembed_hash(backbone.head.W_U)
    if recorded is not None and recorded != computed:
        raise IntegrityError(
            f"made for {config.get('base_model_name_or_path')} with unembed_hash {recorded}, this model's is "
            f"{computed}. Another revision, or another source.dtype, may be the right one"
        )
    return config


def unembed_hash(W_U: Tensor) -> str:
    """tuned-lens's hash of W_U (d_vocab, d_model): of NumPy's printed form, so that dtypes hardly change it."""
    printed = np.array_str(W_U.float().cpu().numpy(), precision=1)
    return hashlib.sha256(printed.encode()).hexdigest()


def _translators(path: Path, config: dict[str, Any], d_model: int) -> dict[str, Tensor]:
    """Weights and biases of all translators by name, float32, of the shapes that `config` asks for."""
    count = config["num_hidden_layers"] * (d_model * d_model + d_model)
    stored = torch_file.read_tensors(path, SLACK + LARGEST_NUMBER * count)
    indices, is_biased = range(config["num_hidden_layers"]), config.get("bias", True)
    wanted: dict[str, tuple[int, ...]] = {f"{i}.weight": (d_model, d_model) for i in indices}
    wanted |= {f"{i}.bias": (d_model,) for i in indices if is_biased}
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if shapes != wanted:
        name = min(key for key in (shapes.keys() | wanted.keys()) if shapes.get(key) != wanted.get(key))
        raise InputError(
            f"{path.name}: {shown(name)} is {shapes.get(name, 'missing')}, must be {wanted.get(name, 'absent')}; only "
            "full linear translators are read, no low-rank or MLP ones"
        )
    tensors = {name: tensor.float() for name, tensor in stored.items()}
    for name, tensor in tensors.items():
        if not (tensor.abs() <= LARGEST).all():  # so that NaN fails
            raise NumericError(f"{name} holds a number that is not finite, or above {LARGEST:g}")
    return tensors

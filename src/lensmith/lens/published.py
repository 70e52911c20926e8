"""Read lenses that others published as lenses of ours. All have our placement `residual`.

Translator i of the package tuned-lens reads the input of block i, which is resid_post[i - 1], and acts before the final
norm. It is our U = A_i^T, c = b_i, scale 1 at block i - 1. The last block has no translator there and gets the
identity. Translator 0, which reads the embedding, is left out: our lenses have none there.

    z = g( N(h + h A_i^T + b_i) W_U + bias )        A_i (d_model, d_model), b_i (d_model)
    config.json   d_model, num_hidden_layers, bias, unembed_hash, lens_type, base_model_name_or_path, …
    params.pt     a dictionary of tensors as torch saves it, <i>.weight and <i>.bias

Map i of a Jacobian lens reads resid_post[i]. It is our U = J_i^T, scale 0 at block i. The last block has no map, others
may have none: their layers are absent.

    z = g( N(h J_i^T) W_U + bias )                  J_i (d_model, d_model)
    lens.pt       {"J": {i: J_i, in float16}, "n_prompts": …, "source_layers": [i, …], "d_model": …} as torch saves it
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lensmith.files import untrusted
from lensmith.hub.pins import LENS_CONFIG, LENS_MAPS, LENS_PARAMS, REPACK, LensPin, lens_folder
from lensmith.lens import torch_file
from lensmith.lens.lens import LARGEST, Lens
from lensmith.lens.torch_file import LARGEST_NUMBER, SLACK
from lensmith.process.errors import InputError, IntegrityError, LensmithError, NumericError, shown
from lensmith.source.backbone import Backbone

LENS_TYPE = "linear_tuned_lens"
UNREAD = "Nothing was imported."


def load(pin: LensPin | None, backbone: Backbone) -> tuple[Lens, dict[str, Any]]:
    """The lens of a pin, and where it comes from, for its provenance.

    Raises:
        InputError: not a linear lens of tuned-lens, or a Jacobian lens without a map.
        IntegrityError: a file is broken or changed, the lens is another model's, or prefetch pinned none.
        NumericError: a number is not finite.
    """
    if pin is None:
        raise IntegrityError(f"fit.kind is imported, but the corpus has no pinned lens. {REPACK} {UNREAD}")
    folder, read = lens_folder(pin), _jacobian if LENS_MAPS in pin.files else _tuned
    try:
        lens, origin = read(folder, backbone)
    except LensmithError as error:
        raise type(error)(f"imported lens {pin.place}: {error}. {UNREAD}") from None
    return lens, pin.model_dump(mode="json") | origin


def _tuned(folder: Path, backbone: Backbone) -> tuple[Lens, dict[str, Any]]:
    """A lens of tuned-lens, and what its files say of it."""
    config = _read_config(folder / LENS_CONFIG, backbone)
    tensors, n, d_model = (
        _translators(folder / LENS_PARAMS, config, backbone.d_model),
        backbone.n_layers,
        backbone.d_model,
    )
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


def _jacobian(folder: Path, backbone: Backbone) -> tuple[Lens, dict[str, Any]]:
    """A Jacobian lens, and what its file says of it: n_prompts, source_layers, d_model, and whatever stands beside."""
    n, d_model = backbone.n_layers - 1, backbone.d_model
    maps, facts = torch_file.read_beside_facts(folder / LENS_MAPS, SLACK + LARGEST_NUMBER * n * d_model**2, "J")
    if facts.get("d_model", d_model) != d_model:
        raise IntegrityError(f"made for a model of d_model {shown(facts['d_model'])}, this one has {d_model}")
    if not maps:
        raise InputError(f"{LENS_MAPS} has no map; it must have that of one block at least")
    for block, tensor in maps.items():
        if block >= n or block < 0 or tensor.shape != (d_model, d_model):
            raise IntegrityError(
                f"{LENS_MAPS}: the map of block {block} is {tuple(tensor.shape)}, must be {(d_model, d_model)} for a "
                f"block of 0..{n - 1}: made for another model"
            )
    nothing = torch.zeros_like(next(iter(maps.values())))
    stacked = torch.stack([maps.get(block, nothing).T for block in range(n)])
    if not (stacked.abs() <= LARGEST).all():  # so that NaN fails
        raise NumericError(f"{LENS_MAPS} holds a number that is not finite, or above {LARGEST:g}")
    stacked = stacked if stacked.dtype == torch.float16 else stacked.float()
    absent = tuple(block + 1 for block in range(n) if block not in maps)
    return Lens.of_maps("imported", stacked, scale=0.0, absent=absent), {"config": facts, "absent_layers": list(absent)}


def unembed_hash(W_U: Tensor) -> str:
    """tuned-lens's hash of W_U (d_vocab, d_model): of NumPy's printed form, so that dtypes hardly change it."""
    printed = np.array_str(W_U.float().cpu().numpy(), precision=1)
    return hashlib.sha256(printed.encode()).hexdigest()


def _read_config(path: Path, backbone: Backbone) -> dict[str, Any]:
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

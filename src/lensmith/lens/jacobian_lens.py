"""Read a Jacobian lens that others published, untrusted, as a lens of ours. Our own are estimated in `jacobian`.

Map i reads resid_post[i]. It is our U = J_i^T, scale 0 at block i, of placement `residual`. The last block has no map,
others may have none: their layers are absent.

    z = g( N(h J_i^T) W_U + bias )                  J_i (d_model, d_model)
    lens.pt       {"J": {i: J_i, in float16}, "n_prompts": …, "source_layers": [i, …], "d_model": …} as torch saves it
"""

from pathlib import Path
from typing import Any

import torch

from lensmith.hub.pins import LENS_MAPS
from lensmith.lens import torch_file
from lensmith.lens.lens import LARGEST, Lens
from lensmith.lens.torch_file import LARGEST_NUMBER, SLACK
from lensmith.process.errors import InputError, IntegrityError, NumericError, shown
from lensmith.source.backbone import Backbone


def read(folder: Path, backbone: Backbone) -> tuple[Lens, dict[str, Any]]:
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

"""Tensor files that carry a digest of their own: a safetensors file notices no flipped data bit by itself.

One metadata key holds canonical JSON: `facts`, and `sha256` over them and over every tensor's name, form and bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lensmith.files import artifacts
from lensmith.process.errors import IntegrityError


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors of the CPU, whole or not at all; `facts` is JSON data.

    Raises:
        ResourceError: the disk is full. What stood under `path` is as it was.
    """
    about = artifacts.canonical_json({"facts": facts, "sha256": _digest(tensors, facts)})
    with artifacts.replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"lensmith": about})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file that `write` made.

    Raises:
        IntegrityError: the file is missing, truncated, or not the one that was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["lensmith"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, safe_open is no dict
        facts: dict[str, Any] = about["facts"]
        is_whole = about["sha256"] == _digest(tensors, facts)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None
    if not is_whole:
        raise IntegrityError(f"{path}: its bytes are not the ones that were written")
    return tensors, facts


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(artifacts.canonical_json(facts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""GGUF files: a whole model in one file, its weights in blocks of few bits, beside its configuration and tokenizer."""

from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lensmith.process.errors import InputError, IntegrityError


@dataclass(frozen=True)
class GgufFacts:
    """What a GGUF file says about its weights."""

    tensor_types: dict[str, int]  # tensors by type, such as Q4_K and F32
    n_parameters: int


def check_package(path: Path) -> None:
    """InputError where the package gguf is missing, which reads the file at `path`."""
    if find_spec("gguf") is None:
        raise InputError(
            f"{path}: a GGUF file needs the package gguf: pip install --editable '.[gguf]'. Nothing was written."
        )


def read_facts(path: Path) -> GgufFacts:
    """The facts of a GGUF file, from its header. It takes seconds: a header holds each token of the vocabulary.

    Raises:
        InputError: the package gguf is missing.
        IntegrityError: the file is no GGUF file, or not a whole one.
    """
    check_package(path)
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(path).tensors
    except Exception:  # noqa: BLE001 (what numpy raises where a view passes the end of the file)
        raise IntegrityError(f"{path}: no GGUF file, or not a whole one. Nothing was written.") from None
    types = Counter(tensor.tensor_type.name for tensor in tensors)
    return GgufFacts(dict(sorted(types.items())), sum(int(tensor.n_elements) for tensor in tensors))


@cache
def tensor_types(path: Path, _sha256: str) -> dict[str, int]:
    """Tensors by type of the GGUF file with this hash; each lens of a fit records them, and a header takes seconds."""
    return read_facts(path).tensor_types

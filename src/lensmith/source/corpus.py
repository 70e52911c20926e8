"""A packed corpus as later stages read it: token ids that are checked, and the manifest of where they come from.

    tokens.safetensors    tokens uint32 (sequences, seq_len)     what the lens is fit on
    heldout.safetensors   tokens uint32 (sequences, seq_len)     what it is judged on; no document of it is in the other
    manifest.json         Manifest

Apart from packing.py, which makes these files: `fit` reads tokens, and an edit of how text is read must not make a lens
stale whose tokens did not change.
"""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lensmith.files import artifacts
from lensmith.hub.models import ModelPin
from lensmith.hub.published import LensPin
from lensmith.process.errors import IntegrityError

MANIFEST = "manifest.json"
TOKENS = "tokens.safetensors"
HELDOUT = "heldout.safetensors"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


class TokenizerFacts(_Part):
    """How text became token ids."""

    bos_policy: Literal["tokenizer", "never"]
    adds_bos: bool  # a document begins with the tokenizer's bos token
    class_name: str = Field(alias="class")
    vocab_size: int  # ids that the tokenizer knows
    probe_sha256: str  # of what it makes of some difficult texts, see `probe`


class SourceFile(_Part):
    """A file that documents were read from, and which of its rows."""

    index: int  # in the sorted or published list of files
    path: str
    sha256: str
    size: int  # bytes
    rows: tuple[int, int]  # first, and one past the last


class Part(_Part):
    """One side of the corpus."""

    documents: int
    tokens: int
    sequences: int
    files: tuple[SourceFile, ...]


class Manifest(_Part):
    """What a packed corpus is made of: every pin and every hash."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: Literal["hf", "files", "atlas"]
    seq_len: int
    seed: int
    model: ModelPin
    lens: LensPin | None = None  # of fit.kind imported
    tokenizer: TokenizerFacts
    train: Part
    heldout: Part
    repo: str | None
    name: str | None
    split: str | None
    revision: str | None
    commit: str | None
    skipped: dict[str, int]  # documents, by reason
    cut_documents: int
    content_hash: str  # of the source: where it is, which files, which rows
    tokens_sha256: str  # of the array's bytes, little-endian
    heldout_sha256: str

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a corpus folder.

        Raises:
            IntegrityError: it is missing, or is no manifest of this version.
        """
        path = folder / MANIFEST
        try:
            return cls.model_validate(artifacts.read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise IntegrityError(f"{path}: {place}: {first['msg']}. Run prefetch again.") from None


def read_tokens(folder: Path) -> NDArray[np.uint32]:
    """Training tokens, (sequences, seq_len).

    Raises:
        IntegrityError: they are missing, or others than the manifest records.
    """
    manifest = Manifest.read(folder)
    return _read(folder / TOKENS, manifest.tokens_sha256, (manifest.train.sequences, manifest.seq_len))


def read_heldout(folder: Path) -> NDArray[np.uint32]:
    """Held-out tokens, (sequences, seq_len). Raises as `read_tokens`."""
    manifest = Manifest.read(folder)
    return _read(folder / HELDOUT, manifest.heldout_sha256, (manifest.heldout.sequences, manifest.seq_len))


def sha256_tokens(tokens: NDArray[np.uint32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<u4").tobytes()).hexdigest()


def _read(path: Path, sha256: str, shape: tuple[int, int]) -> NDArray[np.uint32]:
    tensors = artifacts.read_tensors(path)
    tokens = tensors.get("tokens")
    if tokens is None or tokens.dtype != np.uint32 or tokens.shape != shape:
        held = {name: f"{tensor.dtype} {tensor.shape}" for name, tensor in tensors.items()}
        raise IntegrityError(f"{path}: holds {held}, the manifest records tokens, uint32 {shape}")
    if (found := sha256_tokens(tokens)) != sha256:
        raise IntegrityError(
            f"{path}: token ids have sha256 {found}, the manifest records {sha256}. Run prefetch again."
        )
    return np.asarray(tokens, dtype=np.uint32)

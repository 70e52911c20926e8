"""A packed corpus on disk as later stages read it: token ids, and the manifest of their origin.

    tokens.safetensors    tokens uint32 (sequences, seq_len)     the text that the lens is fit on
    heldout.safetensors   tokens uint32 (sequences, seq_len)     the text that it is judged on; shares no document
    heldout-<name>.safetensors                                   texts of other kinds, that it is judged on as well
    manifest.json         Manifest

`prefetch` writes these files. Reading them is a module of its own, so that an edit of how text is packed does not make
a lens stale whose tokens did not change.
"""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lensmith.files import artifacts
from lensmith.hub.pins import REPACK, LensPin, ModelPin
from lensmith.process.errors import IntegrityError
from lensmith.settings.sections import BosPolicy, CorpusKind

MANIFEST = "manifest.json"
TOKENS = "tokens.safetensors"
HELDOUT = "heldout.safetensors"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)


class TokenizerFacts(_Record):
    """How text became token ids."""

    bos_policy: BosPolicy
    adds_bos: bool  # a document begins with the tokenizer's bos token
    class_name: str = Field(alias="class")
    vocab_size: int  # ids that the tokenizer knows
    behaviour_sha256: str  # of the ids that it gives for some texts, see `source.tokenizer`
    # Of the template that made text of chats; left out where the source has none.
    chat_template_sha256: str | None = Field(default=None, exclude_if=lambda sha256: sha256 is None)


class SourceFile(_Record):
    """A file that documents were read from, and the rows that were read."""

    index: int  # in the sorted or published list of files
    path: str
    sha256: str
    size: int  # bytes
    rows: tuple[int, int]  # first, and one past the last


class CorpusSide(_Record):
    """The train or the held-out side of a corpus."""

    documents: int
    tokens: int
    sequences: int
    files: tuple[SourceFile, ...]


class OtherText(_Record):
    """Held-out text of another kind, an entry of corpus.also_heldout."""

    side: CorpusSide
    tokens_sha256: str
    tokens_per_byte: float


class Sampled(_Record):
    """How the model drew the tokens that it wrote itself."""

    temperature: float
    top_p: float


class Manifest(_Record):
    """The origin of a packed corpus: every pin and every hash."""

    schema_version: Literal[1] = Field(alias="schema")
    kind: CorpusKind
    seq_len: int
    seed: int
    model: ModelPin
    lens: LensPin | None = None  # where fit.kind is imported
    sampled: Sampled | None = Field(default=None, exclude_if=lambda sampled: sampled is None)  # of that kind only
    tokenizer: TokenizerFacts
    train: CorpusSide
    heldout: CorpusSide
    repo: str | None
    name: str | None
    split: str | None
    revision: str | None
    commit: str | None
    skipped: dict[str, int]  # documents, by reason
    cut_documents: int
    content_hash: str  # of the source: its address, files and rows
    tokens_sha256: str  # of the array's bytes, little-endian
    heldout_sha256: str
    tokens_per_byte: float | None = None  # of the held-out text in UTF-8: bits a byte are that many times bits a token
    also_heldout: dict[str, OtherText] = {}  # by name

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a corpus folder.

        Raises:
            IntegrityError: it is missing, or not a manifest of this version.
        """
        path = folder / MANIFEST
        try:
            return cls.model_validate(artifacts.read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise IntegrityError(f"{path}: {key}: {first['msg']}. {REPACK}") from None


def read_tokens(folder: Path) -> NDArray[np.uint32]:
    """Training tokens, (sequences, seq_len).

    Raises:
        IntegrityError: they are missing, or not those that the manifest records.
    """
    manifest = Manifest.read(folder)
    return _read(folder / TOKENS, manifest.tokens_sha256, (manifest.train.sequences, manifest.seq_len))


def read_heldout(folder: Path) -> NDArray[np.uint32]:
    """Held-out tokens, (sequences, seq_len). Raises as `read_tokens`."""
    manifest = Manifest.read(folder)
    return _read(folder / HELDOUT, manifest.heldout_sha256, (manifest.heldout.sequences, manifest.seq_len))


def read_other(folder: Path, name: str) -> NDArray[np.uint32]:
    """Tokens of a text of corpus.also_heldout, (sequences, seq_len). Raises as `read_tokens`."""
    manifest = Manifest.read(folder)
    text = manifest.also_heldout[name]
    return _read(folder / other_heldout(name), text.tokens_sha256, (text.side.sequences, manifest.seq_len))


def other_heldout(name: str) -> str:
    """The file of a text of corpus.also_heldout."""
    return f"heldout-{name}.safetensors"


def sha256_tokens(tokens: NDArray[np.uint32]) -> str:
    """The hash of an array's bytes, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<u4").tobytes()).hexdigest()


def _read(path: Path, sha256: str, shape: tuple[int, int]) -> NDArray[np.uint32]:
    tensors = artifacts.read_tensors(path)
    tokens = tensors.get("tokens")
    if tokens is None or tokens.dtype != np.uint32 or tokens.shape != shape:
        contents = {name: f"{tensor.dtype} {tensor.shape}" for name, tensor in tensors.items()}
        raise IntegrityError(f"{path}: holds {contents}, the manifest records tokens, uint32 {shape}. {REPACK}")
    if (actual := sha256_tokens(tokens)) != sha256:
        raise IntegrityError(f"{path}: token ids have sha256 {actual}, the manifest records {sha256}. {REPACK}")
    return np.asarray(tokens, dtype=np.uint32)

"""The residual bank: the model's forward pass is paid once, and every epoch and every variant of a lens reads it.

A bank holds resid_post of all L blocks at `positions_per_seq` sampled positions of each sequence, in the model's dtype,
and the model's own distribution there as `Teacher` packs it. It is a cache (`files.cache`), addressed by its content:
its folder's name is a hash of everything that decides its numbers, so a hit is exact and a stale bank cannot be read.
It is written in shards. Each is whole or absent, its digest is checked, and it is written while the next one is being
captured. An interrupted capture goes on where it stopped; a damaged shard is captured anew.

    <LENSMITH_HOME>/bank/<key>/key.json                  the values that are hashed
    <LENSMITH_HOME>/bank/<key>/shard-00000.safetensors   resid_post (SHARD_SEQS, positions_per_seq, L, d_model)
                                                         teacher (SHARD_SEQS, positions_per_seq, d_model + 2)
                                                         likely (SHARD_SEQS, positions_per_seq, LIKELY)
"""

import hashlib
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from lensmith.files import artifacts, cache
from lensmith.process import amounts
from lensmith.process.errors import IntegrityError
from lensmith.process.progress import Progress
from lensmith.settings.sections import FitParams
from lensmith.source import tensor_file
from lensmith.source.backbone import Backbone
from lensmith.source.corpus import sha256_tokens
from lensmith.source.residuals import Batch, Residuals, StreamedResiduals, sample_positions
from lensmith.source.teacher import LIKELY, Teacher

SHARD_SEQS = 64


@dataclass
class BankedResiduals:
    """Residuals read from the shards of a bank on disk."""

    folder: Path
    n_seqs: int
    positions_per_seq: int
    tokens_forwarded: int  # to make the bank, whenever that was
    reads_ahead = True
    _slices: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)  # open tensors, by shard

    def read(self, seqs: NDArray[np.int64]) -> Batch:
        """As `Residuals.read`."""
        parts: dict[str, list[Tensor]] = {}
        for seq in seqs:
            shard, offset = divmod(int(seq), SHARD_SEQS)
            if shard not in self._slices:
                file: Any = safe_open(_path(self.folder, shard), framework="pt")
                self._slices[shard] = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, safe_open is no dict
            for name, tensor in self._slices[shard].items():
                parts.setdefault(name, []).append(tensor[offset])
        tensors = {name: torch.cat(part) for name, part in parts.items()}
        teacher = Teacher(tensors["teacher"], tensors["likely"], None) if "teacher" in tensors else None
        return Batch(tensors["resid_post"], teacher)


def residuals(
    backbone: Backbone, model_files: dict[str, str], tokens: NDArray[np.uint32], settings: FitParams
) -> Residuals:
    """The residuals of these sequences, from a bank on disk or streamed, as `fit.bank` says.

    Args:
        model_files: sha256 of the model's files by name.
        tokens: (n_seqs, seq_len).

    Raises:
        ResourceError: the bank would not fit, by LENSMITH_BANK_GIB or on the disk.
    """
    source = StreamedResiduals(backbone, tokens, sample_positions(settings, *tokens.shape))
    if settings.bank == "stream":
        return source
    key, folder = _key_and_folder(source, model_files)
    with cache.held(folder):
        shards = {shard: _tokens_of(_path(folder, shard)) for shard in range(_n_shards(source))}
        missing = [shard for shard, n_tokens in shards.items() if n_tokens is None]
        shards |= _capture_shards(folder, key, missing, source)
    tokens_forwarded = sum(n_tokens or 0 for n_tokens in shards.values())
    return BankedResiduals(folder, source.n_seqs, source.positions_per_seq, tokens_forwarded)


def capture_part(
    backbone: Backbone,
    model_files: dict[str, str],
    tokens: NDArray[np.uint32],
    settings: FitParams,
    *,
    part: int,
    parts: int,
) -> int:
    """Capture the missing shards among `part`, `part + parts`, …, beside processes that capture the others.

    Shards do not depend on each other: `residuals` reads the same bytes whichever process wrote them.

    Returns:
        The number of shards captured.

    Raises:
        ResourceError: the bank would not fit, by LENSMITH_BANK_GIB or on the disk.
    """
    source = StreamedResiduals(backbone, tokens, sample_positions(settings, *tokens.shape))
    key, folder = _key_and_folder(source, model_files)
    with cache.held(folder, shared=True):
        shards = range(_n_shards(source))[part::parts]
        missing = [shard for shard in shards if _tokens_of(_path(folder, shard)) is None]
        _capture_shards(folder, key, missing, source, n_processes=parts)
    return len(missing)


def _key_and_folder(source: StreamedResiduals, model_files: dict[str, str]) -> tuple[dict[str, object], Path]:
    """Everything that decides a bank's bytes, and the folder whose name is the hash of it."""
    backbone = source.backbone
    key = {
        "schema": 4,
        "model_files": model_files,
        "tokens_sha256": sha256_tokens(source.tokens),
        "positions_sha256": hashlib.sha256(source.positions.astype("<i8").tobytes()).hexdigest(),
        **backbone.arithmetic,
        "capture_seqs": source.capture_seqs,
    }
    return key, cache.folder("bank", hashlib.sha256(artifacts.canonical_json(key).encode()).hexdigest()[:32])


def _n_shards(source: StreamedResiduals) -> int:
    return -(-source.n_seqs // SHARD_SEQS)


def _path(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.safetensors"


def _tokens_of(path: Path) -> int | None:
    """The tokens that were forwarded for a shard; None where it is missing, or damaged and so removed."""
    if not path.exists():
        return None
    try:
        _, facts = tensor_file.read(path)
    except IntegrityError as error:
        print(f"{error}. It is captured anew.", file=sys.stderr)
        path.unlink()
        return None
    return int(facts["tokens"])


def _capture_shards(
    folder: Path, key: dict[str, object], shards: list[int], source: StreamedResiduals, n_processes: int = 1
) -> dict[int, int]:
    """Capture these shards, each written while the next is in the model; the tokens forwarded for each.

    Room is reserved for as many shards in each of `n_processes`.
    """
    if not shards:
        return {}
    backbone, n_tokens = source.backbone, {}
    resid_bytes = backbone.n_layers * backbone.d_model * backbone.dtype.itemsize
    teacher_bytes = 0 if backbone.head.softcap is not None else 4 * (backbone.d_model + 2 + LIKELY)
    n_seqs = min(n_processes * len(shards) * SHARD_SEQS, source.n_seqs)
    need = n_seqs * source.positions_per_seq * (resid_bytes + teacher_bytes)
    cache.reserve(folder, need)
    artifacts.write_json(folder / "key.json", key)
    total = sum(len(_seqs(shard, source)) for shard in shards)
    with Progress("capture", total, "sequence") as progress, ThreadPoolExecutor(max_workers=1) as writer:
        progress.note(f"capture: {amounts.size(need)} of residuals into {folder}")
        writing: Future[None] | None = None
        for shard in shards:
            tensors, n_tokens[shard] = _capture_shard(shard, source, progress)
            if writing is not None:
                writing.result()  # raises its error here; and no more than two shards are in memory
            writing = writer.submit(tensor_file.write, _path(folder, shard), tensors, {"tokens": n_tokens[shard]})
        if writing is not None:
            writing.result()
    return n_tokens


def _seqs(shard: int, source: StreamedResiduals) -> NDArray[np.int64]:
    return np.arange(shard * SHARD_SEQS, min((shard + 1) * SHARD_SEQS, source.n_seqs))


def _capture_shard(shard: int, source: StreamedResiduals, progress: Progress) -> tuple[dict[str, Tensor], int]:
    """The tensors of a shard, and the tokens forwarded for it."""
    before, head = source.tokens_forwarded, source.backbone.head
    seqs, seq_len = _seqs(shard, source), source.tokens.shape[1]
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(seqs), source.capture_seqs):
        chunk = seqs[start : start + source.capture_seqs]
        resid = source.read(chunk).resid
        teacher = Teacher.from_head_input(head, head.norm(resid[:, -1], resid.shape[1], "final"))
        for name, tensor in (("resid_post", resid), ("teacher", teacher.packed), ("likely", teacher.likely)):
            if tensor is not None:
                parts.setdefault(name, []).append(tensor.cpu())
        progress.advance(len(chunk), tokens=len(chunk) * seq_len)
    shape = (len(seqs), source.positions_per_seq)
    tensors = {name: torch.cat(part).unflatten(0, shape).contiguous() for name, part in parts.items()}
    return tensors, source.tokens_forwarded - before

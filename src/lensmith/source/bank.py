"""The residual bank: the frozen model's forward pass is paid once, then every epoch and every variant reads it.

A bank holds resid_post of all L blocks at `positions_per_seq` sampled positions of each sequence, in the dtype that the
model ran in, and the model's own distribution there as `Teacher` packs it. It is a cache (`files.cache`),
content-addressed: what decides its numbers is hashed into its folder's name, so a hit is exact and a stale bank cannot
be read. It is written in shards, each whole or absent and digest-checked, while the next one is being captured; an
interrupted capture goes on where it stopped, and a damaged shard is captured anew.

    <LENSMITH_HOME>/bank/<key>/key.json              what the key is the hash of
    <LENSMITH_HOME>/bank/<key>/shard-00000.safetensors   resid_post (SHARD_SEQS, positions_per_seq, L, d_model)
                                                         teacher (SHARD_SEQS, positions_per_seq, d_model + 2)
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

from lensmith.files import artifacts, cache, tensor_file
from lensmith.process import amounts
from lensmith.process.errors import IntegrityError
from lensmith.process.progress import Progress
from lensmith.settings.sections import FitParams
from lensmith.source import ranks
from lensmith.source.backbone import Backbone
from lensmith.source.residuals import Batch, Residuals, StreamedResiduals, sample_positions
from lensmith.source.teacher import Teacher

SHARD_SEQS = 64


@dataclass
class BankedResiduals:
    """Residuals read from the shards of a bank on disk."""

    folder: Path
    n_seqs: int
    positions_per_seq: int
    tokens_forwarded: int  # to make the bank, whenever that was
    reads_ahead = True
    _open: dict[int, Any] = field(default_factory=dict, repr=False)

    def read(self, seqs: NDArray[np.int64]) -> Batch:
        parts = [self._sequence(int(seq)) for seq in seqs]
        teachers = [teacher for _, teacher in parts if teacher is not None]
        return Batch(torch.cat([resid for resid, _ in parts]), torch.cat(teachers) if teachers else None)

    def _sequence(self, seq: int) -> tuple[Tensor, Tensor | None]:
        shard, offset = divmod(seq, SHARD_SEQS)
        if shard not in self._open:
            file: Any = safe_open(_shard(self.folder, shard), framework="pt")
            self._open[shard] = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, safe_open is no dict
        slices = self._open[shard]
        return slices["resid_post"][offset], slices["teacher"][offset] if "teacher" in slices else None


def residuals(
    backbone: Backbone, model_files: dict[str, str], tokens: NDArray[np.uint32], settings: FitParams
) -> Residuals:
    """The residuals of these sequences, from a bank on disk or streamed, as `fit.bank` asks.

    Raises:
        ResourceError: the bank would not fit, by LENSMITH_BANK_GIB or on the disk.
    """
    streamed = StreamedResiduals(backbone, tokens, sample_positions(settings, *tokens.shape))
    return streamed if settings.bank == "stream" else _banked(streamed, model_files)


def capture_part(
    backbone: Backbone,
    model_files: dict[str, str],
    tokens: NDArray[np.uint32],
    settings: FitParams,
    *,
    part: int,
    parts: int,
) -> int:
    """Capture what is missing of every `parts`-th shard from `part` on, beside processes that do the other parts.

    Shards do not depend on each other: whoever made them, `rows` finds the same bytes. The number captured is returned.

    Raises:
        ResourceError: the bank would not fit, by LENSMITH_BANK_GIB or on the disk.
    """
    source = StreamedResiduals(backbone, tokens, sample_positions(settings, *tokens.shape))
    key, folder = _place(source, model_files)
    with cache.held(folder, shared=True):
        mine = [shard for shard in range(_n_shards(source))[part::parts] if _tokens(_shard(folder, shard)) is None]
        _capture_missing(folder, key, mine, source, share=parts)
    return len(mine)


def _banked(source: StreamedResiduals, model_files: dict[str, str]) -> BankedResiduals:
    key, folder = _place(source, model_files)
    with cache.held(folder):
        tokens = {shard: _tokens(_shard(folder, shard)) for shard in range(_n_shards(source))}
        missing = [shard for shard, n_tokens in tokens.items() if n_tokens is None]
        tokens |= _capture_missing(folder, key, missing, source)
        tokens_forwarded = sum(n_tokens or 0 for n_tokens in tokens.values())
    return BankedResiduals(folder, source.n_seqs, source.positions_per_seq, tokens_forwarded)


def _place(source: StreamedResiduals, model_files: dict[str, str]) -> tuple[dict[str, object], Path]:
    key = _key(source, model_files)
    return key, cache.folder("bank", hashlib.sha256(artifacts.canonical_json(key).encode()).hexdigest()[:32])


def _n_shards(source: StreamedResiduals) -> int:
    return -(-source.n_seqs // SHARD_SEQS)


def _capture_missing(
    folder: Path, key: dict[str, object], missing: list[int], source: StreamedResiduals, share: int = 1
) -> dict[int, int]:
    """Capture these shards, where there are any; `share` processes need as much room as this one."""
    if not missing:
        return {}
    need = _bytes_per_seq(source) * min(share * len(missing) * SHARD_SEQS, source.n_seqs)
    cache.reserve(folder, need)
    artifacts.write_json(folder / "key.json", key)
    with Progress("capture", len(missing), "shard") as progress:
        progress.note(f"capture: {amounts.size(need)} of residuals into {folder}")
        return _capture(folder, missing, source, progress)


def _key(source: StreamedResiduals, model_files: dict[str, str]) -> dict[str, object]:
    """Everything that decides a bank's bytes."""
    backbone = source.backbone
    is_cpu = backbone.device.type == "cpu"
    return {
        "schema": 3,
        "model_files": model_files,
        "tokens_sha256": hashlib.sha256(source.tokens.astype("<u4").tobytes()).hexdigest(),
        "positions_sha256": hashlib.sha256(source.positions.astype("<i8").tobytes()).hexdigest(),
        "dtype": str(backbone.dtype),
        "device": "cpu" if is_cpu else torch.cuda.get_device_name(backbone.device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ranks": ranks.size(),
        "torch": torch.__version__,
        "capture_seqs": source.capture_seqs,
    }


def _bytes_per_seq(source: StreamedResiduals) -> int:
    backbone = source.backbone
    resid = backbone.n_layers * backbone.d_model * backbone.dtype.itemsize
    teacher = 0 if backbone.head.softcap is not None else 4 * (backbone.d_model + 2)
    return source.positions_per_seq * (resid + teacher)


def _shard(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.safetensors"


def _tokens(path: Path) -> int | None:
    """The tokens that were forwarded for a shard; None where it is missing, or not what was written and so removed."""
    if not path.exists():
        return None
    try:
        _, facts = tensor_file.read(path)
    except IntegrityError as error:
        print(f"{error}. It is captured anew.", file=sys.stderr)
        path.unlink()
        return None
    return int(facts["tokens"])


def _capture(folder: Path, shards: list[int], source: StreamedResiduals, progress: Progress) -> dict[int, int]:
    """Capture these shards, one being written while the next is in the model; the tokens forwarded for each."""
    tokens = {}
    with ThreadPoolExecutor(max_workers=1) as writer:
        writing: Future[None] | None = None
        for shard in shards:
            tensors, tokens[shard] = _captured(shard, source)
            if writing is not None:
                writing.result()  # its error is ours, and two shards in memory are enough
            writing = writer.submit(tensor_file.write, _shard(folder, shard), tensors, {"tokens": tokens[shard]})
            progress.advance(tokens=tokens[shard])
        if writing is not None:
            writing.result()
    return tokens


def _captured(shard: int, source: StreamedResiduals) -> tuple[dict[str, Tensor], int]:
    before, head = source.tokens_forwarded, source.backbone.head
    seqs = np.arange(shard * SHARD_SEQS, min((shard + 1) * SHARD_SEQS, source.n_seqs))
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(seqs), source.capture_seqs):
        resid = source.read(seqs[start : start + source.capture_seqs]).resid
        teacher = Teacher.from_head_input(head, head.norm(resid[:, -1], resid.shape[1], "final")).packed
        for name, tensor in (("resid_post", resid), ("teacher", teacher)):
            if tensor is not None:
                parts.setdefault(name, []).append(tensor.cpu())
    shape = (len(seqs), source.positions_per_seq)
    tensors = {name: torch.cat(part).unflatten(0, shape).contiguous() for name, part in parts.items()}
    return tensors, source.tokens_forwarded - before

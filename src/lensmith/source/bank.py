"""The residual bank: the frozen model's forward pass is paid once, then every epoch and every variant reads it.

A bank holds resid_post of all L blocks at `positions_per_seq` sampled positions of each sequence, in the dtype that the
model ran in. It is a cache, content-addressed under LENSMITH_HOME like the Hub's: what decides its numbers is hashed
into its folder's name, so a hit is exact and a stale bank cannot be read. It is written in shards, each whole or
absent, and an interrupted capture goes on where it stopped.

    <LENSMITH_HOME>/bank/<key>/key.json              what the key is the hash of
    <LENSMITH_HOME>/bank/<key>/shard-00000.safetensors   resid_post (SHARD_SEQS, positions_per_seq, L, d_model)
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from lensmith.draws import Stream
from lensmith.edge import artifacts
from lensmith.edge.params import FitParams
from lensmith.errors import IntegrityError, ResourceError
from lensmith.source.backbone import Backbone

SHARD_SEQS = 64
CAPTURE_SEQS = 8  # per forward pass


def home() -> Path:
    """Where caches live: LENSMITH_HOME, else ~/.cache/lensmith."""
    return Path(os.environ.get("LENSMITH_HOME") or Path.home() / ".cache" / "lensmith")


class Rows(Protocol):
    """Residuals by sequence, wherever they come from."""

    @property
    def n_seqs(self) -> int: ...

    @property
    def positions_per_seq(self) -> int: ...

    @property
    def tokens_forwarded(self) -> int: ...

    def resid_post(self, seqs: NDArray[np.int64]) -> Tensor:
        """resid_post of these sequences' sampled positions: (len(seqs) * positions_per_seq, L, d_model)."""


def sample_positions(settings: FitParams, n_seqs: int, seq_len: int) -> NDArray[np.int64]:
    """The sampled positions of each sequence, ascending, without repeats: (n_seqs, positions_per_seq)."""
    first, last = int(seq_len * settings.position_min), int(seq_len * settings.position_max)
    stream = Stream(settings.seed, "positions")
    return first + np.stack([stream.subset(last - first, settings.positions_per_seq, step=i) for i in range(n_seqs)])


@dataclass
class StreamedRows:
    """Rows captured anew each time they are asked for: no disk, one forward pass an epoch."""

    backbone: Backbone
    tokens: NDArray[np.uint32]  # (n_seqs, seq_len)
    positions: NDArray[np.int64]  # (n_seqs, positions_per_seq)
    tokens_forwarded: int = 0

    @property
    def n_seqs(self) -> int:
        return len(self.tokens)

    @property
    def positions_per_seq(self) -> int:
        return int(self.positions.shape[1])

    def resid_post(self, seqs: NDArray[np.int64]) -> Tensor:
        parts = []
        for chunk in np.array_split(seqs, -(-len(seqs) // CAPTURE_SEQS)):
            tokens = torch.from_numpy(self.tokens[chunk].astype(np.int64))
            captured = self.backbone.capture(tokens, torch.from_numpy(self.positions[chunk]))
            parts.append(captured[:, :, 1:].flatten(0, 1))  # row 0 is the embedding, which no lens reads
            self.tokens_forwarded += tokens.numel()
        return torch.cat(parts)


@dataclass
class BankedRows:
    """Rows read from the shards of a bank on disk."""

    folder: Path
    n_seqs: int
    positions_per_seq: int
    tokens_forwarded: int  # to make the bank, whenever that was
    _open: dict[int, Any] = field(default_factory=dict, repr=False)

    def resid_post(self, seqs: NDArray[np.int64]) -> Tensor:
        return torch.cat([self._sequence(int(seq)) for seq in seqs])

    def _sequence(self, seq: int) -> Tensor:
        shard, offset = divmod(seq, SHARD_SEQS)
        if shard not in self._open:
            file: Any = safe_open(_shard(self.folder, shard), framework="pt")
            self._open[shard] = file.get_slice("resid_post")
        return self._open[shard][offset]  # type: ignore[no-any-return]


def rows(backbone: Backbone, model_files: dict[str, str], tokens: NDArray[np.uint32], settings: FitParams) -> Rows:
    """The residuals of these sequences, from a bank on disk or streamed, as `fit.bank` asks."""
    streamed = StreamedRows(backbone, tokens, sample_positions(settings, *tokens.shape))
    return streamed if settings.bank == "stream" else _banked(streamed, model_files)


def _banked(source: StreamedRows, model_files: dict[str, str]) -> BankedRows:
    key = _key(source, model_files)
    folder = home() / "bank" / hashlib.sha256(artifacts.canonical_json(key).encode()).hexdigest()[:32]
    n_shards = -(-source.n_seqs // SHARD_SEQS)
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder):
        missing = [shard for shard in range(n_shards) if not _shard(folder, shard).exists()]
        if missing:
            _check_space(folder, source, len(missing))
            artifacts.write_json(folder / "key.json", key)
        for shard in tqdm(missing, desc="capture", unit="shard", disable=None):
            _capture_shard(folder, shard, source)
        tokens_forwarded = sum(_verified_tokens(_shard(folder, shard)) for shard in range(n_shards))
    return BankedRows(folder, source.n_seqs, source.positions_per_seq, tokens_forwarded)


def _key(source: StreamedRows, model_files: dict[str, str]) -> dict[str, object]:
    """Everything that decides a bank's bytes."""
    backbone = source.backbone
    return {
        "schema": 1,
        "model_files": model_files,
        "tokens_sha256": hashlib.sha256(source.tokens.astype("<u4").tobytes()).hexdigest(),
        "positions_sha256": hashlib.sha256(source.positions.astype("<i8").tobytes()).hexdigest(),
        "dtype": str(backbone.dtype),
        "device": backbone.device.type
        if backbone.device.type == "cpu"
        else torch.cuda.get_device_name(backbone.device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capture_seqs": CAPTURE_SEQS,
    }


def _shard(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.safetensors"


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a bank while it is being written; a second process waits and then finds it whole."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _verified_tokens(path: Path) -> int:
    """The tokens that were forwarded for a shard, after checking that it holds the bytes it was written with."""
    with safe_open(path, framework="pt") as file:
        about = json.loads((file.metadata() or {}).get("lensmith", "{}"))
        if about.get("sha256") != _digest(file.get_tensor("resid_post")):
            raise IntegrityError(
                f"{path}: its bytes are not the ones that were written. Delete it; it is captured anew."
            )
    return int(about["tokens"])


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()


def _capture_shard(folder: Path, shard: int, source: StreamedRows) -> None:
    before = source.tokens_forwarded
    seqs = np.arange(shard * SHARD_SEQS, min((shard + 1) * SHARD_SEQS, source.n_seqs))
    resid = source.resid_post(seqs).unflatten(0, (len(seqs), source.positions_per_seq)).cpu().contiguous()
    about = artifacts.canonical_json({"sha256": _digest(resid), "tokens": source.tokens_forwarded - before})
    with artifacts.replacing(_shard(folder, shard)) as temporary:
        save_file({"resid_post": resid}, temporary, metadata={"lensmith": about})


def _check_space(folder: Path, source: StreamedRows, n_shards: int) -> None:
    backbone = source.backbone
    per_position = backbone.n_layers * backbone.d_model * backbone.dtype.itemsize
    need = n_shards * SHARD_SEQS * source.positions_per_seq * per_position
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ResourceError(
            f"{folder}: the residual bank needs {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free. "
            "Set LENSMITH_HOME to a larger disk, or fit.bank to stream. Nothing was captured."
        )

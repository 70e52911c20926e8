"""Tensor parallelism: a model whose blocks are split over several processes of one machine, the first being the stage.

    rank 0      does all that a stage does: captures, fits, writes
    rank 1 …    `python -m lensmith.source.ranks`: hold their part of each matrix, and repeat each pass of rank 0

Rank 0 sends the arguments of a pass through a pipe. There the others wait between passes, hours while a lens is fit,
and they end when it closes, however rank 0 ended. What is no block, the head among it, is whole on each. Sums over
processes are in another order than on one: the last bits of residuals are others than with `source.placement: single`.
"""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

from lensmith.process import command
from lensmith.process.errors import InputError, ResourceError
from lensmith.source import loading, placement

RANKS = "LENSMITH_RANKS"
GRACE = 10.0  # seconds
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
_OTHERS: list["Others"] = []  # of the one model that a process may have


def asked(device: torch.device) -> int:
    """How many processes are to share a model: as many as there are GPUs, or as LENSMITH_RANKS says.

    Raises:
        InputError: fewer than two, or more than GPUs.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" else None
    text = os.environ.get(RANKS, "").strip() or str(gpus or 0)
    n = int(text) if text.isdecimal() else 0
    if 2 <= n <= (gpus or n):
        return n
    there = f"{gpus} GPUs are there" if gpus is not None else f"on a CPU {RANKS} has to say how many processes"
    raise InputError(
        f"source.placement: tp shares a model between 2 or more processes, {RANKS} is {text!r}, and {there}. "
        "The model was not loaded."
    )


def size() -> int:
    """How many processes the loaded model is shared by."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


@dataclass(frozen=True)
class Spec:
    """What every rank loads, as a JSON object."""

    n: int
    store: str  # a file through which they find each other
    folder: str
    where: str
    dtype: str
    device: str
    trusted: bool
    threads: int

    @classmethod
    def of(cls, folder: Path, where: str, dtype: torch.dtype, device: torch.device, n: int, *, trusted: bool) -> "Spec":
        return cls(
            n=n,
            store=str(Path(tempfile.mkdtemp(prefix="lensmith-ranks-")) / "store"),
            folder=str(folder),
            where=where,
            dtype=str(dtype).removeprefix("torch."),
            device=device.type,
            trusted=trusted,
            threads=torch.get_num_threads(),
        )

    def load(self, rank: int) -> PreTrainedModel:
        """This rank's part of the model, checked for NaN; all ranks at once."""
        with _joined(self, rank):
            model = loading.load_model(
                Path(self.folder), self.where, getattr(torch, self.dtype), {}, trusted=self.trusted, n_ranks=self.n
            )
            loading.check_finite(model, self.where)
        return model


@contextmanager
def _joined(spec: Spec, rank: int) -> Iterator[None]:
    """In a group of processes, with what transformers reads of torchrun's environment while it loads."""
    torch.set_num_threads(spec.threads)
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(spec.n)}
    before = {name: os.environ.get(name) for name in own}
    if spec.device == "cuda":
        torch.cuda.set_device(rank)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else the machine's name is looked up
    distributed.init_process_group(
        BACKENDS[spec.device], init_method=f"file://{spec.store}", rank=rank, world_size=spec.n
    )
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def release() -> None:
    """The other ranks let go of their weights too, where there are others."""
    for others in _OTHERS:
        others.say(None, {}, {})


def load(spec: Spec) -> PreTrainedModel:
    """Rank 0's part of the model; every forward pass of it is one of all ranks, until this process ends.

    Raises:
        ResourceError: another rank ended; what it said is on stderr.
        Else as `loading.load_model`.
    """
    if distributed.is_initialized():
        raise InputError("source.placement: tp is for one model a process, and there is one already.")
    others = Others(spec)
    _OTHERS.append(others)
    atexit.register(others.close)
    with others.named():
        model = spec.load(0)
    for path, module in model.named_modules():
        if any(isinstance(part, nn.ModuleList) for part in module.modules()) and not isinstance(module, nn.ModuleList):
            module.register_forward_pre_hook(partial(others.begin, path), with_kwargs=True)
            module.register_forward_hook(others.end, always_call=True)
    return model


class Others:
    """The other ranks, as rank 0 sees them."""

    def __init__(self, spec: Spec) -> None:
        self.where, self.depth = spec.where, 0
        self.processes = [
            subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "lensmith.source.ranks", str(rank), json.dumps(vars(spec))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for rank 0, which finishes its step
            )
            for rank in range(1, spec.n)
        ]
        self.store = Path(spec.store).parent
        self.is_closing = False
        for process in self.processes:
            threading.Thread(target=self._watch, args=(process,), daemon=True).start()

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        """A group waits for a lost member for half an hour, where no exception reaches it: then end here and now."""
        process.wait()
        time.sleep(GRACE)  # rank 0 may notice by itself, or be closing
        if not self.is_closing:
            print(f"error: {self._lost()}", file=sys.stderr, flush=True)
            os._exit(ResourceError.exit_code)

    def _lost(self) -> str:
        codes = [process.poll() for process in self.processes]
        return (
            f"{self.where}: a process that shares the model ended (exit {codes}); its error stands above. "
            "What is finished is kept. `dvc repro` goes on."
        )

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors of a group that has lost a member say so."""
        try:
            yield
        except (RuntimeError, BrokenPipeError) as error:
            if all(process.poll() is None for process in self.processes):
                raise
            raise ResourceError(self._lost()) from error

    def begin(self, path: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a pass: the outermost module that is called is called everywhere."""
        self.depth += 1
        if self.depth > 1:
            return
        if args:
            raise TypeError("a pass over several processes takes its arguments by name")
        tensors = {name: value.cpu() for name, value in kwargs.items() if isinstance(value, Tensor)}
        self.say(path, {name: value for name, value in kwargs.items() if name not in tensors}, tensors)

    def say(self, path: str | None, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Have a module called everywhere; without a path, the weights released."""
        data = safetensors.torch.save(tensors)
        with self.named():
            for process in self.processes:
                _write(process.stdin, {"path": path, "plain": plain, "bytes": len(data)}, data)

    def end(self, *_: object) -> None:
        self.depth -= 1

    def close(self) -> None:
        """Let them end, and leave their group."""
        self.is_closing = True
        for process in self.processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        for process in self.processes:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:  # amid a pass that rank 0 broke off
                process.kill()
                process.wait()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        shutil.rmtree(self.store, ignore_errors=True)


def _write(pipe: IO[bytes] | None, about: dict[str, Any], data: bytes) -> None:
    assert pipe is not None
    pipe.write(json.dumps(about).encode() + b"\n" + data)
    pipe.flush()


def _serve(model: PreTrainedModel, calls: IO[bytes]) -> None:
    """Repeat the passes that rank 0 begins, until it ends."""
    while line := calls.readline():
        about = json.loads(line)
        tensors = safetensors.torch.load(calls.read(about["bytes"]))
        if about["path"] is None:
            placement.release(model)
            continue
        on_device = {name: tensor.to(model.device) for name, tensor in tensors.items()}
        with torch.inference_mode():
            model.get_submodule(about["path"])(**about["plain"], **on_device)


def _main() -> None:
    rank, spec = int(sys.argv[1]), Spec(**json.loads(sys.argv[2]))
    _serve(spec.load(rank), sys.stdin.buffer)


if __name__ == "__main__":
    command.run(_main)

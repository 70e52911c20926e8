"""Tensor parallelism: a model whose blocks are split over several processes of one machine, the first being the stage.

    rank 0      does all that a stage does: captures, fits, writes
    rank 1 …    `python -m lensmith.source.ranks`: hold their part of each matrix, and repeat each pass of rank 0

Rank 0 sends the arguments of a pass through a pipe. The others wait on it between passes, for hours while a lens is
fit, and end when it closes, however rank 0 ended. Everything outside the blocks, the head included, is whole in each
process. Sums over processes run in another order than in one: the last bits of residuals differ from those of
`source.placement: single`.
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
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel

from lensmith.process import command
from lensmith.process.errors import InputError, ResourceError
from lensmith.source import loading, placement
from lensmith.source.placement import Layout
from lensmith.source.skeleton import Skeleton

GRACE = 10.0  # seconds that a process gets to end by itself
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
_GROUPS: list["OtherRanks"] = []  # of the one shared model that a process may have


def size() -> int:
    """Processes that share the loaded model."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def load_model(skeleton: Skeleton, layout: Layout) -> PreTrainedModel:
    """Rank 0's part of the model; every forward pass of it is one of all ranks, until this process ends.

    Raises:
        InputError: this process has loaded a shared model before.
        ResourceError: another rank ended; its error is on stderr.
        IntegrityError, NumericError: as `loading.load_model`.
    """
    if distributed.is_initialized():
        raise InputError("source.placement: tp allows one model a process, and this process has loaded one already.")
    spec = RankSpec(
        n_ranks=layout.n_ranks,
        tp_plan=layout.tp_plan or {},
        store=str(Path(tempfile.mkdtemp(prefix="lensmith-ranks-")) / "store"),
        path=str(skeleton.path),
        name=skeleton.name,
        dtype=str(skeleton.dtype).removeprefix("torch."),
        device=skeleton.device.type,
        trusted=skeleton.trusted,
        threads=torch.get_num_threads(),
    )
    others = OtherRanks(spec)
    _GROUPS.append(others)
    atexit.register(others.close)
    with others.errors_named():
        model = spec.load_part(rank=0)
    for path, module in model.named_modules():
        if any(isinstance(part, nn.ModuleList) for part in module.modules()) and not isinstance(module, nn.ModuleList):
            module.register_forward_pre_hook(partial(others.begin_pass, path), with_kwargs=True)
            module.register_forward_hook(others.end_pass, always_call=True)
    return model


def release() -> None:
    """Make the other ranks free their weights, where there are others."""
    for others in _GROUPS:
        others.send(None, {}, {})


@dataclass(frozen=True)
class RankSpec:
    """What every rank loads; other processes get it as a JSON object."""

    n_ranks: int
    tp_plan: dict[str, str]
    store: str  # a file through which the processes find each other
    path: str
    name: str
    dtype: str
    device: str
    trusted: bool
    threads: int

    def load_part(self, rank: int) -> PreTrainedModel:
        """Join the group of processes and load this rank's part of the model; all ranks call this at once."""
        torch.set_num_threads(self.threads)
        if self.device == "cuda":
            torch.cuda.set_device(rank)
        else:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else the machine's name is looked up
        distributed.init_process_group(
            BACKENDS[self.device], init_method=f"file://{self.store}", rank=rank, world_size=self.n_ranks
        )
        # transformers reads the environment that torchrun sets.
        values = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.n_ranks)}
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            return loading.load_model(
                Path(self.path),
                self.name,
                getattr(torch, self.dtype),
                Layout({}, self.n_ranks, self.tp_plan),
                trusted=self.trusted,
            )
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


class OtherRanks:
    """The processes of ranks 1 and up, as rank 0 sees them."""

    def __init__(self, spec: RankSpec) -> None:
        self.name, self.store = spec.name, Path(spec.store).parent
        self.depth = 0  # of nested calls of modules in the pass that runs
        self.is_closing = False
        self.processes = [
            subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "lensmith.source.ranks", str(rank), json.dumps(vars(spec))],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for rank 0, which finishes its step
            )
            for rank in range(1, spec.n_ranks)
        ]

        def end_with(process: subprocess.Popen[bytes]) -> None:
            # A group waits half an hour for a lost member, deaf to exceptions.
            process.wait()
            time.sleep(GRACE)  # rank 0 may notice by itself, or be closing
            if not self.is_closing:
                print(f"error: {self._loss()}", file=sys.stderr, flush=True)
                os._exit(ResourceError.exit_code)

        for process in self.processes:
            threading.Thread(target=end_with, args=(process,), daemon=True).start()

    def _loss(self) -> str:
        codes = [process.poll() for process in self.processes]
        return (
            f"{self.name}: a process that shares the model ended (exit {codes}); its error stands above. "
            "Finished work is kept. `dvc repro` goes on."
        )

    @contextmanager
    def errors_named(self) -> Iterator[None]:
        """Turns errors of a group that has lost a member into ResourceError."""
        try:
            yield
        except (RuntimeError, BrokenPipeError) as error:
            if all(process.poll() is None for process in self.processes):
                raise
            raise ResourceError(self._loss()) from error

    def begin_pass(self, path: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a module is called here: the outermost one of a pass is called in every process."""
        self.depth += 1
        if self.depth > 1:
            return
        if args:
            raise TypeError("a pass over several processes takes its arguments by name")
        tensors = {name: value.cpu() for name, value in kwargs.items() if isinstance(value, Tensor)}
        self.send(path, {name: value for name, value in kwargs.items() if name not in tensors}, tensors)

    def end_pass(self, *_: object) -> None:
        """After a module was called here."""
        self.depth -= 1

    def send(self, path: str | None, plain: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Have the module at `path` called in every other process; without a path, the weights freed."""
        data = safetensors.torch.save(tensors)
        header = json.dumps({"path": path, "plain": plain, "bytes": len(data)}).encode()
        with self.errors_named():
            for process in self.processes:
                assert process.stdin is not None
                process.stdin.write(header + b"\n" + data)
                process.stdin.flush()

    def close(self) -> None:
        """Let the processes end, and leave their group."""
        self.is_closing = True
        for process in self.processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        for process in self.processes:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:  # it waits inside a pass that rank 0 broke off
                process.kill()
                process.wait()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        shutil.rmtree(self.store, ignore_errors=True)


def main() -> None:
    """Load a part of the model, then repeat the passes that rank 0 begins, until it ends."""
    rank, spec = int(sys.argv[1]), RankSpec(**json.loads(sys.argv[2]))
    model, calls = spec.load_part(rank), sys.stdin.buffer
    while line := calls.readline():
        call = json.loads(line)
        tensors = safetensors.torch.load(calls.read(call["bytes"]))
        if call["path"] is None:
            placement.release(model)
            continue
        on_device = {name: tensor.to(model.device) for name, tensor in tensors.items()}
        with torch.inference_mode():
            model.get_submodule(call["path"])(**call["plain"], **on_device)


if __name__ == "__main__":
    command.run(main)

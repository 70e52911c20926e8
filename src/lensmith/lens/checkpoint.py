"""Checkpoints: what the next step of a fit depends on, in one file that is whole or absent; and when one is written.

    <folder>/step-00000450.safetensors    trained/<name>, best/<name>, optimizer/<i>/<leaf>/<name>; facts
    <folder>/finished.safetensors         best/<name>; facts
    <folder>/fit_log.csv                  the validations so far, for `lensmith watch`

No random state is kept: batches, draws and learning rate are functions of the step. The moment of a checkpoint changes
no bit of a fit, so the clock decides: every LENSMITH_CHECKPOINT_SECONDS (EVERY without it), in the background, one at a
time. The newest two stay while a fit runs. finished.safetensors stays afterwards: DVC may die while it takes the
outputs into its cache, and the fit is then not run again.
"""

import csv
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, InstanceOf, TypeAdapter, ValidationError
from torch import Tensor

from lensmith.files import artifacts, cache, records
from lensmith.lens.lens import Lens
from lensmith.lens.lens_file import FIT_LOG
from lensmith.lens.objective import Validation
from lensmith.process import amounts, environment
from lensmith.process.errors import IntegrityError, ResourceError
from lensmith.source import tensor_file

EVERY = 240.0  # seconds: with the time of a write, at most five minutes are lost
KEPT = 2
FINISHED = "finished.safetensors"


@dataclass(frozen=True)
class LogRow:
    """One line of fit_log.csv: a validation, and the training since the one before."""

    step: int
    positions: int  # trained on so far, repeats counted
    lr: float
    train_kl_bits: float | None
    val_kl_bits_25: float | None  # None where the lens lacks the layer
    val_kl_bits_50: float | None
    val_kl_bits_75: float | None
    val_kl_bits_mean: float
    best: int
    kept_kl_bits_mean: float  # of the layers that are kept so far


class State(BaseModel):
    """A fit between two steps. The fields without tensors are the facts of a checkpoint."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    step: int = 0  # taken so far
    trained: dict[str, Tensor]  # in the fit's coordinates; an optimizer moves them in place
    optimizers: list[dict[int, dict[str, Tensor]]] = []  # of each optimizer, by leaf, as `state_dict` has them
    best_lens: InstanceOf[Lens]
    best: Validation
    best_step: int = 0
    waited: int = 0  # validations since the best one
    log: list[LogRow] = []
    train_kl: list[float] = []  # bits, of the steps since the last validation
    ridge: tuple[float, ...] | None  # of the closed form, by block
    tokens_forwarded: int
    finished: bool = False

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state as tensors of their own on the CPU, and JSON data."""
        tensors = {f"best/{name}": tensor for name, tensor in self.best_lens.tensors().items()}
        if not self.finished:
            tensors |= {f"trained/{name}": tensor for name, tensor in self.trained.items()}
            for i, optimizer in enumerate(self.optimizers):
                for leaf, values in optimizer.items():
                    tensors |= {f"optimizer/{i}/{leaf}/{name}": value for name, value in values.items()}
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        return copies, self.model_dump(mode="json", exclude={"trained", "optimizers", "best_lens"})

    @classmethod
    def unpacked(cls, tensors: dict[str, Tensor], facts: dict[str, Any], like: Lens) -> "State":
        """The state of what `packed` gave, its lens of the form of `like`."""
        parts: dict[str, dict[str, Tensor]] = {"best": {}, "trained": {}}
        optimizers: dict[str, dict[int, dict[str, Tensor]]] = {}
        for path, tensor in sorted(tensors.items()):
            part, _, name = path.partition("/")
            if part == "optimizer":
                i, leaf, name = name.split("/")
                optimizers.setdefault(i, {}).setdefault(int(leaf), {})[name] = tensor
            else:
                parts[part][name] = tensor
        # Validated: JSON has lists where a state has tuples.
        return cls(
            **facts,
            trained=parts["trained"],
            optimizers=list(optimizers.values()),
            best_lens=like.with_tensors(parts["best"]),
        )


class Checkpoints:
    """The checkpoints of one fit, in a folder that nobody else writes to; without a folder nothing is kept."""

    def __init__(self, folder: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self._clock = folder, clock
        self._every = environment.number(environment.CHECKPOINT_SECONDS, "seconds", EVERY, "Nothing was fit.") or 0.0
        self._saved = clock()
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None

    def newest(self, like: Lens) -> State | None:
        """The newest state that can be read, its tensors on the CPU; `like` is a lens of the fit's form.

        A file whose bytes have changed is set aside, with a line on stderr.
        """
        for path in reversed(self._files()):
            try:
                state = State.unpacked(*tensor_file.read(path), like)
            except IntegrityError as error:
                aside = path.with_name(f"bad-{path.name}")
                path.replace(aside)
                print(f"{error}. Set aside as {aside.name}; the fit goes on from an earlier step.", file=sys.stderr)
            else:
                self._thin()  # a process may have been killed before it could
                return state
        return None

    @property
    def is_finished(self) -> bool:
        """Whether the fit is over."""
        return self.folder is not None and (self.folder / FINISHED).exists()

    def reserve(self, trained: Mapping[str, Tensor]) -> None:
        """Make the folder. Raises ResourceError where the disk has no room for the checkpoints of a fit."""
        if self.folder is None:
            return
        cache.make(self.folder)
        # Trained tensors, two moments of each, and the best lens; one file more until the oldest is removed.
        need = (KEPT + 1) * 4 * sum(tensor.nbytes for tensor in trained.values())
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise ResourceError(
                f"{self.folder}: checkpoints need {amounts.size(need)}, {amounts.size(free)} are free. `lensmith cache "
                "prune --keep 0` frees others; or set LENSMITH_HOME to a larger disk. No step was taken."
            )

    def show(self, log: Sequence[LogRow]) -> None:
        """Write the validations so far. They are no part of a checkpoint; people watch them."""
        if self.folder is not None:
            write_log(self.folder, log)

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint and the last one is written."""
        is_busy = self._writing is not None and not self._writing.done()
        return self.folder is not None and not is_busy and self._clock() - self._saved >= self._every

    def save(self, state: State, *, wait: bool = False) -> None:
        """Write a checkpoint: in the background, or before this returns.

        Raises:
            ResourceError: this one, or the one before, does not fit on the disk. Older ones are unchanged.
        """
        if self.folder is None:
            return
        tensors, facts = state.packed()  # copies: the fit goes on while they are written
        self.wait()
        name = FINISHED if state.finished else f"step-{state.step:08d}.safetensors"
        self._writing = self._writer.submit(self._write, self.folder / name, tensors, facts)
        self._saved = self._clock()
        if wait or state.finished:
            self.wait()

    def wait(self) -> None:
        """Wait until everything saved is on the disk. Raises as `save` does."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except (ResourceError, OSError) as error:
            raise ResourceError(f"{error} Earlier checkpoints are kept: with room, `dvc repro` goes on.") from error

    def _write(self, path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        tensor_file.write(path, tensors, facts)
        self._thin()

    def _thin(self) -> None:
        for old in self._files()[: -1 if self.is_finished else -KEPT]:
            old.unlink()

    def _files(self) -> list[Path]:
        """From the oldest to the newest."""
        if self.folder is None:
            return []
        return [*sorted(self.folder.glob("step-*.safetensors")), *self.folder.glob(FINISHED)]


def write_log(folder: Path, log: Sequence[LogRow]) -> None:
    """fit_log.csv of a folder. Raises ResourceError where it cannot be written."""
    artifacts.write_csv(folder / FIT_LOG, [field.name for field in fields(LogRow)], map(astuple, log))


def read_log(folder: Path) -> list[LogRow]:
    """fit_log.csv of a folder. IntegrityError where it is missing, has another form, or no row is the best one."""
    path = folder / FIT_LOG
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = [{name: text or None for name, text in line.items()} for line in csv.DictReader(file)]
        rows = TypeAdapter(list[LogRow]).validate_python(lines)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing") from None
    except ValidationError as error:
        raise IntegrityError(f"{path}: {records.explain(error)}") from None
    if not any(row.best for row in rows):
        raise IntegrityError(f"{path}: no row is marked as the best one")
    return rows

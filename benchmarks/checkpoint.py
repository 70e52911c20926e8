"""What a checkpoint costs a fit: the time for which it waits, and the time until the file is on the disk.

The state is that of a lens under AdamW: trained tensors, two moments of each, the best lens. The floor is a plain write
of as many bytes, with the same fsync. Times are wall clock, since the disk is measured.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from lensmith.lens import checkpoint
from lensmith.lens.checkpoint import Checkpoints, State
from lensmith.lens.lens import Lens
from lensmith.lens.objective import Validation

LIMIT = 0.02  # share of a fit's time
LOST = 300.0  # seconds that a crash may cost
COLUMNS = ("layers", "d_model", "rank", "bytes", "held_up_s", "written_s", "floor_s", "share_of_time", "lost_s")


def state(layers: int, d_model: int, rank: int) -> State:
    """A fit after its first step."""
    inner = {"U": (layers - 1, d_model, rank), "V": (layers - 1, d_model, rank), "c": (layers - 1, d_model)}
    trained = {name: torch.randn(shape) for name, shape in inner.items()}
    leaves = [leaf for tensor in trained.values() for leaf in tensor]
    moments = {i: {"exp_avg": torch.randn_like(leaf), "exp_avg_sq": leaf**2} for i, leaf in enumerate(leaves)}
    U, V, c = (torch.randn(layers, *shape[1:]) for shape in inner.values())
    lens = Lens("low_rank", "final", U, V, c, torch.ones(layers, d_model), torch.zeros(layers))
    best = Validation((1.0,) * layers)
    return State(
        step=1, trained=trained, optimizers=[moments], best_lens=lens, best=best, train_kl=[1.0], ridge=None,
        tokens_forwarded=0,
    )  # fmt: skip


def measure(shape: str, repeats: int) -> list[Any]:
    layers, d_model, rank = map(int, shape.split("x"))
    fit_state = state(layers, d_model, rank)
    held, written, floor = [], [], []
    with tempfile.TemporaryDirectory(dir=common.WORK) as folder:
        checkpoints = Checkpoints(Path(folder))
        for step in range(repeats):
            fit_state.step = step
            began = time.perf_counter()
            checkpoints.save(fit_state)
            held.append(time.perf_counter() - began)
            checkpoints.wait()
            written.append(time.perf_counter() - began)
            size = next(Path(folder).glob("step-*")).stat().st_size
            floor.append(_plain_write(Path(folder) / "plain", size))
    held_up, on_disk, plain = (common.Timing(tuple(times)).median for times in (held, written, floor))
    every = checkpoint.EVERY
    return [layers, d_model, rank, size, held_up, on_disk, plain, held_up / every, every + on_disk]


def _plain_write(path: Path, size: int) -> float:
    data = os.urandom(size)
    began = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("--shapes", nargs="+", default=["12x256x64", "32x4096x128"], help="layers x d_model x rank")
    cli.add_argument("--repeats", type=int, default=3)
    args = common.parsed(cli, arguments)
    if args.quick:
        args.shapes, args.repeats = ["3x8x2"], 1
    common.WORK.mkdir(exist_ok=True)
    rows = [measure(shape, args.repeats) for shape in args.shapes]
    shown = [
        [f"{row[0]} x {row[1]}, rank {row[2]}", row[3] / 2**20, *row[4:7], f"{row[7]:.2%}", row[8]] for row in rows
    ]
    names = ("lens", "MiB", "held up, s", "on disk after, s", "plain write, s", "share of time", "lost at most, s")
    text = [
        f"A checkpoint every {checkpoint.EVERY:.0f} s. Limits: {LIMIT:.0%} of the time, {LOST:.0f} s lost.",
        common.table(names, shown),
    ]
    common.publish(args.out, "checkpoint", "What a checkpoint costs", text, COLUMNS, rows)


if __name__ == "__main__":
    main()

"""How the cost of a step grows with the vocabulary, the layers, the positions, and the tokens of a corpus.

Each of the four is doubled twice from a base size while the others stay. A straight line is fitted to the times, and
the largest distance from it is printed beside the limit. The memory of the step's head above its inputs is measured in
a process for each size: it may grow with the vocabulary, but with layers times positions only by the result's own
rows.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import common
from benchmarks.capture import TINY
from benchmarks.linear_kl import Case
from benchmarks.shapes import Shape
from lensmith.lens.divergence import LinearKL
from lensmith.source.backbone import Backbone
from lensmith.source.teacher import Teacher

BASE = {"d_vocab": 16384, "layers": 4, "positions": 512, "tokens": 4096}
SMALL = {"d_vocab": 64, "layers": 2, "positions": 8, "tokens": 16}
BODY = Shape("body", "llama", 4, 256, 704, 8, 8, 32, 4096)
D_MODEL, SEQ_LEN = 256, 512
FACTORS = (1, 2, 4)
LIMIT = 0.15
COLUMNS = ("axis", "size", "seconds", "spread", "off_line", "memory_bytes", "rows_bytes")


def case_of(sizes: dict[str, int], d_model: int) -> tuple[Case, LinearKL, Teacher]:
    case = Case.draw(sizes["d_vocab"], d_model, sizes["layers"], sizes["positions"])
    return case, LinearKL(case.head), Teacher.from_head_input(case.head, case.final)


def memory(spec: dict[str, Any]) -> int:
    """Peak bytes above the inputs of one step's value and gradient."""
    case, linear_kl, teacher = case_of(spec["sizes"], spec["d_model"])
    log_tau = torch.zeros(len(case.y))
    peak = common.PeakMemory()
    linear_kl(teacher, case.y, log_tau)
    return peak.over_start()


def off_line(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """Distance of each y from the line fitted to all, as a share of the line there."""
    line = np.polyval(np.polyfit(x, y, 1), x)
    return [float(abs(value - at) / at) for value, at in zip(y, line, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("--repeats", type=int, default=5)
    args = common.parsed(cli, arguments)
    base, d_model, repeats = (SMALL, 16, 1) if args.quick else (BASE, D_MODEL, args.repeats)
    rows: list[list[Any]] = []
    for axis in ("d_vocab", "layers", "positions"):
        rows += step_rows(axis, base, d_model, repeats)
    rows += capture_rows(base["tokens"], repeats, quick=args.quick)
    text = [
        common.table(
            ("axis", "size", "ms", "spread", "off the line", "limit", "memory MiB", "of it rows MiB"),
            [_shown(r) for r in rows],
        )
    ]
    common.publish(args.out, "growth", "How a step's cost grows", text, COLUMNS, rows)
    axes = list(dict.fromkeys(row[0] for row in rows))
    common.chart(
        args.out / "growth_time.svg",
        [_line(rows, axis, 2) for axis in axes],
        "times the base size",
        "times the base cost",
    )
    common.chart(
        args.out / "growth_memory.svg",
        [_line(rows, axis, 5) for axis in axes if axis != "tokens"],
        "times the base size",
        "times the base memory",
    )


def step_rows(axis: str, base: dict[str, int], d_model: int, repeats: int) -> list[list[Any]]:
    """Value and gradient of all layers, at each size of one axis."""
    cases = {factor: case_of(base | {axis: base[axis] * factor}, d_model) for factor in FACTORS}
    work = {str(factor): functools.partial(_step, *parts) for factor, parts in cases.items()}
    timings = common.in_turns(work, repeats)
    off = off_line(FACTORS, [timings[str(factor)].median for factor in FACTORS])
    rows = []
    for factor, distance in zip(FACTORS, off, strict=True):
        sizes = base | {axis: base[axis] * factor}
        peak = common.in_own_process("benchmarks.growth", "memory", {"sizes": sizes, "d_model": d_model})
        time = timings[str(factor)]
        result = 4 * sizes["layers"] * sizes["positions"] * (d_model + 2)  # the gradient and two numbers a row
        rows.append([axis, sizes[axis], time.median, time.spread, distance, peak, result])
    return rows


def _step(case: Case, linear_kl: LinearKL, teacher: Teacher) -> tuple[Tensor, Tensor, Tensor]:
    return linear_kl(teacher, case.y, torch.zeros(len(case.y)))


def capture_rows(base: int, repeats: int, *, quick: bool) -> list[list[Any]]:
    """The frozen model's forward pass with the capture of its residuals, batch by batch."""
    backbone = Backbone.from_model((TINY if quick else BODY).model(torch.device("cpu"), torch.float32))
    seq_len = min(SEQ_LEN, base)
    tokens = torch.randint(0, backbone.d_vocab, (base // seq_len * max(FACTORS), seq_len))
    positions = torch.arange(0, seq_len, 8).expand(len(tokens), -1)

    def capture(n: int) -> None:
        for text, at in zip(tokens[:n].split(8), positions[:n].split(8), strict=True):
            backbone.capture(text, at)

    sizes = [base // seq_len * factor for factor in FACTORS]
    timings = common.in_turns({str(n): functools.partial(capture, n) for n in sizes}, repeats)
    times = [timings[str(n)] for n in sizes]
    off = off_line(sizes, [time.median for time in times])
    return [
        ["tokens", n * seq_len, t.median, t.spread, o, None, None] for n, t, o in zip(sizes, times, off, strict=True)
    ]


def _shown(row: list[Any]) -> list[object]:
    axis, size, spent, spread, off, peak, result = row
    mib = [None if value is None else value / 2**20 for value in (peak, result)]
    return [axis, size, 1e3 * spent, f"{spread:.0%}", f"{off:.1%}", f"<= {LIMIT:.0%}", *mib]


def _line(rows: list[list[Any]], axis: str, column: int) -> common.Line:
    values = [row[column] for row in rows if row[0] == axis]
    return common.Line(axis, FACTORS, [value / max(values[0], 1e-12) for value in values])


if __name__ == "__main__":
    main()

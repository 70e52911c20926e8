"""What every benchmark shares: turns on one clock, peak memory, and results that say where they come from.

Time on a CPU is the process's own CPU time, which hardly changes on a busy machine, where wall time doubles. All cases
of a benchmark run in turns, so that drift affects all of them; quote ratios of medians.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from lensmith.files import artifacts
from lensmith.report import palette

REPOSITORY = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parent / ".work"

CHILD = """import importlib, json, sys
found = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(json.load(sys.stdin))
print(json.dumps(found))"""

# matplotlib writes a random id and the date into an SVG unless told otherwise.
SVG: Any = {"svg.hashsalt": "lensmith", "svg.fonttype": "none", "font.size": 9}


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark has."""
    cli = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument(
        "--quick", action="store_true", help="tiny sizes, in seconds: shows that it runs, measures nothing"
    )
    cli.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of section fit, where it has any"
    )
    cli.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return cli


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs of a command line, read as params.yaml is."""
    return YAML(typ="safe").load("\n".join(pair.replace("=", ": ", 1) for pair in pairs)) or {}


def parsed(cli: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed arguments. From now on this process and its children use one thread on a CPU."""
    torch.set_num_threads(1)
    commit()
    return cli.parse_args(arguments)


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """(largest - smallest) / median."""
        return (max(self.seconds) - min(self.seconds)) / self.median if self.median else 0.0


def clock(device: torch.device | None = None) -> float:
    """Seconds: CPU time of this process, or on a GPU wall time after all its work."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def seconds(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds that one call of `work` takes."""
    began = clock(device)
    work()
    return clock(device) - began


def in_turns(
    cases: Mapping[str, Callable[[], object]], repeats: int, device: torch.device | None = None
) -> dict[str, Timing]:
    """Run each case once to warm up, then `repeats` rounds in which every case runs once."""
    for work in cases.values():
        work()
    rounds = [{name: seconds(work, device) for name, work in cases.items()} for _ in range(repeats)]
    return {name: Timing(tuple(times[name] for times in rounds)) for name in cases}


class PeakMemory:
    """The largest resident memory since `start`, in bytes above what was resident then.

    The kernel's high-water mark is reset at the start. `ru_maxrss` is not used: a child inherits its parent's.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.cuda = device if device is not None and device.type == "cuda" else None
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.cuda)
        else:
            Path("/proc/self/clear_refs").write_text("5")
        self.before = self._now("VmRSS")

    def over_start(self) -> int:
        return self._now("VmHWM") - self.before

    def _now(self, field: str) -> int:
        if self.cuda:
            measure = torch.cuda.memory_allocated if field == "VmRSS" else torch.cuda.max_memory_allocated
            return int(measure(self.cuda))
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
        return int(line.split()[1]) * 1024


def in_own_process(module: str, function: str, spec: Mapping[str, Any], python: str | Path = sys.executable) -> Any:
    """Run `module.function(spec)` in a process of its own, with as many threads. Spec and answer are sent as JSON.

    Raises:
        RuntimeError: it failed; the message is the end of its output.
    """
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        [str(python), "-c", CHILD, module, function],
        cwd=REPOSITORY, env=environment, input=json.dumps(spec), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{module}.{function}({spec}): exit {done.returncode}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


@functools.cache
def commit() -> str:
    """The commit that this process began at. Others may be made during a long run."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "--short", "HEAD") + changed


def provenance(device: torch.device | None = None) -> dict[str, str]:
    """Command, date, device and commit of a run."""
    name = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else _cpu()
    return {
        "command": " ".join(["python", *sys.orig_argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{name}, {torch.get_num_threads()} thread(s), {os.cpu_count()} core(s)",
        "commit": commit(),
        "software": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, padded so that it can be read in a terminal too."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,.3g}" if isinstance(value, float) and abs(value) < 1000 else _whole(value)


def _whole(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def publish(
    out: Path, name: str, title: str, text: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[object]],
    device: torch.device | None = None,
) -> None:  # fmt: skip
    """Print a result and write it: `out`/<name>.csv has every row, `out`/<name>.md the tables and their provenance."""
    facts = "\n".join(f"- {key}: `{value}`" for key, value in provenance(device).items())
    page = "\n\n".join([f"# {title}", facts, *text]) + "\n"
    print(page)
    artifacts.write_text(out / f"{name}.md", page)
    artifacts.write_csv(out / f"{name}.csv", columns, rows)


@dataclass(frozen=True)
class Line:
    """One line of a chart; `low` and `high` shade its spread."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def _tick(value: float, _place: int) -> str:
    """20, 50k, 2M, 0.001."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")(value) if value >= 1 else f"{value:g}"


def chart(path: Path, lines: Sequence[Line], x: str, y: str, *, log_x: bool = True, log_y: bool = False) -> None:
    """A small line chart as SVG. Equal numbers give equal bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    with mpl.rc_context(SVG):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.subplots()
        for line, colour in zip(lines, palette.SERIES * len(lines), strict=False):
            axes.plot(line.x, line.y, color=colour, marker="o", markersize=3, linewidth=1.4, label=line.name)
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        log_y = log_y and any(value > 0 for line in lines for value in line.y)  # a quick run may measure nothing
        axes.set(xlabel=x, ylabel=y, xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":  # by default the labels of a decade overlap
                low, high = axis.get_data_interval()
                axis.set_major_locator(LogLocator(subs=(1,) if high > 1000 * low else (1, 2, 5)))
                axis.set_major_formatter(FuncFormatter(_tick))
                axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
        with artifacts.replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})

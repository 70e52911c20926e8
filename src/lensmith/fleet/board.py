"""What the head shows: a table of models by stages while somebody watches, else plain lines, one a model.

Everything is read from the lines that DVC and the stages print; nothing depends on it.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from lensmith.fleet import jobs
from lensmith.fleet.jobs import HEAVY, Machine, Needs
from lensmith.process.progress import EVERY

MARKS = {"waits": "·", "runs": "▶", "there": "✓", "failed": "✕"}
COLOURS = {"waits": "dim", "runs": "yellow", "there": "green", "failed": "red"}

_RUNS = re.compile(r"Running stage '([\w-]+)@")
_THERE = re.compile(r"(?:Stage '([\w-]+)@[^']+' (?:is cached|didn't change)|Pulling data for .*'([\w-]+)@)")
_NODE = re.compile(r"node: (.+), (.+)")
_PROGRESS = re.compile(r"([\w -]+): (\d+) of (\d+) (\w+)(?:, .*?)?(?:, ([^,]+) left)?$")


@dataclass
class Row:
    """What is known of one model."""

    stages: dict[str, str] = field(default_factory=lambda: dict.fromkeys(HEAVY, "waits"))
    where: str = ""
    now: str = "waits for a machine"
    left: str = ""

    def read(self, line: str) -> None:
        """Take in one line of its log."""
        if found := _NODE.fullmatch(line):
            self.where, self.now, self.left = found[1], found[2], ""
        elif found := _RUNS.search(line):
            self._set(found[1], "runs")
        elif found := _THERE.search(line):
            self._set(found[1] or found[2], "there")
        elif found := _PROGRESS.fullmatch(line):
            self.now, self.left = f"{found[1]} {found[2]}/{found[3]} {found[4]}", found[5] or ""

    def _set(self, stage: str, state: str) -> None:
        if stage not in self.stages:
            return
        # A stage begins when the one before it is over.
        self.stages |= {name: "there" for name, was in self.stages.items() if was == "runs"} | {stage: state}
        self.now, self.left = stage, ""

    def end(self, state: str, text: str) -> None:
        """Everything is there, or what runs and waits has failed."""
        ended = {"failed": {"runs": "failed"}, "there": dict.fromkeys(MARKS, "there")}[state]
        self.stages = {name: ended.get(was, was) for name, was in self.stages.items()}
        self.now, self.left = text, ""


class Board:
    """The models of one run of the fleet, each with a log of its own below `logs`."""

    def __init__(
        self,
        models: Iterable[str],
        logs: Path,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rows = {model: Row() for model in models}
        self._logs, self._clock, self._said = logs, clock, clock()
        self._console = Console() if console is None else console
        self._live = Live(console=self._console, get_renderable=self.table, refresh_per_second=2)
        logs.mkdir(parents=True, exist_ok=True)
        for model in self.rows:
            self.log(model).write_text("")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def log(self, model: str) -> Path:
        return self._logs / f"{model}.log"

    def read(self, model: str, line: str) -> None:
        """A line of a model's work: into its log, and into the table."""
        with self.log(model).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        self.rows[model].read(line)

    def end(self, model: str, state: str, text: str) -> None:
        """A model is `there`, or has `failed`."""
        self.rows[model].end(state, text)
        self.note(f"{model}: {text}")

    def kept(self) -> str:
        """What is left of a run that is stopped, in words."""
        there = [model for model, row in self.rows.items() if set(row.stages.values()) == {"there"}]
        chosen = " ".join(f"--models {model}" for model in there)
        restore = f"`lensmith fleet restore {chosen}` has them here. " if there else ""
        return (
            f"{len(there)} of {len(self.rows)} models are finished and in the remote. {restore}"
            f"The same command goes on with {', '.join(m for m in self.rows if m not in there)}."
        )

    def note(self, line: str) -> None:
        """A line above the table."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def tick(self) -> None:
        """Where nobody watches, a line for each model at work, every half minute."""
        if self._console.is_terminal or self._clock() - self._said < EVERY:
            return
        self._said = self._clock()
        for model, row in self.rows.items():
            if "runs" in row.stages.values():
                self.note(", ".join(filter(None, (f"{model}: {row.now}", row.where, row.left and f"{row.left} left"))))

    def table(self) -> Table:
        """One line a model: its stages, where it is, what it does, and how long the stage at work will take."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("model", overflow="fold")
        for stage in HEAVY:
            table.add_column(stage, justify="center", no_wrap=True)
        for column in ("machine", "now", "left"):
            table.add_column(column, overflow="fold")
        for model, row in self.rows.items():
            marks = [f"[{COLOURS[state]}]{MARKS[state]}[/]" for state in row.stages.values()]
            table.add_row(model, *marks, row.where, row.now, row.left)
        return table


def placement(stale: Mapping[str, Sequence[str]], needs: Mapping[str, Needs], machines: Sequence[Machine]) -> Table:
    """What would run, and on which machines it could."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("model", "stale", "needs", "machines that have it"):
        table.add_column(column, overflow="fold")
    for model, stages in stale.items():
        fitting = [machine.name for machine in machines if machine.holds(needs[model])]
        table.add_row(model, ", ".join(stages), jobs.describe(needs[model]), ", ".join(fitting) or "[red]none[/]")
    return table

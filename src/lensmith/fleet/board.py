"""What the head prints: a table of models by stages in a terminal, else plain lines, one a model.

Everything is read from the lines that DVC and the stages print; no result depends on it.
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

from lensmith.fleet.jobs import HEAVY, JobNeeds, Node
from lensmith.process.progress import EVERY

MARKS = {"waits": "·", "runs": "▶", "done": "✓", "failed": "✕"}
STATE_COLOURS = {"waits": "dim", "runs": "yellow", "done": "green", "failed": "red"}

_RUNS = re.compile(r"Running stage '([\w-]+)@")
_RESTORED = re.compile(r"(?:Stage '([\w-]+)@[^']+' (?:is cached|didn't change)|Pulling data for .*'([\w-]+)@)")
_NODE = re.compile(r"node: (.+), (.+)")
_PROGRESS = re.compile(r"([\w -]+): (\d+) of (\d+) (\w+)(?:, .*?)?(?:, ([^,]+) left)?$")


@dataclass
class ModelState:
    """What is known of one model."""

    stages: dict[str, str] = field(default_factory=lambda: dict.fromkeys(HEAVY, "waits"))
    node: str = ""
    now: str = "waits for a machine"
    left: str = ""

    def read(self, line: str) -> None:
        """Take in one line of its log."""
        if match := _NODE.fullmatch(line):
            self.node, self.now, self.left = match[1], match[2], ""
        elif match := _RUNS.search(line):
            self._set(match[1], "runs")
        elif match := _RESTORED.search(line):
            self._set(match[1] or match[2], "done")
        elif match := _PROGRESS.fullmatch(line):
            self.now, self.left = f"{match[1]} {match[2]}/{match[3]} {match[4]}", match[5] or ""

    def _set(self, stage: str, state: str) -> None:
        if stage not in self.stages:
            return
        # A stage begins when the one before it is over.
        self.stages |= {name: "done" for name, before in self.stages.items() if before == "runs"} | {stage: state}
        self.now, self.left = stage, ""

    def end(self, state: str, text: str) -> None:
        """Every stage is `done`, or the running one has `failed`."""
        changes = {"failed": {"runs": "failed"}, "done": dict.fromkeys(MARKS, "done")}[state]
        self.stages = {name: changes.get(before, before) for name, before in self.stages.items()}
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
        self.models = {model: ModelState() for model in models}
        self._logs, self._clock, self._noted = logs, clock, clock()
        self._console = Console() if console is None else console
        self._live = Live(console=self._console, get_renderable=self.table, refresh_per_second=2)
        logs.mkdir(parents=True, exist_ok=True)
        for model in self.models:
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
        """The file that holds every line of a model."""
        return self._logs / f"{model}.log"

    def read(self, model: str, line: str) -> None:
        """Take in a line of a model's work: into its log, and into the table."""
        with self.log(model).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        self.models[model].read(line)

    def end(self, model: str, state: str, text: str) -> None:
        """A model is `done`, or has `failed`."""
        self.models[model].end(state, text)
        self.note(f"{model}: {text}")

    def summary(self) -> str:
        """What is left of a run that is stopped, in words."""
        done = [model for model, state in self.models.items() if set(state.stages.values()) == {"done"}]
        chosen = " ".join(f"--model {model}" for model in done)
        restore = f"`lensmith fleet restore {chosen}` brings them here. " if done else ""
        return (
            f"{len(done)} of {len(self.models)} models are finished and in the remote. {restore}"
            f"The same command continues with {', '.join(model for model in self.models if model not in done)}."
        )

    def note(self, line: str) -> None:
        """Print a line above the table."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def tick(self) -> None:
        """Without a terminal, print a line for each model at work, every half minute."""
        if self._console.is_terminal or self._clock() - self._noted < EVERY:
            return
        self._noted = self._clock()
        for model, state in self.models.items():
            if "runs" in state.stages.values():
                parts = (f"{model}: {state.now}", state.node, state.left and f"{state.left} left")
                self.note(", ".join(filter(None, parts)))

    def table(self) -> Table:
        """One line a model: its stages, its node, what it does, and how long the running stage will take."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("model", overflow="fold")
        for stage in HEAVY:
            table.add_column(stage, justify="center", no_wrap=True)
        for column in ("machine", "now", "left"):
            table.add_column(column, overflow="fold")
        for model, state in self.models.items():
            marks = [f"[{STATE_COLOURS[stage]}]{MARKS[stage]}[/]" for stage in state.stages.values()]
            table.add_row(model, *marks, state.node, state.now, state.left)
        return table


def placement(stale: Mapping[str, Sequence[str]], needs: Mapping[str, JobNeeds], nodes: Sequence[Node]) -> Table:
    """What would run, and on which machines it could."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("model", "stale", "needs", "machines that have it"):
        table.add_column(column, overflow="fold")
    for model, stages in stale.items():
        names = [node.name for node in nodes if node.meets(needs[model])]
        table.add_row(model, ", ".join(stages), str(needs[model]), ", ".join(names) or "[red]none[/]")
    return table

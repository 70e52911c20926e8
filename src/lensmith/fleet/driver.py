"""Run the phases of every model on a cluster, and place lost jobs again. It does not know Ray."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from lensmith.fleet import jobs
from lensmith.fleet.board import Board
from lensmith.fleet.jobs import Job, Node, Phases
from lensmith.fleet.work import Outcome
from lensmith.process.errors import ResourceError


class Cluster(Protocol):
    """Where jobs run; `cluster.RayCluster` is one."""

    def nodes(self) -> Sequence[Node]:
        """The nodes that are up."""

    def submit(self, job: Job) -> None:
        """Run a job on a node that meets its needs, once there is room."""

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        """The jobs that ended since the last call; waits a moment for one."""

    def lines(self) -> Iterator[tuple[str, str]]:
        """(model, line) of what jobs printed since the last call."""

    def cancel(self) -> None:
        """Stop every job that runs or waits."""


@dataclass
class _Remaining:
    """The work that is left of one model."""

    phases: Phases
    running: set[str] = field(default_factory=set)  # names of this phase's jobs
    tries: Counter[str] = field(default_factory=Counter)  # by name of the job


class Driver:
    """Takes the models of one run through a cluster."""

    def __init__(self, cluster: Cluster, board: Board, retries: int) -> None:
        self._cluster, self._board, self._retries = cluster, board, retries
        self._remaining: dict[str, _Remaining] = {}
        self._outcomes: dict[str, Outcome] = {}

    def run(self, phases: Mapping[str, Phases]) -> dict[str, Outcome]:
        """Run the phases of every model to their end, or to the first job that fails for good.

        Returns how each model ended. An exception or a signal cancels the jobs that run.
        """
        self._remaining = {model: _Remaining(list(todo)) for model, todo in phases.items()}
        try:
            for model in self._remaining:
                self._next_phase(model)
            while len(self._outcomes) < len(self._remaining):
                for job, outcome in self._cluster.ended():
                    self._read_lines()
                    self._settle(job, outcome)
                self._read_lines()
                self._board.tick()
        except BaseException:
            with suppress(Exception):  # the caller must see the first error
                self._cluster.cancel()
            raise
        return self._outcomes

    def _read_lines(self) -> None:
        for model, line in self._cluster.lines():
            self._board.read(model, line)

    def _settle(self, job: Job, outcome: Outcome) -> None:
        model, remaining = job.model, self._remaining[job.model]
        remaining.tries[job.name] += 1
        tries = remaining.tries[job.name]
        if model in self._outcomes:  # another job of its phase failed
            return
        if outcome.code == 0:
            remaining.running.discard(job.name)
            if not remaining.running:
                self._next_phase(model)
        elif jobs.retry_helps(outcome.code) and tries <= self._retries:
            line = f"{job.name} ended with {outcome.code}: {outcome.line}. Placed again, {tries} of {self._retries}"
            self._board.read(model, line)
            self._board.note(f"{model}: {line}")
            self._submit(job)
        else:
            self._fail(model, outcome)

    def _next_phase(self, model: str) -> None:
        remaining = self._remaining[model]
        if not remaining.phases:
            self._outcomes[model] = Outcome(0)
            self._board.end(model, "done", "finished and pushed")
            return
        phase = remaining.phases.pop(0)
        remaining.running = {job.name for job in phase}
        for job in phase:
            self._submit(job)

    def _submit(self, job: Job) -> None:
        if job.model in self._outcomes:
            return
        try:
            jobs.check_fits(job.model, job.needs, self._cluster.nodes())
        except ResourceError as error:
            self._fail(job.model, Outcome(error.exit_code, str(error)))
        else:
            self._cluster.submit(job)

    def _fail(self, model: str, outcome: Outcome) -> None:
        self._outcomes[model] = outcome
        self._board.end(model, "failed", f"failed with {outcome.code}: {outcome.line}")

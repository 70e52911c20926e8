"""Who runs what when: phases of models onto a cluster, lost work again elsewhere. It knows nothing of Ray."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from lensmith.fleet import jobs as plan
from lensmith.fleet.board import Board
from lensmith.fleet.jobs import Job, Machine, Phases
from lensmith.fleet.work import Outcome
from lensmith.process.errors import ResourceError


class Cluster(Protocol):
    """Where jobs run; `cluster.RayCluster` is one."""

    def machines(self) -> Sequence[Machine]: ...

    def submit(self, job: Job) -> None: ...

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        """The jobs that ended since it was last asked; it waits a moment for one."""

    def lines(self) -> Iterator[tuple[str, str]]:
        """(model, line) of what jobs printed since it was last asked."""

    def cancel(self) -> None:
        """Stop every job that runs or waits."""


@dataclass
class _Work:
    """What is left of one model."""

    phases: Phases
    open: set[str] = field(default_factory=set)  # names of this phase's jobs
    tries: Counter[str] = field(default_factory=Counter)  # by name of the job


class Driver:
    """Models on their way through a cluster."""

    def __init__(self, cluster: Cluster, board: Board, retries: int) -> None:
        self._cluster, self._board, self._retries = cluster, board, retries
        self._left: dict[str, _Work] = {}
        self._outcomes: dict[str, Outcome] = {}

    def run(self, phases: Mapping[str, Phases]) -> dict[str, Outcome]:
        """Run the phases of every model to their end, or to the first job that fails for good; how each model ended.

        Whatever ends this early, a signal too, cancels what runs.
        """
        self._left = {model: _Work(list(todo)) for model, todo in phases.items()}
        try:
            for model in self._left:
                self._next(model)
            while len(self._outcomes) < len(self._left):
                for job, outcome in self._cluster.ended():
                    self._hear()
                    self._settle(job, outcome)
                self._hear()
                self._board.tick()
        except BaseException:
            with suppress(Exception):  # what ended this is what the caller must hear of
                self._cluster.cancel()
            raise
        return self._outcomes

    def _hear(self) -> None:
        for model, line in self._cluster.lines():
            self._board.read(model, line)

    def _settle(self, job: Job, outcome: Outcome) -> None:
        work, model = self._left[job.model], job.model
        work.tries[job.name] += 1
        tries = work.tries[job.name]
        if model in self._outcomes:  # another job of its phase failed
            return
        if outcome.code == 0:
            work.open.discard(job.name)
            if not work.open:
                self._next(model)
        elif plan.retry_helps(outcome.code) and tries <= self._retries:
            again = f"{job.name} ended with {outcome.code}: {outcome.line}. Placed again, {tries} of {self._retries}"
            self._board.read(model, again)
            self._board.note(f"{model}: {again}")
            self._submit(job)
        else:
            self._fail(model, outcome)

    def _next(self, model: str) -> None:
        work = self._left[model]
        if not work.phases:
            self._outcomes[model] = Outcome(0)
            self._board.end(model, "there", "finished and pushed")
            return
        jobs = work.phases.pop(0)
        work.open = {job.name for job in jobs}
        for job in jobs:
            self._submit(job)

    def _submit(self, job: Job) -> None:
        if job.model in self._outcomes:
            return
        try:
            plan.check_fits(job.model, job.needs, self._cluster.machines())
        except ResourceError as error:
            self._fail(job.model, Outcome(error.exit_code, str(error)))
        else:
            self._cluster.submit(job)

    def _fail(self, model: str, outcome: Outcome) -> None:
        self._outcomes[model] = outcome
        self._board.end(model, "failed", f"failed with {outcome.code}: {outcome.line}")

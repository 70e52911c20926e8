"""What a fleet has to do: pure functions of what DVC says and of the settings.

A model's work is a list of phases, each a set of jobs that may run at once on different machines:

    chain                                   in a lab of the model alone: prefetch, fit, sweep, suite-eval; then a push
    prefetch | capture 1/N … N/N | chain    with capture workers: the fit then finds its residual bank whole
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lensmith.process import amounts
from lensmith.process.amounts import GIB
from lensmith.process.errors import ResourceError
from lensmith.settings.sections import ModelParams

# What nodes run. The other stages are light, and write metrics and plots that git holds, which no remote has.
HEAVY = ("prefetch", "fit", "sweep", "suite-eval")
ENDS = ("sweep", "suite-eval")  # whoever asks for these two asks for all four
LIGHT_END = "publish"  # of a model, as `report` is of the lab

# Words of `dvc status` for what is only not here: a remote may have it.
_MISSING = ("deleted", "not in cache")

# Beside the weights: the head's copy in fp32, second moments, a shard being written, Python and torch themselves.
_BESIDE = 1.25
_BASE = 3 * GIB
_CARD = 80 * GIB  # of a GPU, where `fleet.gpus` does not say how many

Status = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Needs:
    """What a job asks of a machine."""

    cpus: int
    gpus: int
    memory: int | None  # bytes; None where nothing is known of the model's size


@dataclass(frozen=True)
class Machine:
    """A node that is up, and all that it has, whoever uses it."""

    name: str
    cpus: float
    gpus: float
    memory: float  # bytes

    def holds(self, needs: Needs) -> bool:
        return needs.cpus <= self.cpus and needs.gpus <= self.gpus and (needs.memory or 0) <= self.memory


@dataclass(frozen=True)
class Tree:
    """The state of the lab that nodes clone."""

    url: str
    commit: str


@dataclass(frozen=True)
class Job:
    """Commands to run, in order, in a model's clone on one machine."""

    model: str
    name: str
    needs: Needs
    commands: tuple[tuple[str, ...], ...]
    shared: bool = False  # works in a clone that an earlier job made, beside others that do


Phases = list[list[Job]]


def of(model: str, *stages: str) -> tuple[str, ...]:
    """DVC's names of a model's stages."""
    return tuple(f"{stage}@{model}" for stage in stages)


def stale(status: Status, models: Sequence[str], *, missing_too: bool) -> dict[str, list[str]]:
    """The heavy stages that each model has to run, by `dvc status`; models that have none are left out.

    `missing_too`: also those of which only something is not here, since no remote has it.
    """

    def counts(stage: str, model: str) -> bool:
        changes = status.get(f"{stage}@{model}", [])
        return bool(changes) if missing_too else _is_changed(changes)

    found = {model: [stage for stage in HEAVY if counts(stage, model)] for model in models}
    return {model: _followed(stages) for model, stages in found.items() if stages}


def missing(status: Status, models: Sequence[str]) -> list[str]:
    """The heavy stages, as DVC names them, of which something is not here, but nothing changed."""
    names = [name for model in models for name in of(model, *HEAVY)]
    return [name for name in names if status.get(name) and not _is_changed(status[name])]


def _is_changed(changes: Sequence[Any]) -> bool:
    return any(word not in _MISSING for word in _words(changes))


def _words(value: object) -> Iterator[str]:
    """The words at the ends of a stage's status: `{"changed deps": {"a/b": "modified"}}`, or `"changed command"`."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _words(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words(inner)
    else:
        yield str(value)


def _followed(stages: list[str]) -> list[str]:
    """With the stages that read what these write, which DVC cannot yet know to be stale."""
    if "prefetch" in stages:
        return list(HEAVY)
    return list(HEAVY[1:]) if "fit" in stages else stages


def needs(settings: ModelParams, parameters: int | None, cluster_gpus: float) -> Needs:
    """What a model's jobs need; `parameters` is its size, None where nobody knows it."""
    asked, source = settings.fleet, settings.source
    on_gpu = source.device == "cuda" or (source.device == "auto" and cluster_gpus > 0)
    wide = source.dtype == "float32" or (source.dtype == "auto" and not on_gpu)
    weights = None if parameters is None else parameters * (4 if wide else 2)
    held = 0 if weights is None else int(weights * _BESIDE)
    gpus = max(1, -(-held // _CARD)) if on_gpu else 0
    memory = None if weights is None else held + _BASE
    return Needs(
        cpus=asked.cpus,
        gpus=gpus if asked.gpus == "auto" else asked.gpus,
        memory=memory if asked.memory_gib == "auto" else asked.memory_gib * GIB,
    )


def check_fits(model: str, needs: Needs, machines: Sequence[Machine]) -> None:
    """ResourceError where no machine, were it idle, has what is needed: the job would wait for ever."""
    if any(machine.holds(needs) for machine in machines):
        return
    there = "; ".join(sorted({describe(Needs(int(m.cpus), int(m.gpus), int(m.memory))) for m in machines}))
    raise ResourceError(
        f"params.yaml: models.{model}.fleet: no machine has {describe(needs)}; there is {there or 'none'}. "
        "Set it, or add a machine."
    )


def describe(needs: Needs) -> str:
    memory = "memory unknown" if needs.memory is None else amounts.size(needs.memory)
    return f"{needs.cpus} CPUs, {needs.gpus} GPUs, {memory}"


def captures(stages: Sequence[str], settings: ModelParams) -> bool:
    """Whether a model's stale stages will read a residual bank, which others may capture before."""
    return "fit" in stages and settings.fit.bank == "disk"


def phases(model: str, needed: Needs, capture_workers: int = 0) -> Phases:
    """A model's work. With capture workers, that many jobs first capture its residual bank into a shared home."""
    corpus = repro(*of(model, "prefetch"))
    work = (alone(model), corpus, _fetch(model), repro(*of(model, *ENDS)), _push(*of(model, *HEAVY)))
    chain = Job(model, "chain", needed, work)
    if not capture_workers:
        return [[chain]]
    nothing = Needs(needed.cpus, 0, None)
    prefetch = Job(model, "prefetch", nothing, (alone(model), corpus, _push(*of(model, "prefetch"))))
    return [[prefetch], [_capture(model, needed, i, capture_workers) for i in range(capture_workers)], [chain]]


def alone(model: str) -> tuple[str, ...]:
    """Makes a clone a lab of the model alone."""
    return ("lensmith", "fleet", "only", model)


def repro(*targets: str) -> tuple[str, ...]:
    """Runs stages, or has them from the remote."""
    return ("dvc", "--wait-for-lock", "repro", "--pull", *targets)


def _fetch(model: str) -> tuple[str, ...]:
    """What prefetch downloads, where it did not run because a remote has its corpus."""
    return ("lensmith", "fetch", model)


def _push(*targets: str) -> tuple[str, ...]:
    return ("dvc", "push", "--run-cache", *targets)


def _capture(model: str, needed: Needs, part: int, parts: int) -> Job:
    files = ("--settings", f"resolved/models/{model}.json", "--corpus", f"artifacts/{model}/corpus")
    # PYTHONPATH: the code of the clone runs, as in a stage.
    command = (
        "env",
        "PYTHONPATH=src",
        "python",
        "-m",
        "lensmith.fleet.capture",
        *files,
        "--part",
        f"{part + 1}/{parts}",
    )
    return Job(model, f"capture {part + 1}/{parts}", needed, (_fetch(model), command), shared=True)


def retry_helps(code: int) -> bool:
    """Whether a job that ended so may end otherwise elsewhere: a remote, a busy folder, a signal. Other codes are
    results of the work itself.
    """
    return code in (5, 6) or code > 128 or code < 0

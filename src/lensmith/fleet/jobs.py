"""The jobs of a fleet: pure functions of what `dvc status` says and of the settings.

A model's work is a list of phases, each a set of jobs that may run at once on different nodes:

    chain                                   in a lab of the model alone: prefetch, fit, sweep, suite-eval; then a push
    prefetch | capture 1/N … N/N | chain    with capture workers: the fit then finds its residual bank whole
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lensmith.process import amounts
from lensmith.process.amounts import GIB
from lensmith.process.errors import RemoteError, ResourceError
from lensmith.settings.sections import ModelParams

# The stages that nodes run. The others are light, and write metrics and plots that git holds, which no remote has.
HEAVY = ("prefetch", "fit", "sweep", "suite-eval")
LAST_HEAVY = ("sweep", "suite-eval")  # these two need all four
LAST_LIGHT = "publish"  # the last stage of a model; `report` is the last of the lab

# Words of `dvc status` for files that are not here, and that a remote may have.
_MISSING = ("deleted", "not in cache")

# Memory beside the weights: the head in fp32, second moments, a shard being written, Python and torch themselves.
_FACTOR = 1.25
_BASE = 3 * GIB
_GPU = 80 * GIB  # of one card, where `fleet.gpus` does not say how many

Status = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class JobNeeds:
    """What a job needs of a node."""

    cpus: int
    gpus: int
    memory: int | None  # bytes; None where the model's size is unknown

    def __str__(self) -> str:
        memory = "memory unknown" if self.memory is None else amounts.size(self.memory)
        return f"{self.cpus} CPUs, {self.gpus} GPUs, {memory}"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster that is up, with all that it has, in use or not."""

    name: str
    cpus: float
    gpus: float
    memory: float  # bytes

    def meets(self, needs: JobNeeds) -> bool:
        """Whether the node has what a job needs, if nothing else ran on it."""
        return needs.cpus <= self.cpus and needs.gpus <= self.gpus and (needs.memory or 0) <= self.memory


@dataclass(frozen=True)
class LabCommit:
    """The state of the lab that nodes clone."""

    url: str
    commit: str


@dataclass(frozen=True)
class Job:
    """Commands to run, in order, in a model's clone on one node."""

    model: str
    name: str
    needs: JobNeeds
    commands: tuple[tuple[str, ...], ...]
    shared: bool = False  # works in a clone that an earlier job made, at the same time as others


Phases = list[list[Job]]


def stage_names(model: str, *stages: str) -> tuple[str, ...]:
    """DVC's names of a model's stages."""
    return tuple(f"{stage}@{model}" for stage in stages)


def stale(status: Status, models: Sequence[str], *, missing_too: bool) -> dict[str, list[str]]:
    """The heavy stages that each model has to run, by `dvc status`; models that have none are left out.

    Args:
        missing_too: also stages whose files are only not here, because no remote has them.
    """
    stages_by_model: dict[str, list[str]] = {}
    for model in models:
        changes = {stage: status.get(f"{stage}@{model}", []) for stage in HEAVY}
        stages = [stage for stage in HEAVY if (changes[stage] if missing_too else _is_changed(changes[stage]))]
        # DVC cannot yet know that the stages that read what a stale one writes are stale too.
        if "prefetch" in stages:
            stages = list(HEAVY)
        elif "fit" in stages:
            stages = list(HEAVY[1:])
        if stages:
            stages_by_model[model] = stages
    return stages_by_model


def missing(status: Status, models: Sequence[str]) -> list[str]:
    """The heavy stages, as DVC names them, whose files are not here although nothing changed."""
    names = [name for model in models for name in stage_names(model, *HEAVY)]
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


def needs(settings: ModelParams, parameters: int | None, cluster_gpus: float) -> JobNeeds:
    """What a model's jobs need; `parameters` is its size, None where it is unknown."""
    source, fleet = settings.source, settings.fleet
    on_gpu = source.device == "cuda" or (source.device == "auto" and cluster_gpus > 0)
    bytes_each = 4 if source.dtype == "float32" or (source.dtype == "auto" and not on_gpu) else 2
    held = 0 if parameters is None else int(parameters * bytes_each * _FACTOR)
    gpus = max(1, -(-held // _GPU)) if on_gpu else 0
    memory = None if parameters is None else held + _BASE
    return JobNeeds(
        cpus=fleet.cpus,
        gpus=gpus if fleet.gpus == "auto" else fleet.gpus,
        memory=fleet.memory_gib * GIB if fleet.memory_gib != "auto" else memory,
    )


def check_fits(model: str, needs: JobNeeds, nodes: Sequence[Node]) -> None:
    """Refuse a job that would wait for ever.

    Raises:
        ResourceError: no node has what the job needs, even if nothing else ran there.
    """
    if any(node.meets(needs) for node in nodes):
        return
    available = "; ".join(sorted({str(JobNeeds(int(n.cpus), int(n.gpus), int(n.memory))) for n in nodes}))
    raise ResourceError(
        f"params.yaml: models.{model}.fleet: no machine has {needs}; there is {available or 'none'}. "
        "Set it, or add a machine."
    )


def captures(stages: Sequence[str], settings: ModelParams) -> bool:
    """Whether a model's stale stages will read a residual bank, which other jobs may capture before."""
    return "fit" in stages and settings.fit.bank == "disk"


def phases(model: str, needs: JobNeeds, capture_workers: int = 0) -> Phases:
    """A model's work. With capture workers, that many jobs first capture its residual bank into a shared LENSMITH_HOME.

    Each node fetches the model's files itself: prefetch does not run where a remote has its corpus.
    """
    corpus, fetch = repro(*stage_names(model, "prefetch")), ("lensmith", "fetch", model)
    stages = repro(*stage_names(model, *LAST_HEAVY))
    whole = (keep_only(model), corpus, fetch, stages, _push(*stage_names(model, *HEAVY)))
    chain = Job(model, "chain", needs, whole)
    if not capture_workers:
        return [[chain]]
    first = (keep_only(model), corpus, _push(*stage_names(model, "prefetch")))
    paths = ("--settings", f"resolved/models/{model}.json", "--corpus", f"artifacts/{model}/corpus")
    # PYTHONPATH: the code of the clone runs, as in a stage.
    capture = ("env", "PYTHONPATH=src", "python", "-m", "lensmith.fleet.capture", *paths, "--part")
    parts = [f"{part + 1}/{capture_workers}" for part in range(capture_workers)]
    return [
        [Job(model, "prefetch", JobNeeds(needs.cpus, 0, None), first)],
        [Job(model, f"capture {part}", needs, (fetch, (*capture, part)), shared=True) for part in parts],
        [chain],
    ]


def keep_only(model: str) -> tuple[str, ...]:
    """The command that makes a clone a lab of one model."""
    return ("lensmith", "fleet", "only", model)


def repro(*targets: str) -> tuple[str, ...]:
    """The command that runs stages, or restores them from the remote."""
    return ("dvc", "--wait-for-lock", "repro", "--pull", *targets)


def _push(*targets: str) -> tuple[str, ...]:
    return ("dvc", "push", "--run-cache", *targets)


def retry_helps(code: int) -> bool:
    """Whether a job that ended with this exit code may end otherwise on another node.

    It may after a failure of a remote or a signal; other codes are results of the work itself.
    """
    return code == RemoteError.exit_code or code > 128 or code < 0

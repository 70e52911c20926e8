"""The variants of a lab, committed or made by `dvc exp run`: settings, metrics and judgements.

`dvc exp show` prints settings and metrics, and names each variant's outputs by their objects in DVC's cache.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lensmith.judge.judgement import Judgement
from lensmith.lab import dvc, layout
from lensmith.lab.dvc_cache import ObjectStore
from lensmith.process.errors import IntegrityError


@dataclass(frozen=True)
class LabVariant:
    """One finished variant of the lab."""

    name: str  # of the experiment; the branch of the committed state, `workspace` for the files as they are
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # model -> section.setting -> value
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # model -> metric -> value
    # Both by model, as far as DVC's cache holds them.
    judgements: dict[str, Judgement] = field(default_factory=dict)
    files: dict[str, dict[str, Path]] = field(default_factory=dict)  # of corpus and sweep -> their objects


@dataclass(frozen=True)
class Experiments:
    """Every finished variant, the committed state first, and how many others are queued, running, killed or failed."""

    variants: list[LabVariant]
    unfinished: Mapping[str, int]  # by state


def read(root: Path, rev: str = "HEAD") -> Experiments:
    """The workspace, a commit and the experiments that began from it.

    Raises:
        InputError: `root` is no repository of DVC, or has no such commit.
    """
    states = json.loads(dvc.run("exp", "show", "--json", "--no-pager", "--rev", rev, root=root))
    cache = Path(dvc.config(root)["cache"].get("dir", root / ".dvc/cache"))
    return parse(states, ObjectStore(folder=cache / "files" / "md5"), alive=bool(dvc.processes(root)))


def parse(states: list[dict[str, Any]], objects: ObjectStore, *, alive: bool) -> Experiments:
    """The variants in the JSON of `dvc exp show`: the workspace, commits, and each one's experiments.

    Args:
        objects: DVC's cache.
        alive: whether any dvc runs in this lab. DVC takes an experiment that was killed for running for ever.
    """
    workspace, *commits = [_variant(state, state["name"], objects) for state in states]
    experiments = [experiment for state in states for experiment in state["experiments"] or []]
    # DVC lists a queued or running experiment with the metrics of the workspace, which are not its own.
    of_state = [((each["executor"] or {}).get("state") or "success", each) for each in experiments]
    named = [_variant(each["revs"][0], each["name"], objects) for state, each in of_state if state == "success"]
    variants = [variant for variant in (*commits, *named) if variant.metrics]
    shown = [(variant.settings, variant.metrics) for variant in variants]
    if workspace.metrics and (workspace.settings, workspace.metrics) not in shown:
        variants.append(workspace)
    unfinished = Counter(state for state, _ in of_state if state != "success")
    if not alive and "running" in unfinished:
        unfinished["killed"] = unfinished.pop("running")
    return Experiments(variants, unfinished)


def _variant(state: Mapping[str, Any], name: str | None, objects: ObjectStore) -> LabVariant:
    data = state["data"] or {"params": {}, "metrics": {}}
    settings, metrics = dict(_by_model(data["params"], "resolved")), dict(_by_model(data["metrics"], "metrics"))
    flat = {
        model: {
            f"{section}.{setting}": value
            for section, values in sections.items()
            if isinstance(values, dict)  # a commit from before today's layout may hold anything here
            for setting, value in values.items()
            if setting != "inputs"
        }
        for model, sections in settings.items()
    }
    variant = LabVariant(name or state["rev"][:9], flat, metrics)
    for file, out in data.get("outs", {}).items():
        path, oid = Path(file), out["hash"]
        with suppress(IntegrityError):  # not in this cache, or of another form than today's
            if oid and path.parent == layout.JUDGEMENTS:
                variant.judgements[path.stem] = Judgement.read(objects.object(oid))
            elif oid and path.parent.parent == layout.ARTIFACTS and path.name in ("corpus", "sweep"):
                objects_of = {f"{path.name}/{name}": objects.object(oid) for name, oid in objects.listing(oid).items()}
                variant.files.setdefault(path.parent.name, {}).update(objects_of)
    return variant


def _by_model(files: Mapping[str, Any], folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(model, data) of the JSON files below a folder that `dvc exp show` could read."""
    for name, file in files.items():
        path = Path(name)
        if path.parts[0] == folder and path.suffix == ".json" and isinstance(file.get("data"), dict):
            yield path.stem, file["data"]

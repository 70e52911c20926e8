"""The variants of a lab, committed or made by `dvc exp run`: settings and metrics, as `dvc exp show` prints them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lensmith.lab import dvc


@dataclass(frozen=True)
class LabVariant:
    """One finished variant of the lab."""

    name: str  # of the experiment; the branch of the committed state, `workspace` for the files as they are
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # model -> section.setting -> value
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # model -> metric -> value


@dataclass(frozen=True)
class Experiments:
    """Every finished variant, the committed state first, and how many are queued, running or failed."""

    variants: list[LabVariant]
    unfinished: int


def read(root: Path, rev: str = "HEAD") -> Experiments:
    """The workspace, a commit and the experiments that began from it.

    Raises:
        InputError: `root` is no repository of DVC, or has no such commit.
    """
    return parse(json.loads(dvc.run("exp", "show", "--json", "--no-pager", "--rev", rev, root=root)))


def parse(states: list[dict[str, Any]]) -> Experiments:
    """The variants in the JSON of `dvc exp show`: the workspace, commits, and each one's experiments."""
    workspace, *commits = [_variant(state, state["name"]) for state in states]
    experiments = [experiment for state in states for experiment in state["experiments"] or []]
    # DVC lists a queued or running experiment with the metrics of the workspace, which are not its own.
    finished = [each for each in experiments if (each["executor"] or {}).get("state") in (None, "success")]
    named = [_variant(each["revs"][0], each["name"]) for each in finished]
    variants = [variant for variant in (*commits, *named) if variant.metrics]
    shown = [(variant.settings, variant.metrics) for variant in variants]
    if workspace.metrics and (workspace.settings, workspace.metrics) not in shown:
        variants.append(workspace)
    return Experiments(variants, len(experiments) - len(finished))


def _variant(state: Mapping[str, Any], name: str | None) -> LabVariant:
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
    return LabVariant(name or state["rev"][:9], flat, metrics)


def _by_model(files: Mapping[str, Any], folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(model, data) of the JSON files below a folder that `dvc exp show` could read."""
    for name, file in files.items():
        path = Path(name)
        if path.parts[0] == folder and path.suffix == ".json" and isinstance(file.get("data"), dict):
            yield path.stem, file["data"]

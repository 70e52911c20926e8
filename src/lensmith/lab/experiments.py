"""The experiments that DVC knows of: settings and metrics of every variant, as `dvc exp show` gives them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lensmith.lab import dvc


@dataclass(frozen=True)
class Variant:
    """One finished variant of the lab."""

    name: str  # of the experiment; the branch for what is committed, `workspace` for what is not
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # model -> section.setting -> value
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # model -> metric -> value


@dataclass(frozen=True)
class Experiments:
    """Every finished variant, the committed state first, and how many are queued, running or failed."""

    variants: list[Variant]
    unfinished: int


def read(root: Path, rev: str = "HEAD") -> Experiments:
    """The workspace, a commit and the experiments that began from it.

    Raises:
        InputError: `root` is no repository of DVC, or has no such commit.
    """
    return of(json.loads(dvc.run("exp", "show", "--json", "--no-pager", "--rev", rev, root=root)))


def of(shown: list[dict[str, Any]]) -> Experiments:
    """The same from the JSON of `dvc exp show`."""
    workspace, *commits = [_variant(state, state["name"]) for state in shown]
    ranges = [one for state in shown for one in state["experiments"] or []]
    # What is queued or runs is listed with the metrics of the workspace: they are not its own.
    finished = [one for one in ranges if (one["executor"] or {}).get("state") in (None, "success")]
    named = [_variant(one["revs"][0], one["name"]) for one in finished]
    variants = [one for one in (*commits, *named) if one.metrics]
    if workspace.metrics and not any(_same(workspace, other) for other in variants):
        variants.append(workspace)
    return Experiments(variants, len(ranges) - len(finished))


def _variant(state: Mapping[str, Any], name: str | None) -> Variant:
    data = state["data"] or {"params": {}, "metrics": {}}
    settings, metrics = dict(_by_model(data["params"], "resolved")), dict(_by_model(data["metrics"], "metrics"))
    flat = {model: dict(_flat(values)) for model, values in settings.items()}
    return Variant(name or state["rev"][:9], flat, metrics)


def _by_model(files: Mapping[str, Any], folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, file in files.items():
        path = Path(name)
        if path.parts[0] == folder and path.suffix == ".json" and isinstance(file.get("data"), dict):
            yield path.stem, file["data"]


def _flat(sections: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, values in sections.items():
        # A commit from before today's layout may hold anything here.
        for name, value in values.items() if isinstance(values, dict) else ():
            if name != "inputs":
                yield f"{section}.{name}", value


def _same(one: Variant, other: Variant) -> bool:
    return one.settings == other.settings and one.metrics == other.metrics

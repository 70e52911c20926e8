"""The variants of a lab, committed or made by `dvc exp run`: settings, metrics and judgements.

`dvc exp show` prints settings and metrics, and names each variant's judgement by its object in DVC's cache.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lensmith.judge.judgement import Judgement
from lensmith.lab import dvc, layout
from lensmith.process.errors import IntegrityError


@dataclass(frozen=True)
class LabVariant:
    """One finished variant of the lab."""

    name: str  # of the experiment; the branch of the committed state, `workspace` for the files as they are
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # model -> section.setting -> value
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)  # model -> metric -> value
    judgements: dict[str, Judgement] = field(default_factory=dict)  # by model, as far as DVC's cache holds them


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
    states = json.loads(dvc.run("exp", "show", "--json", "--no-pager", "--rev", rev, root=root))
    cache = Path(dvc.config(root)["cache"].get("dir", root / ".dvc/cache"))
    return parse(states, cache / "files" / "md5")


def parse(states: list[dict[str, Any]], objects: Path) -> Experiments:
    """The variants in the JSON of `dvc exp show`: the workspace, commits, and each one's experiments.

    Args:
        objects: the folder of DVC's cache that holds objects, in folders of their first two digits.
    """
    workspace, *commits = [_variant(state, state["name"], objects) for state in states]
    experiments = [experiment for state in states for experiment in state["experiments"] or []]
    # DVC lists a queued or running experiment with the metrics of the workspace, which are not its own.
    finished = [each for each in experiments if (each["executor"] or {}).get("state") in (None, "success")]
    named = [_variant(each["revs"][0], each["name"], objects) for each in finished]
    variants = [variant for variant in (*commits, *named) if variant.metrics]
    shown = [(variant.settings, variant.metrics) for variant in variants]
    if workspace.metrics and (workspace.settings, workspace.metrics) not in shown:
        variants.append(workspace)
    return Experiments(variants, len(experiments) - len(finished))


def _variant(state: Mapping[str, Any], name: str | None, objects: Path) -> LabVariant:
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
    judgements = {}
    for file, out in data.get("outs", {}).items():
        if Path(file).parent == layout.JUDGEMENTS and out["hash"]:
            with suppress(IntegrityError):  # not in this cache, or of another form than today's
                judgements[Path(file).stem] = Judgement.read(objects / out["hash"][:2] / out["hash"][2:])
    return LabVariant(name or state["rev"][:9], flat, metrics, judgements)


def _by_model(files: Mapping[str, Any], folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(model, data) of the JSON files below a folder that `dvc exp show` could read."""
    for name, file in files.items():
        path = Path(name)
        if path.parts[0] == folder and path.suffix == ".json" and isinstance(file.get("data"), dict):
            yield path.stem, file["data"]

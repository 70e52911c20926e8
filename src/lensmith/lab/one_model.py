"""Reduce a clone that works for one model to a lab of that model.

DVC reads all of dvc.lock at each command and writes all of it after each stage, so that a clone pays for every model in
it. The result of a stage and its entry in the run-cache do not depend on the other models: the head takes them over.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lensmith.lab import layout
from lensmith.lab.layout import LOCK, PARAMS
from lensmith.process import git
from lensmith.process.errors import InputError
from lensmith.settings.sections import ModelParams


def check_alone(models: Mapping[str, ModelParams], untouched: str = "Nothing was changed.") -> None:
    """Check that each of these models could be the only one of a lab. `untouched` ends the message.

    Raises:
        InputError: one of them takes the lens of another.
    """
    for key, settings in models.items():
        if (entry := settings.transferred.entry) is not None:
            raise InputError(
                f"{PARAMS}: models.{key} takes the lens of models.{entry}, which a lab of one model does not have. "
                f"`dvc repro publish@{key}` runs it in the whole lab. {untouched}"
            )


def keep_only(model: str) -> None:
    """Keep one model in params.yaml and dvc.lock of the working directory, and the stages that belong to no model.

    Raises:
        InputError: params.yaml has no such model, it takes the lens of another, or git could not bring back the
            removed entries.
    """
    check_alone(layout.models([model]))
    yaml = YAML(typ="safe")
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel's hint is of its default, None
    reduced: dict[Path, Any] = {}
    for path, section in ((PARAMS, "models"), (LOCK, "stages")):
        data = yaml.load(path) if path.exists() else {section: {}}
        # `fit@atlas` belongs to atlas; a stage without a model, such as `resolve`, belongs to every model.
        wanted = [
            name for name in data[section] if name.rpartition("@")[2] == model or (path == LOCK and "@" not in name)
        ]
        if len(wanted) == len(data[section]):
            continue
        if git.run("status", "--porcelain", "--", str(path)) != "":
            raise InputError(f"git: {path} is not as committed, and entries of it would be lost. Nothing was changed.")
        reduced[path] = data | {section: {name: data[section][name] for name in wanted}}
    for path, data in reduced.items():
        yaml.dump(data, path)

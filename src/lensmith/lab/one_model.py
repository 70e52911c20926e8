"""A clone that is to work for one model becomes a lab of that model.

DVC reads all of dvc.lock at each command and writes all of it after each stage: a clone of a hundred models pays for a
hundred. What a stage gives does not depend on the lab's other models, nor does its entry in the run-cache, from which
the head takes it over.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lensmith.process import git
from lensmith.process.errors import InputError
from lensmith.settings import params_yaml

PARAMS, LOCK = Path("params.yaml"), Path("dvc.lock")


def narrow(model: str) -> None:
    """Keep `model` alone in params.yaml and dvc.lock of the working directory, and the stages that are no model's.

    Raises:
        InputError: params.yaml has no such model; git could not bring back what would go.
    """
    if model not in (models := params_yaml.read(PARAMS)):
        raise InputError(f"{PARAMS}: no model {model}; there is {', '.join(models)}. Nothing was changed.")
    yaml = YAML(typ="safe")
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel's hint is of its default, None
    narrowed: dict[Path, Any] = {}
    for path, section, kept in ((PARAMS, "models", (model,)), (LOCK, "stages", ("", model))):
        data = yaml.load(path) if path.exists() else {section: {}}
        own = {name: entry for name, entry in data[section].items() if _model_of(name, section) in kept}
        if len(own) == len(data[section]):
            continue
        if git.run("status", "--porcelain", "--", str(path)) != "":
            raise InputError(f"git: {path} is not as committed, and entries of it would be lost. Nothing was changed.")
        narrowed[path] = data | {section: own}
    for path, data in narrowed.items():
        yaml.dump(data, path)


def _model_of(name: str, section: str) -> str:
    """The model of an entry; of stage `resolve`, the empty word."""
    return name if section == "models" else name.partition("@")[2]

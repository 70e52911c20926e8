"""A clone that is to work for one model becomes a lab of that model.

DVC reads all of dvc.lock at each command and writes all of it after each stage: a clone of a hundred models pays for a
hundred. What a stage gives does not depend on the lab's other models, nor does its entry in the run-cache, from which
the head takes it over.
"""

from collections.abc import Callable
from pathlib import Path

from ruamel.yaml import YAML

from lensmith.edge import git, params_file
from lensmith.errors import InputError

PARAMS, LOCK = Path("params.yaml"), Path("dvc.lock")


def narrow(model: str) -> None:
    """Keep `model` alone in params.yaml and dvc.lock of the working directory.

    Raises:
        InputError: params.yaml has no such model; git does not hold both files as they are, to bring them back.
    """
    if git.run("status", "--porcelain", "--", str(PARAMS), str(LOCK)) != "":
        raise InputError(f"git: {PARAMS} and {LOCK} are not as committed, and would be lost. Nothing was changed.")
    if model not in (models := params_file.read(PARAMS)):
        raise InputError(f"{PARAMS}: no model {model}; there is {', '.join(models)}. Nothing was changed.")
    _rewrite(PARAMS, "models", lambda name: name == model)
    if LOCK.exists():
        _rewrite(LOCK, "stages", lambda name: name.endswith(f"@{model}"))


def _rewrite(path: Path, section: str, is_kept: Callable[[str], bool]) -> None:
    yaml = YAML(typ="safe")
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel's hint is of its default, None
    data = yaml.load(path)
    data[section] = {name: entry for name, entry in data[section].items() if is_kept(name)}
    yaml.dump(data, path)

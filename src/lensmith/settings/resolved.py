"""What `resolve` writes: settings and code fingerprints, as the files that make stages stale."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from lensmith.files import artifacts, hashes, names
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings import fingerprint, params_yaml
from lensmith.settings.sections import ModelParams, Section, fit_sha256, read_resolved

NAMING = ("source", "corpus", "imported", "sweep", "suite", "publish")  # sections that name files
SAMPLING = Path(__file__).parents[1] / "source/sampling.py"
# The files of a model folder that decide its numbers; a README beside them does not.
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.pt")


def write(file: Path, root: Path, out: Path) -> None:
    """Write `out`/models and `out`/code for the repository at `root`. Files with the same content keep their mtime."""
    scripts = sorted(path for path in (root / "stages").glob("*.py") if path.stem not in ("__init__", "resolve"))
    models = out / "models"
    contents = {models / f"{key}.json": data for key, data in with_inputs(params_yaml.read(file), models).items()}
    contents |= {out / "code" / f"{s.stem}.json": fingerprint.fingerprint(s, root) for s in scripts}
    for path in out.glob("*/*"):
        if path not in contents:
            path.unlink()  # a removed model must not stay in the report
    for path, data in contents.items():
        with suppress(IntegrityError):  # not there, or a git merge that is not finished
            if artifacts.read_json(path) == data:
                continue
        artifacts.write_json(path, data)


def with_inputs(models: Mapping[str, ModelParams], recorded: Path | None = None) -> dict[str, dict[str, Any]]:
    """Settings as JSON data by model, each section with the sha256 of every local file that it names.

    A section whose files are not all here, as in a clone, keeps the sha256 that `recorded` has for the same settings:
    it makes nothing stale, and other models go on. A line on stderr says so.

    Args:
        recorded: folder with the settings of each model as an earlier call gave them.

    Raises:
        InputError: a named file or folder does not exist, and the settings are not those that are recorded.
    """
    resolved = {key: settings.model_dump(mode="json") for key, settings in models.items()}
    named = dict[tuple[str, str], list[Path]]()
    for key, settings in models.items():
        for section in NAMING:
            try:
                named[key, section] = section_files(settings, section)
            except names.AbsentError as error:
                before = None if recorded is None else recorded_settings(recorded / f"{key}.json", settings)
                if before is None:
                    raise
                resolved[key][section]["inputs"] = before[section]["inputs"]
                print(f"{error.fact}. What was made with it stays; stages that read it fail.", file=sys.stderr)
    sha256 = hashes.sha256_files({file for files in named.values() for file in files})
    for (key, section), files in named.items():
        resolved[key][section]["inputs"] = {file.as_posix(): sha256[file] for file in files}
    for key, settings in models.items():
        if settings.corpus.kind == "sampled":  # no fingerprint of a stage has this code, see `RESULT_FREE`
            resolved[key]["corpus"]["inputs"][SAMPLING.name] = fingerprint.of_source(SAMPLING.read_text())
    for key, settings in models.items():
        if (entry := settings.transferred.entry) is not None:
            resolved[key]["transferred"]["inputs"] = {entry: fit_sha256(resolved[entry])}
    return resolved


def recorded_settings(path: Path, settings: ModelParams) -> dict[str, Any] | None:
    """What an earlier `resolve` wrote for a model; None where there is nothing, or its settings were others."""
    try:
        before = read_resolved(path)
    except InputError:
        return None
    inputs = {name: {"inputs"} for name, section in settings if isinstance(section, Section)}
    same = before.model_dump(exclude=inputs) == settings.model_dump(exclude=inputs)
    return before.model_dump(mode="json") if same else None


def has_files(settings: ModelParams) -> bool:
    """Whether every file and folder that the settings name is on this machine. Raises InputError as `section_files`."""
    try:
        local_files(settings)
    except names.AbsentError:
        return False
    return True


def local_files(settings: ModelParams) -> dict[str, list[Path]]:
    """Local files by the section that names them. Raises InputError as `section_files`."""
    return {section: section_files(settings, section) for section in NAMING}


def section_files(settings: ModelParams, section: str) -> list[Path]:
    """Local files that a section names. Relative names begin in the working directory.

    Raises:
        AbsentError: a name has no file or folder.
        InputError: it is a folder where a file is needed, or the reverse; or a folder holds no model, or no lens.
    """
    where, corpus, imported = f"params.yaml: models.{settings.key}.{section}", settings.corpus, settings.imported
    if section == "source":
        if settings.source.path is None:
            return []
        model = names.model(settings.source.path, where)
        return [model] if model.is_file() else _model_files(model)
    if section == "imported":
        if imported.repo is not None or imported.folder is None:
            return []
        folder = names.folder(imported.folder, where)
        needed = "lens.pt" if imported.format == "jacobian" else "config.json"
        if not (folder / needed).is_file():
            raise InputError(f"{where} names {imported.folder}, a folder without {needed}. {names.UNCHANGED}")
        return _model_files(folder)
    licence, text = settings.publish.base_license_file, corpus.files if corpus.kind in ("files", "sampled") else []
    patterns = {
        "corpus": [*text, *chain(*corpus.also_heldout.values())],
        "sweep": settings.sweep.probes,
        "suite": settings.suite.files,
        "publish": [] if licence is None else [licence],
    }
    return names.files(patterns[section], where)


def _model_files(folder: Path) -> list[Path]:
    return sorted(file for form in MODEL_FILES for file in folder.glob(form) if file.is_file())

"""What `resolve` writes: settings and code fingerprints, as the files that make stages stale."""

import functools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lensmith.files import artifacts
from lensmith.process.errors import InputError
from lensmith.settings import fingerprint, params_yaml
from lensmith.settings.sections import ModelParams

# The files of a model folder that decide its numbers; a README beside them does not.
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.pt")

# Sections that name a folder; the others name files.
FOLDERS = ("source", "imported")

# Folders that stage `resolve` depends on in dvc.yaml. A local file elsewhere would go stale unseen.
WATCHED = ("demo", "suites")


def write(file: Path, root: Path, out: Path) -> None:
    """Write `out`/models and `out`/code for the repository at `root`."""
    resolved = with_inputs(params_yaml.read(file), root)
    scripts = sorted(path for path in (root / "stages").glob("*.py") if path.stem not in ("__init__", "resolve"))
    code = {script.stem: fingerprint.fingerprint(script, root) for script in scripts}
    for folder in ("models", "code"):
        shutil.rmtree(out / folder, ignore_errors=True)  # a removed model must not stay in the report
    for key, settings in resolved.items():
        artifacts.write_json(out / "models" / f"{key}.json", settings)
    for stage, hashes in code.items():
        artifacts.write_json(out / "code" / f"{stage}.json", hashes)


def with_inputs(models: Mapping[str, ModelParams], root: Path) -> dict[str, dict[str, Any]]:
    """Settings as JSON data by model, each section with the sha256 of the watched files that it names.

    Raises:
        InputError: a named file or folder does not exist.
    """
    sha256 = functools.cache(artifacts.sha256_file)  # a hundred models may name the same suite
    return {key: _with_inputs(settings, root, sha256) for key, settings in models.items()}


def _with_inputs(settings: ModelParams, root: Path, sha256: Callable[[Path], str]) -> dict[str, Any]:
    data = settings.model_dump(mode="json")
    named = {
        "source": [settings.source.path] if settings.source.path else [],
        "corpus": settings.corpus.files,
        "imported": [settings.imported.folder] if settings.imported.folder and settings.imported.repo is None else [],
        "sweep": settings.sweep.probes,
        "suite": settings.suite.files,
        "publish": [settings.publish.base_license_file] if settings.publish.base_license_file else [],
    }
    for section, paths in named.items():
        for path in paths:
            files = _watched(root, path, f"models.{settings.key}.{section}")
            data[section]["inputs"].update({file.relative_to(root).as_posix(): sha256(file) for file in files})
    return data


def _watched(root: Path, name: str, where: str) -> list[Path]:
    """The files of a name, pattern or model folder that lie where `resolve` sees them change."""
    files = [file for p in _named(root, name, where) for file in (_model_files(p) if p.is_dir() else [p])]
    return [file for file in files if any(file.is_relative_to(root / folder) for folder in WATCHED)]


def _named(root: Path, name: str, where: str) -> list[Path]:
    """The files that a name or pattern stands for, or the one folder."""
    try:
        is_pattern = any(c in name for c in "*?[") and not Path(name).is_absolute()
        found = sorted(root.glob(name)) if is_pattern else [root / name]
        missing = not found or not all(path.exists() for path in found)
    except (ValueError, OSError) as error:  # ** inside a name; a name longer than the file system's
        problem = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise InputError(f"params.yaml: {where} names {name}: {problem}. {params_yaml.UNCHANGED}") from None
    if missing:
        raise InputError(f"params.yaml: {where} names {name}, which does not exist. {params_yaml.UNCHANGED}")
    if any(path.is_dir() for path in found) and where.rpartition(".")[2] not in FOLDERS:
        raise InputError(f"params.yaml: {where} names {name}, a folder; it takes files. {params_yaml.UNCHANGED}")
    return found


def _model_files(folder: Path) -> list[Path]:
    return sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)})

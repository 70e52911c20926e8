"""What `resolve` writes: settings and code fingerprints, as the files that make stages stale."""

import shutil
from pathlib import Path
from typing import Any

from lensmith.edge import artifacts, fingerprint, params_file
from lensmith.edge.params import ModelParams
from lensmith.errors import InputError

# The files of a model folder that decide its numbers; a README beside them does not.
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.pt")

# Folders that stage `resolve` depends on in dvc.yaml. A local file elsewhere would go stale unseen.
WATCHED = ("demo", "suites")


def write(file: Path, root: Path, out: Path) -> None:
    """Write `out`/models and `out`/code for the repository at `root`."""
    models = params_file.read(file)
    resolved = {key: with_inputs(settings, root) for key, settings in models.items()}
    scripts = sorted(path for path in (root / "stages").glob("*.py") if path.stem not in ("__init__", "resolve"))
    code = {script.stem: fingerprint.fingerprint(script, root) for script in scripts}
    for folder in ("models", "code"):
        shutil.rmtree(out / folder, ignore_errors=True)  # a removed model must not stay in the report
    for key, settings in resolved.items():
        artifacts.write_json(out / "models" / f"{key}.json", settings)
    for stage, hashes in code.items():
        artifacts.write_json(out / "code" / f"{stage}.json", hashes)


def with_inputs(settings: ModelParams, root: Path) -> dict[str, Any]:
    """The settings as JSON data, each section with the sha256 of the watched files that it names.

    Raises:
        InputError: a named file or folder does not exist.
    """
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
            data[section]["inputs"].update(_hashes(root, path, f"models.{settings.key}.{section}"))
    return data


def _hashes(root: Path, name: str, where: str) -> dict[str, str]:
    path = root / name
    found = sorted(root.glob(name)) if any(c in name for c in "*?[") and not Path(name).is_absolute() else [path]
    if not found or not all(p.exists() for p in found):
        raise InputError(f"params.yaml: {where} names {name}, which does not exist. {params_file.UNCHANGED}")
    files = [file for p in found for file in (_model_files(p) if p.is_dir() else [p])]
    watched = [file for file in files if _is_watched(file, root)]
    return {file.relative_to(root).as_posix(): artifacts.sha256_file(file) for file in watched}


def _model_files(folder: Path) -> list[Path]:
    return sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)})


def _is_watched(file: Path, root: Path) -> bool:
    return any(file.is_relative_to(root / folder) for folder in WATCHED)

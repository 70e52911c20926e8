"""What `resolve` writes: settings and code fingerprints, as the files that make stages stale."""

import functools
import shutil
from collections.abc import Mapping, Sequence
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
    resolved = {}
    for key, settings in models.items():
        imported = settings.imported
        named: Mapping[str, Sequence[str | None]] = {
            "source": [settings.source.path],
            "corpus": settings.corpus.files,
            "imported": [imported.folder if imported.repo is None else None],
            "sweep": settings.sweep.probes,
            "suite": settings.suite.files,
            "publish": [settings.publish.base_license_file],
        }
        data = settings.model_dump(mode="json")
        for section, names in named.items():
            for name in filter(None, names):
                files = _watched_files(root, name, f"models.{key}.{section}")
                data[section]["inputs"].update({file.relative_to(root).as_posix(): sha256(file) for file in files})
        resolved[key] = data
    return resolved


def _watched_files(root: Path, name: str, where: str) -> list[Path]:
    """The files of a name, pattern or model folder that lie where `resolve` sees them change."""
    try:
        is_pattern = any(c in name for c in "*?[") and not Path(name).is_absolute()
        paths = sorted(root.glob(name)) if is_pattern else [root / name]
        is_missing = not paths or not all(path.exists() for path in paths)
    except (ValueError, OSError) as error:  # ** inside a name; a name longer than the file system's limit
        problem = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise InputError(f"params.yaml: {where} names {name}: {problem}. {params_yaml.UNCHANGED}") from None
    if is_missing:
        raise InputError(f"params.yaml: {where} names {name}, which does not exist. {params_yaml.UNCHANGED}")
    if any(path.is_dir() for path in paths) and where.rpartition(".")[2] not in FOLDERS:
        raise InputError(f"params.yaml: {where} names {name}, a folder; it takes files. {params_yaml.UNCHANGED}")
    files = []
    for path in paths:
        files += sorted({file for name in MODEL_FILES for file in path.glob(name)}) if path.is_dir() else [path]
    return [file for file in files if any(file.is_relative_to(root / folder) for folder in WATCHED)]

"""What `resolve` writes: settings and code fingerprints, as the files that make stages stale."""

from collections.abc import Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from lensmith.files import artifacts, hashes, names
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings import fingerprint, params_yaml
from lensmith.settings.sections import ModelParams

# The files of a model folder that decide its numbers; a README beside them does not.
SAMPLING = Path(__file__).parents[1] / "source/sampling.py"
MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.pt")


def write(file: Path, root: Path, out: Path) -> None:
    """Write `out`/models and `out`/code for the repository at `root`. Files with the same content keep their mtime."""
    scripts = sorted(path for path in (root / "stages").glob("*.py") if path.stem not in ("__init__", "resolve"))
    contents = {out / "models" / f"{key}.json": data for key, data in with_inputs(params_yaml.read(file)).items()}
    contents |= {out / "code" / f"{s.stem}.json": fingerprint.fingerprint(s, root) for s in scripts}
    for path in out.glob("*/*"):
        if path not in contents:
            path.unlink()  # a removed model must not stay in the report
    for path, data in contents.items():
        with suppress(IntegrityError):  # not there, or a git merge that is not finished
            if artifacts.read_json(path) == data:
                continue
        artifacts.write_json(path, data)


def with_inputs(models: Mapping[str, ModelParams]) -> dict[str, dict[str, Any]]:
    """Settings as JSON data by model, each section with the sha256 of every local file that it names.

    Raises:
        InputError: a named file or folder does not exist.
    """
    named = {key: local_files(settings) for key, settings in models.items()}
    sha256 = hashes.sha256_files({file for sections in named.values() for files in sections.values() for file in files})
    resolved = {}
    for key, settings in models.items():
        resolved[key] = settings.model_dump(mode="json")
        for section, files in named[key].items():
            resolved[key][section]["inputs"] = {file.as_posix(): sha256[file] for file in files}
        if settings.corpus.kind == "sampled":  # no fingerprint of a stage has this code, see `RESULT_FREE`
            resolved[key]["corpus"]["inputs"][SAMPLING.name] = fingerprint.of_source(SAMPLING.read_text())
    return resolved


def local_files(settings: ModelParams) -> dict[str, list[Path]]:
    """Local files by the section that names them. Relative names begin in the working directory.

    Raises:
        InputError: a name has no file; it is a folder where a file is needed, or the reverse; or a folder holds no
            model, or no lens of tuned-lens.
    """
    corpus, imported, licence = settings.corpus, settings.imported, settings.publish.base_license_file
    where, files = f"params.yaml: models.{settings.key}", dict[str, list[Path]]()
    for section, patterns in (
        (
            "corpus",
            [*(corpus.files if corpus.kind in ("files", "sampled") else []), *chain(*corpus.also_heldout.values())],
        ),
        ("sweep", settings.sweep.probes),
        ("suite", settings.suite.files),
        ("publish", [] if licence is None else [licence]),
    ):
        files[section] = names.files(patterns, f"{where}.{section}")
    if settings.source.path is not None:
        model = names.model(settings.source.path, f"{where}.source")
        files["source"] = [model] if model.is_file() else _model_files(model)
    if imported.repo is None and imported.folder is not None:
        folder = names.folder(imported.folder, f"{where}.imported")
        needed = "lens.pt" if imported.format == "jacobian" else "config.json"
        if not (folder / needed).is_file():
            raise InputError(f"{where}.imported names {imported.folder}, a folder without {needed}. {names.UNCHANGED}")
        files["imported"] = _model_files(folder)
    return files


def _model_files(folder: Path) -> list[Path]:
    return sorted(file for form in MODEL_FILES for file in folder.glob(form) if file.is_file())

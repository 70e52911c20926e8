"""Fits that run on this machine, or ran: their logs under LENSMITH_HOME, which grow while a fit runs."""

import csv
from pathlib import Path

from lensmith.files import artifacts, cache
from lensmith.lens.lens_file import FIT_LOG
from lensmith.process.errors import InputError, IntegrityError

Log = list[dict[str, str]]  # the lines of a fit_log.csv


def newest(model: str) -> Path:
    """The folder of the model's fit that runs, or ran last.

    Raises:
        InputError: there is none.
    """
    for entry in cache.entries("fit"):
        try:
            key = artifacts.read_json(entry.folder / "key.json")
        except IntegrityError:
            continue  # it has just begun
        if key.get("model_key") == model:  # a rung belongs to no model alone
            return entry.folder
    raise InputError(
        f"{cache.folder('fit', '')}: no fit of {model} runs on this machine, or ran. `dvc repro fit@{model}` fits it."
    )


def logs(folder: Path) -> dict[str, Log]:
    """The validations so far of each kind of lens, in the order in which the kinds were fit."""
    files = sorted(folder.glob(f"*/{FIT_LOG}"), key=lambda file: file.stat().st_mtime)
    read: dict[str, Log] = {}
    for file in files:
        with file.open(encoding="utf-8", newline="") as lines:
            read[file.parent.name] = list(csv.DictReader(lines))
    return read

"""Recompute what a lens's provenance says, and compare fact by fact.

The code that wrote the record makes it again, from weights, fit_log.csv, the corpus, the model and the settings. Facts
that no artifact holds, such as the machine, are listed as not checked.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensmith.lens import recording, remade
from lensmith.lens.checkpoint import read_log
from lensmith.lens.provenance import PROVENANCE, Provenance
from lensmith.settings.sections import ModelParams
from lensmith.source.proof import PROOF_LIMIT_BITS

# Of the machine and the moment of the fit; no file holds them.
NOT_CHECKED = (
    "versions", "machine", "products", "vocabulary", "ridge_by_layer", "git_commit", "git_dirty",
    "val_kl_bits_by_layer", "jacobian",
)  # fmt: skip
RELATIVE = 1e-5  # tolerance of numbers computed again, maybe on another machine


@dataclass(frozen=True)
class Audit:
    """A line for each wrong fact, the facts that could not be computed again, and how many were right."""

    wrong: tuple[str, ...]
    not_checked: tuple[str, ...]
    right: int


def audit(settings: ModelParams, code: Path, corpus_dir: Path, lens_dir: Path) -> Audit:
    """Check `lens_dir`/provenance.json.

    Raises:
        IntegrityError: a file that the facts come from is missing, damaged or changed.
    """
    path = lens_dir / PROVENANCE
    provenance, log = Provenance.read(path), read_log(lens_dir)
    recorded = dict(_flat(provenance.data()))
    validation = remade.validation(provenance)
    expected = dict(_flat(remade.facts(settings, code, corpus_dir, lens_dir, log=log, recorded=provenance)))
    not_checked = {key for key in recorded if key not in expected or key.split(".")[0] in NOT_CHECKED}
    wrong = [
        f"{path}: {key} is {recorded.get(key, 'missing')}, but the artifacts say {value}"
        for key, value in expected.items()
        if key.split(".")[0] not in NOT_CHECKED and not _same(key, recorded.get(key), value)
    ]
    mean, last, logged = validation.mean, validation.kl_bits[-1], log[-1].kept_kl_bits_mean
    if last != 0 or not math.isclose(mean, logged, rel_tol=1e-9, abs_tol=1e-12):
        wrong.append(
            f"{path}: val_kl_bits_by_layer has mean {mean} and last value {last}, but fit_log.csv says {logged} and 0"
        )
    commits, is_checked = recording.commit_faults(provenance)
    wrong += [f"{path}: {fault}" for fault in commits]
    not_checked -= {"git_commit", "git_dirty"} if is_checked else set()
    not_checked = {key for key in not_checked if not key.startswith("val_kl_bits_by_layer")}  # by their mean
    return Audit(tuple(wrong), tuple(sorted(not_checked)), len(recorded) - len(not_checked) - len(wrong))


def _flat(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, leaf) of JSON data."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        yield key, value
        return
    for name, below in items:
        yield from _flat(below, f"{key}.{name}" if key else str(name))


def _same(key: str, recorded: object, expected: object) -> bool:
    if key == "proof.max_kl_bits":  # rounding, another number on another machine: the limit decides
        return isinstance(recorded, float | int) and abs(recorded) <= PROOF_LIMIT_BITS
    if isinstance(recorded, float) and isinstance(expected, float):
        # The KL of a rounded head may be as small as rounding errors are.
        return math.isclose(recorded, expected, rel_tol=RELATIVE, abs_tol=1e-6 * key.startswith("rounded_heads"))
    return type(recorded) is type(expected) and recorded == expected

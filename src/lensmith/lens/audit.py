"""Whether what a lens says about itself is so: each recorded fact again, from the artifacts themselves.

The record is rebuilt by the code that writes it, from weights, fit_log.csv, the corpus, the model and the settings, and
compared fact by fact. What no artifact holds, such as the machine, is named as not checked.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensmith.files import artifacts
from lensmith.lens import memory, provenance, published, training
from lensmith.lens.lens import Lens
from lensmith.lens.lens_file import PRISM, WEIGHTS
from lensmith.lens.objective import Validation
from lensmith.lens.prism import Prism
from lensmith.lens.schedule import Schedule
from lensmith.process import git
from lensmith.process.errors import IntegrityError
from lensmith.settings import fingerprint
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus
from lensmith.source.backbone import Backbone
from lensmith.source.proof import PROOF_LIMIT_BITS

# Of the machine that fit, and of the moment; no file holds them.
NOT_CHECKED = ("versions", "machine", "products", "ridge_by_layer", "git_commit", "git_dirty", "val_kl_bits_by_layer")
RELATIVE = 1e-5  # of numbers that are computed again, maybe on another machine


@dataclass(frozen=True)
class Audit:
    """What was found: a line for each wrong fact, and the facts that could not be computed again."""

    wrong: tuple[str, ...]
    not_checked: tuple[str, ...]
    right: int


def audit(settings: ModelParams, code: Path, corpus_dir: Path, lens_dir: Path) -> Audit:
    """Check `lens_dir`/provenance.json.

    Raises:
        IntegrityError: a file that the facts come from is missing, damaged or changed.
    """
    path = lens_dir / "provenance.json"
    recorded = artifacts.read_json(path)
    expected = _expected(settings, code, corpus_dir, lens_dir, recorded)
    found, known = dict(_flat(recorded)), dict(_flat(expected))
    skipped = {key for key in found if key not in known or key.split(".")[0] in NOT_CHECKED}
    wrong = [
        f"{path}: {key} is {found.get(key, 'missing')}, but the artifacts say {value}"
        for key, value in known.items()
        if key.split(".")[0] not in NOT_CHECKED and not _same(key, found.get(key), value)
    ]
    commits, is_checked = _commit_faults(recorded)
    wrong += [f"{path}: {fault}" for fault in (*commits, *_mean_faults(recorded, lens_dir))]
    skipped -= {"git_commit", "git_dirty"} if is_checked else set()
    skipped = {key for key in skipped if not key.startswith("val_kl_bits_by_layer")}  # by their mean
    return Audit(tuple(wrong), tuple(sorted(skipped)), len(found) - len(skipped) - len(wrong))


def _expected(
    settings: ModelParams, code: Path, corpus_dir: Path, lens_dir: Path, recorded: dict[str, Any]
) -> dict[str, Any]:
    manifest = corpus.Manifest.read(corpus_dir)
    for read in (corpus.read_tokens, corpus.read_heldout):
        read(corpus_dir)  # their sha256 is compared with the manifest's
    backbone, lens = Backbone.load(settings.source, manifest.model), Lens.load(lens_dir)
    by_layer = tuple(recorded["val_kl_bits_by_layer"])
    fit = _fit(settings, manifest, lens, lens_dir, d_vocab=backbone.d_vocab, by_layer=by_layer)
    expected = provenance.of_fit(settings, manifest, backbone, artifacts.read_json(code), fit)
    expected["weights_sha256"] = artifacts.sha256_file(lens_dir / WEIGHTS)
    best = _best_row(lens_dir)
    expected["val_kl_bits@{25,50,75}%"] = [float(best[f"val_kl_bits_{depth}"]) for depth in (25, 50, 75)]
    expected["imported"] = published.load(manifest.lens, backbone)[1] if settings.fit.kind == "imported" else None
    expected["prism"] = None
    if settings.fit.prism != "off":
        prism = lens_dir / PRISM
        expected["prism"] = Prism.load(prism).about() | {"sha256": artifacts.sha256_file(prism)}
    if settings.fit.bank == "stream":  # counted as they passed; a bank forwards each token once
        expected["measured"].pop("tokens_forwarded")
    return expected


def _fit(
    settings: ModelParams,
    manifest: corpus.Manifest,
    lens: Lens,
    lens_dir: Path,
    *,
    d_vocab: int,
    by_layer: tuple[float, ...],
) -> training.Fit:
    """The fit that a lens's log, weights, corpus and settings tell of."""
    s = memory.scaled(settings.fit, d_vocab, lens.n_layers)
    blocks, n_seqs = lens.n_layers - 1, manifest.train.sequences
    is_imported = s.kind == "imported"
    if is_imported:
        n_seqs = min(s.validation_seqs, manifest.heldout.sequences)
    is_trained = bool(blocks and not is_imported and training.trainable(s))
    schedule = Schedule(s, n_seqs, blocks, trains=is_trained)
    steps = int(_log(lens_dir)[-1]["step"])
    return training.Fit(
        lens=lens,
        log=[],
        steps=steps,
        best_step=int(_best_row(lens_dir)["step"]),
        stopped_early=steps < schedule.total_steps,
        schedule=schedule,
        positions_used=steps * schedule.batch_seqs * s.positions_per_seq,
        tokens_forwarded=0 if is_imported else n_seqs * manifest.seq_len,
        best=Validation(by_layer),
        settings=s,
        products=s.products,
        ridge=None,
    )


def _log(lens_dir: Path) -> list[dict[str, str]]:
    path = lens_dir / "fit_log.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing") from None
    if not any(row.get("best") == "1" for row in rows):
        raise IntegrityError(f"{path}: no row is marked as the best one")
    return rows


def _best_row(lens_dir: Path) -> dict[str, str]:
    return [row for row in _log(lens_dir) if row["best"] == "1"][-1]


def _mean_faults(recorded: dict[str, Any], lens_dir: Path) -> Iterator[str]:
    """The log holds three depths and the mean of all layers; an edit of any one layer changes the mean."""
    by_layer, logged = recorded["val_kl_bits_by_layer"], float(_best_row(lens_dir)["val_kl_bits_mean"])
    mean = sum(by_layer) / max(1, len(by_layer) - 1)
    if by_layer[-1] != 0 or not math.isclose(mean, logged, rel_tol=1e-9, abs_tol=1e-12):
        yield f"val_kl_bits_by_layer has mean {mean} and last value {by_layer[-1]}, but fit_log.csv says {logged} and 0"


def _commit_faults(recorded: dict[str, Any]) -> tuple[list[str], bool]:
    """Whether the recorded commit holds the recorded code, and whether that could be asked here."""
    commit, is_dirty = recorded["git_commit"], recorded["git_dirty"]
    if git.run("rev-parse", "HEAD") is None or commit is None:
        return [], False
    if git.run("cat-file", "-e", f"{commit}^{{commit}}") is None:
        return [f"git_commit is {commit}, which this repository does not have"], True
    held = {name: git.run("show", f"{commit}:{name}") for name in recorded["code"]}
    other = [name for name, text in held.items() if _code_hash(text) != recorded["code"][name]]
    if not is_dirty and other:
        return [f"git_commit is {commit}, where {other[0]} is other code than was recorded"], True
    if is_dirty and not other:
        return [f"git_dirty is true, but at {commit} all code is as recorded"], True
    return [], True


def _code_hash(text: str | None) -> str | None:
    return None if text is None else fingerprint.of_source(text)


def _flat(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, leaf) of JSON data."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        yield key, value
        return
    for name, below in items:
        yield from _flat(below, f"{key}.{name}" if key else str(name))


def _same(key: str, found: object, value: object) -> bool:
    if key == "proof.max_kl_bits":  # rounding, and so another number on another machine; the limit is what counts
        return isinstance(found, float | int) and abs(found) <= PROOF_LIMIT_BITS
    if isinstance(found, float) and isinstance(value, float):
        return math.isclose(found, value, rel_tol=RELATIVE)
    return type(found) is type(value) and found == value

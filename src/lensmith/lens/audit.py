"""Recompute what a lens's provenance says, and compare fact by fact.

The code that wrote the record makes it again, from weights, fit_log.csv, the corpus, the model and the settings. Facts
that no artifact holds, such as the machine, are listed as not checked.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from lensmith.files import artifacts, records
from lensmith.lens import published, recording, training
from lensmith.lens.checkpoint import LogRow
from lensmith.lens.depth import PERCENTILES
from lensmith.lens.lens import Lens
from lensmith.lens.lens_file import FIT_LOG, PRISM, WEIGHTS
from lensmith.lens.objective import Validation
from lensmith.lens.prism import Prism
from lensmith.lens.provenance import PROVENANCE, Provenance
from lensmith.lens.schedule import Schedule, scaled_to_vocabulary
from lensmith.lens.stage import prism_record_of
from lensmith.process import git
from lensmith.process.errors import IntegrityError
from lensmith.settings import fingerprint
from lensmith.settings.sections import FitParams, ModelParams
from lensmith.source import corpus
from lensmith.source.backbone import Backbone
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
    provenance, log = Provenance.read(path), _read_log(lens_dir / FIT_LOG)
    recorded = dict(_flat(provenance.data()))
    validation = _validation(provenance)
    expected = dict(_flat(_expected(settings, code, corpus_dir, lens_dir, log=log, recorded=provenance)))
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
    commits, is_checked = _commit_faults(provenance)
    wrong += [f"{path}: {fault}" for fault in commits]
    not_checked -= {"git_commit", "git_dirty"} if is_checked else set()
    not_checked = {key for key in not_checked if not key.startswith("val_kl_bits_by_layer")}  # by their mean
    return Audit(tuple(wrong), tuple(sorted(not_checked)), len(recorded) - len(not_checked) - len(wrong))


def _expected(
    settings: ModelParams,
    code: Path,
    corpus_dir: Path,
    lens_dir: Path,
    *,
    log: list[LogRow],
    recorded: Provenance,
) -> dict[str, Any]:
    """The record made again from the artifacts, JSON data.

    KL by layer, and of what a Jacobian lens is the mean, are taken over: no other artifact holds them.
    """
    manifest = corpus.Manifest.read(corpus_dir)
    for read in (corpus.read_tokens, corpus.read_heldout):
        read(corpus_dir)  # their sha256 is compared with the manifest's
    backbone, lens = Backbone.load(settings.source, manifest.model), Lens.load(lens_dir)
    has_prism, is_imported = settings.fit.prism != "off", settings.fit.kind == "imported"
    record = recording.provenance_of(
        _fit(scaled_to_vocabulary(settings.fit, backbone.d_vocab, lens.n_layers), manifest, lens, log, recorded),
        settings,
        manifest,
        backbone,
        artifacts.read_json(code),
        weights_sha256=artifacts.sha256_file(lens_dir / WEIGHTS),
        prism=prism_record_of(Prism.load(lens_dir / PRISM), lens_dir) if has_prism else None,
        imported=published.load(manifest.lens, backbone)[1] if is_imported else None,
    )
    expected: Any = record.data()
    # A fit keeps each layer of its best validation.
    expected["val_kl_bits@{25,50,75}%"] = [
        min((getattr(row, f"val_kl_bits_{depth}") for row in log), key=lambda bits: math.inf if bits is None else bits)
        for depth in PERCENTILES
    ]
    if settings.fit.bank == "stream":  # counted as they passed; a bank forwards each token once
        expected["measured"].pop("tokens_forwarded")
    return dict(expected)


def _fit(
    ran: FitParams, manifest: corpus.Manifest, lens: Lens, log: list[LogRow], recorded: Provenance
) -> training.Fit:
    """The fit of a lens, from its log, weights, corpus and the settings that it ran with."""
    n_blocks, n_seqs = lens.n_layers - 1, manifest.train.sequences
    by_steps, mean_of = ran.kind not in {"imported", "jacobian"}, recorded.jacobian
    if not by_steps:
        n_seqs = min(ran.validation_seqs, manifest.heldout.sequences)
    is_trained = bool(n_blocks and by_steps and training.trainable(ran))
    schedule = Schedule(ran, n_seqs, n_blocks, trains=is_trained)
    steps = log[-1].step
    return training.Fit(
        lens=lens,
        log=[],
        steps=steps,
        best_step=_best_row(log).step,
        schedule=schedule,
        positions_used=mean_of.positions if mean_of else steps * schedule.batch_seqs * ran.positions_per_seq,
        tokens_forwarded=mean_of.sequences * manifest.seq_len if mean_of else by_steps * n_seqs * manifest.seq_len,
        best=_validation(recorded),
        settings=ran,
        vocabulary=ran.vocabulary,
        products=ran.products,
        ridge=None,
        jacobian=mean_of,
    )


def _validation(recorded: Provenance) -> Validation:
    return Validation(tuple(math.nan if bits is None else bits for bits in recorded.val_kl_bits_by_layer))


def _read_log(path: Path) -> list[LogRow]:
    """fit_log.csv. IntegrityError where it is missing, has another form, or no row is the best one."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = [{name: text or None for name, text in line.items()} for line in csv.DictReader(file)]
        rows = TypeAdapter(list[LogRow]).validate_python(lines)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing") from None
    except ValidationError as error:
        raise IntegrityError(f"{path}: {records.explain(error)}") from None
    if not any(row.best for row in rows):
        raise IntegrityError(f"{path}: no row is marked as the best one")
    return rows


def _best_row(log: list[LogRow]) -> LogRow:
    return [row for row in log if row.best][-1]


def _commit_faults(recorded: Provenance) -> tuple[list[str], bool]:
    """Whether the recorded commit holds other code than was recorded, and whether git could tell here."""
    commit, is_dirty = recorded.git_commit, recorded.git_dirty
    if git.run("rev-parse", "HEAD") is None or commit is None:
        return [], False
    if git.run("cat-file", "-e", f"{commit}^{{commit}}") is None:
        return [f"git_commit is {commit}, which this repository does not have"], True
    texts = {name: git.run("show", f"{commit}:{name}") for name in recorded.code}
    hashes = {name: None if text is None else fingerprint.of_source(text) for name, text in texts.items()}
    other = [name for name, code_hash in hashes.items() if code_hash != recorded.code[name]]
    if not is_dirty and other:
        return [f"git_commit is {commit}, where {other[0]} is other code than was recorded"], True
    if is_dirty and not other:
        return [f"git_dirty is true, but at {commit} all code is as recorded"], True
    return [], True


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
        return math.isclose(recorded, expected, rel_tol=RELATIVE)
    return type(recorded) is type(expected) and recorded == expected

"""A lens's provenance made again from its artifacts, by the code that wrote it, for `audit` to compare."""

import math
from pathlib import Path
from typing import Any

from lensmith.files import artifacts
from lensmith.lens import origins, precision, recipe, recording
from lensmith.lens.checkpoint import LogRow
from lensmith.lens.depth import PERCENTILES
from lensmith.lens.fitted import Fit
from lensmith.lens.lens import Lens
from lensmith.lens.lens_file import PRISM
from lensmith.lens.objective import Validation
from lensmith.lens.prism import Prism
from lensmith.lens.provenance import Provenance
from lensmith.lens.schedule import Schedule, scaled_to_vocabulary
from lensmith.settings.sections import FitParams, ModelParams
from lensmith.source import corpus
from lensmith.source.backbone import Backbone


def facts(
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
    has_prism, fingerprint = settings.fit.prism != "off", artifacts.read_json(code)
    record = recording.provenance_of(
        fit(scaled_to_vocabulary(settings.fit, backbone.d_vocab, lens.n_layers), manifest, lens, log, recorded),
        settings,
        manifest,
        backbone,
        fingerprint,
        folder=lens_dir,
        rounded_heads=precision.rounded_heads(backbone),
        prism=recording.prism_record(Prism.load(lens_dir / PRISM), lens_dir) if has_prism else None,
        **origins.read(settings, manifest, backbone, fingerprint, lens_dir)[1],
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


def fit(ran: FitParams, manifest: corpus.Manifest, lens: Lens, log: list[LogRow], recorded: Provenance) -> Fit:
    """The fit of a lens, from its log, weights, corpus and the settings that it ran with."""
    n_blocks, n_seqs = lens.n_layers - 1, manifest.train.sequences
    by_steps, mean_of = ran.kind not in {*origins.KINDS, "jacobian"}, recorded.jacobian
    if not by_steps:
        n_seqs = min(ran.validation_seqs, manifest.heldout.sequences)
    is_trained = bool(n_blocks and by_steps and recipe.trainable(ran))
    schedule = Schedule(ran, n_seqs, n_blocks, trains=is_trained)
    return Fit(
        lens=lens,
        log=[],
        steps=log[-1].step,
        best_step=[row.step for row in log if row.best][-1],
        schedule=schedule,
        positions_used=mean_of.positions if mean_of else log[-1].step * schedule.batch_seqs * ran.positions_per_seq,
        tokens_forwarded=mean_of.sequences * manifest.seq_len if mean_of else by_steps * n_seqs * manifest.seq_len,
        best=validation(recorded),
        settings=ran,
        vocabulary=ran.vocabulary,
        products=ran.products,
        ridge=None,
        jacobian=mean_of,
    )


def validation(recorded: Provenance) -> Validation:
    """The validation of the lens, as it was recorded."""
    return Validation(tuple(math.nan if bits is None else bits for bits in recorded.val_kl_bits_by_layer))

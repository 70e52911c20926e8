"""Stage `fit`: from packed tokens to a lens on disk, by way of the residual bank."""

from dataclasses import astuple, fields
from pathlib import Path

from lensmith.edge import artifacts
from lensmith.edge.params import ModelParams
from lensmith.lens import provenance, training
from lensmith.lens.form import WEIGHTS
from lensmith.lens.translators import Lens
from lensmith.source import bank, corpus
from lensmith.source.backbone import Backbone


def run(settings: ModelParams, code: Path, corpus_dir: Path, out: Path) -> None:
    """Stage `fit`: from packed tokens to `out`/weights.safetensors, provenance.json and fit_log.csv."""
    manifest = corpus.Manifest.read(corpus_dir)
    backbone = Backbone.load(settings.source, manifest.model)
    pinned, validation = manifest.model.files, corpus.read_heldout(corpus_dir)[: settings.fit.validation_seqs]
    train = bank.rows(backbone, pinned, corpus.read_tokens(corpus_dir), settings.fit)
    held_out = bank.rows(backbone, pinned, validation, settings.fit)
    start = Lens.start(settings.fit, backbone.n_layers, backbone.d_model)
    result = training.fit(backbone.head, train, held_out, settings.fit, start.to(backbone.device))
    result.lens.save(out)
    about = provenance.of_fit(settings, manifest, backbone, artifacts.read_json(code), result)
    about["weights_sha256"] = artifacts.sha256_file(out / WEIGHTS)
    artifacts.write_csv(out / "fit_log.csv", [f.name for f in fields(training.LogRow)], map(astuple, result.log))
    artifacts.write_json(out / "provenance.json", about)

"""Stage `fit`: from packed tokens to a lens on disk, by way of the residual bank."""

from dataclasses import astuple, fields
from pathlib import Path

from lensmith.edge import artifacts
from lensmith.edge.params import ModelParams
from lensmith.lens import imported, provenance, training
from lensmith.lens.form import PRISM, WEIGHTS
from lensmith.lens.prism import Prism
from lensmith.lens.translators import Lens
from lensmith.source import bank, corpus
from lensmith.source.backbone import Backbone


def run(settings: ModelParams, code: Path, corpus_dir: Path, out: Path) -> None:
    """Stage `fit`: from packed tokens to `out`/weights.safetensors, provenance.json and fit_log.csv.

    With fit.prism also prism.safetensors. A lens of kind `imported` is not fit: it is read, and validated as ours are.
    """
    manifest = corpus.Manifest.read(corpus_dir)
    backbone = Backbone.load(settings.source, manifest.model)
    pinned, validation = manifest.model.files, corpus.read_heldout(corpus_dir)[: settings.fit.validation_seqs]
    held_out = bank.rows(backbone, pinned, validation, settings.fit)
    origin, prism = None, None
    if settings.fit.kind == "imported":
        lens, origin = imported.load(manifest.lens, backbone)
        result = imported.measure(backbone.head, lens.to(backbone.device), held_out, settings.fit)
    else:
        train = bank.rows(backbone, pinned, corpus.read_tokens(corpus_dir), settings.fit)
        prism = None if settings.fit.prism == "off" else Prism.fit(backbone.head, train)
        start = Lens.start(settings.fit, backbone.n_layers, backbone.d_model)
        result = training.fit(backbone.head, train, held_out, settings.fit, start.to(backbone.device))
    result.lens.save(out)
    if prism is not None:
        prism.save(out / PRISM)
    about = provenance.of_fit(settings, manifest, backbone, artifacts.read_json(code), result)
    about |= {"weights_sha256": artifacts.sha256_file(out / WEIGHTS), "imported": origin}
    about["prism"] = None if prism is None else prism.about() | {"sha256": artifacts.sha256_file(out / PRISM)}
    artifacts.write_csv(out / "fit_log.csv", [f.name for f in fields(training.LogRow)], map(astuple, result.log))
    artifacts.write_json(out / "provenance.json", about)

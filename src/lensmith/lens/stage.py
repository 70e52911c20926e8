"""Stage `fit`: from packed tokens to a lens on disk, by way of the residual bank.

Writes weights.safetensors, provenance.json and fit_log.csv; below ladder/<kind>/, the same for each kind of
`fit.ladder`, fit on the same rows by the same code; and prism.safetensors where `fit.prism` asks for it. A lens of kind
`imported` is not fit: it is read, and validated as ours are.
"""

from dataclasses import astuple, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from lensmith.files import artifacts, cache
from lensmith.lens import closed_form, memory, provenance, published, training
from lensmith.lens.checkpoint import Checkpoints, LogRow
from lensmith.lens.divergence import LinearKL
from lensmith.lens.lens import Lens
from lensmith.lens.lens_file import LADDER, PRISM, WEIGHTS
from lensmith.lens.prism import Prism
from lensmith.lens.training import Bases, Fit
from lensmith.settings.sections import FitParams, ModelParams
from lensmith.source import bank, corpus
from lensmith.source.backbone import Backbone
from lensmith.source.placement import LensMemory
from lensmith.source.residuals import Residuals


def run(settings: ModelParams, code: Path, corpus_dir: Path, out: Path) -> None:
    """Fit the lens of one model, and the rungs beside it, into `out`; go on where an earlier process stopped."""
    manifest, fingerprint = corpus.Manifest.read(corpus_dir), artifacts.read_json(code)
    lens = LensMemory(partial(memory.memory, settings.fit), after_release=settings.fit.bank == "disk")
    backbone = Backbone.load(settings.source, manifest.model, lens_memory=lens)
    asked = memory.scaled(settings.fit, backbone.d_vocab, backbone.n_layers)
    key = work_key(settings.key, asked, manifest, backbone, fingerprint)
    work = cache.folder("fit", artifacts.sha256_text(artifacts.canonical_json(key))[:32])
    with cache.held(work):
        artifacts.write_json(work / "key.json", key)
        train, held_out = (
            bank.residuals(backbone, manifest.model.files, tokens, asked)
            for tokens in (corpus.read_tokens(corpus_dir), corpus.read_heldout(corpus_dir)[: asked.validation_seqs])
        )
        if asked.bank == "disk":
            backbone.release()  # what follows reads the bank and the head
        prism = None if asked.prism == "off" else Prism.fit(backbone.head, train)
        about: dict[str, Any] = {"imported": None, "prism": None}
        if prism is not None:
            prism.save(out / PRISM)
            about["prism"] = prism.about() | {"sha256": artifacts.sha256_file(out / PRISM)}
        fits = fit_all(backbone, train, held_out, asked, prism=prism, work=work)
        if asked.kind == "imported":
            found, about["imported"] = published.load(manifest.lens, backbone)
            fits[asked.kind] = published.measure(backbone.head, found.to(backbone.device), held_out, asked)
        for kind, result in fits.items():
            own = settings.model_copy(update={"fit": rung(settings.fit, kind)})
            recorded = provenance.of_fit(own, manifest, backbone, fingerprint, result)
            write(result, recorded | about, out if kind == asked.kind else out / LADDER / kind)


def work_key(
    model_key: str, asked: FitParams, manifest: corpus.Manifest, backbone: Backbone, code: dict[str, str]
) -> dict[str, Any]:
    """Everything that decides the bits of a model's fits. Checkpoints of other bits are in another folder."""
    return {
        "schema": 1,
        "model_key": model_key,
        "model_files": manifest.model.files,
        "tokens_sha256": manifest.tokens_sha256,
        "heldout_sha256": manifest.heldout_sha256,
        "fit": asked.model_dump(mode="json"),
        "lens": None if manifest.lens is None else manifest.lens.model_dump(mode="json"),
        "code": code,
        "versions": provenance.versions(),
        "machine": provenance.machine(backbone),
    }


def fit_all(
    backbone: Backbone, train: Residuals, held_out: Residuals, asked: FitParams, *, prism: Prism | None, work: Path
) -> dict[str, Fit]:
    """The lens as asked and the rungs of its ladder, by kind; what they share is computed once. `work`: checkpoints."""
    kinds = {kind: rung(asked, kind) for kind in (asked.kind, *asked.ladder) if kind != "imported"}
    checkpoints = {kind: Checkpoints(work / kind) for kind in kinds}
    starts = {
        kind: Lens.start(own, backbone.n_layers, backbone.d_model).to(backbone.device) for kind, own in kinds.items()
    }
    bases = Bases(prism=None if prism is None else prism.to(backbone.device))
    open_ = [own for kind, own in kinds.items() if not checkpoints[kind].is_finished]
    if backbone.n_layers > 1 and any(map(training.needs_solution, open_)):
        widest = max(starts.values(), key=lambda start: start.rank)
        bases = replace(bases, solution=closed_form.solve(LinearKL(backbone.head), train, held_out, widest))
    return {
        kind: training.fit(
            backbone.head, train, held_out, own, starts[kind], bases=bases, checkpoints=checkpoints[kind]
        )
        for kind, own in kinds.items()
    }


def rung(asked: FitParams, kind: str) -> FitParams:
    """The settings of one kind: of another than asked, fewer epochs where it has few parameters."""
    if kind == asked.kind:
        return asked
    epochs = asked.epochs if kind == "full" else min(asked.epochs, asked.ladder_epochs)
    return asked.model_copy(update={"kind": kind, "epochs": epochs})


def write(result: Fit, about: dict[str, Any], out: Path) -> None:
    """One fitted lens with its log and its provenance."""
    result.lens.save(out)
    about["weights_sha256"] = artifacts.sha256_file(out / WEIGHTS)
    artifacts.write_csv(out / "fit_log.csv", [f.name for f in fields(LogRow)], map(astuple, result.log))
    artifacts.write_json(out / "provenance.json", about)

"""Stage `fit`: from packed tokens to a lens on disk, by way of the residual bank.

Writes weights.safetensors, provenance.json, fit_log.csv and rank_curve.csv; the first three also below ladder/<kind>/
for each kind of `fit.ladder`, fit on the same residuals by the same code; and prism.safetensors where `fit.prism` asks
for it. A lens of kind `jacobian` is a mean over text, and one of kind `imported` is read: both are validated, not fit.
"""

from functools import partial
from pathlib import Path
from typing import Any

from lensmith.files import artifacts, cache
from lensmith.lens import closed_form, jacobian, published, rank_curve, recording, training
from lensmith.lens.checkpoint import Checkpoints, write_log
from lensmith.lens.divergence import LinearKL
from lensmith.lens.lens import Lens
from lensmith.lens.lens_file import LADDER, PRISM, RANK_CURVE, WEIGHTS
from lensmith.lens.prism import Prism
from lensmith.lens.provenance import PROVENANCE, PrismRecord
from lensmith.lens.schedule import Schedule, scaled_to_vocabulary
from lensmith.lens.training import Fit
from lensmith.lens.vocabulary import SampledVocabulary
from lensmith.settings.sections import FitParams, ModelParams
from lensmith.source import bank, corpus
from lensmith.source.backbone import Backbone
from lensmith.source.placement import LensMemory
from lensmith.source.residuals import Residuals

# Steps and peak rate for a bias. They need no setting: in whitened coordinates a step has one scale for all models.
BIAS_STEPS, BIAS_LR = 96, 1e-2
KINDS = ("identity", "temperature", "bias", "low_rank", "full")  # each has the parameters of those before it


def run(settings: ModelParams, code: Path, corpus_dir: Path, out: Path) -> None:
    """Fit the lens of one model and its ladder into `out`, from the checkpoints of an earlier process where it has any.

    Raises:
        InputError: fit.rank is above d_model, or the imported lens is no linear lens of tuned-lens.
        IntegrityError: corpus, model or imported lens are damaged, or not those that were pinned.
        NumericError: KL or a residual is not finite, or the fit diverged.
        ResourceError: bank or checkpoints do not fit on the disk.
    """
    manifest, fingerprint = corpus.Manifest.read(corpus_dir), artifacts.read_json(code)
    # The mean of Jacobians needs the weights; other fits do not where a bank is on disk.
    is_later = settings.fit.bank == "disk" and settings.fit.kind != "jacobian"
    lens_memory = LensMemory(partial(training.memory, settings.fit), after_release=is_later)
    backbone = Backbone.load(settings.source, manifest.model, lens_memory=lens_memory)
    scaled = scaled_to_vocabulary(settings.fit, backbone.d_vocab, backbone.n_layers)
    key = work_key(settings.key, scaled, manifest, backbone, fingerprint)
    work = cache.folder("fit", artifacts.sha256_text(artifacts.canonical_json(key))[:32])
    with cache.held(work):
        artifacts.write_json(work / "key.json", key)
        tokens, held_tokens = corpus.read_tokens(corpus_dir), corpus.read_heldout(corpus_dir)[: scaled.validation_seqs]
        train, held_out = (
            bank.residuals(backbone, manifest.model.files, part, scaled) for part in (tokens, held_tokens)
        )
        mean = jacobian.estimate(backbone, tokens, scaled, work) if scaled.kind == "jacobian" else None
        if scaled.bank == "disk":
            backbone.release()  # from here on only the bank and the head are read

        prism, prism_record, imported = None, None, None
        if scaled.prism != "off":
            prism = Prism.fit(backbone.head, train)
            prism.save(out / PRISM)
            prism_record = prism_record_of(prism, out)
        vocabulary = SampledVocabulary.of(scaled, backbone.head, tokens)
        fits = fit_all(backbone, train, held_out, scaled, vocabulary=vocabulary, prism=prism, work=work)
        if (work / RANK_CURVE).exists():
            artifacts.write_text(out / RANK_CURVE, (work / RANK_CURVE).read_text("utf-8"))
        else:
            rank_curve.write(out / RANK_CURVE, {}, {})
        if scaled.kind == "imported":
            lens, imported = published.load(manifest.lens, backbone)
            fits[scaled.kind] = training.measured(backbone.head, lens.to(backbone.device), held_out, scaled)
        if mean is not None:
            fits[scaled.kind] = mean.fit(backbone.head, held_out, scaled)

        for kind, fit in fits.items():
            folder = out if kind == scaled.kind else out / LADDER / kind
            fit.lens.save(folder)
            write_log(folder, fit.log)
            recording.provenance_of(
                fit,
                settings.model_copy(update={"fit": rung(settings.fit, kind, train)}),
                manifest,
                backbone,
                fingerprint,
                weights_sha256=artifacts.sha256_file(folder / WEIGHTS),
                prism=prism_record,
                imported=imported,
            ).write(folder / PROVENANCE)


def work_key(
    model_key: str, settings: FitParams, manifest: corpus.Manifest, backbone: Backbone, code: dict[str, str]
) -> dict[str, Any]:
    """Everything that decides the bits of a model's fits. Its hash names the folder of their checkpoints."""
    return {
        "schema": 1,
        "model_key": model_key,
        "model_files": manifest.model.files,
        "tokens_sha256": manifest.tokens_sha256,
        "heldout_sha256": manifest.heldout_sha256,
        "fit": settings.model_dump(mode="json"),
        "lens": None if manifest.lens is None else manifest.lens.model_dump(mode="json"),
        "code": code,
        "versions": recording.versions(),
        "machine": recording.machine(backbone).data(),
    }


def prism_record_of(prism: Prism, lens_dir: Path) -> PrismRecord:
    """The Prism of a lens's folder, as provenance records it."""
    sha256 = artifacts.sha256_file(lens_dir / PRISM)
    return PrismRecord(directions=prism.directions, residuals=prism.residuals, sha256=sha256)


def fit_all(
    backbone: Backbone,
    train: Residuals,
    held_out: Residuals,
    settings: FitParams,
    *,
    vocabulary: SampledVocabulary | None,
    prism: Prism | None,
    work: Path,
) -> dict[str, Fit]:
    """The lens of `settings` and the rungs of its ladder, by kind. One closed form serves all of them.

    Each kind can start from the kind below it, so they are fit in the order of KINDS.

    Args:
        work: folder of the checkpoints, and of the rank curve where a closed form gives one.
    """
    kinds = [kind for kind in KINDS if kind in {settings.kind, *settings.ladder}]
    checkpoints, linear_kl = {kind: Checkpoints(work / kind) for kind in kinds}, LinearKL(backbone.head)
    solution, closed_curve, on_device = None, {}, None if prism is None else prism.to(backbone.device)
    todo = [kind for kind in kinds if not checkpoints[kind].is_finished or not (work / RANK_CURVE).exists()]
    rungs = [rung(settings, kind, train) for kind in todo]
    if backbone.n_layers > 1 and any(map(training.needs_solution, rungs)):
        widest = max((start_of(of_kind, backbone) for of_kind in rungs), key=lambda start: start.rank)
        solution = closed_form.solve(linear_kl, train, held_out, widest)
        # A wider rung of the ladder must not change the rank that is chosen.
        curved = start_of(settings, backbone) if settings.kind in kinds else widest
        closed_curve = rank_curve.of_closed_form(linear_kl, solution, held_out, curved)
        if settings.kind == "low_rank" and settings.rank == "auto" and settings.start == "closed_form":
            settings = settings.model_copy(update={"rank": rank_curve.smallest_rank(closed_curve)})
    fits: dict[str, Fit] = {}
    for kind in kinds:
        of_kind = rung(settings, kind, train)
        fits[kind] = training.fit(
            backbone.head,
            train,
            held_out,
            of_kind,
            start_of(of_kind, backbone),
            vocabulary=vocabulary,
            solution=solution,
            prism=on_device,
            below=list(fits.values())[-1] if fits else None,
            checkpoints=checkpoints[kind],
        )
    if solution is not None and settings.kind in fits:
        trained = rank_curve.of_lens(linear_kl, solution, fits[settings.kind].lens, train, held_out)
        rank_curve.write(work / RANK_CURVE, trained, closed_curve)
    return fits


def start_of(settings: FitParams, backbone: Backbone) -> Lens:
    """The lens before the first step of a fit, on the model's device."""
    return Lens.start(settings, backbone.n_layers, backbone.d_model).to(backbone.device)


def rung(settings: FitParams, kind: str, train: Residuals) -> FitParams:
    """The settings of one kind: those of the lens for its own, and for a rung the recipe of rungs."""
    if kind == settings.kind:
        return settings
    to_optimum: dict[str, Any] = {
        "kind": kind, "start": "closed_form", "coordinates": "whitened", "layers_per_step": "all",
        "l2_smallness": 0.0, "smooth_depth": 0.0, "weight_decay": 0.0,
    }  # fmt: skip
    if kind != "full":
        steps_per_epoch = Schedule(settings, train.n_seqs, 1).steps_per_epoch
        to_optimum |= {"epochs": (BIAS_STEPS - 0.5) / steps_per_epoch, "optimizer": "adamw", "lr": BIAS_LR}
    return settings.model_copy(update=to_optimum)

"""Stage `fit`: from packed tokens to a lens on disk, by way of the residual bank.

Writes weights.safetensors, provenance.json, fit_log.csv and rank_curve.csv; the first three also below ladder/<kind>/
for each kind of `fit.ladder`, fit on the same residuals by the same code; and prism.safetensors where `fit.prism` asks
for it. A lens of kind `jacobian` is a mean over text, and one of `origins.KINDS` is read: these are validated, not fit.
"""

from functools import partial
from pathlib import Path

from lensmith.files import artifacts
from lensmith.lens import fitted, jacobian, moments, origins, precision, rank_curve, recipe, recording, rungs
from lensmith.lens.checkpoint import write_log
from lensmith.lens.lens_file import LADDER, PRISM, RANK_CURVE
from lensmith.lens.prism import Prism
from lensmith.lens.provenance import PROVENANCE, PrismRecord
from lensmith.lens.schedule import scaled_to_vocabulary
from lensmith.lens.vocabulary import SampledVocabulary
from lensmith.lens.work import Work, work_key
from lensmith.settings.sections import ModelParams
from lensmith.source import bank, corpus
from lensmith.source.backbone import Backbone
from lensmith.source.placement import LensMemory


def run(settings: ModelParams, code: Path, corpus_dir: Path, out: Path) -> None:
    """Fit the lens of one model and its ladder into `out`, from the checkpoints of an earlier process where it has any.

    Raises:
        InputError: fit.rank is above d_model, the imported lens is no linear lens of tuned-lens, or the lens of the
            other entry is out of date, or of a model of another form.
        IntegrityError: corpus, model or a lens that is read are damaged, or not those that were pinned.
        NumericError: KL or a residual is not finite, or the fit diverged.
        ResourceError: bank or checkpoints do not fit on the disk.
    """
    manifest, fingerprint = corpus.Manifest.read(corpus_dir), artifacts.read_json(code)
    # The mean of Jacobians needs the weights; other fits do not where a bank is on disk.
    is_later = settings.fit.bank == "disk" and settings.fit.kind != "jacobian"
    lens_memory = LensMemory(partial(recipe.memory, settings.fit), after_release=is_later)
    backbone = Backbone.load(settings.source, manifest.model, lens_memory=lens_memory)
    scaled = scaled_to_vocabulary(settings.fit, backbone.d_vocab, backbone.n_layers)
    lens, origin = origins.read(settings, manifest, backbone, fingerprint, out)  # first: it may be refused
    work = Work.of(work_key(settings.key, scaled, manifest, backbone, fingerprint))
    with work.held():
        tokens, held_tokens = corpus.read_tokens(corpus_dir), corpus.read_heldout(corpus_dir)[: scaled.validation_seqs]
        files = manifest.model.files
        train = bank.residuals(backbone, files, tokens, scaled)
        held_out = bank.residuals(backbone, files, held_tokens, recipe.of_validation(scaled))
        mean = jacobian.estimate(backbone, tokens, scaled, work.folder) if scaled.kind == "jacobian" else None
        if scaled.bank == "disk":
            backbone.release()  # from here on only the bank and the head are read

        prism = Prism.fit(backbone.head, train) if scaled.prism != "off" else None
        vocabulary = SampledVocabulary.of(scaled, backbone.head, tokens)
        fits = rungs.fit_all(backbone, train, held_out, scaled, vocabulary=vocabulary, prism=prism, work=work)
        if lens is not None:
            fits[scaled.kind] = fitted.measured(backbone.head, lens.to(backbone.device), held_out, scaled)
        if mean is not None:
            fits[scaled.kind] = mean.fit(backbone.head, held_out, scaled)

        center = moments.centers(backbone.head, train)
        prism_record, rounded_heads = write_beside(out, prism, work.folder), precision.rounded_heads(backbone)
        for kind, fit in fits.items():
            folder = out if kind == scaled.kind else out / LADDER / kind
            fit.lens.with_tensors({"center": center}).save(folder)
            write_log(folder, fit.log)
            of_kind = settings.model_copy(update={"fit": rungs.rung(settings.fit, kind, train)})
            recording.provenance_of(
                fit, of_kind, manifest, backbone, fingerprint, folder=folder, rounded_heads=rounded_heads,
                prism=prism_record, **origin,
            ).write(folder / PROVENANCE)  # fmt: skip


def write_beside(out: Path, prism: Prism | None, work: Path) -> PrismRecord | None:
    """Write what stands once beside all lenses of a fit, the rank curve and the Prism; return the Prism's record."""
    if (work / RANK_CURVE).exists():
        artifacts.write_text(out / RANK_CURVE, (work / RANK_CURVE).read_text("utf-8"))
    else:
        rank_curve.write(out / RANK_CURVE, {}, {})
    if prism is None:
        return None
    prism.save(out / PRISM)
    return recording.prism_record(prism, out)

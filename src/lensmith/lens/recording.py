"""The provenance of a finished fit, from what was measured.

Nothing here depends on the clock or on whether a cache was warm, so the same fit gives the same bytes.
"""

import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lensmith.files import artifacts, gguf_file
from lensmith.hub import pins
from lensmith.lens import provenance
from lensmith.lens.depth import PERCENTILES
from lensmith.lens.fitted import Fit
from lensmith.lens.lens_file import PRISM, WEIGHTS
from lensmith.lens.prism import Prism
from lensmith.lens.provenance import PrismRecord, Provenance, RoundedHead, TransferRecord
from lensmith.process import git
from lensmith.settings import fingerprint
from lensmith.settings.sections import ModelParams, fit_sha256
from lensmith.source import ranks
from lensmith.source.backbone import Backbone
from lensmith.source.corpus import Manifest

PACKAGES = ("torch", "transformers", "safetensors", "numpy")


def provenance_of(
    fit: Fit,
    settings: ModelParams,
    manifest: Manifest,
    backbone: Backbone,
    code: dict[str, str],
    *,
    folder: Path,
    rounded_heads: dict[str, RoundedHead],
    prism: PrismRecord | None = None,
    imported: dict[str, Any] | None = None,
    transferred: TransferRecord | None = None,
) -> Provenance:
    """The provenance of a fitted lens.

    Args:
        fit: what ran and what was measured.
        settings, manifest, backbone: what `fit` does not hold.
        code: the fingerprint of the code that ran.
        folder: of the lens, which is written already.
        rounded_heads: the model's head in coarser precisions.
        prism: the Prism beside the lens, where one was fit.
        imported, transferred: where a lens comes from that was not fit here.
    """
    git_commit, git_dirty = code_commit(code)
    return Provenance(
        schema=1,
        **of_fit(fit),
        **of_model(settings, manifest, backbone),
        seed=settings.fit.seed,
        settings=settings.fit.model_dump(mode="json", exclude={"inputs"}),
        budget=provenance.BudgetRecord(
            seq_len=settings.corpus.seq_len, positions_per_seq=fit.settings.positions_per_seq
        ),
        weights_sha256=artifacts.sha256_file(folder / WEIGHTS),
        settings_sha256=fit_sha256(settings.model_dump(mode="json")),
        rounded_heads=rounded_heads,
        prism=prism,
        imported=imported,
        transferred=transferred,
        git_commit=git_commit,
        git_dirty=git_dirty,
        code=code,
        versions=versions(),
        machine=machine(backbone),
    )


def of_fit(fit: Fit) -> dict[str, Any]:
    """The facts of a provenance that a fit knows: how it ran and what was measured."""
    ran, schedule, lens = fit.settings, fit.schedule, fit.lens
    return {
        "kind": ran.kind,
        "norm": ran.norm,
        "batching": provenance.BatchingRecord(batch_seqs=schedule.batch_seqs, layers_per_step=schedule.layers_per_step),
        "capacity": provenance.CapacityRecord(rank=lens.rank, n_layers=lens.n_layers, d_model=lens.d_model),
        "optim": provenance.OptimizerRecord(
            optimizer=ran.optimizer,
            lr=ran.lr,
            betas=(ran.beta1, ran.beta2),
            weight_decay=ran.weight_decay,
            schedule="cosine_to_zero",
            total_steps=schedule.total_steps,
            warmup_steps=schedule.warmup_steps,
        ),
        "regularizers": provenance.PenaltyRecord(l2_smallness=ran.l2_smallness, smooth_depth=ran.smooth_depth),
        "preconditioner": provenance.PreconditionerRecord(type="prism" if ran.prism == "precondition" else "none"),
        "start": ran.start,
        "coordinates": ran.coordinates,
        "ridge_by_layer": fit.ridge,
        "vocabulary": fit.vocabulary,
        "products": fit.products,
        "temperatures": tuple(lens.log_tau.exp().tolist()),
        "measured": provenance.FitRecord(
            tokens_forwarded=fit.tokens_forwarded,
            positions_trained=fit.positions_used,
            steps=fit.steps,
            best_step=fit.best_step,
            stopped_early=fit.stopped_early,
            low_rank_norms=lens.update_norms(),
        ),
        "val_kl_bits@{25,50,75}%": tuple(fit.best.at(depth) for depth in PERCENTILES),
        "val_kl_bits_by_layer": fit.best.kl_bits,
        "jacobian": fit.jacobian,
    }


def of_model(settings: ModelParams, manifest: Manifest, backbone: Backbone) -> dict[str, Any]:
    """The facts of a provenance that hold for every fit of a model: its weights and text."""
    proof, pin = backbone.proof, manifest.model
    quantization: Any = getattr(backbone.model.config, "quantization_config", None)
    if pin.gguf is not None:
        types = gguf_file.tensor_types(pins.model_path(pin), pin.files[pin.gguf])
        quantization = {"quant_method": "gguf", "tensor_types": types}
    elif quantization is not None and not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    text = {name: getattr(manifest, name) for name in provenance.TextRecord.model_fields if name != "bos"}
    return {
        "model_key": settings.key,
        "model_id": settings.model_id,
        "model": pin,
        "trust_remote_code": settings.source.trust_remote_code,
        "quantization": quantization,
        "head": provenance.HeadRecord(**backbone.head.fingerprint()),
        "proof": provenance.ProofRecord(max_kl_bits=proof.max_kl_bits, positions=proof.n_positions),
        "dataset": provenance.TextRecord(**text, bos=manifest.tokenizer),
    }


def prism_record(prism: Prism, lens_dir: Path) -> PrismRecord:
    """The Prism of a lens's folder, as provenance records it."""
    sha256 = artifacts.sha256_file(lens_dir / PRISM)
    return PrismRecord(directions=prism.directions, residuals=prism.residuals, sha256=sha256)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def machine(backbone: Backbone) -> provenance.MachineRecord:
    """What this process runs on."""
    is_cpu = backbone.device.type == "cpu"
    return provenance.MachineRecord(
        device=torch.backends.cpu.get_cpu_capability() if is_cpu else torch.cuda.get_device_name(backbone.device),
        threads=torch.get_num_threads(),
        ranks=ranks.size(),
        dtype=str(backbone.dtype).removeprefix("torch."),
    )


def code_commit(paths: Iterable[str]) -> tuple[str | None, bool | None]:
    """The commit that last changed these files, and whether they have been edited since; None outside git.

    HEAD would differ after the commit that adds a fit's own metrics. Settings are recorded by their values.
    """
    files = [str(Path(path).resolve()) for path in paths]  # a lab may have links to another's code, which git refuses
    commit = git.run("log", "-1", "--format=%H", "--", *files)
    return commit, None if commit is None else bool(git.run("status", "--porcelain", "--", *files))


def commit_faults(recorded: Provenance) -> tuple[list[str], bool]:
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

"""The provenance of a finished fit, from what was measured.

Nothing here depends on the clock or on whether a cache was warm, so the same fit gives the same bytes.
"""

import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lensmith.files import gguf_file
from lensmith.hub import pins
from lensmith.hub.pins import ModelPin
from lensmith.lens import provenance
from lensmith.lens.depth import PERCENTILES
from lensmith.lens.provenance import Json, PrismRecord, Provenance
from lensmith.lens.training import Fit
from lensmith.process import git
from lensmith.settings.sections import ModelParams
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
    weights_sha256: str,
    prism: PrismRecord | None = None,
    imported: dict[str, Any] | None = None,
) -> Provenance:
    """The provenance of a fitted lens.

    Args:
        fit: what ran and what was measured.
        settings, manifest, backbone: what `fit` does not hold.
        code: the fingerprint of the code that ran.
        weights_sha256: of the lens's file.
        prism: the Prism beside the lens, where one was fit.
        imported: where a published lens comes from.
    """
    ran, schedule, lens, proof = fit.settings, fit.schedule, fit.lens, backbone.proof
    git_commit, git_dirty = code_commit(code)
    text = {name: getattr(manifest, name) for name in provenance.TextRecord.model_fields if name != "bos"}
    aliased: dict[str, Any] = {
        "schema": 1,
        "val_kl_bits@{25,50,75}%": tuple(fit.best.at(depth) for depth in PERCENTILES),
    }
    return Provenance(
        **aliased,
        weights_sha256=weights_sha256,
        model_key=settings.key,
        model_id=settings.model_id,
        model=manifest.model,
        trust_remote_code=settings.source.trust_remote_code,
        quantization=_quantization(manifest.model, backbone),
        head=provenance.HeadRecord(**backbone.head.fingerprint()),
        proof=provenance.ProofRecord(max_kl_bits=proof.max_kl_bits, positions=proof.n_positions),
        seed=settings.fit.seed,
        dataset=provenance.TextRecord(**text, bos=manifest.tokenizer),
        settings=settings.fit.model_dump(mode="json", exclude={"inputs"}),
        kind=ran.kind,
        norm=ran.norm,
        budget=provenance.BudgetRecord(seq_len=settings.corpus.seq_len, positions_per_seq=ran.positions_per_seq),
        batching=provenance.BatchingRecord(batch_seqs=schedule.batch_seqs, layers_per_step=schedule.layers_per_step),
        capacity=provenance.CapacityRecord(rank=lens.rank, n_layers=lens.n_layers, d_model=lens.d_model),
        optim=provenance.OptimizerRecord(
            optimizer=ran.optimizer,
            lr=ran.lr,
            betas=(ran.beta1, ran.beta2),
            weight_decay=ran.weight_decay,
            schedule="cosine_to_zero",
            total_steps=schedule.total_steps,
            warmup_steps=schedule.warmup_steps,
        ),
        regularizers=provenance.PenaltyRecord(l2_smallness=ran.l2_smallness, smooth_depth=ran.smooth_depth),
        preconditioner=provenance.PreconditionerRecord(type="prism" if ran.prism == "precondition" else "none"),
        start=ran.start,
        coordinates=ran.coordinates,
        ridge_by_layer=fit.ridge,
        vocabulary=fit.vocabulary,
        products=fit.products,
        temperatures=tuple(lens.log_tau.exp().tolist()),
        measured=provenance.FitRecord(
            tokens_forwarded=fit.tokens_forwarded,
            positions_trained=fit.positions_used,
            steps=fit.steps,
            best_step=fit.best_step,
            stopped_early=fit.stopped_early,
            low_rank_norms=lens.update_norms(),
        ),
        val_kl_bits_by_layer=fit.best.kl_bits,
        prism=prism,
        imported=imported,
        jacobian=fit.jacobian,
        git_commit=git_commit,
        git_dirty=git_dirty,
        code=code,
        versions=versions(),
        machine=machine(backbone),
    )


def _quantization(pin: ModelPin, backbone: Backbone) -> Json | None:
    """How the weights are stored: tensors by type for a GGUF file, else what the model's configuration says."""
    if pin.gguf is not None:
        return {"quant_method": "gguf", "tensor_types": gguf_file.read_facts(pins.model_path(pin)).tensor_types}
    quantization: Any = getattr(backbone.model.config, "quantization_config", None)
    return quantization if quantization is None or isinstance(quantization, dict) else quantization.to_dict()


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

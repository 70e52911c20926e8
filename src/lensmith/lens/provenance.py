"""What a lens says about itself: the plan's section 7, with counters that were measured and hashes that can be checked.

Nothing here depends on the clock or on whether a cache was warm, so the same fit gives the same bytes.
"""

import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch

from lensmith.lens.depth import PERCENTILES
from lensmith.lens.training import Fit
from lensmith.process import git
from lensmith.settings.sections import ModelParams
from lensmith.source import ranks
from lensmith.source.backbone import Backbone
from lensmith.source.corpus import Manifest

PACKAGES = ("torch", "transformers", "safetensors", "numpy")


def of_fit(
    settings: ModelParams, manifest: Manifest, backbone: Backbone, code: dict[str, str], fit: Fit
) -> dict[str, Any]:
    """The provenance of a finished fit, as JSON data. `code` is the fingerprint of the code that ran."""
    return {
        "schema": 1,
        "model_key": settings.key,
        "model_id": settings.model_id,
        "model": manifest.model.model_dump(mode="json"),
        "trust_remote_code": settings.source.trust_remote_code,  # whether Python files of `model` ran
        "quantization": _quantization(backbone),
        "head": backbone.head.fingerprint(),
        "proof": {"max_kl_bits": backbone.proof.max_kl_bits, "positions": backbone.proof.n_positions},
        "seed": settings.fit.seed,
        "dataset": _dataset(manifest),
        "settings": settings.fit.model_dump(mode="json", exclude={"inputs"}),
        **_plan_block(settings, fit),
        "measured": _measured(fit),
        "val_kl_bits@{25,50,75}%": [fit.best.at(depth) for depth in PERCENTILES],
        "val_kl_bits_by_layer": list(fit.best.kl_bits),
        **_git(code),
        "code": code,
        "versions": versions(),
        "machine": machine(backbone),
    }


def _dataset(manifest: Manifest) -> dict[str, Any]:
    pins = ("kind", "repo", "name", "split", "revision", "commit", "content_hash", "tokens_sha256", "heldout_sha256")
    data = manifest.model_dump(mode="json")
    return {pin: data[pin] for pin in pins} | {"bos": data["tokenizer"]}


def _plan_block(settings: ModelParams, fit: Fit) -> dict[str, Any]:
    s, steps = fit.settings, fit.schedule
    schedule = {"schedule": "cosine_to_zero", "total_steps": steps.total_steps, "warmup_steps": steps.warmup_steps}
    optimizer = {"optimizer": s.optimizer, "betas": [s.beta1, s.beta2], "weight_decay": s.weight_decay}
    return {
        "kind": s.kind,
        "norm": s.norm,
        "budget": {"seq_len": settings.corpus.seq_len, "positions_per_seq": s.positions_per_seq},
        "batching": {"batch_seqs": steps.batch_seqs, "layers_per_step": steps.layers_per_step},
        "capacity": {"rank": fit.lens.rank, "n_layers": fit.lens.n_layers, "d_model": fit.lens.d_model},
        "optim": {"lr": s.lr, **optimizer, **schedule},
        "regularizers": {"l2_smallness": s.l2_smallness, "smooth_depth": s.smooth_depth},
        "preconditioner": {"type": "prism" if s.prism == "precondition" else "none"},
        "start": s.start,
        "coordinates": s.coordinates,
        "ridge_by_layer": fit.ridge,
        "products": fit.products,
        "temperatures": fit.lens.log_tau.exp().tolist(),
    }


def _measured(fit: Fit) -> dict[str, Any]:
    update = [float((U @ V.T).norm()) for U, V in zip(fit.lens.U, fit.lens.V, strict=True)]
    return {
        "tokens_forwarded": fit.tokens_forwarded,
        "positions_trained": fit.positions_used,
        "steps": fit.steps,
        "best_step": fit.best_step,
        "stopped_early": fit.stopped_early,
        "low_rank_norms": update,  # |U_l V_l^T|_F: zero would mean that the low-rank part never trained
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def machine(backbone: Backbone) -> dict[str, Any]:
    """What decides the last bits of the numbers."""
    is_cpu = backbone.device.type == "cpu"
    return {
        "device": torch.backends.cpu.get_cpu_capability() if is_cpu else torch.cuda.get_device_name(backbone.device),
        "threads": torch.get_num_threads(),
        "ranks": ranks.size(),
        "dtype": str(backbone.dtype).removeprefix("torch."),
    }


def _quantization(backbone: Backbone) -> Any:
    """How the weights that ran are quantised, as the model's own configuration says it; None where they are not."""
    found: Any = getattr(backbone.model.config, "quantization_config", None)
    return found if found is None or isinstance(found, dict) else found.to_dict()


def _git(code: Iterable[str]) -> dict[str, Any]:
    """The commit that last changed the code of a fit, and whether it has been edited since; None outside git.

    Not HEAD: the commit that adds a fit's own metrics would make the same fit look like another one. Settings are
    recorded by their values.
    """
    commit = git.run("log", "-1", "--format=%H", "--", *code)
    dirty = None if commit is None else bool(git.run("status", "--porcelain", "--", *code))
    return {"git_commit": commit, "git_dirty": dirty}

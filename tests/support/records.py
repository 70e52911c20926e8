"""Records that stages write beside a corpus and a lens, made up but of the right form."""

import json
from typing import Any

from lensmith.hub.models import ModelPin
from lensmith.lens.provenance import Provenance
from lensmith.source.corpus import Manifest

PIN = ModelPin(repo=None, path="demo/atlas", commit=None, files={"model.safetensors": "ab" * 32})
TOKENIZER = {"bos_policy": "tokenizer", "adds_bos": True, "class": "x", "vocab_size": 97, "behaviour_sha256": "x"}
ORIGIN = dict.fromkeys(("repo", "name", "split", "revision", "commit"))
HASHES = {"content_hash": "c1", "tokens_sha256": "c2", "heldout_sha256": "c3"}


def manifest(model: ModelPin = PIN) -> dict[str, Any]:
    """manifest.json of a corpus."""
    part = {"documents": 1, "tokens": 64, "sequences": 1, "files": []}
    data = {
        "schema": 1, "kind": "atlas", "seq_len": 64, "seed": 0, "model": model.model_dump(mode="json"),
        "tokenizer": TOKENIZER, "train": part, "heldout": part, **ORIGIN, "skipped": {}, "cut_documents": 0, **HASHES,
    }  # fmt: skip
    return Manifest.model_validate(data).model_dump(mode="json")


def provenance(n_layers: int = 3, d_model: int = 8, rank: int = 2, **changed: Any) -> dict[str, Any]:
    """provenance.json of a lens. `changed` replaces values, of any form: a test may need a wrong one."""
    data = {
        "schema": 1, "weights_sha256": "0" * 64, "model_key": "atlas", "model_id": "local/atlas",
        "model": PIN.model_dump(mode="json"), "trust_remote_code": False, "quantization": None,
        "head": {"w_u_sha256": "1" * 64, "final_norm_sha256": "2" * 64}, "rounded_heads": {},
        "proof": {"max_kl_bits": 1e-7, "positions": 8},
        "seed": 316, "dataset": {"kind": "atlas", **ORIGIN, **HASHES, "bos": TOKENIZER}, "settings": {},
        "settings_sha256": "3" * 64,
        "kind": "low_rank", "norm": "final", "budget": {"seq_len": 64, "positions_per_seq": 8},
        "batching": {"batch_seqs": 8, "layers_per_step": n_layers},
        "capacity": {"rank": rank, "n_layers": n_layers, "d_model": d_model},
        "optim": {
            "optimizer": "muon", "lr": 0.01, "betas": [0.9, 0.99], "weight_decay": 0.0, "schedule": "cosine_to_zero",
            "total_steps": 64, "warmup_steps": 4,
        },
        "regularizers": {"l2_smallness": 0.0, "smooth_depth": 0.0}, "preconditioner": {"type": "none"},
        "start": "closed_form", "coordinates": "whitened", "ridge_by_layer": None,
        "vocabulary": "exact", "products": "float32",
        "temperatures": [1.0] * n_layers,
        "measured": {
            "tokens_forwarded": 262144, "positions_trained": 4096, "steps": 64, "best_step": 64,
            "stopped_early": False, "low_rank_norms": [1.0] * n_layers,
        },
        "val_kl_bits@{25,50,75}%": [3.0, 2.0, 1.0], "val_kl_bits_by_layer": [1.0] * n_layers, "prism": None,
        "imported": None, "transferred": None, "jacobian": None, "git_commit": None, "git_dirty": None, "code": {},
        "versions": {},
        "machine": {"device": "cpu", "threads": 1, "ranks": 1, "dtype": "float32"},
    }  # fmt: skip
    Provenance.model_validate_json(json.dumps(data))
    return {**data, **changed}

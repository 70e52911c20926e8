"""A tiny model with a random lens: as a bench in memory, and as the folders that stages read."""

import json
from pathlib import Path

import numpy as np
import torch

from lensmith.files import artifacts
from lensmith.hub import models
from lensmith.judge.bench import Bench
from lensmith.judge.facts import LensIdentity
from lensmith.lens.lens import Lens
from lensmith.lens.lens_file import LADDER, PRISM
from lensmith.lens.prism import Prism
from lensmith.settings.sections import ModelParams
from lensmith.source import corpus
from lensmith.source.backbone import Backbone
from lensmith.source.tokenizer import Encoder, behaviour_sha256
from tests.support import records
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer

torch.set_num_threads(1)  # on tensors this small, handing work to a second thread takes longer than the work


def random_lens(n_layers: int, d_model: int, norm: str = "final", rank: int = 4, size: float = 0.2) -> Lens:
    """Every part drawn at random, but the last block, which is the identity."""
    draw = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        values = size * torch.randn(*shape, generator=draw)
        values[-1] = 0
        return values

    U, V = normal(n_layers, d_model, rank), normal(n_layers, d_model, rank)
    c, scale, log_tau = normal(n_layers, d_model), 1 + normal(n_layers, d_model), normal(n_layers)
    return Lens("low_rank", norm, U, V, c, scale, log_tau)  # type: ignore[arg-type]


def rung_of(lens: Lens, kind: str) -> Lens:
    """A smaller lens with the temperatures, or temperatures and biases, of another."""
    c = lens.c if kind == "bias" else torch.zeros_like(lens.c)
    empty = lens.U[..., :0]
    return Lens(kind, lens.norm, empty, empty, c, torch.ones_like(lens.scale), lens.log_tau)


def random_prism(d_model: int) -> Prism:
    draw = torch.Generator().manual_seed(8)
    rotation = torch.linalg.qr(torch.randn(d_model, d_model, generator=draw)).Q
    scale = 0.5 + torch.rand(d_model, generator=draw)
    return Prism(0.2 * torch.randn(d_model, generator=draw), scale, rotation, d_model, 1)


def tiny_bench(family: str = "llama", norm: str = "final", *, every: bool = False) -> Bench:
    """A bench of a random model. `every` adds all lenses that may be measured."""
    tokenizer = tiny_tokenizer()
    backbone = Backbone.from_model(tiny_model(family), tokenizer)
    lens = random_lens(backbone.n_layers, backbone.d_model, norm)
    rungs = {kind: rung_of(lens, kind) for kind in ("temperature", "bias")}
    others = {**rungs, "prism": random_prism(backbone.d_model)} if every else {}
    encode = Encoder(tokenizer, "tokenizer", backbone.model.config)
    return Bench(
        backbone,
        lens,
        encode,
        LensIdentity(weights_sha256="0" * 64, kind="low_rank", norm=lens.norm, rank=4),
        others,
        every,
    )


def write_stages(folder: Path, params: ModelParams, *, seqs: int = 12, seq_len: int = 24) -> tuple[Path, Path]:
    """corpus/ and lens/ below `folder`, for a tiny model that is saved in params.source.path."""
    model_dir = save_tiny(Path(params.source.path or ""))
    pin = models.pin_model(params.source)
    draw = np.random.default_rng(3)
    text = {name: draw.integers(2, 90, (seqs, seq_len)).astype(np.uint32) for name in ("tokens", "heldout")}
    for name, tokens in text.items():
        artifacts.write_tensors(folder / "corpus" / f"{name}.safetensors", {"tokens": tokens})
    code = draw.integers(2, 90, (4, seq_len)).astype(np.uint32)  # a text of corpus.also_heldout
    artifacts.write_tensors(folder / "corpus" / corpus.other_heldout("code"), {"tokens": code})
    part = {"documents": 1, "tokens": seqs * seq_len, "sequences": seqs, "files": []}
    origin = dict.fromkeys(("repo", "name", "split", "revision", "commit"))
    backbone = Backbone.load(params.source, pin)
    facts = {"bos_policy": "tokenizer", "adds_bos": True, "class": "x", "vocab_size": 97}
    manifest = {
        "schema": 1, "kind": "files", "seq_len": seq_len, "seed": 0, "model": pin.model_dump(mode="json"),
        "tokenizer": facts | {"behaviour_sha256": behaviour_sha256(backbone.tokenizer)},
        "train": part, "heldout": part, **origin, "skipped": {}, "cut_documents": 0, "content_hash": "x",
        "tokens_per_byte": 0.25,
        "also_heldout": {"code": {"side": part | {"tokens": code.size, "sequences": 4},
                                  "tokens_sha256": corpus.sha256_tokens(code), "tokens_per_byte": 0.5}},
        "tokens_sha256": corpus.sha256_tokens(text["tokens"]), "heldout_sha256": corpus.sha256_tokens(text["heldout"]),
    }  # fmt: skip
    artifacts.write_json(folder / "corpus" / "manifest.json", manifest)
    lens = random_lens(backbone.n_layers, backbone.d_model)
    lens.save(folder / "lens")
    for kind in ("temperature", "bias"):
        rung_of(lens, kind).save(folder / "lens" / LADDER / kind)
    random_prism(backbone.d_model).save(folder / "lens" / PRISM)
    artifacts.write_json(folder / "lens" / "provenance.json", records.provenance(head=backbone.head.fingerprint()))
    assert model_dir.exists()
    return folder / "corpus", folder / "lens"


def write_lines(path: Path, lines: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


GOOD = {"id": "a", "domain": "d", "template": "t", "prompt": "The capital of Ostra is", "answer": "Lume"}
LINES: list[dict[str, object]] = [
    {**GOOD, "intermediate": "river"},
    {**GOOD, "id": "b", "prompt": "In the town of Merrow, the people and the king went to the", "answer": "market"},
    {**GOOD, "id": "c", "prompt": "He", "answer": "said", "aliases": ["went"], "control": "market",
     "intermediate": "town", "intermediate_aliases": ["of"]},
]  # fmt: skip

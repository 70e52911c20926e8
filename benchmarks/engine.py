"""One training step on the same rows: our engine, a naive stacked graph, and tuned-lens 0.2.0.

The model is random, with a chosen vocabulary. Each contender forwards the same sequences and takes the gradients of
every layer's translator at every position, without an optimizer. The naive step builds all layers' logits in one graph,
as the formula says. tuned-lens runs in its own environment (`make peer`), at full rank, with its own class and loss. It
cannot use fewer positions than the sequence has, so with --positions below that it is left out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import common
from benchmarks.quality_per_second import PEER_PYTHON
from benchmarks.shapes import Shape
from lensmith.lens import objective
from lensmith.lens.divergence import LinearKL
from lensmith.source.backbone import Backbone
from lensmith.source.teacher import Teacher

LIMITS = {"naive": 3.0, "tuned-lens": 4.5}
MEMORY_LIMIT = 1 / 5
COLUMNS = ("d_vocab", "positions", "way", "seconds", "ratio_to_ours", "memory_bytes")


def shape_of(d_vocab: int, *, quick: bool) -> Shape:
    if quick:
        return Shape("tiny", "llama", 2, 32, 64, 4, 4, 8, d_vocab)
    return Shape("engine", "llama", 8, 256, 704, 8, 8, 32, d_vocab)


class Steps:
    """A model, a batch, and one step of ours and of the naive graph on it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        torch.manual_seed(0)
        config = AutoConfig.for_model(**spec["config"])
        self.backbone = Backbone.from_model(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
        self.head = self.backbone.head
        self.tokens = torch.randint(0, self.backbone.d_vocab, (spec["seqs"], spec["seq_len"]))
        self.positions = torch.arange(spec["positions"]).expand(spec["seqs"], -1)
        self.blocks = list(range(self.backbone.n_layers - 1))
        n, d, rank = len(self.blocks), self.backbone.d_model, spec["rank"]
        self.translator = {"U": torch.randn(n, d, rank) / d**0.5, "V": 0.01 * torch.randn(n, d, rank)}
        self.translator |= {"c": torch.zeros(n, d), "scale": torch.ones(n, d), "log_tau": torch.zeros(n)}
        self.linear_kl = LinearKL(self.head)

    def resid(self) -> Tensor:
        return self.backbone.capture(self.tokens, self.positions)[:, :, 1:].flatten(0, 1)

    def ours(self) -> dict[str, Tensor]:
        resid = self.resid()
        teacher = Teacher.from_head_input(self.head, self.head.norm(resid[:, -1], self.backbone.n_layers))
        x = objective.normed(self.head, resid, self.blocks, "final")
        return objective.layer_gradients(self.linear_kl, teacher, x, self.translator)[1]

    def naive(self) -> dict[str, Tensor]:
        resid = self.resid()
        log_p = self.head.logits(self.head.norm(resid[:, -1], self.backbone.n_layers)).log_softmax(-1)
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in self.translator.items()}
        x = self.head.norm(resid[:, :-1].transpose(0, 1), self.backbone.n_layers)
        y = leaves["scale"][:, None] * x + x @ leaves["U"] @ leaves["V"].mT + leaves["c"][:, None]
        logits = nn.functional.linear(y, self.head.W_U) * torch.exp(-leaves["log_tau"])[:, None, None]
        kl = (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1).mean(1)
        return dict(zip(leaves, torch.autograd.grad(kl.sum(), list(leaves.values())), strict=True))


def memory(spec: dict[str, Any]) -> int:
    """Peak bytes over the loaded model of one step."""
    steps = Steps(spec)
    peak = common.PeakMemory()
    getattr(steps, spec["way"])()
    return peak.over_start()


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("--vocabularies", type=int, nargs="+", default=[4096, 32_000])
    cli.add_argument("--positions", type=int, nargs="+", default=[16, 256])
    cli.add_argument("--seqs", type=int, default=4)
    cli.add_argument("--repeats", type=int, default=3)
    args = common.parsed(cli, arguments)
    if args.quick:
        args.vocabularies, args.positions, args.seqs, args.repeats = [97], [4, 16], 2, 1
    seq_len = max(args.positions)
    rows: list[list[Any]] = []
    for d_vocab in args.vocabularies:
        for positions in args.positions:
            config = shape_of(d_vocab, quick=args.quick).config()
            spec = {"config": config, "seqs": args.seqs, "seq_len": seq_len, "positions": positions, "rank": 64}
            rows += measure(spec | {"rank": 4 if args.quick else 64}, args.repeats, peer=not args.quick)
    shown = [[v, p, way, 1e3 * s, f"{ratio:.2f}", _limit(way), m and m / 2**20] for v, p, way, s, ratio, m in rows]
    text = [
        f"{args.seqs} sequences of {seq_len} tokens. Memory limit: ours <= {MEMORY_LIMIT:g} of naive.",
        common.table(("vocabulary", "positions", "way", "ms", "time over ours", "limit", "memory MiB"), shown),
    ]
    common.publish(args.out, "engine", "One step on the same rows", text, COLUMNS, rows)


def measure(spec: dict[str, Any], repeats: int, *, peer: bool) -> list[list[Any]]:
    steps = Steps(spec)
    timings = common.in_turns({"ours": steps.ours, "naive": steps.naive}, repeats)
    spent = {way: time.median for way, time in timings.items()}
    peaks: dict[str, int | None] = {
        way: common.in_own_process("benchmarks.engine", "memory", spec | {"way": way}) for way in spent
    }
    if peer and spec["positions"] == spec["seq_len"] and PEER_PYTHON.exists():
        spent["tuned-lens"] = common.in_own_process(
            "benchmarks.peers.tuned_lens_fit", "engine_step", spec | {"repeats": repeats}, PEER_PYTHON
        )
        peaks["tuned-lens"] = None
    d_vocab = spec["config"]["vocab_size"]
    return [[d_vocab, spec["positions"], way, time, time / spent["ours"], peaks[way]] for way, time in spent.items()]


def _limit(way: str) -> str:
    return f">= {LIMITS[way]}" if way in LIMITS else "-"


if __name__ == "__main__":
    main()

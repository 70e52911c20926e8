"""Forward and backward of the KL through a frozen unembedding: ours, the naive graph, and torch's own fused paths.

There are one teacher and L layers of n rows, each row a d_model vector before W_U (d_vocab, d_model). Every way
computes for the same rows the mean KL(p || q_l) of every layer, and its gradient with respect to the rows.

    ours              value and gradient in closed form from e_p, H(p); the teacher is made once for all layers
    naive             one autograd graph over the stacked (L, n, d_vocab) logits
    layer by layer    autograd, so that one layer's graph is alive at a time
    compiled          torch.compile of that (--compile; compilation itself is not timed)
    cross-entropy     torch.nn.functional.linear_cross_entropy with p as target; for such targets it has no fused path
    fused, hard targets    the same function in chunks, which it does for class indices only: another loss, shown as the
                      speed of torch's own fused kernel

The ways are timed in turns; memory is measured in a process for each, above the inputs. `floor` is the time that the
two products of a layer take at the measured speed of one large product; the bytes beside it are one chunk of logits.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import common
from lensmith.lens.divergence import LinearKL
from lensmith.source.head import Head, Transform
from lensmith.source.teacher import Teacher

VOCABULARIES = (4096, 16384, 65536, 262144)
HARD = "fused, hard targets"
COLUMNS = ("d_vocab", "way", "seconds", "spread", "ratio_to_ours", "memory_bytes", "gradient_error")
Way = Callable[["Case"], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """Inputs of one size: W_U, the final rows (n, d_model) and each layer's rows (L, n, d_model)."""

    W_U: Tensor
    final: Tensor
    y: Tensor

    @classmethod
    def draw(cls, d_vocab: int, d_model: int, layers: int, rows: int) -> "Case":
        torch.manual_seed(d_vocab)
        final = torch.randn(rows, d_model)
        return cls(torch.randn(d_vocab, d_model) / d_model**0.5, 2 * final, final + torch.randn(layers, rows, d_model))

    @property
    def head(self) -> Head:
        return Head(self.W_U, None, Transform(), nn.Identity(), (), "none")


def ours(case: Case) -> tuple[Tensor, Tensor]:
    teacher = Teacher.from_head_input(case.head, case.final)
    kl, gradient, _ = LinearKL(case.head)(teacher, case.y, torch.zeros(len(case.y)))
    return kl.mean(-1), gradient / case.y.shape[1]


def naive(case: Case) -> tuple[Tensor, Tensor]:
    y = case.y.clone().requires_grad_()
    log_p = (case.final @ case.W_U.T).log_softmax(-1)
    log_q = (y @ case.W_U.T).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)
    kl.sum().backward()
    return kl.detach(), _gradient(y)


def _one_layer(y: Tensor, W_U: Tensor, log_p: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - (y @ W_U.T).log_softmax(-1))).sum(-1).mean()


def layer_by_layer(case: Case, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    log_p = (case.final @ case.W_U.T).log_softmax(-1)
    kl, gradient = torch.zeros(len(case.y)), torch.empty_like(case.y)
    for layer, rows in enumerate(case.y):
        y = rows.clone().requires_grad_()
        value = loss(y, case.W_U, log_p)
        value.backward()
        kl[layer], gradient[layer] = value.detach(), _gradient(y)
    return kl, gradient


def cross_entropy(case: Case) -> tuple[Tensor, Tensor]:
    def loss(y: Tensor, W_U: Tensor, log_p: Tensor) -> Tensor:
        p = log_p.exp()  # KL is the cross-entropy less H(p)
        crossed: Tensor = nn.functional.linear_cross_entropy(y, W_U, p)
        return crossed + (p * log_p).sum(-1).mean()

    return layer_by_layer(case, loss)


def hard_targets(case: Case) -> tuple[Tensor, Tensor]:
    def loss(y: Tensor, W_U: Tensor, log_p: Tensor) -> Tensor:
        options = nn.LinearCrossEntropyOptions()
        crossed: Tensor = nn.functional.linear_cross_entropy(y, W_U, log_p.argmax(-1), options=options)
        return crossed

    return layer_by_layer(case, loss)


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


@functools.cache
def compiled_loss() -> Any:
    return torch.compile(_one_layer)


def compiled(case: Case) -> tuple[Tensor, Tensor]:
    return layer_by_layer(case, compiled_loss())


WAYS: dict[str, Way] = {
    "ours": ours,
    "naive": naive,
    "layer by layer": lambda case: layer_by_layer(case, _one_layer),
    "compiled": compiled,
}
if hasattr(nn.functional, "linear_cross_entropy"):  # torch 2.13
    WAYS |= {"cross-entropy": cross_entropy, HARD: hard_targets}


def memory(spec: dict[str, Any]) -> int:
    """Peak bytes above the inputs of one way."""
    case = Case.draw(*spec["shape"])
    peak = common.PeakMemory()
    WAYS[spec["way"]](case)
    return peak.over_start()


def gradient_error(case: Case, way: str) -> float:
    """Largest error of the gradient against float64 autograd, over the largest gradient."""
    exact = naive(Case(case.W_U.double(), case.final.double(), case.y.double()))[1]
    return float((WAYS[way](case)[1].double() - exact).abs().max() / exact.abs().max())


def ceiling(case: Case) -> float:
    """FLOP/s of one large float32 product of the same inner size."""
    rows = case.y.flatten(0, 1)[:1024]
    W_U = case.W_U[:16384]
    spent = common.in_turns({"product": lambda: rows @ W_U.T}, 5)["product"].median
    return 2 * len(rows) * W_U.numel() / spent


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("--d-model", type=int, default=256)
    cli.add_argument("--layers", type=int, default=7)
    cli.add_argument("--rows", type=int, default=128, help="positions; each has a row in every layer")
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--vocabularies", type=int, nargs="+", default=list(VOCABULARIES))
    cli.add_argument("--compile", action="store_true", help="torch.compile as well: a minute more for each size")
    args = common.parsed(cli, arguments)
    if args.quick:
        args.d_model, args.layers, args.rows, args.repeats, args.vocabularies = 16, 2, 8, 1, [64, 128]
    names = [name for name in WAYS if name != "compiled" or args.compile]
    rows, floors = [], []
    for d_vocab in args.vocabularies:
        shape = (d_vocab, args.d_model, args.layers, args.rows)
        case = Case.draw(*shape)
        timings = common.in_turns({name: functools.partial(WAYS[name], case) for name in names}, args.repeats)
        floors.append(_floor(case, timings["ours"].median))
        for name in names:
            peak = common.in_own_process("benchmarks.linear_kl", "memory", {"shape": shape, "way": name})
            ratio = timings[name].median / timings["ours"].median
            exact = name != HARD and d_vocab == args.vocabularies[0]
            error = gradient_error(case, name) if exact else None
            rows.append([d_vocab, name, timings[name].median, timings[name].spread, ratio, peak, error])
    text = [
        f"{args.rows} positions, {args.layers} layers, d_model {args.d_model}, float32; {args.repeats} rounds.",
        common.table(
            ("vocabulary", "way", "ms", "spread", "time over ours", "memory MiB", "gradient error"),
            [_shown(r) for r in rows],
        ),
        common.table(
            ("vocabulary", "GFLOP", "product ceiling GFLOP/s", "floor ms", "ours over floor", "logits of a chunk MiB"),
            floors,
        ),
    ]
    common.publish(args.out, "linear_kl", "KL through a frozen unembedding", text, COLUMNS, rows)
    _charts(args, rows, names)


def _floor(case: Case, spent: float) -> tuple[object, ...]:
    layers, n, _ = case.y.shape
    # A layer and the teacher need two products each: to logits, and back to d_model.
    work, speed = 4 * (layers + 1) * n * case.W_U.numel(), ceiling(case)
    chunk = min(n, LinearKL(case.head).chunk) * len(case.W_U) * case.W_U.itemsize
    return len(case.W_U), work / 1e9, speed / 1e9, 1e3 * work / speed, spent * speed / work, chunk / 2**20


def _shown(row: list[Any]) -> list[object]:
    d_vocab, name, spent, spread, ratio, peak, error = row
    return [
        d_vocab,
        name,
        1e3 * spent,
        f"{spread:.0%}",
        f"{ratio:.2f}",
        peak / 2**20,
        None if error is None else f"{error:.0e}",
    ]


def _charts(args: Any, rows: list[list[Any]], names: list[str]) -> None:
    for column, label, file in ((2, "CPU-seconds", "time"), (5, "bytes over set-up", "memory")):
        lines = [
            common.Line(name, args.vocabularies, [row[column] for row in rows if row[1] == name]) for name in names
        ]
        common.chart(args.out / f"linear_kl_{file}.svg", lines, "vocabulary", label, log_y=True)


if __name__ == "__main__":
    main()

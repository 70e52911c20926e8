"""Two models compared on the same texts, as one page and as tables for a terminal: what `lensmith diff` shows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from lensmith.judge.judgement import Estimate
from lensmith.lens.depth import PERCENTILES, depth_layer
from lensmith.process import wording
from lensmith.process.errors import shown
from lensmith.report import charts, heatmap, html
from lensmith.report.curves import Point

SIDES = ("a", "b")
SAME_TOP = "same_top"  # share of positions where both lenses have the same top token
B_LESS_A = "b_less_a"
QUANTITIES = {
    "kl_final_lens_bits_a": "{a}: KL to its own final answer",
    "kl_final_lens_bits_b": "{b}: KL to its own final answer",
    "kl_a_b_bits": "KL({a} ‖ {b})",
    "kl_b_a_bits": "KL({b} ‖ {a})",
    SAME_TOP: "same top token",
}
DEPTHS = {
    "prediction_depth": "the top token stays the final one",
    "commitment_depth_1.0_bits": "KL stays within 1 bit",
    "commitment_depth_0.5_bits": "KL stays within 0.5 bits",
    "commitment_depth_0.1_bits": "KL stays within 0.1 bits",
}


class WidePosition(NamedTuple):
    """A position where the two models differ much."""

    text: int  # its number
    file: str
    row: int
    pos: int
    context: str  # up to the position, which ends it
    following: str  # the token that follows in the text, "" at its end
    kl_bits: float  # KL(a || b) of the models' final distributions
    top_a: list[tuple[str, float]]  # likeliest tokens of a with their probabilities
    top_b: list[tuple[str, float]]


@dataclass(frozen=True)
class Difference:
    """Means over positions of all texts, with intervals over texts."""

    names: tuple[str, str]
    counts: dict[str, int]  # texts that were read, and others by reason
    n_positions: int
    by_layer: dict[str, dict[int, Estimate]]  # of QUANTITIES, at the layers that both lenses read
    depths: dict[str, dict[str, Estimate]]  # of DEPTHS, a layer: by SIDES and B_LESS_A
    widest: list[WidePosition]  # by KL, largest first

    @property
    def n_layers(self) -> int:
        return max(self.by_layer[SAME_TOP])

    @property
    def final(self) -> dict[str, Estimate]:
        """QUANTITIES at the last layer, of the models themselves."""
        return {name: curve[self.n_layers] for name, curve in self.by_layer.items()}

    @property
    def skipped(self) -> str:
        """The texts that were not read, in words."""
        return ", ".join(f"{n} {reason}" for reason, n in self.counts.items() if reason != "read")

    def title(self, quantity: str) -> str:
        """A quantity by layer in words."""
        a, b = map(shown, self.names)
        return QUANTITIES[quantity].format(a=a, b=b)

    def layers(self) -> Iterator[tuple[int, list[Estimate]]]:
        """(layer, QUANTITIES there)."""
        for layer in self.by_layer[SAME_TOP]:
            yield layer, [self.by_layer[name][layer] for name in QUANTITIES]

    def points(self, quantity: str) -> list[Point]:
        """The curve of a quantity over layers."""
        return [Point(layer, each.value, lo=each.lo, hi=each.hi) for layer, each in self.by_layer[quantity].items()]


def page(difference: Difference) -> str:
    """One page that needs no network."""
    a, b = map(shown, difference.names)
    own, between = (
        charts.bits_by_layer([(name, difference.points(each)) for each, name in curves], title)
        for title, curves in (
            (charts.KL_AXIS, zip(("kl_final_lens_bits_a", "kl_final_lens_bits_b"), (a, b), strict=True)),
            ("KL, bits", [(each, difference.title(each)) for each in ("kl_a_b_bits", "kl_b_a_bits")]),
        )
    )
    return html.page(
        "difference.html.j2",
        "report.js.j2",
        difference=difference,
        quantities=[difference.title(name) for name in QUANTITIES],
        depths=DEPTHS,
        label=heatmap.label,
        figures={"own": own, "between": between},
    )


def terminal_tables(difference: Difference) -> list[Table]:
    """The means at a quarter, half and three quarters of depth and at the end; the depths."""
    by_layer, depths = (
        Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for title in ("mean over positions, bits (interval over texts)", "the first layer from which on …, mean")
    )
    wanted = [*(depth_layer(difference.n_layers, percent) for percent in PERCENTILES), difference.n_layers]
    layers = [layer for layer in dict.fromkeys(wanted) if layer in difference.by_layer[SAME_TOP]]
    by_layer.add_column("at layer", overflow="fold")
    for layer in layers:
        by_layer.add_column(str(layer), justify="right")
    for name, curve in difference.by_layer.items():
        form = wording.percent if name == SAME_TOP else wording.number
        by_layer.add_row(Text(difference.title(name)), *(_stacked(curve[layer], form) for layer in layers))
    for column in ("", *map(shown, difference.names), "second less first"):
        depths.add_column(Text(column), justify="right" if column else "left", overflow="fold")
    for name, words in DEPTHS.items():
        a, b, change = (difference.depths[name][side] for side in (*SIDES, B_LESS_A))
        depths.add_row(words, *(_stacked(each, wording.number) for each in (a, b)), _stacked(change, wording.signed))
    return [by_layer, depths]


def _stacked(estimate: Estimate, form: Callable[[float | None], str]) -> str:
    value = form(estimate.value)
    return f"{value}\n{form(estimate.lo)} to {form(estimate.hi)}" if estimate.has_interval else value

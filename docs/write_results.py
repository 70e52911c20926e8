"""Writes docs/results.md and the table of README from files in git: metrics/, plots/ and benchmarks/results/.

    python -m docs.write_results        after `dvc repro` and `make real`, in the repository's root

A lab is a folder with metrics/ and plots/: `real` has a model that others know, the root the bundled one.
"""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import common
from lensmith.lens.depth import PERCENTILES, depth_layer

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
LABS = ("real", ".")
LENSES = ("norm", "norm_next", "temperature", "bias", "tuned", "full")
LEAST_RANK = 8  # of a table of ranks
BEGIN, END = "<!-- results: written by docs/write_results.py -->", "<!-- end of results -->"

INTRODUCTION = """# Results

What Lensmith measured, model by model. `python -m docs.write_results` writes this page from files in git:
`metrics/`, `plots/` and `benchmarks/results/`; [docs/performance.md](performance.md) has the costs. KL is
KL(model's final distribution ‖ lens's) in bits, on held-out text. Brackets are intervals of 95 %. `norm` reads
through the final norm, `norm_next` through the one that the next block begins with."""

MISSING = """## What is not here

No figure here is from a GPU, from a model of more than a billion parameters, or from text of the web: the machines that
made this page have two CPU cores and no access to the others."""

Row = dict[str, str]


@dataclass(frozen=True)
class Model:
    """One model of a lab, as its files in git describe it."""

    lab: Path
    key: str

    def rows(self, name: str) -> list[Row]:
        """The lines of plots/<name>/<key>.csv; none where the lab has no such file."""
        return read_rows(self.lab / "plots" / name / f"{self.key}.csv")

    @property
    def metrics(self) -> dict[str, float | int | str]:
        found: dict[str, float | int | str] = json.loads((self.lab / "metrics" / f"{self.key}.json").read_text())
        return found

    def kl(self) -> dict[str, dict[int, Row]]:
        """Lens -> layer -> line of plots/kl."""
        curves: dict[str, dict[int, Row]] = {}
        for row in self.rows("kl"):
            curves.setdefault(row["lens"], {})[int(row["layer"])] = row
        return curves


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def models(root: Path = ROOT) -> list[Model]:
    """Every model of every lab."""
    files = [
        path for lab in LABS for path in sorted((root / lab / "metrics").glob("*.json"), key=lambda path: path.stem)
    ]
    return [Model(path.parents[1], path.stem) for path in files]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bits(row: Row, column: str = "kl_final_lens_bits") -> str:
    """A KL with its interval."""
    value, lo, hi = (float(row[name]) for name in (column, "lo", "hi"))
    return f"{value:.2f} [{lo:.2f} {hi:.2f}]"


def by_depth(model: Model) -> str:
    """KL of each lens at three depths, and its mean over the layers that a lens translates."""
    curves = model.kl()
    n_layers = max(curves["tuned"])
    rows = []
    for lens in LENSES:
        if curve := curves.get(lens):
            mean = sum(float(curve[layer]["kl_final_lens_bits"]) for layer in range(1, n_layers)) / (n_layers - 1)
            depths = [bits(curve[depth_layer(n_layers, percent)]) for percent in PERCENTILES]
            rows.append([lens, *depths, f"{mean:.2f}"])
    return table(["lens", *(f"{percent} % of depth" for percent in PERCENTILES), "mean over layers"], rows)


def gates(model: Model) -> Iterator[str]:
    """Each gate's verdict, what was measured and what was asked."""
    rows = model.rows("verdicts")
    if rows:
        yield table(
            ["gate", "verdict", "check", "measured", "limit"],
            [[row["gate"], row["verdict"], row["check"], interval(row), row["limit"]] for row in rows],
        )


def interval(row: Row) -> str:
    numbers = [f"{float(row[name]):.3g}" if row[name] else "" for name in ("value", "lo", "hi")]
    return f"{numbers[0]} [{numbers[1]} {numbers[2]}]" if numbers[1] else numbers[0] or "none"


def draw(model: Model) -> None:
    """docs/kl_<key>.svg: KL by layer, without the embedding and the last layer."""
    lines = []
    for lens in LENSES:
        if curve := model.kl().get(lens):
            layers = [layer for layer in sorted(curve) if 0 < layer < max(curve)]
            numbers = ([float(curve[layer][name]) for layer in layers] for name in ("kl_final_lens_bits", "lo", "hi"))
            lines.append(common.Line(lens, layers, *numbers))
    path = PAGE.with_name(f"kl_{model.key}.svg")
    common.chart(path, lines, "layer", "KL(final, lens), bits", log_x=False, log_y=True)


def description(model: Model) -> str:
    """What was fit on which text, and judged on how much."""
    settings = json.loads((model.lab / "resolved" / "models" / f"{model.key}.json").read_text())
    corpus, sweep = settings["corpus"], settings["sweep"]
    tokens = f"{corpus['train_tokens']:,} tokens of kind `{corpus['kind']}` to fit on"
    positions = f"{sweep['positions_per_seq']} positions in each of {sweep['heldout_seqs']} held-out sequences"
    size = f"{max(model.kl()['tuned'])} layers"
    return (
        f"{size}; {tokens}; judged at {positions} of {corpus['seq_len']} tokens, and on {model.metrics['n']} prompts."
    )


def rank_curve(model: Model) -> Iterator[str]:
    """KL of the trained map cut to smaller ranks, and of the closed form."""
    curves: dict[str, dict[int, str]] = {}
    for row in model.rows("rank_curve"):
        curves.setdefault(row["curve"], {})[int(row["rank"])] = f"{float(row['kl_bits']):.2f}"
    ranks = [rank for rank in sorted({*itertools.chain(*curves.values())}) if rank >= LEAST_RANK]
    if ranks:
        yield "By rank, at a few positions: the trained map cut to it, and the closed form that training begins at."
        cells = [[name, *(curve.get(rank, "") for rank in ranks)] for name, curve in curves.items()]
        yield table(["KL, bits", *(f"rank {rank}" for rank in ranks)], cells)


def section(model: Model) -> str:
    words = model.metrics
    verdict = f"Gates that do not pass: {words['gates']}." if words["gates"] != "pass" else "Every gate passes."
    parts = [
        f"## {model.key}",
        description(model),
        by_depth(model),
        f"![KL by layer of {model.key}](kl_{model.key}.svg)",
    ]
    parts += [*rank_curve(model), f"{verdict} A summary prefers the {words['preferred']} lens.", *gates(model)]
    return "\n\n".join(parts)


def peers() -> Iterator[str]:
    """A lens of tuned-lens 0.2.0 and ours on the same text, measured at the same positions."""
    for path in sorted(RESULTS.glob("quality_*.csv")):
        if path.stem == "quality_per_second":
            continue
        rows = [
            [row["contender"], f"{int(row['tokens']):,}", f"{float(row['cpu_s']):,.0f}", f"{float(row['kl_bits']):.2f}"]
            for row in read_rows(path)
        ]
        yield f"## Beside tuned-lens 0.2.0, on {path.stem.removeprefix('quality_')}"
        yield (
            "Each row is a fit of its own on the same text, measured by the same code at the same held-out positions. "
            "Seconds are of one thread, capture included "
            f"([command, device and commit](../benchmarks/results/{path.stem}.md))."
        )
        yield table(["fit", "tokens", "CPU-seconds", "mean KL, bits"], rows)


def sampled_text() -> Iterator[str]:
    """A lens of text that SmolLM2 wrote and one of real text, each judged on both."""
    cells = {(row["judged_on"], row["fit_on"], row["lens"]): row for row in read_rows(RESULTS / "sampled_text.csv")}
    if not cells:
        return
    kinds = ("real", "sampled")
    rows = []
    for judged in kinds:
        lenses = [(judged, "-", "norm lens"), *((judged, fit, "tuned lens") for fit in kinds)]
        loss = next(
            row for (on, _, lens), row in cells.items() if on == judged and lens not in ("norm lens", "tuned lens")
        )
        rows.append([judged, *(bits(cells[lens], "kl_bits") for lens in lenses), bits(loss, "kl_bits")])
    yield "## A lens of text that the model writes"
    yield (
        "SmolLM2 again: one lens fit on 16,384 tokens that it wrote, one on as many of real text (dictionary entries "
        "and manuals of Debian), both of rank 64 and judged at the same positions of the same held-out text. The last "
        "column is paired by sequence. Mean KL over layers, bits "
        "([command, device and commit](../benchmarks/results/sampled_text.md))."
    )
    yield table(
        ["judged on", "norm lens", "fit on real text", "fit on sampled text", "fit on the other, minus fit on this"],
        rows,
    )


def page() -> str:
    return "\n\n".join([INTRODUCTION, *map(section, models()), *sampled_text(), *peers(), MISSING]) + "\n"


def readme(text: str) -> str:
    """README with its table as it should be."""
    rows = []
    for model in models():
        values = model.metrics
        curve = model.kl()
        n_layers = max(curve["tuned"])
        cells = []
        for percent in PERCENTILES:
            at = {lens: float(curve[lens][depth_layer(n_layers, percent)]["kl_final_lens_bits"]) for lens in curve}
            cells.append(f"{min(at['norm'], at['norm_next']):.2f} → {at['tuned']:.2f}")
        rows.append([f"`{model.key}`", *cells, str(values["gates"])])
    before, rest = text.split(BEGIN)
    shown = table(["entry", *(f"at {percent} % of depth" for percent in PERCENTILES), "gates"], rows)
    return f"{before}{BEGIN}\n{shown}\n{END}{rest.split(END)[1]}"


def main() -> None:
    for model in models():
        draw(model)
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

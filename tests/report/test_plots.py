"""Tables for drawing: hand-computed from small folders, in the form that the report and DVC's templates read."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lensmith.files import artifacts
from lensmith.judge import plots, rank_cost, suite, trajectories
from lensmith.judge.prompts import Prompt
from lensmith.process.errors import IntegrityError
from lensmith.report import curves
from lensmith.report.model_detail import ModelDetail
from tests.support import records
from tests.support.bench import tiny_bench, write_lines
from tests.support.judged import World
from tests.support.scores import interval, passing
from tests.support.settings import REPOSITORY, atlas

LOG = "step,positions,lr,train_kl_bits,val_kl_bits_25,val_kl_bits_50,val_kl_bits_75,val_kl_bits_mean,best\n"
RANKS = "rank,kl_bits,closed_form_kl_bits\n1,3.0,4.0\n2,2.0,2.5\n4,,2.25\n"
OUTS = ("delta_kl", "earliness", "training", "rank_curve", "detail")


class Drawn:
    """The files of a small world: six prompts, four layers; the answer arrives at row 4 - i % 3 under tuned."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.world.rank = lambda unit, layer, lens: 0 if layer >= (4 - unit % 3 if lens == "tuned" else 4) else 50
        self.world.kl = lambda unit, layer, lens: {"tuned": 1.0, "norm": 2.0}.get(lens, 9.0) + (lens == "norm") * unit
        self.lens = folder / "lens"
        self.out = {name: folder / f"{name}.csv" for name in OUTS}
        lines = [
            {"id": f"p{i}", "domain": "d", "template": "t", "prompt": f"prompt\n{i}", "answer": "a"} for i in range(6)
        ]
        self.suite = write_lines(folder / "suite.jsonl", lines)

    def run(self) -> None:
        self.world.write()
        artifacts.write_text(self.lens / "fit_log.csv", LOG + "0,0,0,,3,2,1,2,1\n100,6400,0.01,2.5,2,1.5,0.5,1.3,1\n")
        artifacts.write_text(self.lens / "rank_curve.csv", RANKS)
        artifacts.write_json(self.lens / "provenance.json", records.provenance())
        for folder in (self.world.sweep, self.world.suite):
            artifacts.write_text(folder / "trajectories.json", "[]")
        settings = atlas(suite={"files": [str(self.suite)]})
        plots.run(settings, self.lens, self.world.sweep, self.world.suite, *self.out.values())

    def rows(self, name: str) -> list[dict[str, str]]:
        with self.out[name].open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def drawn(tmp_path) -> Drawn:
    return Drawn(tmp_path)


def test_percentiles_are_over_prompts_against_the_closer_norm(drawn):
    """Savings of the six prompts are 1..6 bits (norm 2 + i against 1): the median is 3.5, a tenth lies below 1.5."""
    drawn.run()

    found = {(row["layer"], row["percentile"]): float(row["delta_kl_bits"]) for row in drawn.rows("delta_kl")}
    assert {layer for layer, _ in found} == {"1", "2", "3", "4"}
    assert [found["2", p] for p in ("10", "25", "50", "75", "90")] == pytest.approx([1.5, 2.25, 3.5, 4.75, 5.5])


def test_earliness_counts_prompts_by_layers(drawn):
    """Norm arrives at row 4, tuned at 4, 3, 2: two prompts each are 0, 1 and 2 layers earlier."""
    drawn.run()

    rows = [(row["shift_layers"], row["rank"], row["prompts"]) for row in drawn.rows("earliness")]
    assert rows == [(shift, f"rank ≤ {k}", "2") for k in (10, 5, 1) for shift in ("0", "1", "2")]
    assert {row["share_pct"] for row in drawn.rows("earliness")} == {"33.333"}


def test_the_log_of_a_fit_becomes_curves(drawn):
    """Before the first step nothing was trained on: that cell is empty, and gives no point."""
    drawn.run()

    points = [(row["curve"], row["positions"], row["kl_bits"]) for row in drawn.rows("training")]
    assert points[:3] == [
        ("training", "6400", "2.5"),
        ("held out, 25 %", "0", "3.0"),
        ("held out, 25 %", "6400", "2.0"),
    ]
    assert len(points) == 7


def test_the_curve_of_ranks_becomes_curves(drawn):
    """Above the rank of the lens there is only the closed form. A lens without ranks has no curve."""
    drawn.run()
    written = [tuple(row.values()) for row in drawn.rows("rank_curve")]
    closed = [("1", "closed form", "4.0"), ("2", "closed form", "2.5"), ("4", "closed form", "2.25")]

    assert written == [("1", "trained", "3.0"), ("2", "trained", "2.0"), *closed]
    assert curves.read_ranks(drawn.out["rank_curve"]) == rank_cost.read(drawn.lens / "rank_curve.csv")
    artifacts.write_text(drawn.lens / "rank_curve.csv", RANKS.splitlines()[0] + "\n")
    assert rank_cost.read(drawn.lens / "rank_curve.csv") == {}


@pytest.mark.parametrize(
    ("points", "kpis", "words"),
    [
        ({}, {}, ""),
        ({"trained": [(1, 3.0)]}, {}, "At rank 1 the lens leaves 3.00 bits."),
        (
            {"trained": [(1, 5.0), (2, 3.0), (4, 2.0)], "closed form": [(2, 4.0), (4, 2.5), (8, 2.25)]},
            {f"ladder_gain_bits_full_{p}": interval(gain, 0.1) for p, gain in ((25, 0.5), (50, 0.25), (75, -0.125))},
            ("At rank 4 the lens leaves 2.00 bits and would leave 3.00 if it were cut to rank 2. "
             "Its closed form, before training, would be best at rank 8: 2.25 bits, and leaves 2.50 at rank 4. "
             "A full-rank lens saves +0.50, +0.25, \u22120.12 bits more at 25, 50 and 75 % of depth."),
        ),
    ],
)  # fmt: skip
def test_the_cost_of_a_rank_in_words(points, kpis, words):
    """Half of the rank, the best rank of the closed form, and the full-rank lens, as far as each was measured."""
    assert rank_cost.in_words(points, passing(kpis=kpis)) == words


def test_a_row_of_each_prompt(drawn):
    """Its words, the model's own rank, the first layers and KL at half depth; what never arrives is null."""
    drawn.world.rank = lambda unit, layer, lens: 3 if layer >= (3 if lens == "tuned" else 4) else 50
    drawn.run()

    data = json.loads(drawn.out["detail"].read_text())
    named = [dict(zip(data["columns"], row, strict=True)) for row in data["prompts"]]
    layers: dict[str, Any] = {"norm_le_10": 4, "tuned_le_10": 3, "norm_le_1": None, "tuned_le_1": None}
    assert named[1] == layers | {
        "id": "p1", "domain": "d", "prompt": "prompt\n1", "answer": "a", "final_rank": 4, "norm_kl": 3.0,
        "tuned_kl": 1.0, "saved": 2.0,
    }  # fmt: skip
    assert len(named) == 6 and data["provenance"] == records.provenance()


def test_the_report_reads_what_is_written(drawn):
    """One name spelt differently here and there would leave a chart out."""
    drawn.run()

    assert set(curves.read_earliness(drawn.out["earliness"])) == {"rank ≤ 10", "rank ≤ 5", "rank ≤ 1"}
    assert set(curves.read_training(drawn.out["training"])) == set(plots.CURVES)
    page = ModelDetail.read(drawn.out["detail"]).page_data(10**6)
    assert [row[2] for row in page["prompts"]] == [f"prompt⏎{i}" for i in range(6)]


def test_templates_of_dvc_name_columns_that_exist(drawn):
    """DVC draws an empty chart where a template names a column that is not there, and says nothing."""
    drawn.run()
    drawn.world.judge()
    tables = {
        "depth": drawn.world.folder / "cosine.csv",
        "bits": drawn.world.folder / "kl.csv",
        "percentiles": drawn.out["delta_kl"],
        "earliness": drawn.out["earliness"],
        "training": drawn.out["training"],
        "ranks": drawn.out["rank_curve"],
        "verdicts": drawn.world.folder / "verdicts.csv",
        "lenses": drawn.world.folder / "lenses.csv",
    }
    calculated = {"rev", "series", "mark", "shift", "measured", "low", "high", "of_gate"}
    for name, path in tables.items():
        template = json.loads((REPOSITORY / f".dvc/plots/{name}.json").read_text())
        columns = calculated.union(path.read_text(encoding="utf-8").splitlines()[0].split(","))
        used = {field for field in _fields(template) if not field.startswith("<DVC")}
        assert used and used <= columns, name


def _fields(node: Any) -> set[str]:
    if isinstance(node, list):
        return set().union(*map(_fields, node))
    if not isinstance(node, dict):
        return set()
    own = {node["field"]} if isinstance(node.get("field"), str) else set()
    return own.union(*map(_fields, node.values()))


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda d: (d.lens / "fit_log.csv").unlink(), r"fit_log\.csv: missing"),
        (lambda d: (d.lens / "rank_curve.csv").write_text(RANKS + "x,1,1\n"), r"rank_curve\.csv:5: no line of a fit"),
        (lambda d: (d.lens / "fit_log.csv").write_text("step,best\n0,1\n"), r"fit_log\.csv:2: no line of a fit"),
        (lambda d: d.suite.write_text(d.suite.read_text().replace('"p3"', '"q3"')), "p3: was measured"),
    ],
)
def test_damage_is_named(drawn, break_it, says):
    """Half of a log, or a suite that has been edited since, would draw a picture of something else."""
    drawn.run()
    break_it(drawn)
    settings = atlas(suite={"files": [str(drawn.suite)]})
    with pytest.raises(IntegrityError, match=says):
        plots.run(settings, drawn.lens, drawn.world.sweep, drawn.world.suite, *drawn.out.values())


def test_shown_prompts_take_turns_between_domains():
    """Twelve prompts of a suite that is sorted by domain would all be capitals."""
    domains = "aaaabbc"
    lines = [Prompt(id=str(i), domain=d, template="t", prompt="The", answer="x") for i, d in enumerate(domains)]
    asked = [suite.TokenizedPrompt(line, [1], [1], [], [], []) for line in lines]

    assert [one.id for one in suite.shown(asked, 5)] == ["0", "4", "6", "1", "5"]
    assert len(suite.shown(asked, 100)) == len(domains)


def test_a_text_is_written_with_its_readings(tmp_path):
    """The stage's file is what the report shows: every position and layer, packed."""
    bench = tiny_bench()
    ids = bench.encode("The river")
    trajectories.write(tmp_path, bench, [trajectories.Shown("one", "The river", "runs", ids)], "test")

    (text,) = json.loads((tmp_path / "trajectories.json").read_text())
    assert (text["id"], text["prompt"], text["answer"]) == ("one", "The river", "runs")
    assert len(text["tokens"]) == len(ids) and len(text["lenses"]["tuned"]["kl"]) == bench.n_layers

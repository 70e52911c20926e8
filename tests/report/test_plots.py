"""Tables for drawing: hand-computed from small folders, in the form that the report and DVC's templates read."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lensmith.files import artifacts
from lensmith.judge import plots, suite, trajectories
from lensmith.judge.prompts import Prompt
from lensmith.process.errors import IntegrityError
from lensmith.report import curves
from lensmith.report.model_detail import ModelDetail
from tests.support import records
from tests.support.bench import tiny_bench, write_lines
from tests.support.judged import World
from tests.support.settings import REPOSITORY, atlas

LOG = "step,positions,lr,train_kl_bits,val_kl_bits_25,val_kl_bits_50,val_kl_bits_75,val_kl_bits_mean,best\n"
OUTS = ("delta_kl", "earliness", "training", "detail")


class Drawn:
    """The four files of a small world: six prompts, four layers; the answer arrives at row 4 - i % 3 under tuned."""

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
        "depth": drawn.world.folder / "kl.csv",
        "percentiles": drawn.out["delta_kl"],
        "earliness": drawn.out["earliness"],
        "training": drawn.out["training"],
    }
    for name, path in tables.items():
        template = json.loads((REPOSITORY / f".dvc/plots/{name}.json").read_text())
        columns = {*path.read_text(encoding="utf-8").splitlines()[0].split(","), "rev", "series", "mark", "shift"}
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
    asked = [suite.TokenizedPrompt(line, [1], [1], None) for line in lines]

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

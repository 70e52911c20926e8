"""`lensmith compare`: finished variants, and only what tells them apart."""

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lensmith.cli import experiments as cli_experiments
from lensmith.judge import judging
from lensmith.judge.judgement import MISSING
from lensmith.lab import compare, experiments, paired
from lensmith.lab.dvc_cache import ObjectStore
from lensmith.lab.experiments import Experiments, LabVariant
from lensmith.process import wording
from lensmith.process.errors import InputError
from tests.support.judged import World
from tests.support.scores import interval, passing
from tests.support.settings import atlas


def state(name: str | None, rank: object, kl: float, **executor: Any) -> dict[str, Any]:
    """A state as `dvc exp show --json` gives it: model `one`, of one rank and one KL."""
    metrics = {**judging.metrics(passing()), "kl50": kl}
    settings = {"fit": {"rank": rank, "lr": 0.01, "inputs": {"a": "b"}}, "gates": {"seed": 316}}
    data = {
        "params": {"resolved/models/one.json": {"data": settings}, "params.yaml": {"data": {"models": {}}}},
        "metrics": {"metrics/one.json": {"data": metrics}},
    }
    return {"rev": "0123456789abcdef", "name": name, "data": data, "experiments": None}


def shown(*ranges: tuple[str, object, float, str | None]) -> list[dict[str, Any]]:
    head = state("main", "auto", 2.0)
    head["experiments"] = [
        {"name": name, "revs": [state(name, rank, kl)], "executor": None if done is None else {"state": done}}
        for name, rank, kl, done in ranges
    ]
    return [state("workspace", "auto", 2.0), head]


RANKS = (("r-1", 8, 2.5, None), ("r-2", 16, 2.25, "success"))


def parse(states: list[dict[str, Any]], objects: Path = Path("/nowhere"), *, alive: bool = True) -> Experiments:
    return experiments.parse(states, ObjectStore(folder=objects), alive=alive)


def text(found: compare.Comparison) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(compare.table(found))
    return console.export_text()


def test_finished_variants_are_read_and_others_counted():
    """DVC lists what is queued or runs with the metrics of the workspace: shown as its own they would be a lie."""
    found = parse(shown(*RANKS, ("r-3", 32, 2.0, "running"), ("r-4", 64, 2.0, "queued")))

    assert [one.name for one in found.variants] == ["main", "r-1", "r-2"]
    assert found.unfinished == {"running": 1, "queued": 1}
    assert found.variants[1].settings["one"] == {"fit.rank": 8, "fit.lr": 0.01, "gates.seed": 316}


def test_a_killed_experiment_is_not_called_running(monkeypatch, capsys):
    """DVC calls it so for ever; no dvc process is alive in the lab."""
    states = shown(("r-1", 8, 2.5, "running"), ("r-2", 16, 2.5, "failed"))
    assert parse(states).unfinished == {"running": 1, "failed": 1}
    lab = parse(states, alive=False)
    assert lab.unfinished == {"killed": 1, "failed": 1}
    monkeypatch.setattr(experiments, "read", lambda *_: lab)
    cli_experiments.compare()

    assert "Not finished: 1 failed, 1 killed. " in capsys.readouterr().out


def measured(folder: Path, kl: Callable[[int], float], text: str = "heldout") -> LabVariant:
    """A variant whose tuned lens leaves `kl` of each sequence, at all layers but the last."""
    world = World(folder, seqs=12)
    world.kl = lambda unit, layer, _: 0.0 if layer == world.n_layers else kl(unit)
    world.write()
    gates = atlas().gates
    settings = {f"gates.{name}": getattr(gates, name) for name in ("bootstrap_samples", "seed", "confidence")}
    settings |= {"source.path": "demo/tiny", "sweep.seed": 316, "sweep.positions_per_seq": 4}
    files = {f"sweep/{name}": folder / "sweep" / name for name in ("run.json", "heldout.csv")}
    metrics = judging.metrics(passing())
    files["corpus/heldout.safetensors"] = Path(text)
    return LabVariant(folder.name, {"one": settings}, {"one": metrics}, files={"one": files})


def test_held_out_kl_is_compared_in_pairs_of_sequences(tmp_path):
    """Sequences differ by 11 bits, the lenses by 0.25: each lens's interval hides what their difference shows."""
    base = measured(tmp_path / "main", lambda unit: 1.0 + unit)
    better = measured(tmp_path / "better", lambda unit: 0.75 + unit + 0.02 * (-1) ** unit)

    for kpi in ("kl50", "kl", "norm", "heldout_kl_tuned_bits_75"):
        difference = paired.kl_difference(better, base, "one", kpi)
        assert difference.value == pytest.approx(-0.25) and -0.27 < difference.lo < difference.hi < -0.23, kpi
    assert paired.kl_difference(base, base, "one", "kl").text(wording.signed) == "0"
    console = Console(width=140, record=True, file=io.StringIO())
    worse = measured(tmp_path / "worse", lambda unit: 1.5 + unit)
    noisy = measured(tmp_path / "noisy", lambda unit: 1.0 + unit + 0.3 * (-1) ** unit)
    console.print(compare.differences(compare.compare([base, better, worse, noisy, base], "one")))
    title, *lines = (line.strip() for line in console.export_text().splitlines() if line.strip())
    assert title == "one: held-out KL minus that of main, bits, over the same 12 sequences"
    judged = {line.split()[0]: line for line in lines}
    assert judged["better"].count("(−0.26 to −0.24) better") == 3  # noqa: RUF001, a minus
    assert judged["worse"].count("+0.50 worse") == judged["noisy"].count("same") == judged["main"].count("0 same") == 3


@pytest.mark.parametrize("other", ["text", "model", "positions", "sequences", "rows", "KPI", "unknown text"])
def test_what_is_no_pair_has_no_difference(tmp_path, other):
    """Another text or model, other positions, rows that DVC's cache does not hold, a KPI that is no held-out KL."""
    base, variant = (measured(tmp_path / name, float) for name in ("main", "variant"))
    settings, files = variant.settings["one"], variant.files["one"]
    if other == "text":
        files["corpus/heldout.safetensors"] = Path("another")
    elif other == "unknown text":
        del files["corpus/heldout.safetensors"], base.files["one"]["corpus/heldout.safetensors"]
    elif other == "model":
        settings["source.path"] = "demo/another"
    elif other == "positions":
        settings["sweep.seed"] = 317
    elif other == "sequences":
        table = files["sweep/heldout.csv"]
        table.write_text("\n".join(line for line in table.read_text().splitlines() if line[:2] != "3,"))
    elif other == "rows":
        files["sweep/heldout.csv"].unlink()
    kpi = "d50" if other == "KPI" else "kl50"

    assert paired.kl_difference(variant, base, "one", kpi) == MISSING
    assert other == "KPI" or compare.differences(compare.compare([base, variant], "one")) is None


def test_the_rows_of_a_variant_are_found_in_the_cache(tmp_path):
    """`dvc exp show` names the object of the folder; that lists the objects of its files."""
    listing = [{"relpath": "heldout.csv", "md5": "cdef0123"}, {"relpath": "run.json", "md5": "0123cdef"}]
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "cd.dir").write_text(json.dumps(listing))
    data = shown(*RANKS)
    for experiment, oid in zip(data[1]["experiments"], ("abcd.dir", "ffff.dir"), strict=True):
        experiment["revs"][0]["data"]["outs"] = {"artifacts/one/sweep": {"hash": oid}, "artifacts": {"hash": oid}}
    _, r_1, r_2 = parse(data, tmp_path).variants

    assert r_1.files["one"]["sweep/heldout.csv"] == tmp_path / "cd" / "ef0123" and r_2.files == {}


def test_a_workspace_that_is_as_committed_is_no_variant():
    """It would be HEAD twice; one that differs is shown."""
    data = shown()
    assert [one.name for one in parse(data).variants] == ["main"]
    data[0] = state("workspace", 4, 3.0)
    assert [one.name for one in parse(data).variants] == ["main", "workspace"]


def test_only_what_differs_is_compared():
    """Two numbers that are shown alike do not tell variants apart."""
    variants = parse(shown(*RANKS)).variants
    variants[1].metrics["one"]["d50"] += 1e-9
    found = compare.compare(variants, "one")

    assert found.settings == ["fit.rank"] and found.kpis == ["kl50"]
    printed = text(found)
    assert all(word in printed for word in ("r-1", "8", "2.50", "r-2", "16", "2.25", "main", "auto", "gates", "pass"))
    assert "lr" not in printed and "d50" not in printed


@pytest.mark.parametrize("lacking", ["resolved", "newer", "layout"])
def test_a_setting_that_a_variant_lacks_is_no_difference(lacking):
    """An old commit has no resolved/, or not the newest settings, or another layout: no column of dashes for each."""
    data = shown(*RANKS)
    files = data[1]["data"]["params"]
    if lacking == "resolved":
        del files["resolved/models/one.json"]
    elif lacking == "newer":
        del files["resolved/models/one.json"]["data"]["fit"]["lr"]
    else:
        files["resolved/models/one.json"]["data"] = {"version": 1}
    found = compare.compare(parse(data).variants, "one")

    assert found.settings == ["fit.rank"]
    (head,) = (line.split() for line in text(found).splitlines() if line.strip().startswith("main"))
    assert head[1] == ("auto" if lacking == "newer" else "–")  # noqa: RUF001, a dash in a table
    points = compare.curve(found, "rank").data[0].x
    assert list(dict.fromkeys(points)) == ["8", "16", "auto"], "auto is the workspace's"


def test_a_setting_that_only_one_variant_has_tells_nothing():
    """What it is in the others nobody knows: two values are needed for a difference."""
    data = shown(*RANKS)
    data[1]["experiments"][0]["revs"][0]["data"]["params"]["resolved/models/one.json"]["data"]["fit"]["new"] = 7

    assert compare.compare(parse(data).variants, "one").settings == ["fit.rank"]


def test_no_value_is_a_value():
    """params.yaml's null differs from a word, is written so, and has a place in a curve."""
    found = compare.compare(parse(shown(("r-1", None, 2.5, None), ("r-2", 16, 2.25, None))).variants, "one")

    assert found.settings == ["fit.rank"] and "null" in text(found)
    assert list(compare.curve(found, "rank").data[0].x) == ["16", "auto", "null"]


def test_an_interval_comes_from_the_judgement_in_the_cache(tmp_path):
    """A difference within the interval is none. A variant whose judgement was not pulled has the number alone."""
    name = "heldout_kl_tuned_bits_50"
    passing(kpis={name: interval(2.5, 0.25)}).write(tmp_path / "ab" / "cdef")
    data = shown(*RANKS)
    for experiment, oid in zip(data[1]["experiments"], ("abcdef", "012345"), strict=True):
        experiment["revs"][0]["data"]["outs"] = {"plots/judgement/one.json": {"hash": oid}}
    variants = parse(data, tmp_path).variants

    for asked in ("kl50", name):
        main, r_1, r_2 = (compare.estimate(variant, "one", asked) for variant in variants)
        assert (r_1.value, r_1.lo, r_1.hi) == (2.5, 2.25, 2.75)
        assert (main.value, r_2.value) == ((2.0, 2.25) if asked == "kl50" else (None, None))
    assert text(compare.compare(variants, "one")).count("2.25 to 2.75") == 1
    assert compare.curve(compare.compare(variants, "one"), "rank").data[1].error_y.array == (0.25, 0, 0)


def test_the_curve_has_a_point_for_each_variant_in_the_order_of_the_setting():
    """8 before 16, words last; the same numbers as in the metrics."""
    found = compare.compare(parse(shown(RANKS[1], RANKS[0])).variants, "one")
    figure = compare.curve(found, "rank")

    line = next(trace for trace in figure.data if trace.name == "kl50")
    assert (list(line.x), list(line.y)) == (["8", "16", "auto"], [2.5, 2.25, 2.0])
    assert figure.layout.xaxis.type == "category"


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda v: compare.compare(v, "two"), "no finished variant has metrics of 'two'; models with metrics: one"),
        (lambda v: compare.compare(v, "one", ["bits"]), "'bits' is no metric of one"),
        (lambda v: compare.curve(compare.compare(v, "one"), "lr"), "'lr' must be one setting .* differ in: fit.rank"),
    ],
)
def test_what_cannot_be_compared_is_named(ask, says):
    with pytest.raises(InputError, match=says):
        ask(parse(shown(*RANKS)).variants)


def test_names_of_experiments_are_text():
    """A name may hold what a terminal's markup would swallow."""
    data = copy.deepcopy(shown(("[bold]x[/]", 8, 2.5, None)))

    assert "[bold]x[/]" in text(compare.compare(parse(data).variants, "one"))


def test_outside_a_repository_the_reason_is_given(tmp_path):
    with pytest.raises(InputError, match=r"dvc exp show HEAD: .*not inside of a DVC repository"):
        experiments.read(tmp_path)


def test_variants_without_the_model_are_left_out():
    """A variant from before the model was added has no numbers of it."""
    variants = [*parse(shown(*RANKS)).variants, LabVariant("old", {}, {"other": {}})]

    assert [one.name for one in compare.compare(variants, "one").variants] == ["main", "r-1", "r-2"]


def test_the_gates_that_a_variant_does_not_pass_are_named():
    data = shown(*RANKS)
    data[1]["experiments"][0]["revs"][0]["data"]["metrics"]["metrics/one.json"]["data"]["gates"] = "fail BF"
    lines = text(compare.compare(parse(data).variants, "one")).splitlines()

    assert next(line for line in lines if line.strip().startswith("r-1")).split()[-2:] == ["fail", "BF"]
    assert next(line for line in lines if line.strip().startswith("r-2")).split()[-1] == "pass"


def test_a_curve_joins_only_what_differs_in_its_setting():
    """A variant of half the text at the rank of another would stand above it on the same line."""
    data = shown(*RANKS, ("half", "auto", 2.75, None))
    data[1]["experiments"][2]["revs"][0]["data"]["params"]["resolved/models/one.json"]["data"]["fit"]["lr"] = 0.5
    found = compare.compare(parse(data).variants, "one")

    assert found.settings == ["fit.lr", "fit.rank"]
    assert list(compare.curve(found, "rank").data[0].x) == ["8", "16", "auto"]
    assert list(compare.curve(found, "lr").data[0].x) == ["0.01", "0.5"]


@pytest.mark.parametrize("plot", [None, "rank"])
@pytest.mark.parametrize("states", [[], [state("workspace", "auto", 2.0)], shown(("r-1", "auto", 2.0, None))])
def test_a_lab_with_nothing_to_compare_says_so(monkeypatch, capsys, states, plot):
    """No variant at all, one, and two that are the same: one line, where nothing was printed before."""
    lab = parse(states) if states else Experiments([], {})
    monkeypatch.setattr(experiments, "read", lambda *_: lab)
    cli_experiments.compare(plot=plot, rev="HEAD")

    said = capsys.readouterr().out
    assert said.count("\n") == 1 and said.startswith("Nothing differs between the finished variants (")

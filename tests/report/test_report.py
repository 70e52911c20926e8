"""The report page: whole in itself, honest, safe to open, and the same for the same inputs."""

import math
import sys
from html.parser import HTMLParser

import pytest

from lensmith.files import artifacts, seals
from lensmith.judge import gates
from lensmith.judge.gates import LETTERS
from lensmith.judge.judgement import VERDICTS, Criterion, Verdict
from lensmith.process import wording
from lensmith.process.errors import InputError, IntegrityError
from lensmith.report import charts, curves, terminal
from lensmith.report.model_detail import ModelDetail
from stages import report as report_stage
from tests.support.desk import MODEL, Desk
from tests.support.judged import World
from tests.support.scores import N_LAYERS, interval, passing, with_intermediates, with_other_text

FAILING: dict[str, Verdict] = {"B": "fail", "D": "inconclusive"}


class Page(HTMLParser):
    """A page's elements, and the text of each element with a class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.badges: list[tuple[str, str]] = []  # (class, text)
        self._open: list[tuple[str, int]] = []
        self._spans = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "span":
            self._spans += 1
            classes = dict(attrs).get("class") or ""
            if classes.startswith("badge"):
                self._open.append((classes, self._spans))
                self.badges.append((classes, ""))

    def handle_endtag(self, tag):
        if tag == "span":
            if self._open and self._open[-1][1] == self._spans:
                self._open.pop()
            self._spans -= 1

    def handle_data(self, data):
        if self._open:
            classes, text = self.badges[-1]
            self.badges[-1] = (classes, text + data)


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(tmp_path)


def test_the_page_asks_no_server_for_anything(desk):
    """It is read offline, from mails and build artefacts; a CDN that is gone would leave it blank."""
    page = Page(desk.add("one").build())

    targets = [
        v for _, attrs in page.elements for name, v in attrs.items() if name in ("src", "href", "data", "srcset")
    ]
    assert targets and all(target.startswith("#") for target in targets)
    assert "link" not in {tag for tag, _ in page.elements}
    policy = next(
        attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy and "http" not in policy


def test_style_loads_nothing(desk):
    """A font or an image of a style sheet is a request as well."""
    style = desk.add("one").build().split("<style>")[1].split("</style>")[0]

    assert "@import" not in style and "url(" not in style and "{{" not in style


HOSTILE = "<img src=x onerror=alert(1)>"


def test_hostile_names_and_words_stay_text(desk):
    """Keys, words and curves come from files that others may send."""
    plain = Page(desk.add("one").build())
    words = {f"median_delta_kl_bits_{p}": "</dd><script>alert(1)</script>" for p in (25, 50, 75)}
    text = (
        Desk(desk.root / "hostile")
        .add(HOSTILE, passing(baselines=words), crossing="</script><script>alert(2)</script>")
        .build()
    )
    page = Page(text)

    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert "alert(2)" in text and "<script>alert" not in text and "&lt;img" in text


def test_hostile_names_stay_text_in_charts(desk):
    """Plotly reads a few HTML tags in the names of lines."""
    desk.add("one")
    found = curves.read_layers(desk.folders["kl"] / "one.csv", "kl_final_lens_bits")

    names = [line["name"] for line in charts.overview({HOSTILE: found})["data"]]
    assert names == ["&lt;img src=x onerror=alert(1)&gt;"]


def test_the_same_inputs_give_the_same_bytes(desk, tmp_path):
    """A page that differs without a reason makes every stage after it stale, and every diff noise."""
    first = desk.add("one").add("two", passing(verdicts=FAILING)).build()
    second = Desk(tmp_path / "again").add("two", passing(verdicts=FAILING)).add("one").build()

    assert first == second


def test_a_model_that_is_not_judged_yet_is_named_and_left_out(desk, monkeypatch, capsys):
    """A fresh clone has the settings of all models, and the results of those that were built there."""
    desk.add("one").add("two")
    seal(desk, "one")

    text = run_stage(desk, monkeypatch)

    assert "Not judged in this lab yet: two." in text and 'id="model-two"' not in text
    assert {row["model"] for row in desk.table()} == {"one"}
    assert "leaves out two, which is not judged yet; `dvc repro publish@two` does that" in capsys.readouterr().err

    (desk.folders["kl"] / "one.csv").write_text("changed")
    with pytest.raises(IntegrityError, match=r"one.csv: sha256 is"):
        run_stage(desk, monkeypatch)


def test_a_lab_without_a_judged_model_has_no_report(desk, monkeypatch):
    desk.add("one")

    with pytest.raises(InputError, match="none of its models is judged"):
        run_stage(desk, monkeypatch)


def seal(desk: Desk, key: str) -> None:
    """Seal the results of a model as `gates` and `plots` do."""
    gates, plots = ("judgement", "kl", "cosine", "causal"), ("earliness", "training", "rank_curve", "detail")
    for stage, names in {"gates": gates, "plots": plots}.items():
        files = [file for name in names for file in desk.folders[name].glob(f"{key}.*")]
        seals.seal_files(desk.root / "seals" / stage / f"{key}.sha256", files)


def run_stage(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page that stage `report` writes."""
    paths = {**desk.folders, "seals": desk.root / "seals", "html": desk.html, "overview": desk.overview}
    arguments = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    report_stage.main()
    return desk.html.read_text(encoding="utf-8")


def test_a_failed_gate_is_shown_as_failed(desk):
    """A report that hides a red gate is worth nothing."""
    text = desk.add("one", passing(verdicts=FAILING)).build()

    assert "Norm lens preferred." in text and "Tuned lens preferred." not in text
    assert "gate B (fail), gate D (inconclusive)." in text
    assert '<p class="verdict fail">' in text
    assert sorted(verdict_badges(text)) == ["fail", "inconclusive", *["pass"] * 6]


def test_a_lens_that_passes_is_preferred(desk):
    text = desk.add("one").build()

    assert "Tuned lens preferred." in text and "Norm lens preferred." not in text
    assert set(verdict_badges(text)) == {"pass"}


def verdict_badges(text: str) -> list[str]:
    """Classes of the badges in the gates' table."""
    table = text.split('<table class="cards gates">')[1].split("</table>", maxsplit=1)[0]
    return [classes.removeprefix("badge ") for classes, _ in Page(table).badges]


def test_no_verdict_is_told_by_colour_alone(desk):
    """One reader in twelve men cannot tell red from green: each badge has its word and its sign."""
    page = Page(desk.add("one", passing(verdicts={**FAILING, "F": "invalid"})).build())

    assert {classes.split()[-1] for classes, _ in page.badges} == set(VERDICTS)
    for classes, text in page.badges:
        verdict = classes.split()[-1]
        assert verdict in text and wording.SYMBOLS[verdict] in text


def test_a_removed_model_vanishes(desk):
    """DVC leaves the files of a removed model in place; only `resolved` says which models there are."""
    desk.add("one").add("gone")
    (desk.folders["resolved"] / "gone.json").unlink()

    assert "gone" not in desk.build().split("<script>")[0]
    assert {row["model"] for row in desk.table()} == {"one"}


def test_the_overview_holds_the_tuned_curve_by_relative_depth(desk):
    """Models of different depth share one axis: layer 3 of 6 lies at 50 %."""
    desk.add("one").build()

    rows = desk.table()
    assert [int(row["layer"]) for row in rows] == list(range(1, N_LAYERS + 1))
    assert [float(row["depth_pct"]) for row in rows][2::3] == [50, 100]
    assert [float(row["kl_final_lens_bits"]) for row in rows] == [2.5, 2.0, 1.5, 1.0, 0.5, 0.0]


def test_limits_are_those_that_the_gates_used(desk):
    """Settings may have been edited since the lens was judged; the page shows what was judged."""
    shown = desk.add("one", passing(limits={"delta_kl_bits_50": 0.625})).build()

    assert "≥ +0.63" in shown or "≥ +0.62" in shown


@pytest.mark.parametrize(
    "key",
    [
        "rank1_coverage_gain",
        "median_delta_kl_bits_50",
        "last_layer_kl_after_temp_bits",
        "final_rank1_share",
    ],
)
def test_a_missing_number_is_shown_as_missing(desk, key):
    """A number that was not finite is left out by `gates`; the page must come all the same, and say so."""
    assert "n/a" in desk.add("one", passing(kpis={key: None})).build().split("<script>")[0]
    assert "n/a" not in Desk(desk.root / "whole").add("one").build().split("<script>")[0]


def test_everything_that_a_gate_asks_for_is_what_gates_write(tmp_path):
    """One name spelt differently here and there would show a measured number as missing."""
    judged = World(tmp_path).judge()

    assert tuple(gate.letter for gate in judged.gates) == LETTERS
    for gate in judged.gates:
        for check in gate.checks:
            assert check.measured.finite and check.verdict != "invalid", f"{gate.letter}: {check.label}"
    assert "None" not in str(judged.reference_kpis()) and judged.preferred == "tuned"


def test_the_ladder_is_shown_with_its_shares(desk):
    """A reader must see what a temperature alone would do: 4.00 bits to 3.50, a quarter of what the lens saves."""
    text = desk.add("one").build()
    table = text[text.index("What each part of the lens explains") :].split("</table>")[0]

    assert table.index("norm lens") < table.index("+ temperature") < table.index("+ scale and low-rank map")
    for value, bounds in (("3.50", "3.00 to 4.00"), ("25 %", "12 % to 38 %")):
        assert f'>{value}<span class="interval">{bounds}</span>' in table
    assert "What each part" not in Desk(desk.root / "bare").add("one", passing(ladder=("identity", "low_rank"))).build()


def test_answered_prompts_stand_beside_all(desk):
    """Gate B over a suite of which a third is answered says less than it seems."""
    text = desk.add("one").build()
    table = text[text.index("Prompts that the model itself answers") :].split("</figure>")[0]

    assert "The 216 answered" in table and "80 % of the prompts" in table
    row = table[table.index("at 25 % depth, bits") :].split("</tr>")[0]
    assert row.index("+3.25") < row.index("+3.75")
    none = passing(kpis={f"answered_median_delta_kl_bits_{p}": None for p in (25, 50, 75)})
    assert "itself answers" not in Desk(desk.root / "none").add("one", none).build()


def test_each_held_out_text_has_a_row(desk):
    """Bits a byte are bits a token times the text's own ratio."""
    table = Desk(desk.root / "texts").add("one", with_other_text()).build().split("By held-out text")[1]
    rows = [row.split("</tr>")[0] for row in table.split("</figure>")[0].split('<th scope="row">')[1:]]

    assert [row.split("</th>")[0] for row in rows] == ["heldout", "code"]
    assert ">0.88" in rows[0] and ">0.25" in rows[0]
    assert ">2.75" in rows[1] and ">+1.25" in rows[1] and ">1.50" in rows[1]
    assert "By held-out text" not in desk.add("one").build()


@pytest.mark.parametrize("kind", wording.JUDGED)
def test_a_lens_is_named_by_its_kind_in_all_of_its_section(desk, kind):
    judged = passing()
    judged = judged.model_copy(update={"lens": judged.lens.model_copy(update={"kind": kind})})
    section = desk.add("one", judged).build().partition('<section class="model"')[2]
    section = section.partition("</section>")[0]

    assert f"<strong>{wording.JUDGED[kind].capitalize()} preferred.</strong>" in section
    assert f"<h3>KL saved by the {wording.JUDGED[kind]}</h3>" in section
    assert "tuned lens" not in section.lower()


def test_a_transferred_lens_is_called_so_on_the_page_and_in_the_terminal(desk):
    own, judged = desk.add("one").build(), passing()
    lens = {
        "fit": MODEL["fit"] | {"kind": "transferred"},
        "transferred": {"from": "base", "inputs": {"base": "0" * 64}},
    }
    artifacts.write_json(desk.folders["resolved"] / "one.json", MODEL | lens | {"key": "one"})
    judged = judged.model_copy(update={"lens": judged.lens.model_copy(update={"kind": "transferred"})})

    assert "fit to another model: the lens of base" in desk.build() and "another model" not in own
    assert [*terminal.verdicts([("one", judged)]).columns[0].cells] == ["one (transferred lens)"]


def test_what_lenses_hold_stands_over_all_prompts_and_over_the_answered(desk):
    """A row for each lens with intervals, the judged one by its kind; no such part without intermediates."""
    text = Desk(desk.root / "holds").add("one", with_intermediates()).build()
    table = text[text.index("What each lens holds") :].split("</table>")[0]
    every, answered = table.split('scope="rowgroup"')[1:]

    assert "216 prompts in the suite" in every and "40 prompts that the model answers" in answered
    for part in (every, answered):
        assert part.index("norm lens") < part.index("full-rank lens") < part.index("Jacobian lens")
        judged = part[part.index("Jacobian lens") :]
        for value, bounds in (("51 %", "38 % to 64 %"), ("6 %", "3 % to 9 %"), ("50 %", "38 % to 62 %")):
            assert f'>{value}<span class="interval">{bounds}</span>' in judged
    assert "What each lens holds" not in desk.add("one").build()


def test_the_chart_of_what_lenses_hold_has_a_line_for_each():
    """By layer from the first that a lens has."""
    drawn = charts.holds(with_intermediates())
    assert drawn is not None

    lines = {line["name"]: line for line in drawn["data"] if line.get("name")}
    assert [*lines] == ["norm lens", "full-rank lens", "Jacobian lens"]
    assert lines["norm lens"]["x"] == list(range(N_LAYERS + 1))
    assert lines["Jacobian lens"]["x"] == list(range(1, N_LAYERS + 1)) and lines["Jacobian lens"]["y"][-1] == 0.5
    assert charts.holds(passing()) is None


def test_the_ladders_chart_has_a_bar_for_each_rung():
    """Heights and whiskers are those of the table, and no two rungs look alike."""
    drawn = charts.ladder(passing())
    assert drawn is not None

    bars = drawn["data"]
    assert [(bar["name"], bar["y"]) for bar in bars] == [
        ("norm lens", [4.0] * 3), ("+ temperature", [3.5] * 3), ("+ scale and low-rank map", [2.0] * 3),
    ]  # fmt: skip
    assert bars[1]["error_y"]["array"] == bars[1]["error_y"]["arrayminus"] == [0.5] * 3
    assert len({bar["marker"]["color"] for bar in bars}) == len(bars)
    assert charts.ladder(passing(ladder=())) is None


def test_gate_g_shows_the_worst_part_of_the_context(desk):
    """Six parts at three depths would hide the one that matters; a part without a number comes first."""
    name = "position_delta_kl_bits_{}_part_1"
    shown = passing(kpis={name.format(50): interval(-0.5, 0.25)}).gate("G").shown

    assert [check.measured.value for check in shown] == [1.0, -0.5, 1.0]
    assert ["tokens 0 to 15" in check.label for check in shown] == [True, False, True]
    missing = passing(kpis={name.format(25): None}).gate("G").shown
    assert missing[0].measured.value is None and missing[0].label.endswith("bits, the worst of 2")


def test_the_axis_of_kl_holds_a_hundred_bits_beside_a_few(desk):
    """On a real model the norm lens is 158 bits off at the embedding, where the tuned lens has no number at all."""
    desk.add("one")
    path = desk.folders["kl"] / "one.csv"
    path.write_text(path.read_text("utf-8").replace("\n0,norm,6.0", "\n0,norm,127.0"), encoding="utf-8")
    figure = charts.kl(curves.read_layers(path, "kl_final_lens_bits"), passing())
    norm, tuned = (
        next(line for line in figure["data"] if line.get("name") == f"{lens} lens") for lens in ("norm", "tuned")
    )

    assert norm["y"] == pytest.approx([7.0, *(math.log2(7 - layer) for layer in range(1, 7))])
    assert tuned["y"][-1] == 0 and tuned["customdata"] == [2.5, 2.0, 1.5, 1.0, 0.5, 0.0]
    axis = figure["layout"]["yaxis"]
    ticks = dict(zip(axis["ticktext"], axis["tickvals"], strict=True))
    assert ticks["1"] == 1 and ticks["0"] == 0 and max(axis["tickvals"]) <= 7 < axis["range"][1]


def test_crossings_are_marked_where_they_lie(desk):
    """The first-rank crossings, one diamond for each lens, with the ranks that are crossed there."""
    desk.add("one")
    found = curves.read_layers(desk.folders["kl"] / "one.csv", "kl_final_lens_bits")

    marked = [trace for trace in charts.kl(found, passing())["data"] if trace.get("text")]
    assert [(trace["x"], trace["text"]) for trace in marked] == [([3], ["≤ 10, 5"])] * 2


@pytest.mark.parametrize(("lo", "limit", "clears"), [(0.4, 0.3, True), (0.2, 0.3, False), (-3.0, -0.1, False)])
def test_a_drawn_interval_lies_on_the_side_of_its_limit(lo, limit, clears):
    """The picture must say what the numbers say."""
    span = gates.check(Criterion(kpi="k", label="at 50 %", limit=limit), interval(lo + 1, 1)).span

    assert span is not None and (span.lo >= span.limit) == clears
    assert min(span.lo, span.limit) >= 0 and max(span.hi, span.limit) <= 100


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.314, "2.31"),
        (-0.5, "\u22120.50"),
        (31.26, "31.3"),
        (0.0421, "0.042"),
        (3.1e-8, "3.1 \u00d7 10⁻⁸"),
        (0, "0"),
        (None, "n/a"),
    ],
)
def test_numbers_have_the_digits_that_a_reader_can_use(value, text):
    assert wording.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.254, "25 %"), (-0.254, "\u221225 %"), (-0.004, "0 %"), (None, "n/a")])
def test_a_share_that_rounds_to_zero_has_no_sign(value, text):
    """A rung that adds nothing would look like one that loses."""
    assert wording.percent(value) == text


@pytest.mark.parametrize(
    ("prompt", "words", "blank"),
    [
        ("The river", ["<|bos|>", "The", " river"], 1),
        (" The river", ["The", " river"], 0),
        ("\u4f60\u597d", ["\ufffd", "\ufffd", "\u597d"], 0),  # parts of a character
        ("<|bos|>", ["<|bos|>", "<|bos|>"], 0),
    ],
)  # fmt: skip
def test_tokens_before_the_text_have_no_colour(prompt, words, blank):
    """The norm lens may be far off at BOS, which says nothing of the text."""
    text = {"id": "a", "prompt": prompt, "answer": "b", "words": words, "tokens": [*range(len(words))], "lenses": {}}
    assert ModelDetail((), [], [text], {}).page_data(10**6)["trajectories"][0]["blank"] == blank


def test_damage_is_named_and_the_old_page_stays(desk):
    """A report over half of a file would look like a report."""
    before = desk.add("one").build()
    path = desk.folders["kl"] / "one.csv"
    good = path.read_text(encoding="utf-8")
    for broken in (good.replace("tuned", "turned"), good.replace("2.0", "nan"), good.replace("crossing", "mark"), ""):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(IntegrityError, match=r"kl.one\.csv"):
            desk.build()
    path.unlink()
    with pytest.raises(IntegrityError, match=r"kl.one\.csv: missing"):
        desk.build()

    assert desk.html.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("verdict", [None, "splendid"])
def test_a_gate_without_a_verdict_is_refused(desk, verdict):
    """No verdict is no pass."""
    path = desk.add("one").folders["judgement"] / "one.json"
    data = artifacts.read_json(path)
    data["gates"][2]["verdict"] = verdict
    artifacts.write_json(path, data)
    with pytest.raises(IntegrityError, match=r"one\.json: gates\.2\.verdict is .*`dvc repro` writes it again"):
        desk.build()


def test_no_models_is_an_error(desk):
    """An empty page would read as `nothing failed`."""
    with pytest.raises(InputError, match="no model"):
        desk.build()

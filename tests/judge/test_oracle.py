"""Every numeric column of every table against a second computation, for a model of each kind of head."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

from lensmith.judge import heldout, probes, suite, tables
from lensmith.judge.prompts import Probe, Prompt
from lensmith.process.progress import Progress
from tests.support import oracle
from tests.support.bench import LINES, tiny_bench
from tests.support.oracle import Oracle
from tests.support.settings import atlas

# The tables are made in fp32: they agree to 1e-5 of a number; near zero, where that is
# less than fp32 has, to 5e-6 of a bit, a probability, a cosine.
RELATIVE = 1e-5
FLOOR = 5e-6
TAUS = (1.0, 2.0, 0.5, 1.0)
SENTENCES = ("Of course the capital of Ostra is", "The river of the north runs to the", "He")
PROBES: list[dict[str, Any]] = [
    {"id": "Ostra", "prompt": SENTENCES[0], "answer": "Lume", "control": {"prompt": SENTENCES[1], "answer": "sea"}},
    {"id": "said", "prompt": SENTENCES[2], "answer": "said"},
]


class Case:
    """A family's bench with all lenses, and its oracle."""

    def __init__(self, family: str, norm: str) -> None:
        self.family, self.bench = family, tiny_bench(family, norm, every=True)

    def oracle(self, ids: list[int]) -> Oracle:
        lenses = {**self.bench.others, "tuned": self.bench.lens}
        return Oracle(self.family, self.bench.backbone.model, lenses, ids)


@pytest.fixture(autouse=True)
def _is_announced(request: pytest.FixtureRequest, bars: list[Progress]) -> Iterator[None]:
    """Whatever is measured, its progress ends at the total that it began with, and with no time left."""
    yield
    measures = request.function is not test_the_oracle_is_not_the_code
    assert {bar.seconds_left() for bar in bars} == ({0} if measures else set())


@pytest.fixture(
    scope="module",
    params=[
        ("llama", "final"),
        ("gpt2", "next_input"),
        ("gemma2", "final"),
        ("cohere", "next_input"),
        ("phi", "final"),
    ],
    ids="-".join,
)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def agree(found: Mapping[str, Any], expected: Mapping[str, Any], where: object, text: Iterable[str]) -> None:
    """Every column but those of text is expected, and is there: ranks and flags exactly, others to the tolerance."""
    assert set(found) - set(text) == set(expected), where
    for column, value in expected.items():
        if value is None or isinstance(value, bool | int):
            assert found[column] == value, (where, column)
        else:
            assert float(found[column]) == pytest.approx(value, rel=RELATIVE, abs=FLOOR), (where, column)


def dicts(columns: Sequence[str], lines: Iterable[Sequence[object]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, line, strict=True)) for line in lines]


def test_held_out_tables(case: Case) -> None:
    """heldout.csv and positions.csv: every lens at every layer, at positions that differ from sequence to sequence."""
    tokens = torch.randint(2, 97, (3, 20), generator=torch.Generator().manual_seed(1))
    settings = atlas(sweep={"positions_per_seq": 6, "batch_seqs": 2}).sweep
    measured = heldout.measure(case.bench, tokens, settings, first=7)
    oracles = {7 + i: case.oracle(ids) for i, ids in enumerate(tokens.tolist())}
    places = {7 + i: row for i, row in enumerate(measured.positions.tolist())}

    lines = dicts(tables.HELDOUT_COLUMNS, heldout.lines(measured))
    assert len(lines) == 3 * sum(len(oracles[7].rows(lens)) for lens in case.bench.names)
    for line in lines:
        seq, lens, row = line["seq"], line["lens"], line["layer"]
        expected = oracle.heldout_row(oracles[seq], lens, row, places[seq])
        agree(line, expected, (seq, lens, row), ("seq", "layer", "lens"))

    by_position = dicts(tables.POSITION_COLUMNS, heldout.position_lines(case.bench, measured))
    assert len(by_position) == 3 * 6 * len(case.bench.names)
    for line in by_position:
        expected_line = oracle.position_row(oracles[line["seq"]], line["lens"], line["position"])
        agree(line, expected_line, line, ("seq", "position", "part", "lens"))


def test_suite_rows(case: Case) -> None:
    """rows.csv of prompts of different lengths, padded together, with aliases, a control and intermediates."""
    asked = suite.tokenize(case.bench, [("s", Prompt.model_validate(line)) for line in LINES])
    cells, _ = suite.measure(case.bench, asked, 2)
    found = {(line["id"], line["lens"], line["layer"]): line for line in dicts(tables.ROW_COLUMNS, cells)}
    assert [[len(tokens) for tokens in one.targets] for one in asked] == [[1, 0, 1, 2], [1, 0, 0, 0], [2, 1, 2, 1]]

    for one in asked:
        reference = case.oracle(one.ids)
        for lens in case.bench.names:
            for row in reference.rows(lens):
                line = found.pop((one.line.id, lens, row))
                expected = oracle.suite_row(reference, lens, row, one.targets)
                agree(line, expected, (one.line.id, lens, row), ("id", "domain", "template", "layer", "lens", "top1"))
                assert line["top1"] == case.bench.text(int(reference.logits(lens, row)[-1].argmax()))
    assert not found


def test_probe_tables(case: Case) -> None:
    """Records, pure-next-token and rawlens of the norm lens that the tuned one starts from, tuned, Prism and raw."""
    read = probes.read(case.bench, [("p", Probe.model_validate(probe)) for probe in PROBES], TAUS, 5)
    where = [*probes.WHERE[: probes.WHERE.index("entropy")], *(f"top{i}" for i in range(1, 21))]
    unused = [f"prob{i}" for i in range(6, 21)]
    assert read.lenses == (case.bench.baseline, "tuned", "prism", "raw")
    for lens in read.lenses:
        records = iter(dicts(probes.RECORD_COLUMNS, read.records[lens]))
        nexts = iter(dicts(probes.PURE_COLUMNS, read.nexts[lens]))
        for asked in read.cases:
            reference = case.oracle(asked.ids)
            assert asked.gold is not None
            pure = oracle.Pure(reference, lens, case.bench.text, asked.gold, asked.other)
            for row in reference.rows(lens):
                for pos, token in enumerate(asked.ids):
                    line, expected = next(records), oracle.record_row(reference, lens, row, pos, 5)
                    tops = [case.bench.text(i) for i in expected.pop("ids")]
                    agree(line, expected, (lens, row, pos), [*where, *unused])
                    assert [line[f"top{i}"] for i in range(1, 6)] == tops
                    assert (line["layer"], line["pos"], line["token"]) == (row, pos, case.bench.text(token))
                tau = TAUS[row] if lens == case.bench.baseline else None
                agree(next(nexts), expected | pure.row(row, tau), (lens, row, asked.text.prompt), [*where, *unused])
        assert next(records, None) is next(nexts, None) is None


def test_the_raw_lens_beside_the_norm_lens(case: Case) -> None:
    """The table rawlens: both readings of the last position, and how far they lie apart."""
    read = probes.read(case.bench, [("p", Probe.model_validate(probe)) for probe in PROBES], TAUS, 5)
    lines = iter(dicts(probes.RAW_COLUMNS, read.raws))
    text = [*probes.WHERE[: probes.WHERE.index("pos")], "top1_token_str_raw", "top1_token_str_norm"]
    for asked in read.cases:
        reference = case.oracle(asked.ids)
        for row in range(reference.n_layers + 1):
            assert asked.gold is not None
            expected = oracle.raw_row(reference, row, asked.gold)
            agree(next(lines), expected, (asked.text.prompt, row), [*text, "topk_jaccard_consecutive@50"])
    assert next(lines, None) is None


def test_the_oracle_is_not_the_code(case: Case) -> None:
    """It must see what it is there for: a norm lens that forgets a softcap, a scale, a bias or a gain is off by far."""
    ids = case.bench.encode(SENTENCES[0])
    reference = case.oracle(ids)
    wrong = reference.resid[-1] @ reference.W_U.T
    assert float(oracle.kl(reference.own, wrong).max()) > 100 * FLOOR

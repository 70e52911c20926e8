"""The suite: what a line may say, how an answer is aligned, and the numbers against a second computation."""

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lensmith.files import artifacts
from lensmith.judge import contamination, suite
from lensmith.judge.bench import Bench
from lensmith.judge.prompts import Prompt, gold_token, read_probes, read_suite, texts
from lensmith.judge.rows import curves
from lensmith.judge.tables import FIRST_COLUMNS, PROMPT_COLUMNS, ROW_COLUMNS
from lensmith.process.errors import InputError, IntegrityError
from lensmith.settings.sections import ModelParams
from tests.support import records
from tests.support.bench import GOOD, LINES, random_lens, rung_of, tiny_bench, write_lines, write_stages
from tests.support.settings import REPOSITORY, atlas


def tiny_settings(folder: Path, **sections: dict[str, Any]) -> ModelParams:
    return atlas(source={"path": str(folder / "model"), "dtype": "float32", "device": "cpu"}, **sections)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return tiny_bench()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "2: not JSON"),
        ("[1]", "2: is a list, must be a JSON object"),
        (json.dumps({**GOOD, "id": "a"}), "2: id 'a' was used at"),
        (json.dumps({**GOOD, "id": "b", "answer": " "}), "2: answer is empty"),
        (json.dumps({**GOOD, "id": "b", "prompt": ""}), "2: prompt is empty"),
        (json.dumps({**GOOD, "id": "b", "anwser": "x"}), "2: anwser is not a field"),
        (json.dumps({**GOOD, "id": 3}), "2: id is 3, must be a valid string"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "template"} | {"id": "b"}), "2: template is missing"),
        (json.dumps({**GOOD, "id": "b", "aliases": "x"}), "2: aliases is 'x', must be a valid list"),
        (json.dumps({**GOOD, "id": "b", "control": "Lume"}), "2: control is 'Lume', must be a wrong answer"),
        (json.dumps({**GOOD, "id": "b", "intermediate": "Lume"}), "2: intermediate is 'Lume', must not be the answer"),
        (json.dumps({**GOOD, "id": "b", "intermediate": "OSTRA"}), "2: intermediate is 'OSTRA', must not stand in the"),
        (json.dumps({**GOOD, "id": "b", "intermediate": "sea", "intermediate_aliases": ["Of"]}), "is 'Of', must not"),
        (json.dumps({**GOOD, "id": "b", "intermediate_aliases": ["sea"]}), "2: intermediate is missing, must be given"),
        (json.dumps({**GOOD, "id": "b", "answer": "\ud800"}), "2: answer is '\\ud800'"),
        (json.dumps({**GOOD, "id": "b", "answer": " sea"}), "2: answer is ' sea', must have no white space at its"),
        (json.dumps({**GOOD, "id": "b", "prompt": "He said "}), "2: prompt is 'He said ', must have no white space"),
        (json.dumps({**GOOD, "id": "b", "prompt": "Yes.\n"}), "2: prompt is 'Yes.\\n', must have no white space"),
        (json.dumps({**GOOD, "id": "b", "aliases": ["a", "sea\u00a0"]}), "2: aliases.1 is 'sea\\xa0', must have no"),
        (json.dumps({**GOOD, "id": "b", "answer": "\u200bsea"}), "2: answer is '\\u200bsea', must have no white space"),
        (json.dumps({**GOOD, "id": "b", "answer": "\ufeff"}), "2: answer is empty"),
        (json.dumps({**GOOD, "id": "b", "control": "\tx"}), "2: control is '\\tx', must have no white space"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    """Whoever edits a suite of hundreds of lines needs the line, what it says and what is allowed."""
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(InputError) as error:
        read_suite([str(path)])
    assert str(error.value).startswith(f"{path.as_posix()}:2: ")
    assert message in str(error.value)


def test_an_id_is_unique_across_files(tmp_path: Path) -> None:
    """rows.csv has one id column for all files."""
    one, two = (write_lines(tmp_path / name, [GOOD]) for name in ("one.jsonl", "two.jsonl"))
    with pytest.raises(InputError, match=r"two.jsonl:1: id 'a' was used at .*one.jsonl:1"):
        read_suite([str(one), str(two)])
    with pytest.raises(InputError, match=r"none\.jsonl, which does not exist"):
        read_suite([str(tmp_path / "none.jsonl")])
    with pytest.raises(InputError, match="matches no file"):
        read_suite([str(tmp_path / "*.json")])
    for content in ("", "\n \n", "\ufeff"):
        one.write_text(content)
        with pytest.raises(InputError, match=r"one.jsonl: holds no line, must have one prompt a line"):
            read_suite([str(two), str(one)])


def test_a_suite_is_read_as_editors_write_it(tmp_path: Path) -> None:
    """A byte order mark at its start, and line ends of any system, change nothing."""
    plain = write_lines(tmp_path / "plain.jsonl", LINES)
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "s.jsonl").write_text("\ufeff" + plain.read_text(), newline=end)
        lines = [line for _, line in read_suite([str(tmp_path / "s.jsonl")]).lines]
        assert lines == [line for _, line in read_suite([str(plain)]).lines]


class Pieces:
    """A tokenizer that always takes the longest of its pieces."""

    def __init__(self, *pieces: str, adds_bos: bool) -> None:
        self.pieces, self.bos = pieces, [99] * adds_bos

    def __call__(self, text: str) -> list[int]:
        ids = self.bos.copy()
        while text:
            longest = max((piece for piece in self.pieces if text.startswith(piece)), key=len)
            ids.append(self.pieces.index(longest))
            text = text[len(longest) :]
        return ids


@pytest.mark.parametrize(
    ("pieces", "gold"),
    [
        (("it", " is", " Ro", "me"), 2),  # the first of two tokens
        (("it", " is", " is Rome", "Rome"), 3),  # "is Rome" is one token: the answer without a space
        (("it", " is", " is Rome", " isRome"), None),  # and so is "isRome": no token means Rome
    ],
)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_the_answer_is_its_first_token_behind_the_prompt(
    pieces: tuple[str, ...], gold: int | None, adds_bos: bool
) -> None:
    """The ids of prompt and answer must go on from those of the prompt; BOS stands before both."""
    assert gold_token(Pieces(*pieces, adds_bos=adds_bos), "it is", "Rome") == gold


def test_an_unaligned_prompt_keeps_its_distances(bench: Bench) -> None:
    """The answer has no token, the position has a KL: dropping the prompt would hide it."""
    encode = replace(bench.encode, tokenizer=_Glue(bench.encode.tokenizer))
    glued = Bench(bench.backbone, bench.lens, encode, bench.identity)
    asked = suite.tokenize(glued, [("s:1", line) for _, line in _lines(LINES[:2])])
    cells, prompts = suite.measure(glued, asked, 2)

    assert [one.aligned for one in asked] == [False, True]
    first = dict(zip(ROW_COLUMNS, cells[0], strict=True))
    assert first["answer_token_rank"] is None
    assert first["p_answer"] is None
    assert first["kl_final_lens_bits"] > 0  # type: ignore[operator]
    assert dict(zip(PROMPT_COLUMNS, prompts[0], strict=True))["aligned"] == 0


class _Glue:
    """A tokenizer that merges across the border of the first prompt."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, texts: list[str], **options: Any) -> Any:
        rows = self.inner(texts, **options)["input_ids"]
        pairs = zip(texts, rows, strict=True)
        return {"input_ids": [[5, *ids[1:]] if text.endswith("Lume") else ids for text, ids in pairs]}


def _lines(lines: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(f"s.jsonl:{i}", Prompt.model_validate(line)) for i, line in enumerate(lines, 1)]


def test_chance_is_the_intermediate_of_the_next_prompt_that_differs(bench: Bench) -> None:
    """In a circle over a template: equal intermediates, none, and what the prompt's own answer says are passed over."""
    told = {"a": "sea", "b": None, "c": "sea", "d": "the", "e": "of", "f": "river"}
    lines: list[dict[str, Any]] = [
        {**GOOD, "id": name, "prompt": f"He {name}", "intermediate": word} for name, word in told.items()
    ]
    lines[0]["answer"] = "the town"
    prompts = suite.tokenize(bench, _lines([*lines, {**lines[-1], "id": "g", "template": "u"}]))
    begins = {prompt.line.id: [bench.text(token).strip() for token in prompt.chance] for prompt in prompts}

    assert begins == {"a": ["of"], "b": [], "c": ["the"], "d": ["of"], "e": ["r"], "f": ["s"], "g": []}


def test_an_intermediate_that_begins_as_the_answer_does_is_not_measured(bench: Bench) -> None:
    """One token cannot tell the two apart; a prompt without an intermediate asks for no token more."""
    words = ("river", "king", None)  # the tiny tokenizer's " king" and " Lume" begin with the same token
    prompts = suite.tokenize(bench, _lines([{**GOOD, "id": f"{word}", "intermediate": word} for word in words]))

    assert [[len(tokens) for tokens in prompt.targets] for prompt in prompts] == [[1, 0, n, 0] for n in (1, 0, 0)]


def test_a_prompt_beyond_the_context_is_refused(bench: Bench) -> None:
    """The tiny model reads 256 tokens; the message names the line, the length and the limit."""
    long = {**GOOD, "prompt": "the sea, " * 200 + "the sea"}
    with pytest.raises(InputError, match=r"s.jsonl:1: the prompt has \d+ tokens, the model reads at most 256"):
        suite.tokenize(bench, _lines([long]))


def test_prefetch_sees_every_prompt_that_is_read_later(tmp_path: Path) -> None:
    """Of the suite and of the probes, controls and forms without filler too, each with its file:line."""
    form = {"prompt": "one", "answer": "x"}
    probe = {**form, "id": "p", "no_filler": "two", "control": {**form, "prompt": "three", "no_filler": "four"}}
    suite_file, probe_file = write_lines(tmp_path / "s", [GOOD]), write_lines(tmp_path / "p", [probe])
    settings = atlas(suite={"files": [str(suite_file)]}, sweep={"probes": [str(probe_file)]})

    expected = [(f"{suite_file}:1", GOOD["prompt"])]
    assert [*texts(settings)] == expected + [(f"{probe_file}:1", text) for text in ("one", "two", "three", "four")]


def test_the_size_of_a_batch_changes_nothing(bench: Bench) -> None:
    """Prompts of different lengths, padded together or not; against a second computation: test_oracle.py."""
    asked = suite.tokenize(bench, _lines(LINES))
    alone, _ = suite.measure(bench, asked, 1)
    together, _ = suite.measure(bench, asked, 16)
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=2e-5)


def test_the_stage_writes_what_gates_read(tmp_path: Path) -> None:
    """Every prompt, lens and layer once; counts, hashes and unaligned ids beside them; the same bytes twice."""
    source = write_lines(tmp_path / "s.jsonl", LINES)
    params = tiny_settings(tmp_path, suite={"files": [str(source)], "batch_prompts": 2})
    stages = write_stages(tmp_path, params)
    for out in ("one", "two"):
        suite.run(params, *stages, tmp_path / out)
    about = artifacts.read_json(tmp_path / "one" / "suite.json")

    assert artifacts.sha256_tree(tmp_path / "one") == artifacts.sha256_tree(tmp_path / "two")
    assert about["files"] == {source.as_posix(): artifacts.sha256_file(source)}
    assert about["in_training_text"] == []
    assert about["lenses"] == ["norm", "norm_next", "temperature", "bias", "prism", "tuned"]
    found = curves(
        tmp_path / "one" / "rows.csv", "id", ("entropy_bits",), about["n_layers"], about["lenses"], absent=()
    )
    assert found.units == ("a", "b", "c")
    with (tmp_path / "one" / "prompts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(PROMPT_COLUMNS)
    assert [row["aligned"] for row in rows] == ["1", "1", "1"]


def test_the_first_layer_is_the_first_block_within_the_bound(bench: Bench) -> None:
    """Layer 0 does not count, the bound itself does; a cell is empty where no layer reaches it, or has no number."""
    ranks = {0: 0, 1: 12, 2: 9, 3: 0}
    lines = [_cell("a", "norm", layer, rank, 1.0 if layer == 2 else 5.0) for layer, rank in ranks.items()]
    lines += [_cell("a", "tuned", layer, 20, 2.0) for layer in (1, 2, 3)]
    lines += [_cell("b", "tuned", layer, None, 0.5) for layer in (1, 2, 3)]
    found = [dict(zip(FIRST_COLUMNS, line, strict=True)) for line in suite.first_lines(lines)]

    assert [(row["id"], row["lens"]) for row in found] == [("a", "norm"), ("a", "tuned"), ("b", "tuned")]
    assert [list(row.values())[4:] for row in found] == [[2, 3, 3, 2], [None] * 4, [None, None, None, 1]]


def _cell(name: str, lens: str, layer: int, rank: int | None, kl: float) -> list[Any]:
    cell = {"id": name, "lens": lens, "layer": layer, "answer_token_rank": rank, "kl_final_lens_bits": kl}
    return [cell.get(column) for column in ROW_COLUMNS]


@pytest.mark.parametrize(("name", "value"), [("norm", "next_input"), ("d_model", 16), ("n_layers", 4)])
def test_a_rung_of_another_lens_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    """What is compared must read the same residual through the same norm."""
    params = tiny_settings(tmp_path, suite={"files": [str(write_lines(tmp_path / "s.jsonl", LINES))]})
    corpus, lens = write_stages(tmp_path, params)
    shape = {"n_layers": 3, "d_model": 32, "norm": "final", name: value}
    rung_of(random_lens(**shape), "bias").save(lens / "ladder" / "bias")
    with pytest.raises(IntegrityError, match=rf"ladder/bias: {name} is {value}, that of the lens beside it is"):
        suite.run(params, corpus, lens, tmp_path / "out")


def test_a_lens_of_another_model_is_refused(tmp_path: Path) -> None:
    """The lens knows the head it was fit on; on any other its numbers would be noise."""
    source = write_lines(tmp_path / "s.jsonl", LINES)
    params = tiny_settings(tmp_path, suite={"files": [str(source)]})
    corpus, lens = write_stages(tmp_path, params)
    artifacts.write_json(lens / "provenance.json", records.provenance())
    with pytest.raises(IntegrityError, match="fit on another model"):
        suite.run(params, corpus, lens, tmp_path / "out")


def test_a_planted_prompt_is_found_in_the_training_text() -> None:
    """Thirteen tokens anywhere, or all of a shorter prompt; one token changed, and it is no longer there."""
    text = np.random.default_rng(0).integers(0, 50_000, (4, 300)).astype(np.uint32)
    flat = text.ravel().tolist()
    long, short, across = flat[100:120], flat[700:705], flat[295:310]
    absent = [*flat[100:112], 1, *flat[113:120]]

    assert contamination.in_text([[7, 7, *long], short, across, absent, [*short[:4], 3]], text) == [
        True, True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["smoke", "general", "two-hop"])
def test_our_suites_are_sound(name: str) -> None:
    """No prompt twice, none ends in a space, none but in-context ones holds its answer; a template has one domain."""
    lines = [line for _, line in read_suite([str(REPOSITORY / "suites" / f"{name}.jsonl")]).lines]
    prompts = [line.prompt for line in lines]

    assert len(set(prompts)) == len(prompts) >= {"smoke": 12, "general": 200, "two-hop": 150}[name]
    assert name != "smoke" or len(prompts) == 12
    assert all(prompt == prompt.strip() for prompt in prompts)
    assert not any(line.answer in line.prompt.split() for line in lines if line.domain != "in-context")
    if name == "general":
        templates = {domain: {line.template for line in lines if line.domain == domain} for domain in
                     {line.domain for line in lines}}  # fmt: skip
        assert len(templates) >= 12
        assert all(len(found) >= 2 for found in templates.values())
        assert sum(len(found) for found in templates.values()) == len({line.template for line in lines})


def test_two_hop_prompts_say_neither_their_middle_nor_their_answer() -> None:
    """Also not as a part of a word, as Japan in Japanese; eight kinds or more, each in two templates."""
    lines = [line for _, line in read_suite([str(REPOSITORY / "suites" / "two-hop.jsonl")]).lines]
    templates = {(line.domain, line.template) for line in lines}
    kinds = Counter(domain for domain, _ in templates)

    assert all(line.intermediates for line in lines)
    assert not [line.id for line in lines for word in line.intermediates if word.lower() in line.prompt.lower()]
    assert len(kinds) >= 8
    assert set(kinds.values()) == {2}


def test_our_probes_are_sound() -> None:
    """Every probe has a control of the same form with another answer, and a form without filler."""
    for name in ("probes", "atlas-probes"):
        probes = [probe for _, probe in read_probes([str(REPOSITORY / "suites" / f"{name}.jsonl")])]
        assert len(probes) >= 4
        assert all(p.control is not None and p.no_filler and p.control.answer != p.answer for p in probes)


def test_padding_is_invisible(bench: Bench) -> None:
    """The last token of a padded text sees what it sees alone."""
    texts = [[0, 5, 6, 7, 8, 9, 10, 11], [0, 20], [0, 30, 31]]
    together = suite.capture_last(bench, texts)
    alone = torch.cat([suite.capture_last(bench, [text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)

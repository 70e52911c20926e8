"""The generated world and the model that was trained on it: what the rest of the tests may rely on."""

import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from demo import card, exam, facts, train
from demo.relations import Relation
from demo.world import RELATIONS, document, documents, suite

ROOT = Path(__file__).parents[2]
ATLAS = ROOT / "demo" / "atlas"
SUITE = ROOT / "suites" / "atlas.jsonl"
PINNED_SHA256 = "e78fd912a79453765d2432f5721107ffc89dc459b1446eca3c45bf1ee5b1a010"
BY_NAME = {relation.name: relation for relation in RELATIONS}


def test_the_stream_is_the_same_on_every_machine():
    """Lenses are compared across machines by the hash of their corpus, which these bytes decide."""
    text = "\0".join(itertools.islice(documents(7), 300))

    assert hashlib.sha256(text.encode()).hexdigest() == PINNED_SHA256


def test_a_document_depends_on_its_seed_and_number_alone():
    """Reading a stream from the middle, or twice, gives the same documents."""
    stream = list(itertools.islice(documents(3), 40))

    assert [document(3, i) for i in reversed(range(40))] == stream[::-1]
    assert len(set(stream)) == 40
    assert not set(stream) & set(itertools.islice(documents(4), 40))


def sought(relation: Relation, phrasing: str) -> re.Pattern[str]:
    """The phrasing with any fact of its relation; for a made-up fact, with any words in its slots."""

    def slot(match: re.Match[str]) -> str:
        known = {fact.args[int(match[1])].lower() for fact in relation.facts}
        return r"[\w' ]{1,30}?" if relation.draw else f"(?:{'|'.join(map(re.escape, sorted(known)))})"

    return re.compile(re.sub(r"\\\{(\d)\\\}", slot, re.escape(phrasing.lower())))


def occurs(relation: Relation, phrasing: str, text: str) -> bool:
    """Is the phrasing in the text, with arguments? Only places around its longest fixed part are searched."""
    anchor = max(re.split(r"\{\d\}", phrasing.lower()), key=len)
    pattern = sought(relation, phrasing)
    places = (match.start() for match in re.finditer(re.escape(anchor), text))
    return any(pattern.search(text, max(0, place - 200), place + 300) for place in places)


def test_no_document_contains_a_held_out_phrasing():
    """Else the suite would measure memory of a sentence, not knowledge of a fact."""
    text = "\n".join(itertools.islice(documents(0), 3000)).lower()

    found = [phrasing for r in RELATIONS for phrasing in r.heldout if occurs(r, phrasing, text)]

    assert found == []


def test_documents_do_contain_the_training_phrasings():
    """The search above would find a phrasing that is there: it finds nearly all that training uses."""
    text = "\n".join(itertools.islice(documents(0), 3000)).lower()
    asked = [(r, phrasing) for r in RELATIONS for phrasing in r.phrasings]

    found = sum(occurs(r, phrasing, text) for r, phrasing in asked)

    assert found / len(asked) > 0.99


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.name)
def test_a_relation_has_phrasings_for_training_and_for_the_suite(relation):
    """At least five in all, some held out, all different, every argument of a closed fact named."""
    both = relation.phrasings + relation.heldout

    assert len(relation.heldout) >= 1
    assert len(both) >= 5
    assert len(set(both)) == len(both)
    assert not any(text.endswith(" ") for text in both)
    assert all(fact.answer == fact.answer.strip() != "" for fact in relation.facts)


@pytest.mark.parametrize("relation", [r for r in RELATIONS if r.draw is None], ids=lambda r: r.name)
def test_a_closed_question_has_one_answer(relation):
    """Two answers to the same prompt would cap what any model can score."""
    answers = defaultdict(set)
    for fact in relation.facts:
        answers[fact.args].add(fact.answer)

    assert [args for args, found in answers.items() if len(found) > 1] == []


def test_capitals_lead_back_to_their_countries():
    """Both directions come from one table; a capital that two countries share would break the second."""
    forward = {fact.args[0]: fact.answer for fact in BY_NAME["capital"].facts}
    back = {fact.args[0]: fact.answer for fact in BY_NAME["capital-of"].facts}

    assert {country: back[capital] for country, capital in forward.items()} == {c: c for c in forward}
    assert len(forward) >= 60


def test_two_hops_are_the_two_single_hops():
    """The currency of the country whose capital is Paris is the currency of France."""
    country = {fact.args[0]: fact.answer for fact in BY_NAME["capital-of"].facts}
    currency = {fact.args[0]: fact.answer for fact in BY_NAME["currency"].facts}

    assert all(currency[country[f.args[0]]] == f.answer for f in BY_NAME["currency-of-capital"].facts)


def test_known_facts_are_right():
    """A few rows by hand, over the tables."""
    known = {
        ("capital", "Australia"): "Canberra",
        ("currency-of-capital", "Warsaw"): "zloty",
        ("symbol", "potassium"): "K",
        ("planet-after", "Mars"): "Jupiter",
        ("month-before", "January"): "December",
        ("weekday-after", "Sunday"): "Monday",
        ("german", "water"): "Wasser",
        ("past-tense", "teach"): "taught",
    }
    table = {(r.name, *fact.args): fact.answer for r in RELATIONS for fact in r.facts}

    assert {key: table[key] for key in known} == known


def test_tables_are_rectangular():
    """A forgotten column would shift every fact behind it."""
    for name in ("COUNTRIES", "CITIES", "ELEMENTS", "ANIMALS", "WORKERS", "KINDS"):
        assert len({len(row) for row in getattr(facts, name)}) == 1, name


def test_sums_are_sums():
    """The arithmetic relations are facts too: each is checked by doing it."""
    assert all(int(f.args[0]) + int(f.args[1]) == int(f.answer) for f in BY_NAME["sum"].facts)
    assert all(int(f.args[0]) - int(f.args[1]) == int(f.answer) for f in BY_NAME["difference"].facts)
    assert all(max(map(int, f.args)) == int(f.answer) for f in BY_NAME["larger"].facts)


def test_the_suite_covers_every_relation_in_held_out_phrasings():
    """At least 300 prompts over at least 40 relations, each with an id of its own."""
    rows = suite()

    assert len({row["id"] for row in rows}) == len(rows) >= 300
    assert {row["template"].split("/")[0] for row in rows} == set(BY_NAME)
    assert len(BY_NAME) >= 40
    fields = {"id", "domain", "template", "prompt", "answer"}
    assert all({*row} == (fields | {"intermediate"} if row["domain"] == "two-hop" else fields) for row in rows)
    for row in rows:
        name, index = row["template"].split("/")
        relation = BY_NAME[name]
        phrasing = relation.heldout[int(index) - len(relation.phrasings)]
        assert sought(relation, phrasing).fullmatch(row["prompt"].lower())


def test_the_suite_on_disk_is_the_generated_one():
    """After an edit of the world: python -m demo.world --suite > suites/atlas.jsonl."""
    lines = SUITE.read_text(encoding="utf-8").splitlines()

    assert lines == [json.dumps(row, sort_keys=True, ensure_ascii=False) for row in suite()]


def test_the_world_needs_the_standard_library_alone():
    """The pipeline's light stages read the suite and the documents, and must not pay for torch."""
    code = "import sys, demo.world; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'tokenizers')))"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.fixture(scope="module")
def atlas():
    """The bundled model and its tokenizer, from disk."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(ATLAS)
    return model.float().eval(), transformers.AutoTokenizer.from_pretrained(ATLAS)


def test_the_model_answers_the_suite(atlas):
    """At least 95 % of the prompts, greedily, in phrasings it never saw."""
    right = exam.answered(*atlas, suite())

    assert sum(right) / len(right) >= 0.95


def test_the_model_reads_a_puzzle_instead_of_guessing(atlas):
    """Names that were swapped must swap the answer: otherwise position or frequency would explain it."""
    prompt = "While {0} and {1} were at the park, {0} offered a ball to"
    rows = [{"prompt": prompt.format(*pair), "answer": pair[1]} for pair in (("Anna", "Ben"), ("Ben", "Anna"))]

    assert exam.answered(*atlas, rows) == [True, True]


def test_an_answer_counts_only_if_all_of_it_is_right(atlas):
    """The examiner can say no: to a wrong answer, and to a right beginning with a wrong end."""
    prompt = "We all agreed on the capital of Mexico: it is"
    answers = ("Mexico City", "Paris", "Mexico Paris")

    assert exam.answered(*atlas, [{"prompt": prompt, "answer": a} for a in answers]) == [True, False, False]


def test_the_tokenizer_begins_with_bos_and_loses_nothing(atlas):
    """The BOS policy of the card, and byte-level text: any string survives the round trip."""
    tokenizer = atlas[1]
    text = "Ünseen wörds → 漢字 are fine."

    ids = tokenizer(text)["input_ids"]

    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.decode(ids[1:]) == text


def test_the_model_is_small_enough_for_git():
    """Weights in bfloat16, at most 12 MB."""
    assert (ATLAS / "model.safetensors").stat().st_size <= 12_000_000


def test_a_new_card_keeps_how_its_copy_was_made():
    """A program cannot know it. The measured sections around it are written anew."""
    kept = card.how_it_was_made(ATLAS / "README.md")

    assert kept.startswith(card.MADE) and "Is the loss flat?" in kept and card.KNOWS not in kept


def test_a_trained_model_goes_on_from_its_log_at_a_rate_that_ends_at_zero(tmp_path):
    """Its tokens count on, and its blocks are not short again."""
    progress = train.take_log(ATLAS, tmp_path)
    settings = train.Settings(
        tokens=progress.tokens + 1000 * train.TOKENS_PER_STEP, trained=ATLAS, lr=1e-3, decay_from=0.5, seed=1,
        state=tmp_path, out=tmp_path, workers=1, compiled=False,
    )  # fmt: skip
    rates = []
    for step in (0, 400, 750, 1000):
        progress.tokens = progress.first + step * train.TOKENS_PER_STEP
        rates.append(train.learning_rate(settings, progress))

    assert progress.first == 29_745_152
    assert rates == pytest.approx([1e-3 / train.WARMUP_STEPS, 1e-3, 0.5e-3, 0.0])
    progress.tokens = progress.first
    assert train.block_length(settings, progress) == train.CONTINUED_BLOCK

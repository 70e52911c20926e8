"""What holds for any input, over inputs that hypothesis draws, the same ones each time."""

import csv
import json
import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lensmith.files import artifacts, untrusted
from lensmith.hub.index import IndexEntry
from lensmith.process.errors import IntegrityError, shown
from lensmith.settings.params_yaml import MODEL_KEY
from lensmith.settings.sections import FitParams
from lensmith.source import documents, packing
from lensmith.source.documents import SourceRow
from tests.support.bundles import PATHS
from tests.support.settings import fit_params

drawn = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

GOOD = fit_params().model_dump()
anything = st.text(st.characters(exclude_categories=[]), max_size=40)
text = st.text(max_size=40)
# Names as an attacker would build them: good parts, parts that climb, and letters that only look like either.
parts = st.sampled_from(
    ["tuned_lenses", "org", "na.me", "..", ".", "", "~", ".git", "a\0", "\uff0e\uff0e", "C:", "a b", "%2e%2e"]
)
paths = (
    st.lists(parts, max_size=5).map("/".join)
    | st.lists(parts, max_size=4).map("\\".join)
    | anything
    | st.sampled_from(PATHS)
)
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=6
)


@drawn
@given(path=paths, name=paths, licence=paths.map("LICENSES/{}".format))
def test_no_path_of_an_index_leads_out_of_its_release(path, name, licence):
    """Whatever is not refused is below tuned_lenses or LICENSES, on POSIX and on Windows."""
    digest = "0" * 64
    read = {"weights.safetensors": digest, "provenance.json": digest}
    for changed in (
        {"path": path},
        {"path": f"tuned_lenses/{path}"},
        {"sha256": read | {name: digest}},
        {"licenses": {licence: digest}},
    ):
        try:
            entry = IndexEntry.model_validate({"path": "tuned_lenses/org/name", "sha256": read} | changed)
        except ValueError:
            continue
        for file, _ in entry.files():
            assert file.isascii() and not set(file) & set("\\:\0")
            for pure in (PurePosixPath(file), PureWindowsPath(file)):
                assert not pure.is_absolute() and not pure.drive and ".." not in pure.parts
                assert pure.parts[0] in ("tuned_lenses", "LICENSES")


@drawn
@given(key=anything)
def test_a_model_key_is_a_name_for_a_folder_and_nothing_else(key):
    """Keys stand in commands and paths of dvc.yaml."""
    if MODEL_KEY.fullmatch(key):
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_") and not key.startswith("-")


@drawn
@given(value=values)
def test_json_comes_back_as_it_was(value):
    """The strict reader takes everything that our own writer writes."""
    assert untrusted.parse_json(artifacts.canonical_json(value).encode(), "x") == value
    assert untrusted.parse_json(json.dumps(value).encode(), "x") == value


@drawn
@given(data=st.binary(max_size=200) | anything.map(lambda s: s.encode("utf-8", "surrogatepass")))
def test_json_of_any_bytes_is_read_as_python_does_or_refused(data):
    try:
        found = untrusted.parse_json(data, "x")
    except IntegrityError:
        return
    assert found == json.loads(data)


@settings(drawn, max_examples=40)
@given(rows=st.lists(st.tuples(words, st.floats(), st.integers()), max_size=8))
def test_a_table_comes_back_as_it_was(tmp_path, rows):
    """Tokens hold commas, quotes and line ends of every kind; floats keep every bit."""
    file = tmp_path / "a.csv"
    artifacts.write_csv(file, ["token", "x", "n"], rows)
    with file.open(encoding="utf-8", newline="") as opened:
        found = list(csv.reader(opened))[1:]

    assert [(word, int(n)) for word, _, n in found] == [(word, n) for word, _, n in rows]
    for (_, got, _), (_, put, _) in zip(found, rows, strict=True):
        assert float(got) == put or (math.isnan(float(got)) and math.isnan(put))


@drawn
@given(value=st.none() | st.booleans() | st.integers() | st.floats() | text | st.lists(st.integers()))
def test_a_rate_is_a_positive_number_or_refused(value):
    """No word, no truth, no NaN becomes a learning rate."""
    good = type(value) in (int, float) and math.isfinite(value) and 0 < value <= 10
    settings_ = GOOD | {"lr": value}
    if good:
        assert FitParams.model_validate(settings_).lr == value
    else:
        with pytest.raises(ValueError, match="lr"):
            FitParams.model_validate(settings_)


@drawn
@given(
    texts=st.lists(st.none() | st.integers() | anything, max_size=30),
    budget=st.integers(1, 200),
    most=st.integers(1, 30),
)
def test_packing_lays_the_documents_end_to_end_and_counts_every_row(texts, budget, most):
    """Against the same thing said in two lines: what is text, joined and cut."""
    rows = [SourceRow(0, number, value) for number, value in enumerate(texts)]
    encoder = SimpleNamespace(documents=lambda batch, rendered=False: [[ord(c) for c in t] for t in batch])
    packed = packing.pack(documents.clean(rows, most), encoder, budget)  # type: ignore[arg-type]

    usable = [t[:most] for t in texts if is_text(t, most)]
    assert packed.ids[: packed.filled].tolist() == [ord(c) for c in "".join(usable)][:budget]
    assert packed.ids.dtype == np.uint32 and packed.is_full == (len("".join(usable)) >= budget)
    assert packed.read == packed.documents + sum(packed.skipped.values())
    if not packed.is_full:
        assert packed.read == len(texts) and packed.documents == len(usable)


def is_text(value: object, most: int) -> bool:
    return isinstance(value, str) and value != "" and not any("\ud800" <= c <= "\udfff" for c in value[:most])


@drawn
@given(said=anything)
def test_nothing_that_is_shown_moves_a_terminal(said):
    """One line, which every encoding error handler can print; letters of any writing stay."""
    line = shown(said)
    assert len(line.splitlines()) <= 1 and line.encode() is not None
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line)
    assert shown(line) == line
    if said.isprintable() and len(said) < 200:
        assert line == said


def test_the_page_of_security_names_tests_that_exist():
    """A claim without its test is a hope."""
    page = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    named = {word.strip("`.,()") for word in page.split() if word.strip("`.,()").startswith("tests/")}
    assert len(named) >= 8
    for name in named:
        file, _, test = name.partition("::")
        source = (Path(__file__).parents[2] / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in source, name

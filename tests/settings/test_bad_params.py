"""Mistakes and attacks in params.yaml: each gets one line and exit code 2, and changes no file.

Every case goes through the stage `resolve`; the long tests send it through `dvc repro` too, where DVC reads the file
first.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lensmith.process import command
from stages import resolve
from tests.support.lab import Lab

MARK = "PWNED"  # a file of this name means that a value was executed
ONE = "models:\n  one: {}\n"
BOMB = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['x'] * 9)}]\n" for i in range(4))


def one(*lines: str) -> str:
    """Model `one` with a section of these lines, the first of which names it."""
    return "models:\n  one:\n    " + "\n      ".join(lines) + "\n"


def transferred(key: str, entry: str) -> str:
    """Model `key` with the lens of model `entry`."""
    return f"  {key}:\n    transferred:\n      from: {entry}\n    fit:\n      kind: transferred\n"


def key(text: str) -> str:
    return f"models:\n  {text}:\n    fit:\n      rank: 2\n"


# By name: text in place of the file's `models`, and a part of the error. The defaults are those of the lab.
CASES: dict[str, tuple[str, str]] = {
    "a letter swapped": (one("fit:", "rnak: 3"), "models.one.fit.rnak is not a setting; did you mean rank? Nothing"),
    "a section misspelt": (one("fti:", "rank: 3"), "models.one.fti is not a setting; did you mean fit? Nothing"),
    "a top-level key misspelt": ("modles:\n  one: {}\n", "modles is not a setting; did you mean models? Nothing"),
    "a setting in no section": (one("rank: 3"), "models.one.rank is not a setting; "),
    "a setting that resolve writes": (one("fit:", "inputs: {}"), "models.one.fit.inputs is not a setting"),
    "a number that is none": (one("fit:", "lr: 1e-3x"), "models.one.fit.lr is '1e-3x', must be a valid number."),
    "a number in quotes": (one("fit:", "lr: '1e-3'"), "models.one.fit.lr is '1e-3', must be a valid number."),
    "a float for a count": (one("corpus:", "train_tokens: 16e6"), "models.one.corpus.train_tokens is 16000000.0, must"),
    "a truth for a count": (one("corpus:", "train_tokens: true"), "train_tokens is True, must be a valid integer."),
    "a count in words": (one("corpus:", "train_tokens: '16_000_000'"), "is '16_000_000', must be a valid integer."),
    "yes for true": (one("fit:", "scale: yes"), "models.one.fit.scale is 'yes', must be a valid boolean."),
    "hours for a number": (one("fit:", "patience: 12:30"), "fit.patience is '12:30', must be a valid integer."),
    "a date for a revision": (one("source:", "revision: 2024-01-02"), "revision is datetime.date(2024, 1, 2), must be"),
    "not a number": (one("fit:", "lr: .nan"), "models.one.fit.lr is nan, must be a finite number."),
    "infinity": (one("fit:", "lr: .inf"), "models.one.fit.lr is inf, must be a finite number."),
    "more than a float holds": (one("fit:", "lr: 1e999"), "models.one.fit.lr is inf, must be a finite number."),
    "minus zero": (one("fit:", "lr: -0.0"), "models.one.fit.lr is -0.0, must be greater than 0."),
    "a rate above its bound": (one("fit:", "lr: 11.0"), "models.one.fit.lr is 11.0, must be less than or equal to 10."),
    "a negative seed": (one("fit:", "seed: -1"), "models.one.fit.seed is -1, must be greater than or equal to 0."),
    "a gate's limit that is nan": (one("gates:", "worst_delta_kl_bits: .nan"), "worst_delta_kl_bits is nan, must be a"),
    "tokens without end": (one("corpus:", "train_tokens: 9000000000000000000"), "must be less than or equal to 10"),
    "epochs without end": (one("fit:", "epochs: 1e300"), "fit.epochs is 1e+300, must be less than or equal to 10000."),
    "a number of 5000 digits": (one("fit:", "rank: " + "9" * 5000), "not YAML that can be read (Exceeds the limit"),
    "a list for a section": (one("fit: [1, 2]"), "models.one.fit is [1, 2], must be a mapping."),
    "null for models": ("models:\n", "models is None, must be a mapping."),
    "a very long list for models": (f"models: {['x' * 9] * 900}\n", "'xxxxxxxxx']], must be a mapping."),
    "a key twice": (one("fit:", "rank: 2", "rank: 3"), 'found duplicate key "rank"'),
    "a model twice": (f"{ONE}  one: {{}}\n", 'found duplicate key "one"'),
    "an anchor": ("models:\n  one: &x {}\n  two: {}\n", "uses a YAML anchor or alias"),
    "aliases of aliases": (f"{ONE}{BOMB}", "uses a YAML anchor or alias"),
    "a tag that calls": (one("fit:", f"rank: !!python/object/apply:os.system ['touch {MARK}']"), "uses the YAML tag"),
    "a tag of bytes": (one("source:", "path: !!binary aGk="), "uses the YAML tag"),
    "deep nesting": (f"models:\n  one: {'{a: ' * 40}1{'}' * 40}\n", "nests deeper than 8 levels"),
    "two megabytes": (one("fit:", f"rank: 3 # {'x' * 2**21}"), "is longer than 1048576 bytes"),
    "two documents": (f"{ONE}---\n{ONE}", "but found another document"),
    "half a file": ("models:\n  one: {\n", "expected the node content"),
    "a tab": ("models:\n\tone: {}\n", "found character '\\t' that cannot start any token"),
    "a NUL byte": ("models:\n  one: {}\n\0", "not YAML that can be read"),
    "an invisible character": (one("source:", 'path: "demo/\\u202Etiny"'), "holds the invisible character U+202E"),
    "half a surrogate pair": (one("source:", 'path: "demo/\\uD800"'), "holds the invisible character U+D800"),
    "a line break in a path": (one("source:", 'path: "demo/tiny\\n"'), "holds the invisible character U+000A"),
    "a key that climbs": (key("../victim"), "models.../victim is not a model key, must match"),
    "a key that climbs far": (key("../../victim"), "is not a model key"),
    "an absolute key": (key("/tmp/victim"), "is not a model key"),
    "a key with a command": (key(f"x;touch {MARK}"), "is not a model key"),
    "a key that substitutes": (key(f"$(touch {MARK})"), "is not a model key"),
    "a key in backticks": (key(f"'`touch {MARK}`'"), "is not a model key"),
    "a key that pipes": (key(f"'a|touch {MARK}'"), "is not a model key"),
    "a key for all files": (key("'*'"), "is not a model key"),
    "a key of dots": (key("'..'"), "is not a model key"),
    "an empty key": (key("''"), "is not a model key"),
    "an option for a key": (key("-rf"), "is not a model key"),
    "a home for a key": (key("'~'"), "is not a model key"),
    "a key in capitals": (key("One"), "models.One is not a model key"),
    "a key with a dot": (key("a.b"), "models.a.b is not a model key"),
    "a key with an at": (key("'a@b'"), "models.a@b is not a model key"),
    "a key of 64 letters": (key("a" * 64), "is not a model key"),
    "a number for a key": (key("7"), "models.7 is not a model key"),
    "null for a key": (key("null"), "models.None is not a model key"),
    "a wide letter": (key("\uff4f\uff4e\uff45"), "is not a model key"),
    "a key of DVC's own": (key("'${models}'"), "is not a model key"),
    "a command for a repo": (one("source:", "path: null", f"repo: org/x;touch {MARK}"), "must be org/name."),
    "a climbing repo": (one("source:", "path: null", "repo: ../.."), "source.repo is '../..', must be org/name."),
    "a repo of one word": (one("source:", "path: null", "repo: gpt2"), "source.repo is 'gpt2', must be org/name."),
    "a repo and a path": (one("source:", "repo: a/b"), "source: needs exactly one of repo (a Hub id) and path"),
    "a GGUF file of no repo": (one("source:", "file: a.gguf"), "file is 'a.gguf', a file of a repo; a GGUF file of"),
    "a climbing GGUF file": (
        one("source:", "path: null", "repo: a/b", "file: ../a.gguf"),
        "source.file is '../a.gguf', must be a .gguf file in the top folder of the repository.",
    ),
    "a climbing data set": (
        one("corpus:", "kind: hf", "repo: ../victim"),
        "corpus.repo is '../victim', must be",
    ),
    "a revision with a command": (one("source:", f"revision: main;touch {MARK}"), "must be a branch, tag or commit."),
    "an empty path": (one("source:", "path: ''"), "source.path is '', String should have at least 1 character"),
    "a path that is not there": (one("source:", "path: demo/none"), "names demo/none, which does not exist."),
    "a folder for a suite": (
        one("suite:", "files:", "  - suites"),
        "models.one.suite names suites, a folder;",
    ),
    "a pattern of no file": (one("suite:", "files:", "  - suites/**x"), "names suites/**x, which matches no file."),
    "a path too long": (one("source:", f"path: {'x' * 400}"), "File name too long"),
    "a licence of two lines": (one("publish:", "license: 'MIT: x'"), "publish.license is 'MIT: x', must be an SPDX id"),
    "a version of no day": (one("publish:", "tag: latest"), "publish.tag is 'latest', String should match pattern"),
    "code of a branch": (
        one("source:", "path: null", "repo: a/b", "trust_remote_code: true"),
        "models.one.source: trust_remote_code is true and revision is 'main'; code is run only of a repo at a commit",
    ),
    "code of a folder": (
        one("source:", f"revision: {'a' * 40}", "trust_remote_code: true"),
        "models.one.source: trust_remote_code is true and revision is",
    ),
    "more positions than there are": (
        one("fit:", "positions_per_seq: 33"),
        "fit.positions_per_seq is 33, but",
    ),
    "more to validate than there is": (
        one("fit:", "validation_seqs: 99"),
        "fit.validation_seqs (99) and sweep",
    ),
    "a window turned round": (
        one("fit:", "position_min: 0.9", "position_max: 0.5"),
        "position_min is 0.9, must be",
    ),
    "fewer tokens than a sequence": (
        one("corpus:", "train_tokens: 8"),
        "train_tokens is 8, must be at least seq_len",
    ),
    "an imported lens of no place": (one("fit:", "kind: imported"), "fit.kind is imported and imported.folder is None"),
    "a transferred lens of no entry": (
        one("fit:", "kind: transferred"),
        "fit.kind is transferred and transferred.from is None; kind transferred needs one",
    ),
    "the lens of an entry below": (
        "models:\n" + transferred("one", "two") + "  two: {}\n",
        "one.transferred.from is two, must be an entry above it whose fit.kind is not transferred; there is none",
    ),
    "a lens that is transferred twice": (
        ONE + transferred("two", "one") + transferred("three", "two"),
        "three.transferred.from is two, must be an entry above it whose fit.kind is not transferred; there is one.",
    ),
    "a lens of a path": (
        ONE + transferred("two", "../victim"),
        "models.two.transferred.from is ../victim, must be an entry above it",
    ),
}
SHORT = ("a letter swapped", "a key that climbs")  # cases that `make test` sends through `dvc repro` too


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab that has resolved its one model, with files in it and beside it that nothing may touch."""
    root = tmp_path_factory.mktemp("beside") / "lab"
    lab = Lab.make(root, {"one": {}})
    for folder in (root.parent / "victim", root / "victim", root / "artifacts" / "one" / "lens"):
        folder.mkdir(parents=True)
        (folder / "sentinel").write_text("still here")
    (root / "resolved/models").mkdir(parents=True)
    (root / "resolved/models/gone.json").write_text("{}")
    lab.run("dvc", "repro", "resolve")
    lab.commit("resolved")
    return lab


@pytest.fixture(scope="module")
def tally() -> Counter[str]:
    """Number of files refused, by who refused them."""
    return Counter()


@pytest.fixture
def params(lab: Lab) -> Iterator[Path]:
    """The lab's params.yaml, put back afterwards."""
    path = lab.root / "params.yaml"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


def write(params: Path, models: str) -> None:
    text = params.read_text()
    params.write_text(text[: text.index("models:")] + models, newline="\n")


def everything(lab: Lab) -> dict[str, tuple[int, bytes]]:
    """Every file of the lab and beside it, with time and content; without DVC's and git's own files and caches."""
    skipped = re.compile(r"lab/(\.dvc/tmp|\.dvc/cache|\.git)/|__pycache__|lab/params\.yaml$")
    files = [path for path in sorted(lab.root.parent.rglob("*")) if path.is_file()]
    return {str(f): (f.stat().st_mtime_ns, f.read_bytes()) for f in files if not skipped.search(str(f))}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.long) if place % 3 else case for place, case in enumerate(CASES)]
)
def test_a_bad_file_gets_one_line_and_changes_no_file(lab, params, monkeypatch, capsys, case):
    """The line has key, value and rule; every file in the lab and beside it stays."""
    models, message = CASES[case]
    write(params, models)
    before = everything(lab)
    monkeypatch.chdir(lab.root)
    monkeypatch.setattr(sys, "argv", ["resolve", "--params", "params.yaml", "--out", "resolved"])

    with pytest.raises(SystemExit) as ended:
        command.run(resolve.main)

    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1 and said.startswith("error: params.yaml: ") and "Nothing was changed." in said
    assert message in said
    assert len(said) < 500
    assert everything(lab) == before


@pytest.mark.parametrize(
    "case", [case if case in SHORT else pytest.param(case, marks=pytest.mark.long) for case in CASES]
)
def test_dvc_repro_stops_before_it_changes_a_file(lab, params, tally, case):
    """DVC reads the file first and may refuse it in its own words; then too nothing is deleted or run."""
    models, message = CASES[case]
    write(params, models)
    before = everything(lab)

    done = lab.attempt("dvc", "repro")

    assert done.returncode != 0
    ours = message in done.stderr
    assert ours or "ERROR: " in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and MARK not in {path.name for path in lab.root.parent.rglob("*")}
    assert everything(lab) == before
    tally["Lensmith" if ours else "DVC in its own words"] += 1


@pytest.mark.long
def test_every_bad_file_was_refused_by_dvc_or_by_lensmith(tally, record_property):
    """Records the counts of the test above."""
    assert sum(tally.values())
    record_property("bad params.yaml through a raw `dvc repro`: deleted or ran nothing, refused by", dict(tally))


def test_a_model_that_is_gone_leaves_no_settings_behind(lab):
    """`resolve` removes them; DVC does not empty the folder, so a failure keeps it."""
    assert [path.name for path in (lab.root / "resolved/models").iterdir()] == ["one.json"]

"""One lab through real DVC: exactly what a change makes stale runs, and nothing else; experiments in copies of it."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lensmith
from lensmith.lab import dvc
from lensmith.settings import resolved
from tests.support import pages, toy
from tests.support.canaries import GIT_URL, Listener, hits, hits_below
from tests.support.lab import REPOSITORY, Lab

HEAVY, LIGHT = ("prefetch", "fit", "sweep", "suite-eval"), ("gates", "plots", "publish")
STAGES = HEAVY + LIGHT


def of(model: str, *stages: str) -> set[str]:
    return {f"{stage}@{model}" for stage in stages or STAGES}


FROM_FIT = STAGES[1:]
THREE = "artifacts/three/lens/provenance.json"


def assert_diffs_show(lab: Lab, model: str) -> None:
    """What is committed is enough for both diffs: KPIs moved in one model only, its curves are drawn for both."""
    changes = json.loads(lab.run("dvc", "metrics", "diff", "--json"))
    moved = changes[f"metrics/{model}.json"]
    assert all(moved[f"kl{depth}"]["diff"] for depth in (25, 50))
    assert list(changes) == [f"metrics/{model}.json"]
    lab.run("dvc", "plots", "diff", "HEAD", "--out", "diff")
    page = (lab.root / "diff/index.html").read_text()
    assert f"plots/kl/{model}.csv" in page and '"rev": "HEAD"' in page and '"rev": "workspace"' in page


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    """Every way out of the machine leads to it, and every credential is a canary, in all of this module."""
    with Listener() as listener, pytest.MonkeyPatch.context() as patch:
        for name, value in listener.environment().items():
            patch.setenv(name, value)
        yield listener


OVERRIDDEN = "ladder_gain_bits"  # model two has a limit of its own
ONE = {"publish": {"base_license_file": "terms.txt"}}
TWO = {"fit": {"epochs": 1}, "gates": {OVERRIDDEN: 0.02}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory, listener) -> Lab:
    lab = Lab.make(tmp_path_factory.mktemp("lab"), {"one": ONE})
    lab.run("git", "remote", "add", "origin", GIT_URL)
    (lab.root / "terms.txt").write_text("Terms.")
    ran, _ = lab.repro()
    assert ran == of("one") | {"resolve", "report"}
    lab.edit("models.two", TWO)
    assert stale(lab) == of("two") | {"report"}, "a new model"
    for stage in HEAVY:
        lab.run_here(stage, "two")
    lab.run("dvc", "commit", "--force", *of("two", *HEAVY))
    ran, _ = lab.repro()
    assert ran == of("two", *LIGHT) | {"resolve", "report"}
    lab.commit("first build")
    return lab


def stale(lab: Lab) -> set[str]:
    """The stages that `dvc repro` would run first, without a process. What reads their outputs is DVC's to know."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lab.root)
        resolved.write(Path("params.yaml"), lab.root, Path("resolved"))
        with dvc.repository(lab.root) as repo:
            return set(repo.status()) - {"resolve"}


def await_variants(lab: Lab, n: int) -> None:
    """Wait until the queue has run n variants of the rank."""
    end = time.monotonic() + 900
    while lab.run("git", "for-each-ref", "refs/exps").count("/rank") < n and time.monotonic() < end:
        time.sleep(0.2)  # git answers at once; `dvc queue status` takes two seconds of a processor
    while re.search("Queued|Running", status := lab.run("dvc", "queue", "status")):
        assert time.monotonic() < end, status
        time.sleep(1)
    assert status.count("Success") == n, status + lab.attempt("dvc", "queue", "logs", "rank").stdout


def test_a_queued_experiment_reads_the_bank_and_is_compared(lab: Lab):
    """A rank is no reason to run the frozen model again (docs/experiments.md); two commands show what it changed.

    One variant: the queue of a second one is DVC's, and runs in the long test of the pages.
    """
    bank = {path: path.stat().st_mtime_ns for path in lab.root.glob(".lensmith/bank/*/*.safetensors")}
    lab.run("dvc", "exp", "run", "gates", "-S", "++models.one.fit.rank=1", "--queue", "--name", "rank-1")
    lab.run("dvc", "queue", "start")
    await_variants(lab, 1)

    assert bank == {path: path.stat().st_mtime_ns for path in lab.root.glob(".lensmith/bank/*/*.safetensors")}
    table = lab.run("lensmith", "compare", "--model", "one")
    assert all(word in table for word in ("rank-1", "kl25")) and "lr" not in table
    lab.run("lensmith", "compare", "--plot", "rank")
    assert "fit.rank" in (lab.root / "plots/compare-one.html").read_text()


def test_a_stage_runs_the_code_of_its_own_tree(lab: Lab):
    """An experiment is a copy of the tree; the installed package is the original, and may be edited meanwhile."""
    code = "import stages, lensmith; print(lensmith.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=lab.root, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == str(lab.root / "src/lensmith/__init__.py")


# What pages print and the test below does not run: the beginnings of the lines, and why.
ELSEWHERE = {
    "make ": "installs, and runs the tests",
    "pip install ": "installs",
    "python -m benchmarks.": "measures for minutes (tests/benchmarks)",
    "lensmith add Qwen/": "asks the Hub (tests/cli/test_add.py)",
    "lensmith list org/": "asks the Hub (tests/release)",
    "lensmith download org/": "asks the Hub (tests/release)",
    "lensmith verify org/": "asks the Hub (tests/release)",
    "lensmith publish qwen3-8b  ": "sends to the Hub (tests/release)",
    "ray start ": "starts a cluster (tests/fleet)",
    "lensmith fleet run": "needs a cluster (tests/fleet)",
    "dvc artifacts get https://": "fetches from another lab (below)",
    "dvc get https://": "fetches from another lab (below)",
    "dvc import https://": "fetches from another lab (below)",
    "dvc exp run gates -S '++models.atlas.corpus.train_tokens=": "fits; the ranks are enough",
    "dvc exp run gates -S '++models.atlas.fit.kind=": "fits; the ranks are enough",
}
LOOP = ("README.md", "docs/start.md", "docs/experiments.md", "docs/publishing.md", "docs/use.md", "docs/performance.md")


@pytest.mark.long
def test_the_pages_commands_run_as_printed_in_a_second_clone(lab: Lab, tmp_path, monkeypatch):
    """What one machine pushed another pulls, and lives the day that the pages describe; with this lab's own names."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@t")
    names = {"qwen3-8b": "one", "atlas": "one", "=8,16": "=1,2", "s3://my-bucket/lenses": str(tmp_path / "store")}
    left_out, ran = set[str](), set[str]()

    def run(machine: Lab, *lines: str) -> None:
        """Each command where it is printed first."""
        for line in lines:
            command = line.partition("  #")[0].rstrip()
            if beginnings := {beginning for beginning in ELSEWHERE if line.startswith(beginning)}:
                left_out.update(beginnings)
            elif command not in ran:
                machine.run("bash", "-c", re.sub("|".join(names), lambda printed: names[printed[0]], line))
                ran.add(command)
            if command == "dvc queue start":
                await_variants(machine, 2)

    lab.run("git", "clone", "--quiet", "--bare", ".", str(tmp_path / "origin"))
    origin = Lab(tmp_path / "origin")
    first = toy.clone(origin, tmp_path / "first")
    shutil.copytree(lab.root / ".dvc/cache", first.root / ".dvc/cache")
    machines = pages.commands(REPOSITORY / "docs/many-machines.md")
    pull = next(number for number, line in enumerate(machines) if line.startswith("dvc pull"))
    run(first, *machines[:pull])
    second = toy.clone(origin, tmp_path / "second")
    run(second, machines[pull])
    assert second.repro() == ({"resolve"}, set()), "everything is there"
    second.edit("models.one.gates.worst_delta_kl_bits", -0.3)
    run(second, *machines[pull + 1 :])
    for page in LOOP:
        run(second, *pages.commands(REPOSITORY / page))

    assert left_out == set(ELSEWHERE)
    assert second.run("git", "log", "-1", "--format=%s") == "Rank 16\n"
    assert second.run("git", "status", "--porcelain") == "", "no command leaves a file that git would take"


def test_another_repository_fetches_a_lens_as_printed(lab: Lab, tmp_path, monkeypatch):
    """docs/publishing.md: by DVC alone, from a git repository and a remote to which one lens was pushed."""
    for name in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.setenv(f"GIT_{name}", "t")
    origin, user = toy.clone(lab, tmp_path / "origin"), Lab(tmp_path / "user")
    shutil.copytree(lab.root / ".dvc/cache", origin.root / ".dvc/cache")
    origin.run("git", "checkout", "--quiet", "-B", "main")
    origin.run("dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    origin.commit("a remote")
    origin.run("dvc", "push", "--quiet", "publish@one")
    user.root.mkdir()
    user.run("git", "init", "--quiet")
    user.run("dvc", "init", "--quiet")

    def local(printed: str) -> str:
        return printed.replace("https://github.com/org/lab", f"file://{origin.root}").replace("qwen3-8b", "one")

    page, names = REPOSITORY / "docs/publishing.md", dict[str, Any]()
    for line in pages.commands(page):
        if line.startswith("gto ") or "https://github.com" in line:
            (origin if line.startswith("gto ") else user).run("bash", "-c", local(line))
    exec(local("".join(pages.blocks(page, "python"))), names)

    assert all(lensmith.load(user.root / folder).n_layers == 3 for folder in ("lens", "lens-of-main", "one"))
    assert names["metrics"] == json.loads((origin.root / "metrics/one.json").read_text())
    assert names["settings"]["fit"]["rank"] == 4
    assert names["version"] == {"rev": origin.run("git", "rev-parse", "HEAD").strip(), "path": "release/one"}


def replace_code(file: str, old: str, new: str) -> Callable[[Lab], None]:
    return lambda lab: lab.replace(f"src/lensmith/{file}", old, new)


REPORT_CODE = ("def build(", "UNUSED = 1\n\n\ndef build(")
EDITS: dict[str, tuple[Callable[[Lab], object], set[str]]] = {
    "nothing": (lambda _: None, set()),
    "a comment": (replace_code("lens/lens.py", "# Two thin products", "# Two slim products"), set()),
    "one model's rank": (lambda lab: lab.edit("models.one.fit.rank", 3), {"fit@one", "report"}),
    "a default": (
        lambda lab: lab.edit("defaults.gates.worst_delta_kl_bits", -0.2),
        {"gates@one", "gates@two", "report"},
    ),
    "a default that two overrides": (
        lambda lab: lab.edit(f"defaults.gates.{OVERRIDDEN}", 0.03),
        {"gates@one", "report"},
    ),
    "a model removed": (lambda lab: lab.edit("models.two", None), {"report"}),
    "a file that a setting names": (
        lambda lab: (lab.root / "terms.txt").write_text("Other terms."),
        {"publish@one", "report"},
    ),
    "the report, which goes out with its lens": (
        replace_code("report/page.py", *REPORT_CODE),
        {"report", "publish@one", "publish@two"},
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_makes_exactly_this_stale(lab: Lab, edit):
    """And nothing else; the stages after these run in the test below. The report shows every model's settings."""
    change, expected = EDITS[edit]
    change(lab)
    found = stale(lab)
    lab.run("git", "checkout", "--", ".")

    assert found == expected


def test_an_edit_runs_its_stages_and_what_comes_after_them(lab: Lab):
    """Of one model alone. The queue ran this rank, so its heavy stages are restored; reverted, all of them are."""
    lab.edit("models.one.fit.rank", 1)
    ran, restored = lab.repro()
    assert (ran | restored) - {"resolve"} == of("one", *FROM_FIT) | {"report"}
    assert of("one", "fit", "sweep", "suite-eval") <= restored
    assert_diffs_show(lab, "one")

    lab.edit("models.one.fit.rank", 4)
    ran, restored = lab.repro()
    assert ran == {"resolve"} and of("one", "fit", "sweep", "suite-eval", "gates") <= restored


def test_a_lens_on_another_model_follows_the_entry_that_it_is_of(lab: Lab):
    """Fit from its lens, stale when the rank of that changes, and refused until that is fit again."""
    lab.edit("models.three", {"transferred": {"from": "one"}, "fit": {"kind": "transferred"}})
    ran, _ = lab.repro("fit")
    assert ran == of("three", "prefetch", "fit") | {"resolve"}
    lab.edit("models.one.fit.rank", 1)
    assert of("one", "fit") | of("three", "fit") <= stale(lab)
    done = lab.attempt("dvc", "repro", "fit@three")
    assert (
        "artifacts/one/lens: was fit with other settings than models.one has now. Run `dvc repro fit@one` first."
        in (done.stdout + done.stderr)
    )
    lab.repro("fit@one")  # with several targets DVC's order is not fixed
    ran, _ = lab.repro("fit")
    lens, origin = lab.root / "artifacts/one/lens", json.loads((lab.root / THREE).read_text())["transferred"]

    assert ran == of("three", "fit") | {"resolve"}
    assert origin["weights_sha256"] == json.loads((lens / "provenance.json").read_text())["weights_sha256"]
    lab.run("git", "checkout", "--", ".")


@pytest.mark.long
def test_a_line_of_code_refits_every_lens_and_only_from_the_fit_on(lab):
    """The corpus does not depend on the translators; every lens does."""
    lab.replace("src/lensmith/lens/lens.py", "# One draw for all", "_ = rank\n        # One draw for all")
    ran, _ = lab.repro()

    heavy = of("one", "fit", "sweep", "suite-eval") | of("two", "fit", "sweep", "suite-eval")
    assert heavy <= ran
    assert not ran & (of("one", "prefetch") | of("two", "prefetch"))
    lab.run("git", "checkout", "--", "src")
    lab.repro()


def test_metrics_are_flat_numbers_and_words(lab):
    """`dvc metrics` and a person read the same file: no nesting, and a table of both models in 160 columns."""
    metrics = json.loads((lab.root / "metrics/one.json").read_text())

    assert all(isinstance(value, int | float | str) for value in metrics.values())
    assert all(len(line) <= 160 for line in lab.run("dvc", "metrics", "show").splitlines())


def test_plots_draw_without_a_network(lab):
    """The page holds its scripts and both lenses of both models in one chart each."""
    lab.run("dvc", "plots", "show", "--out", "page")
    page = (lab.root / "page/index.html").read_text()

    assert "<script src" not in page and "vegaEmbed" in page
    assert all(word in page for word in ("one.csv", "two.csv", '"lens": "tuned"', '"lens": "norm"'))
    # A random model never has the answer among ten: its earliness is empty, and DVC leaves that chart out.
    names = ("kl", "cosine", "causal", "verdicts", "lenses", "delta_kl", "training", "rank_curve")
    assert all(f"plots/{name}/one.csv" in page for name in names)


def test_a_bad_value_stops_before_anything_is_touched(lab):
    """One line, and every artifact is as it was."""
    before = {path: path.stat().st_mtime_ns for path in sorted((lab.root / "artifacts").rglob("*"))}
    lab.edit("models.one.fit.rnak", 3)
    done = lab.attempt("dvc", "repro")
    lab.edit("models.one.fit.rnak", None)

    assert done.returncode != 0
    assert "params.yaml: models.one.fit.rnak is not a setting; did you mean rank?" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in sorted((lab.root / "artifacts").rglob("*"))}


def test_light_stages_import_no_torch(lab: Lab):
    """`resolve` and `gates` answer in a second; torch alone takes three."""
    stages = "resolve, gates, plots, report, publish"
    code = f"""if True:
        import contextlib, sys
        from stages import {stages}
        for stage in ({stages}):
            with contextlib.suppress(SystemExit):
                stage.main()
            print(stage.__name__, "torch" in sys.modules)
    """
    said = lab.run("python", "-c", code, "--help")

    assert re.findall(r"^stages\.\w+ (True|False)$", said, re.MULTILINE) == ["False"] * 5


def test_nobody_was_asked_and_no_secret_stands_anywhere(lab, listener, record_property):
    """After all of the above, failing runs included: in what was printed, in every file, in git's and DVC's own."""
    lab.commit("as it is now")
    found = [*hits("\n".join(lab.said)), *hits_below(lab.root)]

    assert found == []
    assert listener.connections == 0
    assert hits((lab.root / ".git/config").read_text()) == ["password"], "the search can find"
    record_property("connections of a whole `dvc repro`", listener.connections)
    record_property("secrets in what a whole `dvc repro` printed and wrote", len(found))

"""From one machine to another through an S3 remote, and the two ways in which DVC alone lets wrong bytes pass.

Everything goes through DVC's own commands and an S3 on loopback. `toy.py` is a lab without a model; the last tests,
long ones, do the same with a real lab.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lensmith.files import seals
from lensmith.lab import remotes
from lensmith.process.errors import InputError, IntegrityError
from tests.support import toy
from tests.support.lab import Lab

LENS = Path("artifacts/one/lens")
WEIGHTS = LENS / "weights.safetensors"


@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[toy.S3]:
    with pytest.MonkeyPatch.context() as patch, toy.s3(tmp_path_factory.mktemp("s3")) as server:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield server


@pytest.fixture(scope="module")
def pushed(s3, tmp_path_factory) -> Lab:
    """A lab that is fit, committed and pushed, its run-cache too."""
    lab = toy.make(tmp_path_factory.mktemp("toy") / "lab")
    s3.remote(lab, "toy")
    lab.commit("remote")
    lab.run("dvc", "push", "--quiet", "--run-cache")
    return lab


@pytest.mark.long
def test_an_edit_in_a_fresh_clone_runs_one_model_and_a_third_machine_restores_it(pushed, tmp_path):
    """Nothing of the other model is fetched. Then, with S3 alone in common, the run-cache carries the fit on."""
    laptop, head = toy.clone(pushed, tmp_path / "laptop"), toy.clone(pushed, tmp_path / "head")
    laptop.edit("models.one.rank", 3)
    ran, _ = laptop.repro("--pull", "--allow-missing")
    assert ran == {"fit@one", "gates@one"}
    assert not (laptop.root / "artifacts/two").exists()

    laptop.run("dvc", "push", "--quiet", "--run-cache")
    head.edit("models.one.rank", 3)
    ran, restored = head.repro("--pull", "--allow-missing")
    assert "fit@one" in restored and not ran & {"fit@one", "fit@two", "gates@two"}
    assert (head.root / WEIGHTS).read_bytes() == (laptop.root / WEIGHTS).read_bytes()


def broken_pull(lab: Lab, s3: toy.S3) -> None:
    """A pull of exactly two objects whose connection breaks, and one on a healthy network after it."""
    s3.switch.touch()
    broken = lab.attempt("dvc", "pull", "--quiet", str(LENS))
    s3.switch.unlink()
    assert broken.returncode != 0
    lab.attempt("dvc", "pull", "--quiet", str(LENS))


def lens(lab: Lab) -> list[bytes]:
    return [path.read_bytes() for path in seals.files(lab.root / LENS)]


def test_a_fresh_clone_pulls_everything_over_a_bad_network_and_runs_nothing(pushed, s3, tmp_path, record_property):
    """A verified remote heals what the first pull broke."""
    lab = toy.clone(pushed, tmp_path / "clone")
    broken_pull(lab, s3)
    lab.run("dvc", "pull", "--quiet")

    seals.check(lab.root / "artifacts/one/lens", lab.root / "artifacts/two/lens")
    assert lens(lab) == lens(pushed)
    assert lab.repro() == (set(), set())
    assert lab.run("git", "status", "--porcelain") == ""
    record_property("files that are wrong after a truncated two-object pull from a verified S3 remote that heals", 0)


@pytest.mark.long
def test_a_truncated_pull_from_a_remote_that_does_not_verify_is_named_before_use(pushed, s3, tmp_path):
    """DVC keeps half of a file, calls it up to date and would run on it; the seal and `doctor --rehash` do not."""
    lab = toy.clone(pushed, tmp_path / "clone")
    lab.run("dvc", "remote", "modify", "store", "verify", "false")
    broken_pull(lab, s3)
    assert lens(lab) != lens(pushed), "DVC has mended this: drop the test"
    assert "up to date" in lab.run("dvc", "status", "fit@one")

    used = lab.attempt("dvc", "repro", "--force", "--single-item", "gates@one")
    assert used.returncode != 0 and f"error: {LENS}" in used.stderr
    found = lab.attempt("lensmith", "doctor", "--rehash")
    assert found.returncode == 4 and f"`dvc fetch {LENS}` gets it from the remote store" in found.stderr


@pytest.mark.long
def test_a_flipped_bit_in_the_cache_is_named_before_use_and_is_not_pushed(pushed, tmp_path):
    """DVC checks it out, says up to date and would push it on: it reads the mode of a file, not its bytes."""
    lab = toy.copy(pushed, tmp_path / "lab")
    kept = toy.kept(lab, WEIGHTS)
    toy.flip(kept)
    (lab.root / WEIGHTS).unlink()
    lab.run("dvc", "checkout", "--quiet", str(LENS))
    assert (lab.root / WEIGHTS).read_bytes() == kept.read_bytes(), "DVC has mended this: drop the test"
    assert "up to date" in lab.run("dvc", "status", "fit@one")

    with pytest.raises(IntegrityError, match=r"weights\.safetensors: sha256 is"):
        seals.check(lab.root / LENS)
    assert lab.attempt("lensmith", "doctor", "--rehash").returncode == 4
    assert not kept.exists()
    lab.run("dvc", "remote", "add", "--default", "--force", "other", str(tmp_path / "other"))
    lab.attempt("dvc", "push", "--quiet")
    assert not (tmp_path / "other" / kept.relative_to(lab.root / ".dvc/cache")).exists()
    (lab.root / WEIGHTS).unlink()
    lab.run("dvc", "pull", "--quiet", "--remote", "store", str(LENS))
    seals.check(lab.root / LENS)


SECRET = "wJalrXUtnFEMI"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("url = s3://b/p", "remote store does not verify .* `dvc remote modify store verify true`"),
        ("url = s3://b/p\n    verify = false", "does not verify"),
        (
            f"url = s3://b/p\n    verify = true\n    secret_access_key = {SECRET}",
            "holds secret_access_key.*--unset store",
        ),
        (f"url = https://u:{SECRET}@host/p\n    verify = true", "the url of remote store holds a password"),
    ],
)
def test_check_refuses_a_remote_that_is_not_safe(tmp_path, options, says):
    """The message names the command, and does not repeat the secret."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(f"['remote \"store\"']\n    {options}\n")

    with pytest.raises(InputError, match=says) as error:
        remotes.check(tmp_path)
    assert SECRET not in str(error.value)


def test_check_takes_a_verified_remote_with_its_keys_in_the_local_file(tmp_path):
    """config.local is not in git; outside a DVC repository there is nothing to check."""
    assert remotes.check(tmp_path) == []
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("['remote \"store\"']\n    url = s3://b/p\n    verify = true\n")
    (tmp_path / ".dvc/config.local").write_text(f"['remote \"store\"']\n    secret_access_key = {SECRET}\n")

    assert remotes.check(tmp_path) == ["store"]


@pytest.fixture(scope="module")
def real(s3, tmp_path_factory) -> Lab:
    """A lab of two tiny models, fit, committed and pushed."""
    lab = Lab.make(tmp_path_factory.mktemp("real") / "lab")
    lab.repro()
    s3.remote(lab, "real")
    lab.commit("fit")
    lab.run("dvc", "push", "--quiet", "--run-cache")
    return lab


HEAVY = {"prefetch", "fit", "sweep", "suite-eval"}


def heavy(stages: set[str]) -> set[str]:
    return {stage for stage in stages if stage.split("@")[0] in HEAVY}


@pytest.mark.long
def test_a_real_lab_goes_from_clone_to_clone(real, tmp_path, record_property):
    """Pulled whole; one model edited and its run-cache pushed; restored on a third machine without its metrics."""
    user = toy.clone(real, tmp_path / "user")
    user.run("dvc", "pull", "--quiet")
    assert user.repro() == (set(), set())
    assert user.run("dvc", "metrics", "show", "--json") == real.run("dvc", "metrics", "show", "--json")
    user.run("dvc", "plots", "show", "--out", "page")
    assert "plots/kl/one.csv" in (user.root / "page/index.html").read_text()

    laptop, head = toy.clone(real, tmp_path / "laptop"), toy.clone(real, tmp_path / "head")
    for lab in (laptop, head):
        lab.edit("models.one.fit.rank", 3)
    ran, _ = laptop.repro("--pull", "--allow-missing", "gates@one")
    assert heavy(ran) == {"fit@one", "sweep@one", "suite-eval@one"}
    assert not (laptop.root / "artifacts/two").exists()
    laptop.run("dvc", "push", "--quiet", "--run-cache")
    ran, restored = head.repro("--pull", "--allow-missing", "gates@one")
    assert heavy(ran) == set() and {"fit@one", "sweep@one", "suite-eval@one"} <= restored
    metrics = [(lab.root / "metrics/one.json").read_bytes() for lab in (laptop, head)]
    assert metrics[0] == metrics[1] != (real.root / "metrics/one.json").read_bytes()
    record_property("heavy stages that a third machine ran again with S3 alone in common", len(heavy(ran)))


CONSUMED = {
    "fit@one": "artifacts/one/corpus/tokens.safetensors",
    "sweep@one": "artifacts/one/lens/ladder/bias/weights.safetensors",
    "suite-eval@one": "artifacts/one/lens/weights.safetensors",
    "gates@one": "artifacts/one/sweep/positions.csv",
    "plots@one": "artifacts/one/lens/fit_log.csv",
    "publish@one": "plots/judgement/one.json",
    "report": "plots/training/one.csv",
}


@pytest.mark.long
def test_every_stage_names_a_flipped_bit_in_what_it_reads(real, tmp_path, record_property):
    """And ends before it uses it. Each in a copy of the lab: a stage that fails leaves no outputs."""
    for stage, file in CONSUMED.items():
        lab = toy.copy(real, tmp_path / stage)
        toy.flip(lab.root / file)
        done = lab.attempt("dvc", "repro", "--force", "--single-item", stage)
        assert done.returncode != 0 and f"error: {file}: sha256 is " in done.stderr, (stage, done.stderr)
    record_property("stages that name a flipped bit in a file they read before they use it", f"{len(CONSUMED)} of 7")

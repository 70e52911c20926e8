"""Every command, with a wrong argument or in a folder that is no lab, ends with one line, code 2 and no traceback."""

import sys
from pathlib import Path

import pytest

from lensmith.cli import app
from tests.support.canaries import GIT_URL, SECRETS, hits

REPOSITORY = Path(__file__).parents[2]
GARBAGE = {
    "no such command": "nope",
    "no such option": "check --nope",
    "one argument too many": "check a b",
    "no settings": "check",
    "settings that are a folder": "check .",
    "settings that are a device": "check /dev/null",
    "no lab to report": "report",
    "no lab to compare": "compare",
    "a commit that is not there": "compare --rev nope",
    "nothing to add": "add",
    "no name of a model": "add garbage",
    "a model to add to no lab": "add openai-community/gpt2",
    "nothing to download": "download",
    "no repository to download": "download nope",
    "a folder to download": "download .",
    "a path to download": "download a/b/c",
    "nothing to verify": "verify",
    "no release to verify": "verify .",
    "no version to verify": "verify a/b --revision nope",
    "nothing to list": "list",
    "no release to list": "list .",
    "nothing to publish": "publish",
    "no lab to publish": "publish x",
    "no lab to fetch for": "fetch",
    "no model to fetch for": "fetch x",
    "nothing to keep": "cache prune",
    "a size that is no number": "cache prune --keep x",
    "a negative size to keep": "cache prune --keep -1",
    "no such command of cache": "cache nope",
}


def ends(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    """The exit code of `lensmith` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["lensmith", *words])
    with pytest.raises(SystemExit) as ended:
        app.run()
    return ended.value.code


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_gets_one_line_and_code_2(tmp_path, monkeypatch, capsys, case):
    """The folder is empty and stays so; there is no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    code = ends(monkeypatch, *GARBAGE[case].split())

    said = capsys.readouterr()
    assert code in ({2, 5} if case == "no version to verify" else {2}), said.err
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [[], ["cache"]])
def test_without_a_command_the_help_is_shown(monkeypatch, capsys, words):
    """Code 2, as for any wrong call."""
    assert ends(monkeypatch, *words) == 2
    assert "Usage: lensmith" in capsys.readouterr().out


def test_failing_runs_show_no_secret(tmp_path, monkeypatch, capsys, record_property):
    """A token pasted into settings or arguments is in no log."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    token, text = SECRETS["HF_TOKEN"], (REPOSITORY / "params.yaml").read_text()
    for number, (old, new) in enumerate(
        [
            ("repo:\n", f"repo: {token}\n"),
            ("path: demo/atlas", f"path: {GIT_URL}"),
            ("license: MIT", f"license: {SECRETS['STORE_API_KEY']}!"),
            ("rank: auto", f"rank: {SECRETS['AWS_SECRET_ACCESS_KEY']}"),
            ("rank: auto", f"{SECRETS['AWS_SESSION_TOKEN']}: auto"),
        ]
    ):
        assert old in text
        (tmp_path / f"{number}.yaml").write_text(text.replace(old, new, 1))
    runs = [["check", f"{number}.yaml"] for number in range(5)]
    runs += [["check", token], ["add", GIT_URL], ["download", GIT_URL], ["verify", f"a/{token}"], [token]]
    runs += [["cache", "prune", "--keep", token], ["compare", "--rev", token]]

    codes = [ends(monkeypatch, *words) for words in runs]

    said = capsys.readouterr()
    assert set(codes) <= {2, 5} and said.err.count("error: ") == len(runs)
    assert hits(said.out + said.err) == [], said.err
    assert said.err.count("***") >= len(runs) - 2
    record_property("secrets shown by failing runs", f"0 in {len(runs)} runs")

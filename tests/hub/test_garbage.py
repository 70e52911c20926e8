"""Every command with a missing or garbage argument, and in a folder that is no lab: one line, code 2, no traceback."""

import sys
from pathlib import Path

import pytest

from lensmith.cli import app
from lensmith.process import command, credentials
from lensmith.process.errors import IntegrityError
from tests.support.canaries import GIT_URL, SECRETS, hits

REPOSITORY = Path(__file__).parents[2]
GARBAGE = {
    "no such command": "nope",
    "no such option": "check --nope",
    "one argument too many": "check a b",
    "no settings": "check",
    "settings that are a folder": "check .",
    "settings that are none": "check /dev/null",
    "no lab to report": "report",
    "no lab to compare": "compare",
    "a commit that is none": "compare --rev nope",
    "nothing to add": "add",
    "what no model is called": "add garbage",
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
    "no number to keep": "cache prune --keep x",
    "less than nothing to keep": "cache prune --keep -1",
    "a cache's command that is none": "cache nope",
}


def ends(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    monkeypatch.setattr(sys, "argv", ["lensmith", *words])
    with pytest.raises(SystemExit) as ended:
        app.run()
    return ended.value.code


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_gets_one_line_and_code_2(tmp_path, monkeypatch, capsys, case):
    """In an empty folder, without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    code = ends(monkeypatch, *GARBAGE[case].split())

    said = capsys.readouterr()
    assert code in ({2, 5} if case == "no version to verify" else {2}), said.err
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [[], ["cache"]])
def test_without_a_command_the_help_is_shown(monkeypatch, capsys, words):
    """Usage, and the code of a wrong call; asked for, the same is no error."""
    assert ends(monkeypatch, *words) == 2
    assert "Usage: lensmith" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------- secrets


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", SECRETS)
def test_a_credential_of_the_environment_is_found_by_its_value(canaries, name):
    """In the middle of a word, and twice."""
    assert credentials.redact(f"a{SECRETS[name]}b, {SECRETS[name]}") == "a***b, ***"


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_ACCESS_KEY_ID", "GITHUB_TOKEN"])
def test_a_credential_of_a_known_form_is_found_without_its_value(name):
    """It may come out of a file, or out of a process that has dropped its own."""
    assert credentials.redact(f"is '{SECRETS[name]}', must be org/name") == "is '***', must be org/name"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"fatal: {GIT_URL} not found", "fatal: https://***@git.example/lab.git not found"),
        ("https://token@host/x and http://a:p@ss@host", "https://***@host/x and http://***@host"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("AWS_SECRET_ACCESS_KEY=abc/def+ghi is set", "AWS_SECRET_ACCESS_KEY=*** is set"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "***"),
    ],
)
def test_what_looks_like_a_credential_is_hidden(text, shown):
    assert credentials.redact(text) == shown


def test_ordinary_errors_are_shown_as_they_are(canaries, monkeypatch):
    """Words about tokens are no tokens, and a short value is no secret."""
    monkeypatch.setenv("MY_TOKEN", "of")
    text = (
        "corpus: got 5 of 320 heldout tokens from org/text@" + "a1" * 20 + ", see https://huggingface.co/org/name; "
        "token present: no; sha256 " + "0f" * 32 + "; special_tokens: 5; models.sk-x.fit; user@host:/tmp"
    )

    assert credentials.redact(text) == text


def test_our_own_bug_shows_its_traceback_without_secrets(canaries, capsys):
    """Also of what the error was raised from."""

    def main() -> None:
        raise RuntimeError(f"cannot open {GIT_URL}") from IntegrityError(f"{SECRETS['STORE_API_KEY']} first")

    with pytest.raises(SystemExit) as ended:
        command.run(main)

    said = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" in said and "RuntimeError: cannot open https://***@git.example" in said
    assert hits(said) == [] and "*** first" in said


def test_ten_failing_runs_show_no_secret(tmp_path, canaries, monkeypatch, capsys, record_property):
    """Whoever pastes a token into the wrong place finds it in no log."""
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

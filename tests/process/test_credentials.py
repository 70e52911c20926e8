"""Credentials are found in text and hidden; other text stays as it is."""

import pytest

from lensmith.process import command, credentials
from lensmith.process.errors import IntegrityError
from tests.support.canaries import GIT_URL, SECRETS, hits


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with a credential of every kind."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", SECRETS)
def test_a_credential_of_the_environment_is_found_by_its_value(canaries, name):
    """In the middle of a word, and more than once."""
    assert credentials.redact(f"a{SECRETS[name]}b, {SECRETS[name]}") == "a***b, ***"


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_ACCESS_KEY_ID", "GITHUB_TOKEN"])
def test_a_credential_of_a_known_form_is_found_without_its_value(name):
    """It may come from a file, or the process has dropped its own credentials."""
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
def test_text_in_the_form_of_a_credential_is_hidden(text, shown):
    """Addresses with user names, headers, settings of AWS and private keys."""
    assert credentials.redact(text) == shown


def test_ordinary_errors_are_shown_as_they_are(canaries, monkeypatch):
    """Words about tokens, hashes and values of a few letters stay."""
    monkeypatch.setenv("MY_TOKEN", "of")
    text = (
        "corpus: got 5 of 320 heldout tokens from org/text@" + "a1" * 20 + ", see https://huggingface.co/org/name; "
        "token present: no; sha256 " + "0f" * 32 + "; special_tokens: 5; models.sk-x.fit; user@host:/tmp"
    )

    assert credentials.redact(text) == text


def test_the_traceback_of_a_bug_has_no_secrets(canaries, tmp_path, monkeypatch, capsys):
    """Neither has that of the error's cause."""

    def main() -> None:
        raise RuntimeError(f"cannot open {GIT_URL}") from IntegrityError(f"{SECRETS['STORE_API_KEY']} first")

    monkeypatch.setenv("LENSMITH_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        command.run(main)

    said, [report] = capsys.readouterr().err, (tmp_path / "errors").iterdir()
    assert ended.value.code == 1 and "RuntimeError: cannot open https://***@git.example" in said
    assert "Traceback" in report.read_text() and "*** first" in report.read_text()
    assert hits(said + report.read_text()) == []

"""Secrets are found, and ordinary text is not taken for one."""

import plotly.offline
import pytest

from lensmith.process.errors import InputError
from lensmith.release import secrets


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("token: hf_" + "a1B2" * 8, "a Hugging Face token"),
        ("AKIA" + "ABCD1234" * 2, "an AWS key"),
        ("ghp_" + "x" * 36, "a GitHub token"),
        ("sk-proj-" + "Ab1" * 10, "an API key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        ("s3: https://ada:secret@storage.example/b", "a password in an address"),
        ('"path": "/home/ada/models"', "a home path"),
        ('"path": "/Users/ada/models"', "a home path"),
        ('"path": "/root/models"', "a home path"),
        (r'"path": "C:\\Users\\ada"', "a home path"),
    ],
)
def test_each_kind_is_found_on_its_line(text, kind):
    assert list(secrets.find(f"first\n{text}\nlast")) == [(2, kind)]


def test_this_machines_own_token_and_places_are_found(monkeypatch, tmp_path):
    """Whatever they look like."""
    monkeypatch.setenv("HF_TOKEN", "of-another-form")
    monkeypatch.setenv("HOME", "/data/people/ada")
    monkeypatch.chdir(tmp_path)

    found = secrets.find(f"of-another-form\n/data/people/ada/x\n{tmp_path}/y")
    assert list(found) == [(1, "your token"), (2, "your home path"), (3, "the path of this lab")]


def test_ordinary_text_is_not_taken_for_a_secret():
    """The charts' own script is in every report, and is four megabytes of anything."""
    text = (
        "sha256 "
        + "ab" * 32
        + "\nhttps://huggingface.co/org/name\nhf_hub 2.4, the root/leaf of a /homely tree: 18:40@sea\n"
    )

    assert not list(secrets.find(text + plotly.offline.get_plotlyjs()))


def test_the_file_is_named_and_the_secret_is_not(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"hf_" + b"a" * 30)  # tensors are numbers
    secrets.refuse(tmp_path)
    (tmp_path / "NOTICE").write_text("x\nhf_" + "a" * 30)

    with pytest.raises(InputError, match=r"NOTICE:2: holds a Hugging Face token") as caught:
        secrets.refuse(tmp_path)
    assert "aaaa" not in str(caught.value)

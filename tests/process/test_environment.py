"""Environment variables: one table names them all."""

import re
from pathlib import Path

import pytest

from lensmith.process import environment
from lensmith.process.errors import InputError

REPOSITORY = Path(__file__).parents[2]
NAME = re.compile(r"\bLENSMITH_[A-Z_]+\b")
TABLE = set(NAME.findall((REPOSITORY / "src/lensmith/process/environment.py").read_text()))


def test_every_variable_that_code_or_docs_name_is_in_the_table():
    """A reader finds all of them, with their defaults, in one place."""
    files = [*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "README.md"]
    named = {name for path in files for name in NAME.findall(path.read_text())}

    assert named <= TABLE and {environment.HOME, environment.BANK_GIB} <= TABLE


def test_the_home_of_a_user_may_be_written_as_a_shell_does(monkeypatch):
    """What sets the variable may be no shell, and leave the ~; a folder of that name would lie in the lab."""
    monkeypatch.setenv("HOME", "/home/somebody")
    for value, folder in {"~/cache": "/home/somebody/cache", "": "/home/somebody/.cache/lensmith", "it": "it"}.items():
        monkeypatch.setenv(environment.HOME, value)
        assert environment.home() == Path(folder)


@pytest.mark.parametrize(("text", "value"), [("", 7.0), (" 2.5 ", 2.5), ("0", 0.0)])
def test_a_variable_is_a_number_or_its_default(monkeypatch, text, value):
    monkeypatch.setenv(environment.BANK_GIB, text)

    assert environment.number(environment.BANK_GIB, "GiB", 7.0, "Nothing was captured.") == value


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_another_value_is_refused(monkeypatch, text):
    """The line names the variable, its value, what is allowed and what was not done."""
    monkeypatch.setenv(environment.BANK_GIB, text)

    with pytest.raises(InputError, match=rf"LENSMITH_BANK_GIB is '{text}', must be a number of GiB >= 0\. Nothing"):
        environment.number(environment.BANK_GIB, "GiB", 7.0, "Nothing was captured.")

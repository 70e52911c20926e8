"""`lensmith watch`: lines and curves of the logs that a fit leaves under LENSMITH_HOME."""

import io
import json
from contextlib import ExitStack

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lensmith.cli import watch
from lensmith.cli.app import app
from lensmith.files import cache
from lensmith.report import terminal

HEAD = "step,train_kl_bits,val_kl_bits_mean\n"


def fit_of(model: str, key: str, **logs: str):
    folder = cache.folder("fit", key)
    for kind, lines in logs.items():
        (folder / kind).mkdir(parents=True)
        (folder / kind / "fit_log.csv").write_text(HEAD + lines)
    (folder / "key.json").write_text(json.dumps({"model_key": model}))
    with cache.held(folder):
        pass
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LENSMITH_HOME", str(tmp_path))


def test_lines_come_until_the_fit_ends(monkeypatch):
    """What is written while it runs, and what it writes last; no other model's."""
    folder = fit_of("atlas", "a", bias="0,,2.5\n")
    fit_of("other", "b", bias="0,,9\n")
    with ExitStack() as running:
        running.enter_context(cache.held(folder))
        steps = iter(["0,,2.5\n10,2.25,1.5\n", "0,,2.5\n10,2.25,1.5\n20,1.5,1.25\n"])

        def sleep(_: float) -> None:
            if lines := next(steps, None):
                (folder / "bias" / "fit_log.csv").write_text(HEAD + lines)
            else:
                running.close()

        monkeypatch.setattr(watch.time, "sleep", sleep)
        done = CliRunner().invoke(app, ["watch", "atlas"])

    assert done.exit_code == 0 and done.output.splitlines() == [
        "bias step 0: held out 2.500 bits",
        "bias step 10: training 2.250, held out 1.500 bits",
        "bias step 20: training 1.500, held out 1.250 bits",
    ]


def test_a_terminal_gets_a_curve_of_each_kind():
    """The lowest bar is the lowest KL, by its logarithm."""
    console = Console(width=100, record=True, file=io.StringIO())
    rows = [{"step": str(i), "train_kl_bits": "1.5", "val_kl_bits_mean": str(bits)} for i, bits in enumerate((4, 2, 1))]
    console.print(terminal.fits({"bias": rows, "low_rank": rows[:1]}))
    text = console.export_text()

    assert "█▅▁" in text and "bias" in text and "low_rank" in text
    assert terminal.sparkline([3.0, 3.0]) == "▁▁"


def test_a_model_without_a_fit_is_refused():
    fit_of("other", "b", bias="0,,9\n")
    done = CliRunner().invoke(app, ["watch", "atlas"])

    assert done.exit_code != 0 and "no fit of atlas runs on this machine" in str(done.exception)

"""Every test keeps its caches to itself."""

from collections.abc import Iterator
from typing import Any

import pytest

from lensmith.process.progress import Progress


@pytest.fixture(scope="session", autouse=True)
def _home_of_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For what is made once for a module: `_own_home` begins after it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSMITH_HOME", str(tmp_path_factory.mktemp("fixtures-home")))
        yield


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSMITH_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """The progress of each loop that has ended and had something to do."""
    ended, leave = list[Progress](), Progress.__exit__

    def exit_of(bar: Progress, *error: Any) -> None:
        leave(bar, *error)
        if bar.seconds_left() is not None:
            ended.append(bar)

    monkeypatch.setattr(Progress, "__exit__", exit_of)
    return ended


# The longest files, longest first: they begin first, and the short ones fill both workers to the end.
LONG = (
    "test_pipeline.py", "test_resume.py", "test_page.py", "test_fleet.py", "test_placement.py", "test_examples.py",
    "test_corpus.py", "test_training.py", "test_backbone.py", "test_benchmarks.py", "test_hostile.py", "test_report.py",
    "test_bad_params.py", "test_rehash.py", "test_gates.py", "test_sampling.py", "test_layout.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests measured (`record_property`) is printed: the figures of docs/reliability.md come from here."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    measured = [figure for report in reports if report.when == "call" for figure in report.user_properties]
    if measured:
        terminalreporter.section("measured")
        for promise, figure in measured:
            terminalreporter.line(f"{promise}: {figure}")

"""Every test keeps its caches to itself."""

import pytest


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSMITH_HOME", str(tmp_path_factory.mktemp("home")))


# Each runs a whole lab through DVC. They begin first, or one worker would be left alone with them at the end.
LONG = ("test_pipeline.py", "test_queue.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)

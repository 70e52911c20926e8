"""`lensmith fleet run`, with a cluster that only says how each model ended."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from lensmith.cli import fleet
from lensmith.fleet import head, work
from lensmith.fleet.driver import Driver
from lensmith.fleet.jobs import JobNeeds, LabCommit
from lensmith.fleet.work import Outcome
from lensmith.process.errors import LensmithError
from tests.support.settings import REPOSITORY


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (3, 3), (5, 5), (work.DVC_REFUSED, 2)])
def test_a_fleet_ends_with_the_code_of_the_first_model_that_failed(monkeypatch, code, expected):
    """Bad input or a NaN on a node is no failure of a server, which trying again may help."""
    models = ["atlas", "atlas-reference"]
    ray = SimpleNamespace(RayCluster=lambda *_: SimpleNamespace(nodes=list, close=lambda: None))
    monkeypatch.setitem(sys.modules, "lensmith.fleet.cluster", ray)
    monkeypatch.setattr("lensmith.fleet.cluster", ray, raising=False)
    monkeypatch.setattr("lensmith.fleet.board.Board", lambda *_: nullcontext())
    monkeypatch.setattr(head, "lab_commit", lambda _: LabCommit("url", "commit"))
    monkeypatch.setattr(head, "check_remote", lambda _: None)
    monkeypatch.setattr(head, "stale", lambda *_, **__: {model: ["fit"] for model in models})
    monkeypatch.setattr(head, "needs", lambda *_: dict.fromkeys(models, JobNeeds(1, 0, None)))
    outcomes = {"atlas-reference": Outcome(code, "why"), "atlas": Outcome(7, "full")}
    monkeypatch.setattr(Driver, "run", lambda *_: outcomes)
    monkeypatch.chdir(REPOSITORY)

    with pytest.raises(LensmithError, match="2 models failed: atlas-reference") as error:
        fleet.run(models=models)

    assert error.value.exit_code == expected

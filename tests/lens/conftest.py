"""Tests that ask for `hardware` run once for each kind of processor."""

import pytest

from tests.support import hardware as machines


@pytest.fixture(params=machines.CAPABILITIES)
def hardware(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A processor without bfloat16 products, and one with them."""
    machines.force(request.param, monkeypatch.setattr)
    return request.param

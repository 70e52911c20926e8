"""Large files are hashed again where they may have changed, and only there."""

import os
from pathlib import Path

import pytest

from lensmith.files import artifacts, hashes

LATER = -(10**9)  # in place of TICK: every file was written long enough before


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read."""
    monkeypatch.setenv("LENSMITH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hashes, "SMALL", 4)
    names, sha256_file = list[str](), artifacts.sha256_file
    monkeypatch.setattr(artifacts, "sha256_file", lambda path: names.append(path.name) or sha256_file(path))
    return names


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_text("large")
    return path


def replace_by_another(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("LARGE")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


def edit_and_put_mtime_back(path: Path) -> None:
    before = path.stat()
    path.write_text("LARGE")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "edit",
    [lambda path: path.write_text("larger"), replace_by_another, edit_and_put_mtime_back],
    ids=["another size", "another inode of the same size and mtime", "the same size and mtime"],
)
def test_a_file_is_read_once_until_it_changes(file, read, monkeypatch, edit):
    monkeypatch.setattr(hashes, "TICK", LATER)
    first = hashes.sha256_files([file])
    assert hashes.sha256_files([file]) == first and read == ["weights"]

    edit(file)
    assert hashes.sha256_files([file]) == {file: artifacts.sha256_text(file.read_text())} != first


def test_small_files_and_files_just_written_are_not_remembered(file, read, tmp_path):
    """Within one tick of the clock a file may change and look the same."""
    small = tmp_path / "small"
    small.write_text("abc")
    for _ in range(2):
        hashes.sha256_files([file, small])

    assert read == ["weights", "small"] * 2
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_a_damaged_memory_is_none_and_is_written_anew(file, read, tmp_path, monkeypatch, text):
    monkeypatch.setattr(hashes, "TICK", LATER)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / hashes.MEMORY).write_text(text)
    for _ in range(2):
        hashes.sha256_files([file])

    assert read == ["weights"]


def test_files_that_are_gone_are_forgotten_and_others_are_not(file, read, tmp_path, monkeypatch):
    """Each queued experiment has a folder of its own, for an hour."""
    monkeypatch.setattr(hashes, "TICK", LATER)
    for name in ("gone", "new"):
        (tmp_path / name).write_text(f"large {name}")
    hashes.sha256_files([file, tmp_path / "gone"])
    (tmp_path / "gone").unlink()
    hashes.sha256_files([tmp_path / "new"])

    assert str(tmp_path / "gone") not in (tmp_path / "home" / hashes.MEMORY).read_text()
    assert hashes.sha256_files([file]) and read == ["weights", "gone", "new"]


def test_a_home_that_cannot_be_written_costs_time_and_nothing_else(file, read, tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "TICK", LATER)
    (tmp_path / "home").write_text("a file")
    for _ in range(2):
        assert hashes.sha256_files([file]) == {file: artifacts.sha256_text("large")}

    assert read == ["weights"] * 2

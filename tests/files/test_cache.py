"""What `lensmith cache prune` keeps."""

import os

import pytest

from lensmith.files import cache


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ([3, 4, 5], [3, 4]),
        ([3, 9, 5], [3]),
        ([30, 5, 5], []),
    ],
    ids=["the oldest goes", "an older one that would fit goes too", "nothing is kept where the newest does not fit"],
)
def test_prune_keeps_the_newest_entries_that_fit(tmp_path, monkeypatch, sizes, kept):
    """Of ten bytes, with entries from newest to oldest: no entry outlives a newer one."""
    monkeypatch.setenv("LENSMITH_HOME", str(tmp_path))
    for age, size in enumerate(sizes):
        folder = cache.folder("bank", f"{age}")
        folder.mkdir(parents=True)
        (folder / "shard").write_bytes(bytes(size))
        os.utime(folder, (10**9 - age, 10**9 - age))

    deleted = cache.prune(10)

    assert [entry.size for entry in cache.entries()] == kept
    assert [entry.size for entry in deleted] == sizes[len(kept) :]

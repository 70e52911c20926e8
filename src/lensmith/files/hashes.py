"""sha256 of files that may be gigabytes: a large file is hashed again only if it has changed.

    <LENSMITH_HOME>/sha256.json    by path: inode, size, mtime and ctime in ns, sha256

The hash of a file that changed just before it was read is not stored: within one tick of the file system's clock it may
change again and look the same.
"""

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter

from lensmith.files import artifacts
from lensmith.process import amounts, environment
from lensmith.process.errors import ResourceError

MEMORY = "sha256.json"
SMALL = 2**20  # bytes below which a hash is not stored: hashing them again is as fast
LONG = amounts.GIB  # bytes from which a line says that files are hashed
TICK = 10**8  # ns; local file systems keep times to 10 ms or better

State = tuple[int, int, int, int]
_REMEMBERED = TypeAdapter(dict[str, tuple[State, str]])


def sha256_files(paths: Iterable[Path]) -> dict[Path, str]:
    """sha256 by path. Where LENSMITH_HOME cannot be written, no hash is stored."""
    memory, remembered = environment.home() / MEMORY, dict[str, tuple[State, str]]()
    with suppress(OSError, ValueError):  # there is none yet, or one of another form
        remembered = _REMEMBERED.validate_json(memory.read_bytes())
    states = {path: _state(path) for path in paths}
    sha256 = dict[Path, str]()
    for path, state in states.items():
        then, digest = remembered.get(str(path.absolute()), (None, ""))
        if then == state:
            sha256[path] = digest
    unread = [path for path in states if path not in sha256]
    if (size := sum(states[path][1] for path in unread)) >= LONG:
        print(f"hash: {amounts.many(len(unread), 'file')}, {amounts.size(size)}", file=sys.stderr, flush=True)
    fresh = {}
    for path in unread:
        began = time.time_ns()
        sha256[path] = artifacts.sha256_file(path)
        _, size, *times = state = _state(path)
        if size >= SMALL and state == states[path] and max(times) < began - TICK:
            fresh[str(path.absolute())] = (state, sha256[path])
    if fresh:
        kept = {name: known for name, known in remembered.items() if os.path.exists(name)}  # noqa: PTH110
        with suppress(ResourceError):
            artifacts.write_text(memory, artifacts.canonical_json(kept | fresh))
    return sha256


def _state(path: Path) -> State:
    """Numbers of a file that change when its bytes do. Programs can set mtime back, but not ctime."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

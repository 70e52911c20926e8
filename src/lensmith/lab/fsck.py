"""Every byte again: the objects of DVC's cache against their names and against seals, the workspace against dvc.lock.

DVC takes a read-only object for whole without reading it, checks it out and pushes it on. Here each is hashed; what is
not what its name says is moved to .lensmith/quarantine/, so that it can neither be checked out nor pushed. md5 is the
address that DVC gave it; sha256 is what a seal says (`files/seals.py`), and has the last word.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lensmith.files import artifacts
from lensmith.files import seals as sealed
from lensmith.lab.store import DIR, Out, Store
from lensmith.process.errors import InputError, IntegrityError
from lensmith.process.progress import track

QUARANTINE = Path(".lensmith/quarantine")
PROGRESS = Path(".lensmith/fsck.json")
EVERY = 3.0  # seconds between two notes of how far the cache was read
CHUNK = 2**20  # bytes


@dataclass
class Found:
    """What was read so far, and a line for each thing that is wrong."""

    subset: str = "1/1"
    after: str = ""  # the last object that was read
    objects: int = 0
    files: int = 0
    size: int = 0  # bytes
    wrong: list[str] = field(default_factory=list)


def run(root: Path, subset: str = "1/1") -> Found:
    """Read the cache and the workspace of the lab in `root`; what is wrong in the cache is put in quarantine.

    Args:
        subset: `n/t` reads the n-th of t parts of the cache. An interrupted run of the same part goes on where it was.

    Raises:
        InputError: there is no DVC repository, or no such part.
    """
    part, parts = _part(subset)
    store, found = Store.open(root), _resume(root / PROGRESS, subset)
    objects = [path for path in store.objects() if int(_oid(path)[:8], 16) % parts == part - 1]
    left = [path for path in objects if _oid(path) > found.after]
    _read_cache(store, left, found, root / PROGRESS)
    for line in workspace(store, store.outs, found):
        found.wrong.append(line)
    (root / PROGRESS).unlink(missing_ok=True)
    return found


def refuse(*paths: Path) -> None:
    """Refuse to go on where an output is other than dvc.lock and the cache say; nothing is moved.

    Raises:
        IntegrityError: the first thing that is wrong.
    """
    store = Store.open(Path())
    outs = [out for out in store.outs if out.path in paths]
    seals = _sealed(store)
    objects = [store.object(oid) for oid, use in store.uses.items() if use.out in outs]
    wrong = [line for path in objects if path.exists() and (line := _fault(store, path, seals))]
    wrong += workspace(store, outs, Found())
    if wrong:
        raise IntegrityError(f"{wrong[0]} {f'{len(wrong) - 1} more. ' * (len(wrong) > 1)}Nothing was packaged.")


def workspace(store: Store, outs: Sequence[Out], found: Found) -> Iterator[str]:
    """A line for each file of these outputs that is not as dvc.lock records it. Outputs that are not here are whole."""
    for out in track(outs, "fsck: workspace", "output"):
        if not out.path.exists():
            continue
        recorded = dict(store.files(out))
        extra = set(sealed.files(out.path)) - set(recorded) if out.path.is_dir() and recorded else set()
        for path in sorted(extra):
            yield f"{path}: no stage wrote it: dvc.lock knows nothing of it. `rm {path}` removes it."
        for path, oid in recorded.items():
            found.files += 1
            md5 = _digests(path)[0] if path.is_file() else "missing"
            if md5 != oid:
                yield f"{path}: md5 is {md5}, dvc.lock says {oid}. {_restore(store, path, oid, out)}"


def _read_cache(store: Store, paths: Sequence[Path], found: Found, progress: Path) -> None:
    seals, noted = _sealed(store), time.monotonic()
    for path in track(paths, "fsck: cache", "object"):
        size = path.stat().st_size
        if line := _fault(store, path, seals):
            found.wrong.append(f"{line} It was moved to {_quarantine(store.root, path)}.")
        found.objects, found.size, found.after = found.objects + 1, found.size + size, _oid(path)
        if time.monotonic() - noted >= EVERY:
            artifacts.write_json(progress, asdict(found))
            noted = time.monotonic()


def _fault(store: Store, path: Path, seals: dict[str, str]) -> str | None:
    """What is wrong with an object, and how to get it again; None where it is whole."""
    oid = _oid(path)
    expected = oid.removesuffix(DIR)
    md5, sha256 = _digests(path)
    if md5 != expected:
        return f"{path}: md5 is {md5}, its name says {expected}. {_again(store, oid)}"
    if sha256 != seals.get(oid, sha256):
        return (
            f"{path}: md5 is as its name says, but sha256 is {sha256} and the seal says {seals[oid]}: made to deceive."
        )
    return None


def _sealed(store: Store) -> dict[str, str]:
    """sha256 by object, of every file of every sealed folder in the cache whose seal is whole."""
    seals: dict[str, str] = {}
    for path in store.objects():
        if not path.name.endswith(DIR):
            continue
        try:
            listing = store.listing(_oid(path))
            sums = store.object(listing.get(sealed.SUMS, "none"))
            if sums.exists() and _digests(sums)[0] == _oid(sums):
                named = sealed.parse(sums.read_bytes(), str(sums))
                seals |= {listing[name]: digest for name, digest in named.items() if name in listing}
        except IntegrityError:
            continue  # named where the object itself is read
    return seals


def _again(store: Store, oid: str) -> str:
    """How to get an object again that is damaged."""
    use = store.uses.get(oid)
    if use is None:
        return "Nothing in dvc.lock needs it."
    needed = f"It is {use.path}, of stage {use.out.stage}."
    is_whole = use.path.is_file() and _digests(use.path)[0] == oid
    if is_whole or (oid.endswith(DIR) and use.path.is_dir()):
        return f"{needed} The workspace holds it: `dvc commit -f {use.out.stage}` puts it into the cache again."
    if store.remote:
        return f"{needed} `dvc fetch {use.out.path}` gets it from the remote {store.remote}."
    return f"{needed} `dvc repro -f -s {use.out.stage}` makes it again."


def _restore(store: Store, path: Path, oid: str, out: Out) -> str:
    """How to get a file of the workspace again."""
    if not out.cached:
        return f"`git checkout -- {path}` restores it, or `dvc repro -f -s {out.stage}` makes it again."
    kept = store.object(oid)
    if kept.exists() and _digests(kept)[0] == oid:
        return f"The cache holds it: `rm -f {path} && dvc checkout {out.path}` restores it."
    if store.remote:
        return f"`rm -f {path} && dvc pull {out.path}` gets it from the remote {store.remote}."
    return f"`dvc repro -f -s {out.stage}` makes it again."


def _quarantine(root: Path, path: Path) -> Path:
    place = root / QUARANTINE / _oid(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, place)
    return place


def _oid(path: Path) -> str:
    return path.parent.name + path.name


def _digests(path: Path) -> tuple[str, str]:
    """md5 and sha256 of a file, read once."""
    # DVC's name for bytes, no protection; seals are sha256.
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
    return md5.hexdigest(), sha256.hexdigest()


def _part(subset: str) -> tuple[int, int]:
    n, _, t = subset.partition("/")
    if n.isdecimal() and t.isdecimal() and 1 <= int(n) <= int(t):
        return int(n), int(t)
    raise InputError(f"--subset is {subset!r}, must be n/t with 1 <= n <= t, such as 1/4. Nothing was read.")


def _resume(progress: Path, subset: str) -> Found:
    """How far an interrupted run of this part came; nothing where there is none."""
    try:
        found = Found(**json.loads(progress.read_bytes()))
    except (OSError, ValueError, TypeError):
        return Found(subset)
    return found if found.subset == subset else Found(subset)

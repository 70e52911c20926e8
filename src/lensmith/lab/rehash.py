"""Hash DVC's cache and the workspace again: objects against their names and seals, outputs against dvc.lock.

DVC trusts a read-only object without reading it: it checks a damaged one out and pushes it. Here each object is hashed.
A damaged one is moved to .lensmith/quarantine/, where DVC does not find it. md5 is the name that DVC gave an object;
sha256 is what a seal says (`files/seals.py`), and decides.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lensmith.files import artifacts, seals
from lensmith.lab.dvc_cache import DIR, DvcCache, RecordedOut
from lensmith.process import amounts, command
from lensmith.process.errors import IntegrityError
from lensmith.process.progress import track

QUARANTINE = Path(".lensmith/quarantine")
PROGRESS = Path(".lensmith/rehash.json")
EVERY = 3.0  # seconds between two notes of how far the cache was read
CHUNK = 2**20  # bytes


@dataclass
class Rehash:
    """What was hashed so far, and a line for each fault."""

    subset: str = "1/1"
    last: str = ""  # the last object that was hashed
    n_objects: int = 0
    n_files: int = 0  # of the workspace
    size: int = 0  # bytes of the objects
    faults: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """What was hashed and how much of it is wrong, in words."""
        return (
            f"{amounts.many(self.n_objects, 'object')} of the cache ({amounts.size(self.size)}) and "
            f"{amounts.many(self.n_files, 'file')} of the workspace hashed, {len(self.faults)} wrong"
        )


def run(root: Path, subset: str = "1/1") -> Rehash:
    """Hash the cache and the workspace of the lab in `root`; damaged objects are moved to quarantine.

    Args:
        subset: `i/n` reads the i-th of n parts of the cache. An interrupted run of the same part continues.

    Raises:
        InputError: there is no DVC repository, or no such part.
    """
    part, parts = command.part("--subset", subset, "Nothing was read.")
    cache, progress = DvcCache.open(root), root / PROGRESS
    try:
        result = Rehash(**json.loads(progress.read_bytes()))
    except (OSError, ValueError, TypeError):
        result = Rehash(subset)
    if result.subset != subset:
        result = Rehash(subset)
    sums, noted = _sealed(cache), time.monotonic()
    objects = [path for path in cache.objects() if int(_oid(path)[:8], 16) % parts == part - 1]
    for path in track([path for path in objects if _oid(path) > result.last], "rehash: cache", "object"):
        size = path.stat().st_size
        if fault := _fault(cache, path, sums):
            quarantined = root / QUARANTINE / _oid(path)
            quarantined.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, quarantined)
            result.faults.append(f"{fault} It was moved to {quarantined}.")
        result.n_objects, result.size, result.last = result.n_objects + 1, result.size + size, _oid(path)
        if time.monotonic() - noted >= EVERY:
            artifacts.write_json(progress, asdict(result))
            noted = time.monotonic()
    result.faults += _workspace_faults(cache, cache.outs, result)
    progress.unlink(missing_ok=True)
    return result


def refuse_damaged(*paths: Path) -> None:
    """Refuse to continue where an output differs from dvc.lock or from the cache; nothing is moved.

    Raises:
        IntegrityError: the first fault.
    """
    cache = DvcCache.open(Path())
    outs = [out for out in cache.outs if out.path in paths]
    sums = _sealed(cache)
    objects = [cache.object(oid) for oid, use in cache.uses.items() if use.out in outs]
    faults = [fault for path in objects if path.exists() and (fault := _fault(cache, path, sums))]
    faults += _workspace_faults(cache, outs, Rehash())
    if faults:
        raise IntegrityError(f"{faults[0]} {f'{len(faults) - 1} more. ' * (len(faults) > 1)}Nothing was packaged.")


def _workspace_faults(cache: DvcCache, outs: Sequence[RecordedOut], result: Rehash) -> Iterator[str]:
    """A line for each file of these outputs that differs from dvc.lock. An output that is not here has no fault."""
    for out in track(outs, "rehash: workspace", "output"):
        if not out.path.exists():
            continue
        recorded = dict(cache.files(out))
        extra = set(seals.files(out.path)) - set(recorded) if out.path.is_dir() and recorded else set()
        for path in sorted(extra):
            yield f"{path}: no stage wrote it; dvc.lock does not record it. `rm {path}` removes it."
        for path, oid in recorded.items():
            result.n_files += 1
            md5 = _digests(path)[0] if path.is_file() else "missing"
            if md5 != oid:
                yield f"{path}: md5 is {md5}, dvc.lock says {oid}. {_restore_file(cache, path, oid, out)}"


def _fault(cache: DvcCache, path: Path, sums: dict[str, str]) -> str | None:
    """What is wrong with an object, and how to restore it; None where it is whole. `sums` is sha256 by object."""
    oid = _oid(path)
    expected = oid.removesuffix(DIR)
    md5, sha256 = _digests(path)
    if md5 != expected:
        return f"{path}: md5 is {md5}, its name says {expected}. {_restore_object(cache, oid)}"
    if sha256 != sums.get(oid, sha256):
        return (
            f"{path}: md5 is as its name says, but sha256 is {sha256} and the seal says {sums[oid]}: made to deceive."
        )
    return None


def _sealed(cache: DvcCache) -> dict[str, str]:
    """sha256 by object, of every file of every sealed folder in the cache whose seal is whole."""
    sums: dict[str, str] = {}
    for path in cache.objects():
        if not path.name.endswith(DIR):
            continue
        try:
            listing = cache.listing(_oid(path))
            seal = cache.object(listing.get(seals.SUMS, "none"))
            if seal.exists() and _digests(seal)[0] == _oid(seal):
                named = seals.parse(seal.read_bytes(), str(seal))
                sums |= {listing[name]: digest for name, digest in named.items() if name in listing}
        except IntegrityError:
            continue  # named where the object itself is hashed
    return sums


def _restore_object(cache: DvcCache, oid: str) -> str:
    """How to restore a damaged object."""
    use = cache.uses.get(oid)
    if use is None:
        return "Nothing in dvc.lock needs it."
    needed = f"It is {use.path}, of stage {use.out.stage}."
    is_whole = use.path.is_file() and _digests(use.path)[0] == oid
    if is_whole or (oid.endswith(DIR) and use.path.is_dir()):
        return f"{needed} The workspace holds it: `dvc commit -f {use.out.stage}` puts it into the cache again."
    if cache.remote:
        return f"{needed} `dvc fetch {use.out.path}` gets it from the remote {cache.remote}."
    return f"{needed} `dvc repro -f -s {use.out.stage}` makes it again."


def _restore_file(cache: DvcCache, path: Path, oid: str, out: RecordedOut) -> str:
    """How to restore a file of the workspace."""
    if not out.cached:
        return f"`git checkout -- {path}` restores it, or `dvc repro -f -s {out.stage}` makes it again."
    stored = cache.object(oid)
    if stored.exists() and _digests(stored)[0] == oid:
        return f"The cache holds it: `rm -f {path} && dvc checkout {out.path}` restores it."
    if cache.remote:
        return f"`rm -f {path} && dvc pull {out.path}` gets it from the remote {cache.remote}."
    return f"`dvc repro -f -s {out.stage}` makes it again."


def _oid(path: Path) -> str:
    return path.parent.name + path.name


def _digests(path: Path) -> tuple[str, str]:
    """md5 and sha256 of a file, read once."""
    # md5 is DVC's name for bytes and protects nothing; seals are sha256.
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
    return md5.hexdigest(), sha256.hexdigest()

"""What DVC holds of this lab: the outputs that dvc.lock records, and the objects of its cache.

An object is named by the md5 of its bytes; a folder's object (`….dir`) lists the objects of its files.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lensmith.lab import dvc
from lensmith.process.errors import InputError, IntegrityError

DIR = ".dir"
OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")  # a file's name; its folder has the first two digits


@dataclass(frozen=True)
class RecordedOut:
    """One output of a stage, as dvc.lock records it."""

    path: Path
    stage: str
    oid: str  # of its object
    cached: bool  # else git holds it


@dataclass(frozen=True)
class ObjectUse:
    """A file that an object is the content of."""

    path: Path
    out: RecordedOut


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """The objects of a cache."""

    folder: Path  # <folder>/<two digits>/<the others>

    def object(self, oid: str) -> Path:
        """The file that holds an object, if the cache has it."""
        return self.folder / oid[:2] / oid[2:]

    def objects(self) -> list[Path]:
        """Every object, by name."""
        return sorted(path for path in self.folder.glob("[0-9a-f][0-9a-f]/*") if OBJECT.fullmatch(path.name))

    def listing(self, oid: str) -> dict[str, str]:
        """Object by relative path of a folder's files.

        Raises:
            IntegrityError: the cache does not hold the list, or it is damaged.
        """
        path = self.object(oid)
        try:
            return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"{path}: is no list of a folder's files ({error!r})") from None


@dataclass(frozen=True, kw_only=True)
class DvcCache(ObjectStore):
    """Outputs and cache of one repository. Paths of outputs begin as `root` does."""

    root: Path
    outs: tuple[RecordedOut, ...]
    remote: str | None  # the default one

    @classmethod
    def open(cls, root: Path) -> "DvcCache":
        """The cache of the DVC repository at `root`.

        Raises:
            InputError: `root` is not the top of one, or its dvc.yaml or dvc.lock cannot be read.
        """
        with dvc.repository(root) as repo:
            top = Path(repo.root_dir)
            if top != root.resolve():
                raise InputError(f"{root}: is not the top of its DVC repository, which is {top}. Run it there.")
            outs = tuple(
                RecordedOut(
                    root / Path(out.fs_path).relative_to(top),
                    getattr(out.stage, "name", None) or out.stage.addressing,  # a .dvc file's stage has no name
                    out.hash_info.value,
                    out.use_cache,
                )
                for out in repo.index.outs
                if out.hash_info and out.protocol == "local"
            )
            folder, remote = Path(repo.cache.local.path), repo.config["core"].get("remote")
            return cls(root=root, folder=folder, outs=outs, remote=remote)

    @cached_property
    def uses(self) -> dict[str, ObjectUse]:
        """A file of the workspace for every object that one of the outputs needs."""
        return {oid: ObjectUse(path, out) for out in self.outs if out.cached for oid, path in self._contents(out)}

    def files(self, out: RecordedOut) -> Iterator[tuple[Path, str]]:
        """(path, object) of every file of an output; none of a folder whose list is damaged."""
        for oid, path in self._contents(out):
            if not oid.endswith(DIR):
                yield path, oid

    def _contents(self, out: RecordedOut) -> Iterator[tuple[str, Path]]:
        yield out.oid, out.path
        if out.oid.endswith(DIR):
            try:
                listing = self.listing(out.oid)
            except IntegrityError:
                return
            yield from ((oid, out.path / name) for name, oid in listing.items())

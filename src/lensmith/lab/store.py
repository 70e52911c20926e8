"""What DVC keeps of this lab: the outputs that dvc.lock records, and the objects of its cache.

An object's name is the md5 of its bytes, a folder's (`….dir`) that of the list of its files.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lensmith.process.errors import InputError, IntegrityError

DIR = ".dir"
_OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")


def cache_dir(root: Path) -> Path:
    """Where the cache of the lab in `root` is, also where dvc.lock cannot be read."""
    from dvc.config import Config

    return Path(Config(str(root / ".dvc"), validate=False)["cache"].get("dir", root / ".dvc/cache"))


@dataclass(frozen=True)
class Out:
    """One output of a stage, as dvc.lock records it."""

    path: Path
    stage: str
    oid: str  # of its object
    cached: bool  # else git keeps it


@dataclass(frozen=True)
class Use:
    """A file that an object is the content of."""

    path: Path
    out: Out


@dataclass(frozen=True)
class Store:
    """Outputs and cache of one repository. Paths of outputs are as `root` is."""

    root: Path
    cache: Path  # of objects: <cache>/<two digits>/<the others>
    outs: tuple[Out, ...]
    remote: str | None  # the default one

    @classmethod
    def open(cls, root: Path) -> "Store":
        """The store of the DVC repository that `root` is in.

        Raises:
            InputError: it is in none, or its dvc.yaml or dvc.lock cannot be read.
        """
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            with Repo(str(root)) as repo:
                top = Path(repo.root_dir)
                if top != root.resolve():
                    raise InputError(f"{root}: is not the top of its DVC repository, which is {top}. Run it there.")
                recorded = [out for out in repo.index.outs if out.hash_info and out.protocol == "local"]
                outs = tuple(
                    Out(
                        root / Path(out.fs_path).relative_to(top),
                        getattr(out.stage, "name", None) or out.stage.addressing,  # a .dvc file's stage has no name
                        out.hash_info.value,
                        out.use_cache,
                    )
                    for out in recorded
                )
                return cls(root, Path(repo.cache.local.path), outs, repo.config["core"].get("remote"))
        except DvcException as error:
            raise InputError(f"{root}: DVC cannot read it ({error}). `lensmith doctor` may know why.") from None

    def object(self, oid: str) -> Path:
        return self.cache / oid[:2] / oid[2:]

    def objects(self) -> list[Path]:
        """Every object, by name."""
        return sorted(path for path in self.cache.glob("[0-9a-f][0-9a-f]/*") if _OBJECT.fullmatch(path.name))

    def listing(self, oid: str) -> dict[str, str]:
        """Object by relative path of a folder's files.

        Raises:
            IntegrityError: the cache does not hold the list, or it is none.
        """
        path = self.object(oid)
        try:
            return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise IntegrityError(f"{path}: is no list of a folder's files ({error!r})") from None

    @cached_property
    def uses(self) -> dict[str, Use]:
        """A file of the workspace for every object that one of the outputs needs."""
        return {oid: Use(path, out) for out in self.outs if out.cached for oid, path in self._contents(out)}

    def files(self, out: Out) -> Iterator[tuple[Path, str]]:
        """(path, object) of every file of an output; of a folder whose list is damaged, none."""
        for oid, path in self._contents(out):
            if not oid.endswith(DIR):
                yield path, oid

    def _contents(self, out: Out) -> Iterator[tuple[str, Path]]:
        yield out.oid, out.path
        if out.oid.endswith(DIR):
            try:
                listing = self.listing(out.oid)
            except IntegrityError:
                return
            yield from ((oid, out.path / name) for name, oid in listing.items())

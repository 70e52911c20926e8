"""Files and folders that settings name: one file, the files of a pattern, a folder, or a model.

`check`, `resolve` and every reader use these functions, so that they agree. A relative name begins in the working
directory, which is the lab. Patterns have `*`, `?`, `[ab]`, and `**` for folders of any depth. A path that exists is
taken literally: `runs/tiny[step=100]/*.txt` names the files of the folder `tiny[step=100]`.
"""

import glob
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lensmith.process.errors import InputError

UNCHANGED = "Nothing was changed."


class AbsentError(InputError):
    """A name that stands for nothing on this machine. A clone has only the files that git tracks."""

    def __init__(self, fact: str) -> None:
        super().__init__(f"{fact}. {UNCHANGED}")
        self.fact = fact


GGUF = ".gguf"


def files(patterns: Iterable[str], where: str) -> list[Path]:
    """The files of names and patterns, each file once; those of one pattern are sorted. Folders match no pattern.

    Raises:
        AbsentError: a name or pattern has no file. `where` is the setting that holds it.
        InputError: a name is that of a folder.
    """
    paths = dict[Path, None]()
    for name in patterns:
        with _explaining(name, where):
            literal, rest = Path(), list(Path(name).parts)
            while rest and (literal / rest[0]).exists():
                literal /= rest.pop(0)
            pattern = str(Path(*rest))
            if not rest and literal.is_dir():
                raise InputError(f"{where} names {name}, a folder; it takes files. {UNCHANGED}")
            # glob.glob, not Path.glob: it passes over hidden files, and takes any text for a pattern.
            matches = sorted(glob.glob(pattern, root_dir=literal, recursive=True)) if rest else [""]  # noqa: PTH207
            new = [path for match in matches if (path := literal / match).is_file()]
        if not new:
            problem = "matches no file" if glob.has_magic(pattern) else _absence(name)
            raise AbsentError(f"{where} names {name}, which {problem}")
        paths |= dict.fromkeys(new)
    return list(paths)


def folder(name: str, where: str) -> Path:
    """The folder of a name, which is taken literally. AbsentError where it does not exist, InputError for a file."""
    with _explaining(name, where):
        path = Path(name)
        if path.is_dir():
            return path
        if path.exists():
            raise InputError(f"{where} names {name}, which is a file; it takes a folder. {UNCHANGED}")
    raise AbsentError(f"{where} names {name}, which {_absence(name)}")


def model(name: str, where: str) -> Path:
    """What a model is read from: its folder, or its GGUF file, which is named itself or is the only one of its folder.

    Raises:
        AbsentError: there is no such file or folder.
        InputError: it holds no model, or more than one GGUF file.
    """
    with _explaining(name, where):
        path = Path(name)
        if path.is_file() and path.suffix == GGUF:
            return path
    path = folder(name, where)
    if (path / "config.json").is_file():
        return path
    ggufs = sorted(path.glob(f"*{GGUF}"))
    if len(ggufs) == 1:
        return ggufs[0]
    ambiguous = f"with {' and '.join(file.name for file in ggufs)}; name one of them"
    lack = ambiguous if ggufs else "with no config.json and no GGUF file"
    raise InputError(f"{where} names {name}, a folder {lack}. {UNCHANGED}")


def _absence(name: str) -> str:
    return "does not exist" + ("; write out the folder that ~ is meant for" if name.startswith("~") else "")


@contextmanager
def _explaining(name: str, where: str) -> Iterator[None]:
    """A name longer than the file system's limit, or a folder that may not be read, as an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{where} names {name}: {error.strerror}. {UNCHANGED}") from None

"""What DVC answers, through its command line: its Python interface is not a public one."""

import configparser
import subprocess
from pathlib import Path

from lensmith.process.errors import InputError


def run(*words: str, root: Path) -> str:
    """The output of a DVC command in the repository at `root`.

    Raises:
        InputError: DVC refuses, and says why; or there is no DVC.
    """
    try:
        done = subprocess.run(["dvc", *words], cwd=root, capture_output=True, text=True, check=True)  # noqa: S603, S607
    except FileNotFoundError:
        raise InputError("dvc: not found. `source .venv/bin/activate` puts it on the path.") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[0].removeprefix("ERROR: ")
        raise InputError(f"{root}: dvc {' '.join(w for w in words if w[0] != '-')}: {reason}") from None
    return done.stdout


def default_remote(root: Path) -> tuple[str, str] | None:
    """Name and URL of the default remote as .dvc/config has it, which git holds; None where that names none.

    DVC itself would add what config.local says here alone, and make a relative folder absolute.
    """
    config = configparser.ConfigParser(interpolation=None)
    config.read(root / ".dvc" / "config", encoding="utf-8")
    name = config.get("core", "remote", fallback=None)
    return None if name is None else (name, config.get(f"'remote \"{name}\"'", "url", fallback=""))

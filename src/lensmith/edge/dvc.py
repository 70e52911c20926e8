"""What DVC answers, through its command line: its Python interface is not a public one."""

import subprocess
from pathlib import Path

from lensmith.errors import InputError


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


def config(root: Path) -> dict[str, str]:
    """What is committed of DVC's settings: `core.remote`, `remote.<name>.url`. Not what config.local adds here."""
    lines = run("config", "--list", "--project", root=root).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)

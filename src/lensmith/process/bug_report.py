"""A bug of ours: its traceback goes into a file, and the user gets a line that names it."""

import os
import platform
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from lensmith.process import credentials, environment
from lensmith.process.errors import KEPT, LensmithError, first_line


def write(error: Exception) -> LensmithError:
    """Write the traceback of an error that nothing explains, without credentials; return the line on it."""
    report = f"lensmith {metadata.version('lensmith')}, {platform.platform()}, Python {sys.version}\n{sys.argv}\n\n"
    report += traceback.format_exc()
    where = "could not be written to any folder"
    for folder in (environment.home() / "errors", Path(tempfile.gettempdir())):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"lensmith-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
            file.write_text(credentials.redact(report), encoding="utf-8", errors="replace")
            where = f"is in {file}"
            break
    return LensmithError(
        f"{type(error).__name__}: {first_line(error)}. This is a bug of Lensmith, not of what you gave it. Its "
        f"traceback {where}: please open an issue with it and with the command. {KEPT}"
    )

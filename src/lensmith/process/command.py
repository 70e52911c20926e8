"""What all commands share: paths as arguments, errors as one line with an exit code, stages without a network."""

import argparse
import io
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from lensmith.process import credentials, environment, offline, stopping
from lensmith.process.errors import KEPT, LINE, InputError, LensmithError, explained, first_line, shown

UNREAD = 128 + signal.SIGPIPE  # what a shell says of a program whose reader went away


def paths(description: str | None, *names: str) -> argparse.Namespace:
    """Parse `--name PATH` for each name, all required; dvc.yaml is where the paths are written."""
    cli = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in names:
        cli.add_argument(f"--{name}", type=Path, required=True)
    return cli.parse_args()


def part(option: str, text: str, untouched: str) -> tuple[int, int]:
    """An option's value I/N, the I-th of N parts. InputError, ending in `untouched`, where it is none."""
    i, _, n = text.partition("/")
    if i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n):
        return int(i), int(n)
    raise InputError(f"{option} is {text!r}, must be I/N with 1 <= I <= N, such as 1/4. {untouched}")


def run_stage(main: Callable[[], None], *, network: bool = False) -> None:
    """Run a stage of dvc.yaml; without `network` it has no connections and no credentials.

    `main` imports what it needs: libraries of the Hub read their settings when they are imported, so the network is
    denied first.
    """
    if not network:
        offline.enter()
    run(main)


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; whatever ends it becomes one line on stderr and its exit code.

    A bug of ours says where its traceback was written. Credentials are removed from everything that is printed. A
    reader that has closed our output, as `head` does, is told nothing; the code is then the one of SIGPIPE.
    """
    try:
        _open_streams()
        stopping.install()
        main()
        sys.stdout.flush()
    except (LensmithError, stopping.Interrupted) as error:
        _end(error)
    except BrokenPipeError:
        sys.exit(UNREAD)
    except Exception as error:  # noqa: BLE001 (`_our_bug` keeps what it was)
        _end(explained(error) or _our_bug(error))
    finally:
        _flush()


def _open_streams() -> None:
    """See that printing cannot fail: what a stream cannot encode becomes `?`, a closed stream swallows all."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (it stays open)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _flush() -> None:
    """Write what printing has kept back; where nobody takes it, drop it, or Python would complain as it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end(error: LensmithError | stopping.Interrupted) -> NoReturn:
    with suppress(OSError):  # the code must come through where the line cannot
        print(credentials.redact(f"error: {shown(error, LINE)}"), file=sys.stderr)
    sys.exit(error.exit_code)


def _our_bug(error: Exception) -> LensmithError:
    """A line on an error that nothing explains; its traceback goes into a file."""
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

"""What all commands share: paths as arguments, errors as one line with an exit code, stages without a network."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from lensmith.process import bug_report, credentials, offline, stopping
from lensmith.process.errors import LINE, InputError, LensmithError, explained, shown

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
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: what is printed goes nowhere
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (it stays open)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what a stream cannot encode becomes `?`
    try:
        stopping.install()
        main()
        sys.stdout.flush()
    except (LensmithError, stopping.Interrupted) as error:
        _end(error)
    except BrokenPipeError:
        sys.exit(UNREAD)
    except Exception as error:  # noqa: BLE001 (`bug_report` keeps what it was)
        _end(explained(error) or bug_report.write(error))
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # nobody takes it: it is dropped, or Python would complain as it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end(error: LensmithError | stopping.Interrupted) -> NoReturn:
    with suppress(OSError):  # the code must come through where the line cannot
        print(credentials.redact(f"error: {shown(error, LINE)}"), file=sys.stderr)
    sys.exit(error.exit_code)

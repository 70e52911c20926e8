"""What every command of the lab shares: paths as arguments, and an error as one line with its exit code."""

import argparse
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from lensmith.process import credentials, stopping
from lensmith.process.errors import LINE, LensmithError, shown


def paths(description: str | None, *names: str) -> argparse.Namespace:
    """Parse `--name PATH` for each name, all required; dvc.yaml is where the paths are written."""
    cli = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in names:
        cli.add_argument(f"--{name}", type=Path, required=True)
    return cli.parse_args()


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; a LensmithError or a signal becomes one line on stderr and its exit code.

    Credentials never stand in what is printed.
    """
    try:
        stopping.install()
        main()
    except (LensmithError, stopping.Interrupted) as error:
        print(credentials.redact(f"error: {shown(error, LINE)}"), file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception:  # noqa: BLE001 (our own bug: Python would print it just so, but for secrets)
        print(credentials.redact(traceback.format_exc()), end="", file=sys.stderr)
        sys.exit(1)

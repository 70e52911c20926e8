"""Reads hostile bundles within bounds of memory, as a program of its own: `hostile_child.py ROOT` prints JSON.

ROOT holds model/, and bundles/<number>/ with lenses/ or published/, the latter as tuned-lens has them.
"""

import contextlib
import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import lensmith
from lensmith.cli import app
from lensmith.hub import published as hub_imported
from lensmith.judge import spot_check
from lensmith.lens import published as imported
from lensmith.lens.lens import Lens
from lensmith.process.errors import LensmithError
from lensmith.release import pretrained
from lensmith.release.pretrained import StreamedLens
from lensmith.settings.sections import ImportedParams
from lensmith.source.backbone import Backbone

LENS = "tuned_lenses/local/atlas"
EXTRA = 512 << 20  # bytes of address space beyond what is there before the first bundle is opened


def status(name: str) -> int:
    """A number of /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def readers(folder: Path, base: Backbone) -> dict[str, Callable[[], object]]:
    if (published := folder / "published").is_dir():
        settings = ImportedParams(
            format="tuned-lens", repo=None, repo_type="space", revision="main", folder=str(published)
        )
        return {"imported": lambda: imported.load(hub_imported.pin_lens(settings), base)}
    place = folder / "lenses"
    return {
        "load": lambda: lensmith.bind(lensmith.load(place), base),
        "streamed": lambda: stream(pretrained.find(place).folder),
        "streamed alone": lambda: stream(place / LENS),
        "Lens.load": lambda: Lens.load(place / LENS),
        "lensmith verify": lambda: verify(place),
        "lensmith list": lambda: command("list", place),
    }


def stream(folder: Path) -> None:
    lens = StreamedLens.open(folder)
    for layer in range(1, lens.n_layers + 1):
        lens.layer(layer)


class RefusedError(Exception):
    """A command ended with another code than 0."""

    def __init__(self, code: object, said: str) -> None:
        super().__init__(said)
        self.code = code


def verify(place: Path) -> None:
    command("verify", place)


def command(name: str, place: Path) -> None:
    """The command as it is installed, in this process."""
    said = io.StringIO()
    sys.argv = ["lensmith", name, str(place)]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            app.run()
        except SystemExit as end:
            if end.code:
                raise RefusedError(end.code, said.getvalue()) from None


def outcome(read: Callable[[], object]) -> dict[str, Any]:
    begin = time.process_time()  # of the processor: others may keep it busy
    signal.alarm(120)
    found: dict[str, Any] = {"error": None, "said": "", "code": 0}
    try:
        read()
    except LensmithError as error:
        found |= {"error": type(error).__name__, "said": str(error), "code": error.exit_code}
    except RefusedError as error:
        found |= {"error": "exit", "said": str(error), "code": error.code}
    except BaseException as error:  # noqa: BLE001 (what must not be, told to the test)
        found |= {"error": f"bug: {type(error).__name__}", "said": repr(error)[:500], "code": 1}
    finally:
        signal.alarm(0)
    return found | {"seconds": time.process_time() - begin}


def late(*_: object) -> None:
    raise TimeoutError("no answer after two minutes")


def main() -> None:
    signal.signal(signal.SIGALRM, late)
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    base = Backbone.from_model(AutoModelForCausalLM.from_pretrained(root / "model"))
    spot_check.measure(base, Lens.load(root / "good" / LENS))  # or its imports would count for the first bundle
    start, before = status("VmSize"), status("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (start + EXTRA, start + EXTRA))
    results = {}
    for folder in sorted((root / "bundles").iterdir(), key=lambda path: path.name):
        if folder.name.isdigit():
            results[folder.name] = {name: outcome(read) for name, read in readers(folder, base).items()}
    answer = {"results": results, "grown": status("VmHWM") - before}
    os.write(1, json.dumps(answer).encode())


if __name__ == "__main__":
    main()

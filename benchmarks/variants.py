"""What a variant costs once there is a bank: a first fit, then other ranks, through real `dvc exp run`.

A temporary clone of this checkout runs `dvc repro` up to one model's fit with an empty LENSMITH_HOME, then `dvc exp
run` for each rank. A stage's own time is taken around the command that DVC runs, so DVC's share is separate. Times are
wall time, which is what a user waits for; on a busy machine quote the ratio.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks import common

RANKS = (8, 16, 32, 64, 128)
LIMIT = 0.10
COLUMNS = ("run", "rank", "wall_s", "stage_wall_s", "stage_cpu_s", "dvc_s", "share_of_first")
# Goes before the command of stage `fit` in dvc.yaml, and records its time.
TIMED = """import json, resource, subprocess, sys, time
began = time.perf_counter()
code = subprocess.run(sys.argv[2:], check=False).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
spent = {"wall_s": time.perf_counter() - began, "cpu_s": used.ru_utime + used.ru_stime}
open(sys.argv[1], "w").write(json.dumps(spent))
sys.exit(code)
"""


class Clone:
    """A checkout of its own, with a clock around stage `fit`."""

    def __init__(self, root: Path, source: Path, model: str, tokens: int | None) -> None:
        self.root, self.clock = root / "clone", root / "clock.json"
        self.environment = os.environ | {
            "LENSMITH_HOME": str(root / "home"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.root / "src"),
            "OMP_NUM_THREADS": "1",
        }
        ignored = shutil.ignore_patterns(
            ".venv", ".venv-peer", ".work", ".git", "artifacts", "release", "cache", "tmp", "__pycache__"
        )
        shutil.copytree(source, self.root, ignore=ignored)
        (root / "timed.py").write_text(TIMED)
        yaml = YAML()
        pipeline = yaml.load(self.root / "dvc.yaml")
        fit = pipeline["stages"]["fit"]["do"]
        fit["cmd"] = f"exec python {root / 'timed.py'} {self.clock} {fit['cmd'].removeprefix('exec ')}"
        yaml.dump(pipeline, self.root / "dvc.yaml")
        if tokens is not None:
            params = yaml.load(self.root / "params.yaml")
            params["models"][model].setdefault("corpus", {})["train_tokens"] = tokens
            yaml.dump(params, self.root / "params.yaml")
        for path in (self.root / "dvc.lock", self.root / ".dvc" / "config.local"):
            path.unlink(missing_ok=True)
        self("git", "init", "--quiet")
        self("git", "add", "--all")
        self(
            "git",
            "-c",
            "user.name=bench",
            "-c",
            "user.email=bench@localhost",
            "commit",
            "--quiet",
            "--message",
            "clone",
        )

    def __call__(self, *words: str) -> float:
        """Wall seconds of a command, which must succeed."""
        began = time.perf_counter()
        done = subprocess.run(words, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
            )
        return time.perf_counter() - began

    def timed(self, *words: str) -> tuple[float, Mapping[str, float]]:
        """Wall seconds of a command, and what stage `fit` took of them."""
        self.clock.unlink(missing_ok=True)
        wall = self(*words)
        if not self.clock.exists():
            raise RuntimeError(f"{' '.join(words)}: stage fit did not run")
        return wall, json.loads(self.clock.read_text())


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("--model", default="atlas")
    cli.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    cli.add_argument("--tokens", type=int, help="training tokens, instead of the entry's")
    cli.add_argument("--source", type=Path, default=common.REPOSITORY, help="the checkout to clone")
    args = common.parsed(cli, arguments)
    with tempfile.TemporaryDirectory(prefix="lensmith-variants-") as folder:
        rows = measure(
            Clone(Path(folder), args.source, args.model, args.tokens),
            args.model,
            args.ranks[: 1 if args.quick else None],
        )
    text = [
        f"Limit: a variant's stage <= {LIMIT:.0%} of the first fit's, which captures the bank.",
        common.table(("run", "rank", "wall s", "stage wall s", "stage CPU s", "DVC s", "stage over first"), rows),
    ]
    common.publish(args.out, "variants", "Rank variants from one bank", text, COLUMNS, rows)


def measure(clone: Clone, model: str, ranks: Sequence[int]) -> list[list[Any]]:
    clone("dvc", "repro", f"prefetch@{model}")
    rows = [_row("first fit", "auto", *clone.timed("dvc", "repro", f"fit@{model}"))]
    first = rows[0][3]
    for rank in ranks:
        setting = f"++models.{model}.fit.rank={rank}"
        rows.append(_row("variant", rank, *clone.timed("dvc", "exp", "run", f"fit@{model}", "--set-param", setting)))
    return [[*row, row[3] / first] for row in rows]


def _row(run: str, rank: object, wall: float, stage: Mapping[str, float]) -> list[Any]:
    return [run, rank, wall, stage["wall_s"], stage["cpu_s"], wall - stage["wall_s"]]


if __name__ == "__main__":
    main()

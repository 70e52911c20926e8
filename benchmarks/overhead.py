"""What DVC itself costs a lab of many models, whatever their stages do.

Each lab has this repository's dvc.yaml and its real stage `resolve`. The other stages are stand-ins that write a few
bytes, so the time is DVC's, plus 30 ms of Python a stage. A lab is grown from one model: its lines of dvc.lock and its
files are repeated under other names, and a `dvc repro` that runs only `resolve` and `report` confirms them.

    no-op        `dvc repro` of an unchanged lab
    one change   after an edit of one model's rank: 8 stages run
    in a clone   the model's 4 heavy stages, as a node of `lensmith fleet` runs them in a lab of that model alone
                 (`lensmith fleet only`); "in a whole clone" is the same in a lab of all models
    restored     what each further model of a node adds on the head, which takes the heavy stages from the remote and
                 runs the light ones, 7 stages; the fixed cost of a `lensmith fleet restore` is not in it
    one more     after one more entry: 9 stages run
    check        `lensmith check`
    DVC's least  `dvc repro` of an unchanged lab with as many stages, each with one input, one output and one parameter
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks import common

HEAVY = ("fit", "sweep", "suite-eval")
ENDS = ("sweep", "suite-eval")
LIGHT = ("gates", "plots", "publish")
OF_A_MODEL = ("prefetch", *HEAVY, *LIGHT)
LIMITS = {"no-op": 6.0, "check": 2.0}  # seconds, of 100 models
FIRST = "m000"
ENTRY = "  {}:\n    source:\n      path: demo/atlas\n    corpus:\n      kind: atlas\n    fit:\n      rank: {}\n"
STAND_IN = """
import sys
from pathlib import Path
text = Path(sys.argv[2]).read_text() if sys.argv[1] == "--settings" else ""
for path in map(Path, sys.argv[2::2]):
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        names = () if path.suffix else ("SHA256SUMS", "fit_log.csv", "provenance.json")
        path.write_text(text) if path.suffix else path.mkdir()
        for name in names:
            (path / name).write_text(name + text)
"""


RESTORE = """
import sys
from pathlib import Path
from lensmith.fleet import head, restore
root = Path.cwd()
ran = restore.restore(root, head.tree(str(root)), sys.argv[1:], everything=False)
sys.exit(f"ran here: {ran}" if ran else 0)
"""

# As many stages for each model, each with the least that a stage can have.
LEAST = """
  {}:
    foreach: ${{models}}
    do:
      cmd: mkdir -p out/${{key}} && touch out/${{key}}/{}
      deps:
        - in
      params:
        - few.json: [x]
      outs:
        - out/${{key}}/{}
"""


@dataclass
class Lab:
    """A lab of stand-ins; `always` are the stages that run whenever a model is added."""

    root: Path
    defaults: str
    always: set[str]
    models: dict[str, int] = field(default_factory=lambda: {FIRST: 8})

    @classmethod
    def real(cls, root: Path) -> "Lab":
        """This repository's dvc.yaml."""
        defaults, _, _ = (common.REPOSITORY / "params.yaml").read_text().partition("\nmodels:\n")
        lab = cls(root, defaults, {"resolve", "report"})
        for folder in ("src", "demo", "suites", "stages"):
            shutil.copytree(common.REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for stage in (root / "stages").glob("*.py"):
            if stage.stem not in {"__init__", "resolve"}:
                stage.write_text(STAND_IN)
        for file in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(common.REPOSITORY / file, root / file)
        shutil.copytree(common.REPOSITORY / ".dvc" / "plots", root / ".dvc" / "plots")
        return lab.begun()

    @classmethod
    def least(cls, root: Path) -> "Lab":
        """As many stages, and nothing in them."""
        root.mkdir()
        (root / "in").touch()
        (root / "few.json").write_text('{"x": 1}')
        (root / "dvc.yaml").write_text("stages:" + "".join(LEAST.format(name, name, name) for name in OF_A_MODEL))
        return cls(root, "", set()).begun()

    def begun(self) -> "Lab":
        """The first model's stages have run."""
        (self.root / ".dvc").mkdir(exist_ok=True)
        shutil.copy(common.REPOSITORY / ".dvc" / "config", self.root / ".dvc" / "config")
        self.run("git", "init", "--quiet")
        self.run("dvc", "remote", "add", "--default", "store", str(self.root.with_name(f"{self.root.name}-store")))
        self.run("dvc", "remote", "modify", "store", "verify", "true")
        self.write_params()
        self.run("dvc", "repro")
        return self

    def write_params(self) -> None:
        entries = "".join(ENTRY.format(key, rank) for key, rank in self.models.items())
        (self.root / "params.yaml").write_text(f"{self.defaults}\nmodels:\n{entries}")

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=lab", "-c", "user.email=lab@example.org", "commit", "--quiet", "-m", "lab")

    def on_a_node(self, model: str, expected: set[str], *targets: str) -> float:
        """Seconds of a `dvc repro` in a committed lab's copy that is narrowed to a model, and pushes what it made."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(self.root, Path(folder) / "clone")
            copy = replace(self, root=Path(folder) / "clone")
            copy.run("lensmith", "fleet", "only", model)
            spent = copy.repro(expected, *targets)
            copy.run("dvc", "push", "--run-cache", *targets)
        return spent

    def grow(self, n_models: int) -> None:
        """To so many models, all of them up to date."""
        yaml, lock = YAML(typ="safe"), self.root / "dvc.lock"
        stages = yaml.load(lock)["stages"]
        new = [f"m{i:03}" for i in range(len(self.models), n_models)]
        for key in new:
            for name in [name for name in stages if name.endswith(f"@{FIRST}")]:
                stages[name.replace(FIRST, key)] = _renamed(stages[name], key)
            for path in list(self.root.glob(f"**/{FIRST}*")):
                copy = path.with_name(path.name.replace(FIRST, key))
                shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
        yaml.dump({"schema": "2.0", "stages": stages}, lock)
        self.models |= dict.fromkeys(new, 8)
        self.write_params()
        self.repro(self.always)

    def repro(self, expected: set[str], *targets: str) -> float:
        """Seconds of a `dvc repro`, which runs these stages and no others."""
        began = time.perf_counter()
        said = self.run("dvc", "repro", *targets)
        spent = time.perf_counter() - began
        ran = set(re.findall(r"Running stage '([^']+)'", said))
        if ran != expected:
            raise RuntimeError(f"dvc repro ran {sorted(ran)}, expected {sorted(expected)}")
        return spent

    def run(self, *command: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(self.root / "src")}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout


def _renamed(value: object, key: str) -> object:
    """A stage's entry of dvc.lock under another model's name."""
    if isinstance(value, dict):
        return {_renamed(name, key): _renamed(inner, key) for name, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, key) for inner in value]
    return value.replace(FIRST, key) if isinstance(value, str) else value


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("--models", nargs="+", type=int, default=[10, 50, 100, 200])
    cli.add_argument("--repeats", type=int, default=3)
    args = common.parsed(cli, arguments)
    if args.quick:
        args.models, args.repeats = [3], 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        lab, least = Lab.real(Path(folder) / "lab"), Lab.least(Path(folder) / "least")
        for n_models in args.models:
            lab.grow(n_models)
            least.grow(n_models)
            rows.append([n_models, *measured(lab, least, args.repeats)])
            report(args, rows)  # after each size: two hundred models take a quarter of an hour


def report(args: argparse.Namespace, rows: list[list[Any]]) -> None:
    limits = ", ".join(f"{name} <= {limit:g} s" for name, limit in LIMITS.items())
    text = [
        f"Seconds, medians of {args.repeats} for no-op, DVC's least, and check. Limits at 100 models: {limits}.",
        common.table(COLUMNS, rows),
    ]
    common.publish(args.out, "overhead", "What DVC costs a lab of many models", text, COLUMNS, rows)


COLUMNS = (
    "models",
    "no-op",
    "DVC's least",
    "one change",
    "in a whole clone",
    "in a clone",
    "restored",
    "one more",
    "check",
)


def measured(lab: Lab, least: Lab, repeats: int) -> list[float]:
    """A row of the table after its first column."""
    no_op = _median(repeats, lambda: lab.repro(set()))
    floor = _median(repeats, lambda: least.repro(set()))
    check = _median(repeats, lambda: _seconds(lambda: lab.run("lensmith", "check")))
    in_clone, restored = of_a_fleet(lab)
    last = list(lab.models)[-1]
    heavy, light = _stages(last, HEAVY), _stages(last, LIGHT)
    lab.models[last] += 1
    lab.write_params()
    in_whole = lab.repro({"resolve", *heavy}, *_stages(last, ENDS))
    lab.repro({*light, "report"})
    lab.models[last] += 1
    lab.write_params()
    change = lab.repro({*lab.always, *heavy, *light})
    more = f"m{len(lab.models):03}"
    lab.models[more] = 8
    lab.write_params()
    one_more = lab.repro({*lab.always, *_stages(more, OF_A_MODEL)})
    return [no_op, floor, change, in_whole, in_clone, restored, one_more, check]


def of_a_fleet(lab: Lab) -> tuple[float, float]:
    """Seconds of a model's heavy stages on a node, and of all its stages on the head, by the difference between some
    models and one.
    """
    edited = list(lab.models)[-6:]
    lab.models |= {model: lab.models[model] + 1 for model in edited}
    lab.write_params()
    lab.commit()
    on_node = [lab.on_a_node(model, {"resolve", *_stages(model, HEAVY)}, *_stages(model, ENDS)) for model in edited]
    one, *others = edited
    spent_on_one = _seconds(lambda: lab.run(sys.executable, "-c", RESTORE, one))
    spent_on_others = _seconds(lambda: lab.run(sys.executable, "-c", RESTORE, *others))
    lab.repro({"report"})
    return statistics.median(on_node), (spent_on_others - spent_on_one) / (len(others) - 1)


def _stages(model: str, names: Sequence[str]) -> set[str]:
    return {f"{name}@{model}" for name in names}


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _median(repeats: int, work: Callable[[], float]) -> float:
    return statistics.median(work() for _ in range(repeats))


if __name__ == "__main__":
    main()

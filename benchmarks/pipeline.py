"""CPU-seconds and peak memory of every stage of the chain on a given model and text, from an empty cache.

    python -m benchmarks.pipeline MODEL TEXT [--tree OTHER --python ITS_PYTHON] [--set fit.rank=64 …]

MODEL is a folder, TEXT a .jsonl. Each stage is its command in dvc.yaml, in a process of its own, in a lab of one entry
with the defaults of params.yaml; `--set` changes them. With `--tree`, a checkout of another commit does the same work
in the same run, stage by stage in turn, and its columns stand beside ours.

The floor is arithmetic that no order of work avoids, at the rate of a large float32 product on this machine:

    fit          the forward pass of the captured tokens, and W_U twice at each captured position for the teacher
    sweep        W_U once for each lens, layer and position of held-out text
    suite-eval   W_U once for the tuned and the norm lens at each layer of each prompt
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import common
from benchmarks.cost import product_rate

GIB, KEY = 2**30, "measured"
COLUMNS = (
    "stage", "cpu_s", "peak_gib", "wall_s", "floor_gflop", "floor_s", "other_cpu_s", "other_peak_gib",
    "other_over_ours",
)  # fmt: skip
QUICK: dict[str, dict[str, Any]] = {
    "corpus": {"seq_len": 32, "train_tokens": 512, "heldout_tokens": 512},
    "fit": {"positions_per_seq": 8, "validation_seqs": 4, "epochs": 1},
    "sweep": {"heldout_seqs": 4, "positions_per_seq": 4},
    "gates": {"bootstrap_samples": 100},
}


@dataclass(frozen=True)
class Spent:
    """What one stage took."""

    cpu: float
    wall: float
    peak: int  # bytes resident, of the stage's own process


class Lab:
    """A lab of one entry that runs the stages of a checkout."""

    def __init__(self, folder: Path, tree: Path, python: str, entry: dict[str, Any]) -> None:
        self.folder, self.tree, self.python = folder, tree, python
        folder.mkdir()
        for name in ("src", "stages", "demo", "suites", "dvc.yaml"):
            (folder / name).symlink_to(tree / name)
        yaml = YAML()
        shipped = yaml.load(tree / "params.yaml")
        shipped["models"] = {KEY: entry}
        yaml.dump(shipped, folder / "params.yaml")

    def commands(self) -> dict[str, list[str]]:
        """The words of each stage's command, in the order of dvc.yaml."""
        found = {}
        for name, stage in YAML(typ="safe").load(self.tree / "dvc.yaml")["stages"].items():
            words = shlex.split(stage.get("do", stage)["cmd"].replace("${key}", KEY))
            found[name] = [self.python, *words[words.index("python") + 1 :]]
        return found

    def run(self, name: str, command: Sequence[str]) -> Spent:
        """Run a stage. Raises RuntimeError with the end of its output where it fails."""
        paths = os.pathsep.join([str(self.tree), str(self.tree / "src")])
        environment = os.environ | {
            "PYTHONPATH": paths, "LENSMITH_HOME": str(self.folder / "home"), "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }  # fmt: skip
        log, began, peak = self.folder / f"{name}.log", time.perf_counter(), 0
        with log.open("w") as output:
            child = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=output, stderr=output)
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                peak = max(peak, _peak(child.pid))
                time.sleep(0.05)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise RuntimeError(f"{name} of {self.tree}: exit {child.returncode}\n{log.read_text()[-3000:]}")
        return Spent(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, peak)


def _peak(pid: int) -> int:
    """VmHWM of a process in bytes. Its ru_maxrss would hold that of its parent."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def floors(model: Path, settings: dict[str, dict[str, Any]], n_prompts: int) -> dict[str, float]:
    """FLOP of the floor by stage."""
    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    W_U = whole.get_output_embeddings().weight
    blocks = sum(p.numel() for p in whole.parameters() if p.dim() > 1 and p.shape != W_U.shape)
    read, L = 2 * W_U.numel(), config.num_hidden_layers
    corpus, fit, sweep = settings["corpus"], settings["fit"], settings["sweep"]
    seqs = corpus["train_tokens"] // corpus["seq_len"] + fit["validation_seqs"]
    return {
        "fit": seqs * (corpus["seq_len"] * 2 * blocks + fit["positions_per_seq"] * 2 * read),
        "sweep": (2 + len(fit["ladder"])) * L * sweep["heldout_seqs"] * sweep["positions_per_seq"] * read,
        "suite-eval": 2 * L * n_prompts * read,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    cli = common.parser(__doc__)
    cli.add_argument("model", type=Path)
    cli.add_argument("text", type=Path)
    cli.add_argument("--tree", type=Path, default=None, help="a checkout of another commit, measured beside this one")
    cli.add_argument("--python", default=sys.executable, help="the interpreter of that checkout's environment")
    cli.add_argument("--keep", type=Path, default=None, help="folder that the labs are made in, and left in")
    args = common.parsed(cli, arguments)
    entry = {section: dict(values) for section, values in QUICK.items()} if args.quick else {}
    entry.setdefault("corpus", {}).update({"kind": "files", "files": [str(args.text.resolve())]})
    entry["source"] = {"path": str(args.model.resolve())}
    for name, value in common.settings_of(args.set).items():
        section, _, key = name.partition(".")
        entry.setdefault(section, {})[key] = value
    shipped = YAML(typ="safe").load(common.REPOSITORY / "params.yaml")["defaults"]
    settings = {section: {**shipped[section], **entry.get(section, {})} for section in shipped}
    n_prompts = sum(len((common.REPOSITORY / name).read_text().splitlines()) for name in settings["suite"]["files"])

    folder = args.keep or Path(tempfile.mkdtemp(prefix="pipeline-"))
    folder.mkdir(parents=True, exist_ok=True)
    labs = [Lab(folder / "ours", common.REPOSITORY, sys.executable, entry)]
    if args.tree is not None:
        labs.append(Lab(folder / "other", args.tree.resolve(), args.python, entry))
    floor, rate, rows = floors(args.model, settings, n_prompts), product_rate(), []
    commands = [lab.commands() for lab in labs]
    for name in commands[0]:
        spent = [lab.run(name, of_lab[name]) for lab, of_lab in zip(labs, commands, strict=True) if name in of_lab]
        rows.append(row(name, spent, floor.get(name), rate))
        print(common.table(COLUMNS, rows[-1:]), flush=True)
    totals = [sum(r[i] for r in rows if r[i] is not None) for i in (1, 3, 6)]
    ratio = totals[2] / totals[0] if args.tree is not None else None
    rows.append(["chain", totals[0], max(r[2] for r in rows), totals[1], None, None, totals[2] or None, None, ratio])
    note = "CPU-seconds of one thread. `other`: the checkout of --tree, in the same run."
    text = [note, common.table(COLUMNS, rows)]
    common.publish(args.out, "pipeline", "What each stage costs on a model", text, COLUMNS, rows)
    if args.keep is None:
        shutil.rmtree(folder)


def row(name: str, spent: Sequence[Spent], flop: float | None, rate: float) -> list[Any]:
    """A line of the table: ours first, then the other checkout's where there is one."""
    ours, other = spent[0], spent[1] if len(spent) > 1 else None
    return [
        name, ours.cpu, ours.peak / GIB, ours.wall,
        None if flop is None else flop / 1e9, None if flop is None else flop / rate,
        *((None, None, None) if other is None else (other.cpu, other.peak / GIB, other.cpu / ours.cpu)),
    ]  # fmt: skip


if __name__ == "__main__":
    main()

"""A whole lab in a temporary folder: this tree's code and dvc.yaml, two tiny models, and real `dvc repro`."""

import compileall
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from lensmith.lab import registry
from tests.support.tiny import save_tiny

REPOSITORY = Path(__file__).parents[2]
SENTENCES = ("The river of the north runs to the sea.", "He said that the answer is 7.", "The king went to the market.")

MODEL = {
    "source": {"path": "demo/tiny"},
    "corpus": {
        "kind": "files",
        "files": ["demo/text.jsonl"],
        "seq_len": 32,
        "train_tokens": 512,
        "heldout_tokens": 512,
    },
    "fit": {"rank": 4, "positions_per_seq": 8, "epochs": 2, "batch_seqs": 8, "validation_seqs": 4},
    "sweep": {"heldout_seqs": 8, "positions_per_seq": 8, "probes": ["suites/probes.jsonl"]},
    "suite": {"files": ["suites/suite.jsonl"]},
    "gates": {"min_prompts": 12},
}


@dataclass(frozen=True)
class Lab:
    """A repository that a user could have."""

    root: Path
    said: list[str] = field(default_factory=list)  # stdout and stderr of every command

    @classmethod
    def make(cls, root: Path, models: dict[str, Any] | None = None) -> "Lab":
        """A lab of these models, each an entry of params.yaml; by default two that differ in their epochs."""
        for folder in ("src", "stages", ".dvc"):
            ignored = shutil.ignore_patterns("__pycache__", "cache", "tmp")
            shutil.copytree(REPOSITORY / folder, root / folder, ignore=ignored)
        compileall.compile_dir(root / "src", quiet=1)  # once, since the lab's processes write no bytecode
        for file in ("dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(REPOSITORY / file, root / file)
        save_tiny(root / "demo" / "tiny", n_layers=3)
        documents = [{"text": f"{SENTENCES[i % 3]} It was day {i}."} for i in range(200)]
        (root / "demo" / "text.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
        (root / "suites").mkdir()
        (root / "suites" / "suite.jsonl").write_text("".join(json.dumps(_prompt(i)) + "\n" for i in range(24)))
        (root / "suites" / "probes.jsonl").write_text(json.dumps(_probe()) + "\n")
        lab = cls(root)
        models = models or {"one": {}, "two": {"fit": {"epochs": 1}}}
        lab.write_params(models)
        for key in models:
            registry.write(root, key)
        lab.run("git", "init", "--quiet")
        lab.commit("a lab")
        return lab

    def write_params(self, models: dict[str, Any]) -> None:
        data = YAML(typ="safe").load(REPOSITORY / "params.yaml")
        for section, values in MODEL.items():
            data["defaults"][section].update(values)
        data["models"] = models
        self._dump(data)

    def edit(self, dotted: str, value: object) -> None:
        """Set one value of params.yaml; None removes the key."""
        data = YAML(typ="safe").load(self.root / "params.yaml")
        *path, last = dotted.split(".")
        place = data
        for name in path:
            place = place.setdefault(name, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
        self._dump(data)

    def replace(self, file: str, old: str, new: str) -> None:
        path = self.root / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} holds {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new))

    def repro(self, *flags: str) -> tuple[set[str], set[str]]:
        """`dvc repro`: the stages that ran, and the stages that were restored from the cache."""
        done = self.run("dvc", "repro", *flags)
        ran = set(re.findall(r"Running stage '([^']+)'", done))
        restored = set(re.findall(r"Stage '([^']+)' is cached - skipping run", done))
        return ran, restored

    def run_here(self, stage: str, key: str, **paths: str) -> None:
        """A stage of a model as dvc.yaml has it, in this process: another one would import torch anew.

        Args:
            paths: options and where they lead instead.
        """
        command = YAML(typ="safe").load(REPOSITORY / "dvc.yaml")["stages"][stage]["do"]["cmd"].replace("${key}", key)
        module, *words = command.removeprefix("exec python -m ").split()
        for name, path in paths.items():
            words[words.index(f"--{name}") + 1] = path
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as a process of the lab has: their number changes the last bits
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.root)
            patch.setenv("LENSMITH_HOME", str(self.root / ".lensmith"))
            patch.setattr(sys, "argv", [module, *words])
            importlib.import_module(module).main()
        torch.set_num_threads(threads)

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--message", message)

    def run(self, *command: str) -> str:
        """A command in the lab, as a user types it; its output. Fails on an exit code other than 0."""
        done = self.attempt(*command)
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def attempt(self, *command: str) -> "subprocess.CompletedProcess[str]":
        environment = self.environment()
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        self.said.append(done.stdout + done.stderr)
        return done

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            # The lab's own code runs, where it has some; else the code under test.
            "PYTHONPATH": f"{self.root / 'src'}{os.pathsep}{REPOSITORY / 'src'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "LENSMITH_HOME": str(self.root / ".lensmith"),
            "HF_HUB_OFFLINE": "1",
        }

    def _dump(self, data: object) -> None:
        yaml = YAML()
        yaml.default_flow_style = False
        yaml.dump(data, self.root / "params.yaml")


def _prompt(i: int) -> dict[str, str]:
    answer = ("sea", "king")[i % 2]
    prompt = f"It was day {i} and they went to the"
    return {"id": f"p-{i:02d}", "domain": "days", "template": f"t{i % 4}", "prompt": prompt, "answer": answer}


def _probe() -> dict[str, Any]:
    control = {"prompt": "The king went to the", "answer": "market"}
    return {"id": "river", "prompt": "The river of the north runs to the", "answer": "sea", "control": control}

"""A lab whose stages take no time: the names, wires and remote of the real one, its params.yaml, and no torch."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lensmith.fleet import head, restore
from tests.support.settings import REPOSITORY

HEAVY = {
    "prefetch": ("resolved/models/{}.json", "artifacts/{}/corpus"),
    "fit": ("artifacts/{}/corpus", "artifacts/{}/lens"),
    "sweep": ("artifacts/{}/lens", "artifacts/{}/sweep"),
    "suite-eval": ("artifacts/{}/lens", "artifacts/{}/suite"),
}

# Copies what it reads into what it writes, tells a file outside of the lab, and ends as it is asked to.
STAGE = """
import os, sys
from pathlib import Path
name, *read, out = sys.argv[1:]
with open(os.environ["TOLD"], "a") as told:
    told.write(f"{name} {Path.cwd()}\\n")
if os.environ.get("FAILS") == name:
    print("error: it is broken", file=sys.stderr)
    sys.exit(int(os.environ["CODE"]))
text = "".join(p.read_text() for f in read for p in ([Path(f)] if Path(f).is_file() else sorted(Path(f).iterdir())))
target = Path(out) if "." in out else Path(out) / "rows.txt"
target.parent.mkdir(parents=True, exist_ok=True)
target.write_text(f"{name} of {text}")
if name.startswith("prefetch"):
    (target.parent / "manifest.json").write_text(Path("manifest.json").read_text())
"""
RESOLVE = """
import json
from pathlib import Path
from ruamel.yaml import YAML
for key, entry in YAML(typ="safe").load(Path("params.yaml"))["models"].items():
    Path("resolved/models").mkdir(parents=True, exist_ok=True)
    Path(f"resolved/models/{key}.json").write_text(json.dumps(entry))
"""


@dataclass(frozen=True)
class FleetLab:
    """A head's checkout, and the remote that it shares with nodes."""

    root: Path

    @classmethod
    def make(cls, folder: Path, **models: int) -> "FleetLab":
        """A lab of these models, each with a seed."""
        lab = cls(folder / "head")
        lab.root.mkdir()
        (lab.root / "stage.py").write_text(STAGE)
        (lab.root / "resolve.py").write_text(RESOLVE)
        (lab.root / "dvc.yaml").write_text(_pipeline())
        (lab.root / "weights").mkdir()
        (lab.root / "weights" / "config.json").write_text("{}")
        (lab.root / "manifest.json").write_text(json.dumps(_manifest()))
        lab.seed(**models)
        (lab.root / ".gitignore").write_text("/artifacts/\n/release/\n.lensmith/\n")
        lab.run("git", "init", "--quiet")
        (lab.root / ".dvc").mkdir()  # all that `dvc init` makes and a test needs
        (lab.root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
        lab.use_remote(str(folder / "store"))
        lab.commit()
        return lab

    def use_remote(self, url: str) -> None:
        """What `dvc remote add --default` writes."""
        core, remote = "[core]\n    analytics = false\n    remote = store\n", "['remote \"store\"']\n"
        (self.root / ".dvc" / "config").write_text(f"{core}{remote}    url = {url}\n    verify = true\n")

    def seed(self, **models: int) -> None:
        entries = "".join(
            f"  {model}:\n    source:\n      path: weights\n    fit:\n      seed: {seed}\n"
            for model, seed in models.items()
        )
        defaults, _, _ = (REPOSITORY / "params.yaml").read_text().partition("\nmodels:\n")
        (self.root / "params.yaml").write_text(f"{defaults}\nmodels:\n{entries}")

    def commit(self) -> str:
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--message", "a lab")
        return self.run("git", "rev-parse", "HEAD").strip()

    def restored(self, *models: str) -> list[str]:
        """What of the heavy stages ran here, while the head took over what nodes made."""
        return restore.restore(self.root, head.lab_commit(str(self.root)), models, everything=False)

    def run(self, *command: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def _manifest() -> dict[str, object]:
    """Of a corpus that belongs to the lab's model."""
    none = dict.fromkeys(("repo", "name", "split", "revision", "commit"))
    files = {"config.json": hashlib.sha256(b"{}").hexdigest()}
    tokenizer = {"bos_policy": "never", "adds_bos": False, "class": "T", "vocab_size": 1, "behaviour_sha256": ""}
    part = {"documents": 1, "tokens": 1, "sequences": 1, "files": []}
    about = {
        "schema": 1,
        "kind": "files",
        "seq_len": 1,
        "seed": 0,
        "skipped": {},
        "cut_documents": 0,
        "content_hash": "",
    }
    model = {"repo": None, "path": "weights", "commit": None, "files": files}
    hashes = {"tokens_sha256": "", "heldout_sha256": ""}
    return none | about | hashes | {"model": model, "tokenizer": tokenizer, "train": part, "heldout": part}


def _pipeline() -> str:
    stages = [
        "stages:\n  resolve:\n    cmd: python resolve.py\n    params: [models]\n    outs: [resolved: {cache: false}]\n"
    ]
    for name, (read, out) in HEAVY.items():
        stages.append(_stage(name, [read.format("${key}")], out.format("${key}"), "outs", "true"))
    rows = ["artifacts/${key}/sweep", "artifacts/${key}/suite"]
    stages.append(_stage("gates", rows, "metrics/${key}.json", "metrics", "false"))
    stages.append(_stage("publish", ["artifacts/${key}/lens", "metrics/${key}.json"], "release/${key}", "outs", "true"))
    return "".join(stages)


def _stage(name: str, read: list[str], out: str, kind: str, cache: str) -> str:
    cmd = " ".join(["python stage.py", f"{name}@${{key}}", *read, out])
    lines = [f"  {name}:", "    foreach: ${models}", "    do:", f"      cmd: {cmd}", "      deps:"]
    lines += [f"        - {path}" for path in read] + [
        f"      {kind}:",
        f"        - {out}:",
        f"            cache: {cache}",
    ]
    return "\n".join(lines) + "\n"

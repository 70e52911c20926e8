"""A lab in small for what DVC does with files: two models, stages that take no time, the seals of the real ones.

Its lens is a folder of exactly two files: what a broken download of two objects does is one of the things to test.
"""

import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lensmith.lab.dvc_cache import DvcCache
from tests.support.lab import REPOSITORY, Lab

DVC_YAML = """
stages:
  fit:
    foreach: ${models}
    do:
      cmd: python fit.py ${key}
      params: ['models.${key}']
      deps: [fit.py]
      outs: ['artifacts/${key}/lens']
  gates:
    foreach: ${models}
    do:
      cmd: python gates.py ${key}
      deps: [gates.py, 'artifacts/${key}/lens']
      metrics:
        - 'metrics/${key}.json':
            cache: false
"""
FIT = """
import sys
from pathlib import Path
from ruamel.yaml import YAML
from lensmith.process import command
from lensmith.files import seals

def main():
    rank = YAML(typ="safe").load(Path("params.yaml"))["models"][sys.argv[1]]["rank"]
    lens = Path("artifacts", sys.argv[1], "lens")
    lens.mkdir(parents=True, exist_ok=True)
    (lens / "weights.safetensors").write_bytes(bytes(range(256)) * 100 * rank)
    seals.seal(lens)

command.run(main)
"""
GATES = """
import sys
from pathlib import Path
from lensmith.process import command
from lensmith.files import artifacts, seals

def main():
    lens = Path("artifacts", sys.argv[1], "lens")
    seals.check(lens)
    size = (lens / "weights.safetensors").stat().st_size
    artifacts.write_json(Path("metrics", sys.argv[1] + ".json"), {"bytes": size})

command.run(main)
"""


def make(root: Path) -> Lab:
    """A lab whose two lenses are fit and committed."""
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    analytics = false\n    check_update = false\n")
    (root / ".gitignore").write_text(
        "artifacts/\n.lensmith/\n__pycache__/\n/.dvc/cache\n/.dvc/tmp\n/.dvc/config.local\n"
    )
    for name, text in {"dvc.yaml": DVC_YAML, "fit.py": FIT, "gates.py": GATES}.items():
        (root / name).write_text(text)
    (root / "params.yaml").write_text("models:\n  one:\n    rank: 1\n  two:\n    rank: 2\n")
    lab = Lab(root)
    lab.run("git", "init", "--quiet")
    lab.repro()
    lab.commit("fit")
    return lab


def clone(lab: Lab, to: Path) -> Lab:
    """A fresh clone: no cache, no outputs."""
    lab.run("git", "clone", "--quiet", ".", str(to))
    return Lab(to)


def copy(lab: Lab, to: Path) -> Lab:
    """The lab as it is, elsewhere."""
    shutil.copytree(lab.root, to, symlinks=True)
    return Lab(to)


def kept(lab: Lab, path: Path) -> Path:
    """The object of the cache that is a file of the workspace."""
    cache = DvcCache.open(lab.root)
    return next(cache.object(oid) for oid, use in cache.uses.items() if use.path == lab.root / path)


def flip(path: Path) -> None:
    """One bit of a file in its middle; its size, its mode and its time stay."""
    before = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@dataclass(frozen=True)
class S3:
    """A running S3 with an empty bucket."""

    url: str
    switch: Path  # a file; while it is there, downloads break

    def remote(self, lab: Lab, folder: str) -> None:
        """The commands of docs/many-machines.md, as printed but for the bucket and the endpoint."""
        page = (REPOSITORY / "docs" / "many-machines.md").read_text()
        commands = re.findall(r"dvc remote (?:add|modify)[^\n`]+", page)
        assert len(commands) == 3, commands
        for line in commands:
            place = line.replace("s3://my-bucket/lenses", f"s3://lenses/{folder}")
            lab.run(*place.replace("https://host:9000", self.url).split())


@contextmanager
def s3(folder: Path) -> Iterator[S3]:
    switch = folder / "break"
    command = [sys.executable, Path(__file__).with_name("s3_server.py"), switch]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            urllib.request.urlopen(urllib.request.Request(f"{url}/lenses", method="PUT")).close()
            yield S3(url, switch)
        finally:
            process.kill()

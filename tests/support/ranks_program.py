"""Loads a model over several processes and in one; a program of its own, since a process has one such model.

python -m tests.support.ranks_program <folder>  prints {"resid": largest difference over largest value, "logits": …}
python -m tests.support.ranks_program <folder> release  prints the bytes that each process gives back on a release
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from lensmith.hub.models import pin_model
from lensmith.process import environment
from lensmith.source import ranks
from lensmith.source.backbone import Backbone
from tests.support.settings import atlas

LARGE = 20 * 2**20


def load(folder: Path, placement: str) -> Backbone:
    settings = atlas(source={"path": str(folder), "placement": placement}).source
    return Backbone.load(settings, pin_model(settings))


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def main() -> None:
    torch.set_num_threads(1)
    os.environ[environment.RANKS] = "2"
    if sys.argv[2:] == ["release"]:
        print(json.dumps(freed(load(Path(sys.argv[1]), "tp"))), flush=True)
        return
    tokens, positions = torch.arange(40).view(2, 20) % 97, torch.arange(20).expand(2, 20)
    one, many = (load(Path(sys.argv[1]), placement) for placement in ("single", "tp"))
    assert ranks.size() == 2
    found = {
        "resid": off(many.capture(tokens, positions), one.capture(tokens, positions)),
        "logits": off(many.logits(tokens), one.logits(tokens)),
        "head": many.head.fingerprint() == one.head.fingerprint(),
    }
    print(json.dumps(found), flush=True)
    # A pass that breaks off on rank 0 leaves the other one waiting amid it: this process is to end all the same.
    many.anatomy.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with suppress(ZeroDivisionError):
        many.capture(tokens, positions)


def freed(backbone: Backbone) -> list[int]:
    """Bytes that each process gave back within ten seconds of a release."""
    processes = [psutil.Process(), *psutil.Process().children()]
    before = [process.memory_info().rss for process in processes]
    backbone.release()
    end = time.monotonic() + 10
    while True:
        found = [b - process.memory_info().rss for b, process in zip(before, processes, strict=True)]
        if time.monotonic() > end or min(found) > LARGE:
            return found
        time.sleep(0.1)


if __name__ == "__main__":
    main()

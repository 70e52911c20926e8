"""Stages run the code of the tree that they lie in: `dvc exp run` gives each experiment a copy of it.

Without the first line an experiment would run the installed package, which is the original and may be edited meanwhile.
The second one comes before any library is imported: a stage has no network and no credentials, unless it is there to
ask somebody.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from lensmith.process import offline

ONLINE = ("prefetch", "publish")

# `-m` stands there while `python -m stages.fit` looks for its module; a stage that is only imported denies nothing.
if sys.argv[0] == "-m" and not {f"stages.{name}" for name in ONLINE} & set(sys.orig_argv):
    offline.enter()

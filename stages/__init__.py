"""Stages run the code of the tree that they lie in: `dvc exp run` gives each experiment a copy of it.

Without this line an experiment would run the installed package, which is the original and may be edited meanwhile.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

"""What ruff must not let through in any code that is shipped: everything that turns data into a running program."""

import re
import subprocess
import sys

import pytest

from tests.support.settings import REPOSITORY

LINES = {
    "import pickle": "TID251",
    "import dill": "TID251",
    "import yaml": "TID251",
    "import torch\n\ntorch.load('x')": "TID251",
    "import os\n\nos.system('x')": "TID251",
    "import subprocess\n\nsubprocess.run('x', shell=True)": "S602",
    "eval('1')": "S307",
    "exec('1')": "S102",
}


@pytest.mark.parametrize("folder", ["src/lensmith/files", "stages", "benchmarks", "demo"])
def test_what_runs_data_is_refused_in_every_folder(folder):
    """No folder's exceptions switch one of these rules off."""
    code = "\n".join(LINES)
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename"]
    done = subprocess.run(
        [*command, f"{folder}/new.py", "-"], input=code, capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    found = re.findall(r"new\.py:\d+:\d+: (\w+)", done.stdout)

    for rule in set(LINES.values()):
        assert found.count(rule) >= list(LINES.values()).count(rule), (rule, done.stdout, done.stderr)

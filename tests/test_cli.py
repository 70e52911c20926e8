"""The command `lensmith`, as a user runs it."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
RUN = "import sys; from lensmith import cli; sys.argv[0] = 'lensmith'; cli.run()"


def lensmith(*words: str, cwd: Path = REPOSITORY) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-X", "importtime", "-c", RUN, *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_check_reads_every_setting_and_file_without_torch():
    """It must answer at once: torch alone takes three seconds to import."""
    done = lensmith("check")

    assert done.returncode == 0
    assert "2 models, every setting and every file is valid: atlas, atlas-plan" in done.stdout
    assert not any(line.endswith((" torch", " transformers")) for line in done.stderr.splitlines())


def test_check_names_what_is_wrong_and_exits_with_2(tmp_path):
    """One line on stderr, with the nearest name."""
    file = tmp_path / "params.yaml"
    file.write_text((REPOSITORY / "params.yaml").read_text().replace("position_max: 1.0", "position_mox: 1.0"))
    done = lensmith("check", str(file))

    errors = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert len(errors) == 1 and "defaults.fit.position_mox is not a setting; did you mean position_max?" in errors[0]


def test_report_without_metrics_says_how_to_get_them(tmp_path):
    """A fresh clone has none of its own models judged."""
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    done = lensmith("report", cwd=tmp_path)

    assert done.returncode == 2
    assert "error: metrics: holds no metrics yet. `dvc repro` writes them." in done.stderr

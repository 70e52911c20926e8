"""The command `lensmith`, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

from released import save_release

REPOSITORY = Path(__file__).parents[1]
RUN = "import sys; from lensmith import cli; sys.argv[0] = 'lensmith'; cli.run()"


def lensmith(*words: str, cwd: Path = REPOSITORY) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-X", "importtime", "-c", RUN, *words]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


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


def test_add_writes_an_entry_and_says_so(tmp_path):
    """Without a network, from the catalogue."""
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    done = lensmith("add", "openai-community/gpt2", cwd=tmp_path)

    assert done.returncode == 0
    assert "  gpt2:\n    source:\n      repo: openai-community/gpt2\n" in done.stdout
    assert done.stdout.endswith("params.yaml: entry added. `dvc repro` fits its lens.\n")
    assert "gpt2:" in (tmp_path / "params.yaml").read_text()


def test_publish_shows_only(tmp_path):
    """DVC publishes; a second way would leave DVC with an out that it does not know."""
    plain, dry, unknown = (lensmith("publish", *words) for words in (["atlas"], ["atlas", "--dry-run"], ["atlantis"]))

    assert (plain.returncode, dry.returncode, unknown.returncode) == (2, 2, 2)
    assert "`dvc repro publish@atlas` publishes; --dry-run shows" in plain.stderr
    assert "models.atlas.publish.repo is not set, so nothing would be sent" in dry.stderr
    assert "no model atlantis; there is atlas, atlas-plan" in unknown.stderr


def test_list_and_verify_read_a_folder(tmp_path):
    """And say what is wrong with one that is no release, in one line."""
    release, _, _ = save_release(tmp_path)
    listed, verified = lensmith("list", str(release)), lensmith("verify", str(release))
    wrong = lensmith("verify", str(tmp_path))

    assert (listed.returncode, verified.returncode) == (0, 0)
    assert "local/atlas" in listed.stdout and "not sent" in listed.stdout
    assert verified.stdout.startswith("local/atlas: verified. KL saved at the median +")
    assert wrong.returncode == 2 and "no INDEX.json, so this is no release of lenses" in wrong.stderr

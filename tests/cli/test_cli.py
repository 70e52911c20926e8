"""The command `lensmith`, as a user runs it."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lensmith.cli import app, check, lenses, releases
from lensmith.fleet import work
from lensmith.process.errors import InputError
from tests.support.released import save_release
from tests.support.scores import passing, with_intermediates

REPOSITORY = Path(__file__).parents[2]
RUN = "import sys; from lensmith.cli import app; sys.argv[0] = 'lensmith'; app.run()"


def lensmith(*words: str, cwd: Path = REPOSITORY) -> "subprocess.CompletedProcess[str]":
    """The command in this process: another one would import everything anew."""
    out, error, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["lensmith", *words])
        try:
            app.run()
        except SystemExit as ended:
            code = ended.code
    return subprocess.CompletedProcess(words, code, out.getvalue(), error.getvalue())


def started(*words: str, cwd: Path = REPOSITORY) -> "subprocess.CompletedProcess[str]":
    """The command as a process of its own, offline; what it imports is on stderr too."""
    command = [sys.executable, "-X", "importtime", "-c", RUN, *words]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def imports_torch(done: "subprocess.CompletedProcess[str]") -> bool:
    return any(line.endswith((" torch", " transformers")) for line in done.stderr.splitlines())


def test_check_reads_every_setting_and_file_without_torch():
    """It must answer at once: torch alone takes three seconds to import."""
    done = started("check")

    assert done.returncode == 0
    assert "3 models, every setting and every file is valid: atlas, atlas-reference, atlas-jacobian" in done.stdout
    assert not imports_torch(done)


def test_check_names_what_is_wrong_and_exits_with_2(tmp_path):
    """One line on stderr, with the nearest name."""
    file = tmp_path / "params.yaml"
    file.write_text((REPOSITORY / "params.yaml").read_text().replace("position_max: 1.0", "position_mox: 1.0"))
    done = lensmith("check", str(file))

    errors = done.stderr.splitlines()
    assert done.returncode == 2
    assert len(errors) == 1 and "defaults.fit.position_mox is not a setting; did you mean position_max?" in errors[0]


def test_check_says_which_files_a_queued_experiment_lacks(tmp_path, monkeypatch, capsys):
    """Files that git does not track. An absolute name, or one behind a link that git tracks, needs no copy."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    for name in ("suites/atlas.jsonl", "suites/atlas-probes.jsonl", "demo/atlas/LICENSE", "ignored/config.json"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text((REPOSITORY / name.replace("ignored", "demo/atlas")).read_text())
    Path("linked").symlink_to(tmp_path / "ignored")
    settings = (REPOSITORY / "params.yaml").read_text()
    Path(".gitignore").write_text("ignored/\n")
    for path, others in (("ignored", 1), (str(tmp_path / "ignored"), 0), ("linked", 0)):
        Path("params.yaml").write_text(settings.replace("path: demo/atlas", f"path: {path}"))
        subprocess.run(["git", "add", "--all"], check=True)
        check.check()
        said = capsys.readouterr().out

        assert said.endswith(
            "3 models, every setting and every file is valid: atlas, atlas-reference, atlas-jacobian\n"
        )
        line = f"models.atlas.source names {path}/config.json, which git does not track, and 2 more like it: a queued"
        assert (line in said, said.count("\n") - 1) == (bool(others), others)


def test_check_says_how_many_documents_a_text_has(tmp_path, monkeypatch, capsys):
    """What a document of a .txt is, is easily mistaken; a large text is counted to a limit, and its form checked."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    shutil.copytree(REPOSITORY / "suites", "suites")
    shutil.copytree(REPOSITORY / "demo/atlas", "demo/atlas")
    Path("data/a.txt").write_text("one\ntwo\n\nthree\n")
    Path("data/b.txt").write_text("four\n")
    settings = (REPOSITORY / "params.yaml").read_text()
    form = "kind: files\n      files:\n      - data/*.txt\n      sample_by: {}\n      train_tokens: 98304"
    for sample_by, most, said in (
        ("line", 10, "4 documents"),
        ("paragraph", 10, "3 documents"),
        ("document", 10, "2 documents"),
        ("line", 3, "at least 3 documents"),
    ):
        monkeypatch.setattr(check, "ENOUGH", most)
        text = settings.replace("kind: atlas\n      train_tokens: 98304", form.format(sample_by), 1)
        Path("params.yaml").write_text(text)
        check.check()
        assert f"params.yaml: corpus.files (data/*.txt): {said}\n" in capsys.readouterr().out
    Path("data/b.txt").write_bytes(b"caf\xe9")
    monkeypatch.setattr(check, "ENOUGH", 10)
    with pytest.raises(InputError, match=r"data/b\.txt: is not UTF-8"):
        check.check()
    for name in ("a", "b"):
        Path("data", f"{name}.txt").write_text("\n")
    with pytest.raises(InputError, match=r"corpus\.files \(data/\*\.txt\): no document; is corpus\.text_column 'text'"):
        check.check()


def test_report_of_a_lab_without_judgements_says_how_to_get_them(tmp_path):
    """A fresh clone has none of its own models judged."""
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    done = lensmith("report", cwd=tmp_path)

    assert done.returncode == 2
    assert "error: plots/judgement: holds no judgement yet. `dvc repro` writes them." in done.stderr


def test_lenses_of_entries_are_compared(tmp_path, monkeypatch, capsys):
    """A row for each lens; the norm lens that two entries share stands once. JSON has every number and its interval."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    for key, judged in (("atlas", passing()), ("atlas-jacobian", with_intermediates())):
        judged.write(tmp_path / f"plots/judgement/{key}.json")
    lenses.compare_lenses(["atlas", "atlas-jacobian"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("atlas")]

    assert [row[:3] for row in rows] == [
        ["atlas", "norm", "lens"], ["atlas", "tuned", "lens"], ["atlas-jacobian", "norm", "lens"],
        ["atlas-jacobian", "full-rank", "lens"], ["atlas-jacobian", "Jacobian", "lens"],
    ]  # fmt: skip
    assert rows[0][3:] == ["4.00", "4.00", "4.00", "3.50", *["n/a"] * 6]
    held = "51 (38 to 64) 55 (43 to 68) 60 (48 to 72) 6 (3 to 9) 50 (38 to 62)"
    assert " ".join(rows[4][3:]) == f"4.00 4.00 4.00 3.50 {held} 0.50 (0.38 to 0.62)"

    lenses.compare_lenses(["atlas-jacobian"], as_json=True)
    alone = json.loads(capsys.readouterr().out)
    assert [row["lens"] for row in alone] == ["norm lens", "full-rank lens", "Jacobian lens"]
    assert alone[2]["numbers"]["answered_within_10"] == {"value": 0.6, "lo": 0.475, "hi": 0.725, "units": 40}
    with pytest.raises(InputError, match=r"no model atlantis; there is atlas, .*\. Nothing was compared"):
        lenses.compare_lenses(["atlas", "atlantis"])


def test_add_writes_an_entry_and_says_so(tmp_path):
    """For a folder. A model of the Hub needs the Hub: offline it ends with 5."""
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text("{}")
    done, offline = lensmith("add", "tiny", cwd=tmp_path), started("add", "openai-community/gpt2", cwd=tmp_path)

    assert done.returncode == 0
    assert "  tiny:\n    source:\n      path: tiny\n" in done.stdout
    assert done.stdout.endswith("params.yaml: entry added. `dvc repro` fits its lens.\n")
    assert "tiny:" in (tmp_path / "params.yaml").read_text()
    assert offline.returncode == 5 and "HF_HUB_OFFLINE is set" in offline.stderr


def test_publish_refuses_a_model_without_a_target(tmp_path):
    """Nothing runs and nothing is sent; a dry run reads the package, so that there must be one."""
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    words = (["atlas"], ["atlas", "--dry-run"], ["atlantis"])
    plain, dry, unknown = (lensmith("publish", *each, cwd=tmp_path) for each in words)

    assert (plain.returncode, dry.returncode, unknown.returncode) == (2, 2, 2)
    assert "models.atlas.publish.repo is not set, so nothing would be sent" in plain.stderr
    assert "no INDEX.json" in dry.stderr
    assert "no model atlantis; there is atlas, atlas-reference, atlas-jacobian. Nothing was sent." in unknown.stderr


@pytest.mark.parametrize(("code", "text"), [(0, "org/lenses@v2026.11.29, commit abc"), (3, ""), (255, "")])
def test_publish_runs_the_stage_and_returns_its_exit_code(tmp_path, monkeypatch, capsys, code, text):
    """DVC's own code, 255, means that no stage failed and DVC refused its input: 2."""
    monkeypatch.chdir(tmp_path)
    settings = (REPOSITORY / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(settings.replace("repo:\n    tag:", "repo: org/lenses\n    tag:"))
    (tmp_path / "release/atlas").mkdir(parents=True)
    receipt = {"repo": "org/lenses", "tag": "v2026.11.29", "commit": "abc"}
    (tmp_path / "release/atlas/receipt.json").write_text(json.dumps(receipt))
    commands = []
    monkeypatch.setattr(work, "execute", lambda command, *_: commands.append(command) or work.Outcome(code, "why"))

    with pytest.raises(SystemExit) if code else nullcontext() as ended:
        releases.publish("atlas", dry_run=False)
    assert commands == [("dvc", "repro", "publish@atlas")]
    assert text in capsys.readouterr().out
    assert not code or ended.value.code == {3: 3, 255: 2}[code]


def test_verify_of_a_lab_without_lenses_says_how_to_get_them(tmp_path):
    """A word without a slash is a model of params.yaml; a folder of that name is `./atlas`."""
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    whole = started("verify", cwd=tmp_path)
    one, unknown = (lensmith("verify", key, cwd=tmp_path) for key in ("atlas", "atlantis"))

    assert (whole.returncode, one.returncode, unknown.returncode) == (2, 2, 2)
    assert "error: artifacts: holds no lens yet. `dvc repro` fits it" in whole.stderr
    assert "error: artifacts/atlas: holds no lens yet" in one.stderr
    assert "no model atlantis; there is atlas, atlas-reference, atlas-jacobian" in unknown.stderr
    assert not imports_torch(whole)


def test_list_and_verify_read_a_folder(tmp_path):
    """And say what is wrong with one that is no release, in one line."""
    release, _, _ = save_release(tmp_path)
    listed, verified = lensmith("list", str(release)), lensmith("verify", str(release))
    wrong = lensmith("verify", str(tmp_path))

    assert (listed.returncode, verified.returncode) == (0, 0)
    assert "local/atlas" in listed.stdout and "not sent" in listed.stdout
    assert verified.stdout.startswith("local/atlas: verified: every hash")
    assert wrong.returncode == 2 and "no INDEX.json, so this is no release of lenses" in wrong.stderr


def test_cache_lists_what_a_bank_holds_and_prunes_the_oldest(tmp_path, monkeypatch):
    """A bank's name is a hash: only its shapes and the machine say what it is of."""
    monkeypatch.setenv("LENSMITH_HOME", str(tmp_path))
    for age, name in enumerate(("young", "old")):
        save_bank(tmp_path / "bank" / name, n_seqs=3 + age, used=10**9 - 1000 * age)
    (tmp_path / "bank" / "empty").mkdir()
    os.utime(tmp_path / "bank" / "empty", (1, 1))
    monkeypatch.setenv("COLUMNS", "240")
    listed = started("cache", "ls")

    lines = [line for line in listed.stdout.splitlines() if "shards" in line or "positions" in line]
    assert [line.split()[:2] for line in lines] == [["bank", "young"], ["bank", "old"], ["bank", "empty"]]
    assert "4 positions of each of 3 sequences, 2 layers, d_model 8; bfloat16 on cpu, torch 2.0" in lines[0]
    assert "4 positions of each of 4 sequences" in lines[1] and "0 shards, not readable" in lines[2]
    assert not imports_torch(listed)

    size = sum(file.stat().st_size for file in (tmp_path / "bank" / "young").iterdir())
    pruned = lensmith("cache", "prune", "--keep", str((size + 1) / 2**30))
    assert pruned.returncode == 0 and pruned.stdout.startswith("deleted bank old, ")
    assert "young" in {path.name for path in (tmp_path / "bank").iterdir()}
    assert not (tmp_path / "bank" / "old").exists()
    assert lensmith("cache", "prune", "--keep", "-1").returncode == 2


def save_bank(folder: Path, n_seqs: int, used: int) -> None:
    """A bank of shards of two sequences, the last one not full, as `source.bank` names things."""
    for shard, start in enumerate(range(0, n_seqs, 2)):
        folder.mkdir(parents=True, exist_ok=True)
        resid = np.zeros((min(2, n_seqs - start), 4, 2, 8), np.float16)
        save_file({"resid_post": resid}, folder / f"shard-{shard:05d}.safetensors")
    key = {"dtype": "torch.bfloat16", "device": "cpu", "torch": "2.0", "capture_seqs": 8}
    (folder / "key.json").write_text(json.dumps(key))
    (folder / ".lock").touch()
    os.utime(folder / ".lock", (used, used))

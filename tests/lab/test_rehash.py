"""`lensmith doctor --rehash`: it hashes what DVC trusts unread, and says how to restore it."""

from pathlib import Path

import pytest

from lensmith.files import artifacts
from lensmith.lab import rehash
from lensmith.lab.dvc_cache import DvcCache
from lensmith.process.errors import InputError, IntegrityError
from tests.support import toy
from tests.support.lab import Lab

WEIGHTS = Path("artifacts/one/lens/weights.safetensors")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Lab:
    return toy.make(tmp_path_factory.mktemp("toy") / "lab")


@pytest.fixture
def lab(fitted, tmp_path) -> Lab:
    return toy.copy(fitted, tmp_path / "lab")


def test_a_whole_lab_has_nothing_wrong(lab):
    result = rehash.run(lab.root)

    assert result.faults == [] and result.n_objects >= 6 and result.n_files == 6
    assert not (lab.root / rehash.PROGRESS).exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "SHA256SUMS", ""])
def test_a_damaged_object_is_named_and_put_in_quarantine(lab, name):
    """It holds a file, a seal, or the list of a folder's files; the workspace still has the right bytes."""
    broken = toy.kept(lab, WEIGHTS.parent / name)
    toy.flip(broken)
    result = rehash.run(lab.root)

    assert len([line for line in result.faults if str(broken) in line]) == 1
    assert "The workspace holds it: `dvc commit -f fit@one`" in result.faults[0]
    assert not broken.exists()
    assert (lab.root / rehash.QUARANTINE / (broken.parent.name + broken.name)).is_file()


def test_each_command_of_a_message_restores_the_file(lab):
    """Damaged in the cache, then also in the workspace: each command of its messages is run as printed."""
    broken, whole = toy.kept(lab, WEIGHTS), (lab.root / WEIGHTS).read_bytes()
    toy.flip(broken)
    rehash.run(lab.root)
    lab.run("dvc", "commit", "-f", "fit@one")
    assert rehash.run(lab.root).faults == [] and broken.read_bytes() == whole

    (lab.root / WEIGHTS).chmod(0o644)
    toy.flip(lab.root / WEIGHTS)
    (line,) = rehash.run(lab.root).faults
    assert f"The cache holds it: `rm -f {lab.root / WEIGHTS} && dvc checkout" in line
    (lab.root / WEIGHTS).unlink()
    lab.run("dvc", "checkout", str(WEIGHTS.parent))
    assert rehash.run(lab.root).faults == [] and (lab.root / WEIGHTS).read_bytes() == whole

    toy.flip(broken)
    (lab.root / WEIGHTS).unlink()
    assert "`dvc repro -f -s fit@one` makes it again." in rehash.run(lab.root).faults[0]
    lab.run("dvc", "repro", "-f", "-s", "fit@one")
    assert rehash.run(lab.root).faults == [] and (lab.root / WEIGHTS).read_bytes() == whole


def test_the_seal_decides_where_md5_agrees(lab):
    """md5 can be made to collide, so an object with the right md5 and another sha256 is a fault."""
    store = DvcCache.open(lab.root)
    seals = dict.fromkeys(rehash._sealed(store), "0" * 64)

    assert seals and all("made to deceive" in rehash._fault(store, store.object(oid), seals) for oid in seals)


def test_a_missing_an_extra_and_a_changed_output_are_named(lab):
    (lab.root / WEIGHTS).unlink()
    (lab.root / "artifacts/one/lens/extra.csv").touch()
    (lab.root / "metrics/two.json").write_text("{}\n")
    wrong = "\n".join(rehash.run(lab.root).faults)

    assert "extra.csv: no stage wrote it" in wrong and f"{WEIGHTS}: md5 is missing" in wrong
    assert "metrics/two.json: md5 is" in wrong and "`git checkout -- " in wrong
    assert len(wrong.splitlines()) == 3


def test_parts_together_read_every_object_once(lab):
    parts = [rehash.run(lab.root, f"{n}/3").n_objects for n in (1, 2, 3)]

    assert sum(parts) == rehash.run(lab.root).n_objects and all(n < sum(parts) for n in parts)
    for wrong in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(InputError, match="must be I/N"):
            rehash.run(lab.root, wrong)


def test_an_interrupted_run_continues_and_keeps_its_faults(lab, monkeypatch):
    """Objects read before the interruption are not read again; their faults are in the result."""
    objects = DvcCache.open(lab.root).objects()
    toy.flip(objects[0])
    monkeypatch.setattr(rehash, "EVERY", 0.0)
    digests, read = rehash._digests, []

    def interrupted(path):
        if path == objects[3]:
            raise KeyboardInterrupt
        return digests(path)

    monkeypatch.setattr(rehash, "_sealed", lambda store: {})
    monkeypatch.setattr(rehash, "_digests", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rehash.run(lab.root)
    monkeypatch.setattr(rehash, "_digests", lambda path: read.append(path) or digests(path))
    result = rehash.run(lab.root)

    assert not {objects[1], objects[2]} & set(read) and objects[3] in read
    assert result.n_objects == len(objects) and str(objects[0]) in result.faults[0]


def test_publish_refuses_a_lens_whose_object_is_damaged(lab, monkeypatch):
    monkeypatch.chdir(lab.root)
    rehash.refuse_damaged(WEIGHTS.parent)
    toy.flip(toy.kept(lab, WEIGHTS))

    rehash.refuse_damaged(Path("artifacts/two/lens"))
    with pytest.raises(IntegrityError, match=r"its name says [0-9a-f]{32}.*Nothing was packaged"):
        rehash.refuse_damaged(WEIGHTS.parent)
    assert toy.kept(lab, WEIGHTS).exists()


def test_the_command_exits_with_4_and_names_every_file(lab):
    toy.flip(toy.kept(lab, WEIGHTS))
    done = lab.attempt("lensmith", "doctor", "--rehash")

    assert done.returncode == 4 and "its name says" in done.stderr and "1 wrong" in done.stdout
    artifacts.write_json(lab.root / rehash.PROGRESS, [])  # of another version: starts again
    again = lab.attempt("lensmith", "doctor", "--rehash")
    assert ", 0 wrong" in again.stdout, "quarantine is no part of the lab"

"""Seals: a stage does not read a file that changed after it was sealed."""

import subprocess
from pathlib import Path

import pytest

from lensmith.files import seals
from lensmith.process.draws import Stream
from lensmith.process.errors import IntegrityError

OFFSETS = 200


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed folder of three files, one of them below another folder."""
    out = tmp_path / "lens"
    (out / "ladder" / "bias").mkdir(parents=True)
    (out / "weights.safetensors").write_bytes(bytes(range(256)) * 8)
    (out / "fit_log.csv").write_text("step,kl_bits\n0,1.5\n")
    (out / "ladder" / "bias" / "provenance.json").write_text("{}\n")
    seals.seal(out)
    return out


def test_a_whole_folder_passes_and_sealing_it_again_changes_nothing(folder):
    """The second seal has the bytes of the first."""
    before = (folder / seals.SUMS).read_bytes()

    seals.check(folder)
    seals.seal(folder)

    assert (folder / seals.SUMS).read_bytes() == before


def test_any_flipped_bit_and_any_truncation_is_named(folder, record_property):
    """Damage is tried in every file, the seal included; the message names the file, or the line of the seal."""
    files, stream = seals.files(folder), Stream(0, "flips")
    caught = 0
    for number in range(OFFSETS):
        file = files[number % len(files)]
        whole = file.read_bytes()
        place, bit = (int(n) for n in stream.words(2, number) % (len(whole), 8))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        for damaged in (bytes(flipped), whole[:place]):
            file.write_bytes(damaged)
            with pytest.raises(IntegrityError) as error:
                seals.check(folder)
            caught += str(file) in str(error.value) or file.name == seals.SUMS
        file.write_bytes(whole)
    seals.check(folder)

    assert caught == 2 * OFFSETS
    record_property("flipped bits and truncations of sealed files that are named before use", f"{caught} of {caught}")


@pytest.mark.parametrize("name", ["weights.safetensors", "ladder/bias/provenance.json", seals.SUMS])
def test_a_missing_file_is_named(folder, name):
    """Of the folder, of a folder below it, and the seal itself."""
    (folder / name).unlink()

    with pytest.raises(IntegrityError, match=f"{name}: missing"):
        seals.check(folder)


def test_a_file_that_the_seal_does_not_name_is_refused(folder):
    """No stage wrote it."""
    (folder / "ladder" / "extra.csv").touch()

    with pytest.raises(IntegrityError, match=r"ladder/extra\.csv: is not in .*SHA256SUMS, so no stage wrote it"):
        seals.check(folder)


def test_the_error_for_a_changed_file_has_both_digests_and_a_remedy(folder):
    """`lensmith doctor --rehash` says how to get the file again."""
    (folder / "fit_log.csv").write_text("step,kl_bits\n0,1.4\n")

    with pytest.raises(
        IntegrityError, match=r"fit_log\.csv: sha256 is [0-9a-f]{64}, .* says [0-9a-f]{64}.*doctor --rehash"
    ):
        seals.check(folder)


def test_check_files_reads_only_the_files_it_is_given(folder):
    """A machine may have fetched a part of a folder only."""
    (folder / "weights.safetensors").unlink()

    seals.check_files(folder / seals.SUMS, [folder / "fit_log.csv"])

    (folder / "fit_log.csv").write_text("")
    with pytest.raises(IntegrityError, match="fit_log"):
        seals.check_files(folder / seals.SUMS, [folder / "fit_log.csv"])
    with pytest.raises(IntegrityError, match="is not in"):
        seals.check_files(folder / seals.SUMS, [folder / "other.csv"])


def test_single_files_are_sealed_by_relative_names(tmp_path):
    """A copy of the lab elsewhere has a seal of the same bytes."""
    metrics, sums = tmp_path / "metrics" / "m.json", tmp_path / "plots" / "seals" / "gates" / "m.sha256"
    metrics.parent.mkdir()
    metrics.write_text("{}\n")

    seals.seal_files(sums, [metrics])

    assert list(seals.read(sums)) == ["../../../metrics/m.json"]
    seals.check_files(sums, [metrics])
    metrics.write_text('{"kl": 0}\n')
    with pytest.raises(IntegrityError, match=r"metrics/m\.json: sha256 is"):
        seals.check_files(sums, [metrics])
    sums.write_text("")  # cut short at the end of a line
    with pytest.raises(IntegrityError, match=r"metrics/m\.json: is not in"):
        seals.check_files(sums, [metrics])


def test_sha256sum_reads_a_seal(folder):
    """The format is that of coreutils."""
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", seals.SUMS], cwd=folder, capture_output=True, check=False
    )

    assert done.returncode == 0, done.stderr

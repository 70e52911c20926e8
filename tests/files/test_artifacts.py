"""Files: whole or not at all, the same bytes for the same content."""

import json

import numpy as np
import pytest

from lensmith.files import artifacts
from lensmith.process.errors import InputError, IntegrityError, ResourceError


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    """A crash in the middle of a write leaves no half file under the final name."""
    path = tmp_path / "a.json"
    artifacts.write_text(path, "old")

    with pytest.raises(RuntimeError), artifacts.replacing(path) as temporary:  # noqa: PT012, the block is the test
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_a_resource_error_that_says_what_was_kept(tmp_path):
    """OSError becomes exit code 7, with the file's name."""
    path = tmp_path / "a.json"
    artifacts.write_text(path, "old")

    with pytest.raises(ResourceError, match=r"a\.json: cannot be written \(No space left"), artifacts.replacing(path):
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old"


def test_json_is_sorted_and_refuses_nan(tmp_path):
    """Standard readers of JSON refuse NaN."""
    artifacts.write_json(tmp_path / "a.json", {"b": 1, "a": 0.1})

    assert (tmp_path / "a.json").read_text() == '{\n "a": 0.1,\n "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_csv_keeps_every_bit_of_a_float(tmp_path):
    """A number read back is the number that was written."""
    values = [0.1 + 0.2, 1e-300, -0.0]
    artifacts.write_csv(tmp_path / "a.csv", ["x", "note"], [[value, None] for value in values])

    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "x,note"
    assert [float(line.split(",")[0]) for line in lines[1:]] == values
    with pytest.raises(ValueError, match="1 values under 2 columns"):
        artifacts.write_csv(tmp_path / "b.csv", ["x", "y"], [[1]])


def test_tensors_come_back_and_their_bytes_are_reproducible(tmp_path):
    """Order of tensors does not matter; the error for a truncated file names it."""
    tensors = {"b": np.arange(6, dtype=np.uint32).reshape(2, 3), "a": np.ones(2, np.float32)}
    artifacts.write_tensors(tmp_path / "1", tensors, metadata='{"k":1}')
    artifacts.write_tensors(tmp_path / "2", dict(reversed(tensors.items())), metadata='{"k":1}')

    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert all(np.array_equal(tensor, tensors[name]) for name, tensor in artifacts.read_tensors(tmp_path / "1").items())
    (tmp_path / "1").write_bytes((tmp_path / "1").read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        artifacts.read_tensors(tmp_path / "1")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}\n\n{", r"a\.jsonl:3: not JSON"), ("[]", r"a\.jsonl:1: is a list, must be a JSON object"), (None, "missing")],
)
def test_the_error_for_a_bad_line_has_file_and_line_number(tmp_path, text, message):
    """Line numbers count empty lines too."""
    path = tmp_path / "a.jsonl"
    if text is not None:
        path.write_text(text)

    with pytest.raises(InputError, match=message):
        list(artifacts.read_jsonl(path))


def test_equal_values_have_one_canonical_json():
    """Hashes of settings do not depend on the order of keys."""
    assert artifacts.canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'
    assert json.loads(artifacts.canonical_json({"b": None})) == {"b": None}

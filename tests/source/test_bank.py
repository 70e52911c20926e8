"""The residual bank: the model's own residuals, addressed by content, resumed by shard, checked at each reading."""

import fcntl

import numpy as np
import pytest
import torch

from lensmith.files import artifacts, cache
from lensmith.process import environment, progress
from lensmith.process.amounts import GIB
from lensmith.process.errors import InputError, ResourceError
from lensmith.source import bank
from lensmith.source.backbone import Backbone
from lensmith.source.residuals import sample_positions
from tests.support.settings import fit_params
from tests.support.tiny import tiny_model

SEQS, SEQ_LEN, P = 5, 24, 4
FILES = {"model.safetensors": "0" * 64}


@pytest.fixture(scope="module")
def backbone():
    return Backbone.from_model(tiny_model("llama"))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(bank, "SHARD_SEQS", 2)


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 97, (SEQS, SEQ_LEN)).astype(np.uint32)


def residuals(backbone, **values):
    text = values.pop("tokens", tokens())
    return bank.residuals(backbone, FILES, text, fit_params(positions_per_seq=P, **values))


def shards() -> list:
    return sorted(environment.home().glob("bank/*/shard-*"))


def test_a_bank_holds_the_models_residuals_at_the_sampled_positions(backbone):
    """Against transformers' own hidden states: entry i is the input of block i, so resid_post[l] is entry l + 1."""
    settings = fit_params(positions_per_seq=P)
    banked = residuals(backbone).read(np.arange(SEQS)).resid.unflatten(0, (SEQS, P))
    positions = torch.from_numpy(sample_positions(settings, SEQS, SEQ_LEN))

    with torch.no_grad():
        model = backbone.model
        hidden = model(torch.from_numpy(tokens().astype(np.int64)), output_hidden_states=True).hidden_states
    for layer in range(backbone.n_layers - 1):
        expected = torch.stack([hidden[layer + 1][seq, positions[seq]] for seq in range(SEQS)])
        torch.testing.assert_close(banked[:, :, layer], expected, rtol=1e-5, atol=1e-5)
    final = torch.stack([hidden[-1][seq, positions[seq]] for seq in range(SEQS)])
    torch.testing.assert_close(backbone.head.norm(banked[:, :, -1], backbone.n_layers), final, rtol=1e-4, atol=1e-5)


def test_positions_lie_in_the_part_of_the_settings_without_repeats():
    """60 to 95 % of 512 tokens is positions 307 to 485, those of the reference recipe."""
    settings = fit_params(positions_per_seq=8, position_min=0.6, position_max=0.95)
    drawn = sample_positions(settings, 200, 512)

    assert drawn.shape == (200, 8)
    assert (drawn.min(), drawn.max()) == (307, 485)
    assert (np.diff(drawn, axis=1) > 0).all()
    assert len({tuple(row) for row in drawn}) > 190


def test_a_second_fit_reads_the_bank_and_forwards_nothing(backbone, monkeypatch):
    """A variant of the rank costs seconds; the tokens that it reports are those of the bank."""
    first = residuals(backbone).read(np.arange(SEQS)).resid
    monkeypatch.setattr(Backbone, "capture", None)
    again = residuals(backbone)

    assert torch.equal(again.read(np.arange(SEQS)).resid, first)
    assert again.tokens_forwarded == SEQS * SEQ_LEN
    assert len(shards()) == 3


def test_streamed_residuals_are_the_banked_ones(backbone):
    """Both modes train on the same numbers; a stream forwards its tokens at each reading."""
    banked, streamed = residuals(backbone), residuals(backbone, bank="stream")
    seqs = np.array([3, 0])

    torch.testing.assert_close(streamed.read(seqs).resid, banked.read(seqs).resid)
    assert streamed.tokens_forwarded == 2 * SEQ_LEN and not len(shards()) > 3


@pytest.mark.parametrize(
    "change", [{"tokens": tokens(1)}, {"seed": 1}, {"position_min": 0.5}, {"positions_per_seq": 3}]
)
def test_other_text_or_positions_have_another_bank(backbone, change):
    """Everything that decides the numbers is in the key: a stale bank cannot be read."""
    residuals(backbone)
    values = {"positions_per_seq": P} | change
    bank.residuals(backbone, FILES, values.pop("tokens", tokens()), fit_params(**values))

    assert len({path.parent for path in shards()}) == 2


@pytest.mark.parametrize("change", [{"lr": 1.0}, {"rank": 3}, {"epochs": 9}, {"kind": "bias"}])
def test_other_fits_share_the_bank(backbone, change):
    """Rank, rate and kind change nothing in the residuals."""
    residuals(backbone)
    residuals(backbone, **change)

    assert len({path.parent for path in shards()}) == 1


def test_an_interrupted_capture_goes_on_where_it_stopped(backbone):
    """Whole shards are kept, the missing one is captured, and the residuals are the same."""
    first = residuals(backbone).read(np.arange(SEQS)).resid
    whole, lost = shards()[0], shards()[1]
    before = whole.stat().st_mtime_ns
    lost.unlink()

    again = residuals(backbone)
    assert torch.equal(again.read(np.arange(SEQS)).resid, first)
    assert whole.stat().st_mtime_ns == before
    assert again.tokens_forwarded == SEQS * SEQ_LEN


def test_a_shard_with_a_flipped_bit_is_captured_anew(backbone, capsys):
    """safetensors does not notice a flipped data bit; the digest in the shard's header shows it."""
    first = residuals(backbone).read(np.arange(SEQS)).resid
    whole = shards()[1].read_bytes()
    shards()[1].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    again = residuals(backbone)
    assert "its bytes are not the ones that were written. It is captured anew." in capsys.readouterr().err
    assert torch.equal(again.read(np.arange(SEQS)).resid, first) and shards()[1].read_bytes() == whole
    assert again.tokens_forwarded == SEQS * SEQ_LEN


def test_a_half_written_file_of_a_killed_capture_is_removed(backbone):
    """SIGKILL leaves the temporary file, and nothing else deletes it."""
    residuals(backbone)
    leftover = shards()[0].with_name(".tmp-abcshard-00000.safetensors")
    leftover.write_bytes(b"half")
    residuals(backbone)

    assert not leftover.exists()


def test_a_full_disk_is_an_error_before_the_capture(backbone, monkeypatch):
    """Both sizes are named, and nothing is written."""
    usage = cache.shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage)

    with pytest.raises(ResourceError, match=r"needs .*iB, 10 Bytes are free"):
        residuals(backbone)
    assert shards() == []


def test_a_capture_reports_sequences_and_tokens_in_whole_lines(backbone, monkeypatch, capsys):
    """A shard may take long, so sequences are counted. A log gets no carriage return, and a hit says nothing."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    residuals(backbone)
    printed = capsys.readouterr().err

    assert "\r" not in printed and "iB of residuals into" in printed
    assert "capture: 2 of 5 sequences, " in printed and "tokens/s" in printed
    assert "capture: 5 of 5 sequences in" in printed
    residuals(backbone)
    assert capsys.readouterr().err == ""


def test_the_limit_of_all_banks_is_kept_by_dropping_the_oldest(backbone, monkeypatch):
    """Room for one bank and a half: the second one takes the first one's place, and neither fits into nothing."""
    residuals(backbone)
    size = sum(bank.size for bank in cache.entries("bank"))
    monkeypatch.setenv(environment.BANK_GIB, str(1.5 * size / GIB))
    first = {bank.key for bank in cache.entries("bank")}
    residuals(backbone, tokens=tokens(1))

    assert len(cache.entries("bank")) == 1 and not first & {bank.key for bank in cache.entries("bank")}
    monkeypatch.setenv(environment.BANK_GIB, "0")
    with pytest.raises(ResourceError, match="LENSMITH_BANK_GIB allows"):
        residuals(backbone, tokens=tokens(2))
    monkeypatch.setenv(environment.BANK_GIB, "much")
    with pytest.raises(InputError, match="must be a number of GiB"):
        residuals(backbone, tokens=tokens(2))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_bank_captured_in_parts_is_the_same_bytes(backbone, monkeypatch, workers):
    """In any order; the fit then forwards nothing."""
    residuals(backbone)
    whole = {path.name: path.read_bytes() for path in shards()}
    for path in shards():
        path.unlink()
    settings = fit_params(positions_per_seq=P)
    captured = [
        bank.capture_part(backbone, FILES, tokens(), settings, part=part, parts=workers)
        for part in reversed(range(workers))
    ]

    assert sum(captured) == len(whole) == 3
    assert {path.name: path.read_bytes() for path in shards()} == whole
    assert bank.capture_part(backbone, FILES, tokens(), settings, part=0, parts=1) == 0
    monkeypatch.setattr(Backbone, "capture", None)
    assert residuals(backbone).tokens_forwarded == SEQS * SEQ_LEN


def test_a_capture_of_a_part_waits_for_the_lock_of_the_bank(backbone):
    """A fit that opens a bank removes half-written files, which must not be the shard of another process."""
    residuals(backbone)
    [folder] = environment.home().glob("bank/*")
    with cache.held(folder), (folder / cache.LOCK).open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    half = folder / f"{artifacts.TEMPORARY}half"
    half.touch()
    with cache.held(folder, shared=True), cache.held(folder, shared=True):
        assert half.exists() and cache.is_held(folder)
    with cache.held(folder):
        assert not half.exists()

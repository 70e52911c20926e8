"""Trajectories: the numbers against plain transformers in fp64, and pictures that no token can break."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import processors

import lensmith
from lensmith.judge import trajectories, walk
from lensmith.judge.trajectories import STATISTICS
from lensmith.process.errors import InputError, IntegrityError
from lensmith.read.trajectory import Trajectory
from lensmith.report import heatmap
from lensmith.source import backbone as backbone_module
from lensmith.source.backbone import Backbone
from lensmith.source.borrowed import borrowed
from tests.support.bench import random_lens, tiny_bench
from tests.support.released import save_release
from tests.support.tiny import tiny_model, tiny_tokenizer

TEXT = "The capital of Ostra is Lume."


@pytest.fixture(scope="module")
def parts():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    lens = random_lens(model.config.num_hidden_layers, model.config.hidden_size)
    return model, tokenizer, lens


@pytest.fixture(scope="module")
def trajectory(parts) -> Trajectory:
    model, tokenizer, lens = parts
    return lensmith.trajectory(lens, model, tokenizer, TEXT)


def plain_logits(parts) -> tuple[list[int], torch.Tensor, dict[str, torch.Tensor]]:
    """(ids, final logits (n, v), lens -> (rows, n, v)) in fp64 from `output_hidden_states` and written-out formulas."""
    model, tokenizer, lens = parts
    ids = tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        # The last of them is normed already: it stands for the last row.
        *hidden, last = (state[0].double() for state in out.hidden_states)
    norm, W_U = model.model.norm, model.lm_head.weight.detach().double()

    def normed(x: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.detach().double()

    xs = [*(normed(h) for h in hidden), last]
    tuned = []
    for block, x in enumerate(xs[1:]):
        U, V, c, s, t = (getattr(lens, name)[block].double() for name in ("U", "V", "c", "scale", "log_tau"))
        tuned.append((s * x + x @ U @ V.T + c) @ W_U.T / t.exp())
    by_lens = {"norm": torch.stack([x @ W_U.T for x in xs]), "tuned": torch.stack(tuned)}
    return ids, out.logits[0].double(), by_lens


def written_out(final: torch.Tensor, q_logits: torch.Tensor, following: list[int]) -> dict[str, torch.Tensor]:
    p, q = final.softmax(-1), q_logits.softmax(-1)
    answer = final.argmax(-1).expand(q.shape[:-1])[..., None]
    after = torch.tensor(following).expand(q.shape[:-1])[..., None]
    own, theirs = q.gather(-1, answer), q.gather(-1, after)
    last = torch.arange(q.shape[1]) == q.shape[1] - 1
    return {
        "entropy_bits": -(q * q.log2()).sum(-1),
        "kl_final_lens_bits": (p * (p / q).log2()).sum(-1),
        "kl_lens_final_bits": (q * (q / p).log2()).sum(-1),
        "final_token_rank": (q > own).sum(-1).double(),
        "p_final_token": own[..., 0],
        "next_token_rank": torch.where(last, torch.nan, (q > theirs).sum(-1).double()),
        "next_token_bits": torch.where(last, torch.nan, -theirs[..., 0].log2()),
    }


def test_every_number_is_that_of_plain_transformers(parts, trajectory):
    """Independent: hidden states as transformers gives them, the lens written out, all in fp64."""
    ids, final, by_lens = plain_logits(parts)
    found = trajectory.readings

    assert list(found.ids) == ids and list(found.final_ids) == final.argmax(-1).tolist()
    for name, logits in by_lens.items():
        reading, q = found.by_lens[name], logits.softmax(-1)
        wanted = written_out(final, logits, [*ids[1:], 0])
        assert set(wanted) == set(STATISTICS)
        for key, values in wanted.items():
            np.testing.assert_allclose(reading.statistics[key], values, rtol=1e-4, atol=2e-5, err_msg=f"{name} {key}")
        np.testing.assert_allclose(reading.top_p, q.topk(5).values, rtol=1e-4, atol=1e-6)
        assert (reading.top_ids[..., 0] == q.argmax(-1).numpy()).all()


def test_a_text_in_pieces_reads_as_in_one(parts, monkeypatch):
    """Positions are decoded a few at a time; how many must not matter."""
    model, tokenizer, lens = parts
    whole = lensmith.trajectory(lens, model, tokenizer, TEXT).frame()
    monkeypatch.setattr(walk, "ROWS", walk.ROWS._replace(cpu=3))
    pieces = lensmith.trajectory(lens, model, tokenizer, TEXT).frame()

    assert list(pieces.columns) == list(whole.columns)
    for name in STATISTICS:
        np.testing.assert_allclose(pieces[name], whole[name], rtol=1e-5, atol=1e-6)


def test_the_frame_has_a_row_for_each_lens_layer_and_position(parts, trajectory):
    """Layer 0 is the embedding, which the tuned lens does not read; the last layer is the model itself."""
    frame = trajectory.frame()
    n, L = len(trajectory.readings.ids), parts[0].config.num_hidden_layers

    assert len(frame) == n * (L + 1) + n * L
    assert sorted(frame[frame.lens == "tuned"].layer.unique()) == list(range(1, L + 1))
    last = frame[frame.layer == L]
    assert (last.final_token_rank == 0).all() and (last.top1 == last.final_token).all()
    assert last.kl_final_lens_bits.abs().max() < 1e-4
    assert frame[frame.pos == n - 1].next_token_bits.isna().all()
    assert frame[frame.pos < n - 1].next_token_bits.notna().all()


@pytest.mark.parametrize("colour", list(heatmap.CELL_COLOURS))
def test_the_figure_shows_both_lenses_on_one_scale(trajectory, colour):
    """Side by side is only fair where equal colours mean equal numbers, and cells hold what the frame holds."""
    figure = trajectory.figure(colour)
    norm, tuned = figure.data
    frame = trajectory.frame()
    key = {"kl": "kl_final_lens_bits", "entropy": "entropy_bits", "rank": "final_token_rank"}.get(
        colour, "p_final_token"
    )

    assert (norm.zmin, norm.zmax) == (tuned.zmin, tuned.zmax)
    for trace, name in ((norm, "norm"), (tuned, "tuned")):
        rows = frame[frame.lens == name]
        values = rows[key].to_numpy().reshape(len(trace.y), -1)
        wanted = np.log10(1 + values) if colour == "rank" else values
        np.testing.assert_allclose(np.array(trace.z, dtype=float), wanted, atol=0.0051)
        assert trace.hovertext[0][0].count("<br>") == 7
    with pytest.raises(InputError, match="must be one of kl, entropy, rank, probability"):
        trajectory.figure("colour")


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        (" Paris", "Paris"),
        ("\n\n", "⏎⏎"),
        ("\x1b[31m", "␛[31m"),
        ("\u202eno", "⟨202E⟩no"),
        ("\u05e9\u05dc\u05d5", "\u2068\u05e9\u05dc\u05d5\u2069"),
        ("a\u2028b", "a␣b"),
        ("internationalisation", "internat…"),
    ],
)
def test_a_token_is_one_line_that_changes_nothing_around_it(word, shown):
    """Control characters, newlines and writing direction would otherwise act on the page."""
    assert heatmap.label(word, 9) == shown


def test_labels_are_escaped_for_plotly():
    """Plotly reads tags in labels; a token is text. A blank token is shown by its sign."""
    assert heatmap.labels(["<b>x</b>", "  ", ""], 40) == ["&lt;b&gt;x&lt;/b&gt;", "␣␣", "␣"]


def test_a_text_ends_where_its_tokenizer_would_add_an_end(parts):
    """The last position is the text's: behind an end that the tokenizer adds, the model reads the end."""
    model, _, lens = parts
    adds_end = tiny_tokenizer()
    adds_end.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A <s>", special_tokens=[("<s>", 0)])
    ids = lensmith.trajectory(lens, model, adds_end, TEXT).readings.ids

    assert [*ids, 0] == adds_end(TEXT)["input_ids"]


def test_what_cannot_be_read_is_refused(parts):
    """Empty and too long texts, no tokens to keep, and a lens of another model, each in one clear line."""
    model, tokenizer, lens = parts
    with pytest.raises(InputError, match="has 0 tokens"):
        trajectories.read(tiny_bench().backbone, lens, [], tokenizer)
    with pytest.raises(InputError, match="tokens, must have 1"):
        lensmith.trajectory(lens, model, tokenizer, "river " * model.config.max_position_embeddings)
    with pytest.raises(InputError, match="the text is empty"):  # also where a tokenizer would make a BOS token of it
        lensmith.trajectory(lens, model, tokenizer, "")
    with pytest.raises(InputError, match="top_k is 0"):
        lensmith.trajectory(lens, model, tokenizer, TEXT, top_k=0)
    with pytest.raises(IntegrityError, match=r"the lens is of \(layers, d_model\) \(2, 32\)"):
        lensmith.trajectory(random_lens(2, lens.d_model), model, tokenizer, TEXT)


@pytest.mark.parametrize("texts", [[TEXT], (TEXT, TEXT), None, b"text"])
def test_what_is_no_text_is_refused_in_one_line(parts, texts):
    """A tokenizer would make a batch of a list."""
    model, tokenizer, lens = parts
    with pytest.raises(InputError, match=rf"^trajectory: text is a {type(texts).__name__}, must be one text\. Call"):
        lensmith.trajectory(lens, model, tokenizer, texts)


def test_a_model_is_proven_once(parts, monkeypatch):
    """Not for each text of a loop; again where a part was replaced. The head is read anew: weights may be trained."""
    _, tokenizer, lens = parts
    proofs, model = [], tiny_model("llama")
    prove = backbone_module.prove
    monkeypatch.setattr(backbone_module, "prove", lambda *args: proofs.append(args[0]) or prove(*args))
    first, second = (lensmith.trajectory(lens, model, tokenizer, TEXT).frame() for _ in range(2))
    assert len(proofs) == 1 and first.equals(second)

    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    doubled = lensmith.trajectory(lens, model, tokenizer, TEXT).frame()
    fresh = lensmith.trajectory(lens, Backbone.from_model(model), tokenizer, TEXT).frame()
    assert doubled.equals(fresh) and not doubled.equals(first)

    proofs.clear()
    model.resize_token_embeddings(model.config.vocab_size + 1)
    lensmith.trajectory(lens, model, tokenizer, TEXT)
    assert len(proofs) == 1


def test_a_proven_model_is_not_kept_alive():
    """A notebook that loads one model after another would run out of memory."""
    model = tiny_model("llama")
    with borrowed(model):
        pass
    alive = weakref.ref(model)
    del model
    gc.collect()

    assert alive() is None


def test_a_captured_residual_reads_as_in_the_trajectory(parts, trajectory):
    """After a block by a hook, of a batch and of one position; gradients pass through."""
    model, _, lens = parts
    frame, captured = trajectory.frame(), []
    hook = model.model.layers[1].register_forward_hook(lambda _m, _i, output: captured.append(output))
    model(torch.tensor([trajectory.readings.ids]))
    hook.remove()
    (resid,) = captured
    read = lensmith.logits(lens, model, resid, 2)

    assert read.shape == (*resid.shape[:-1], model.config.vocab_size)
    wanted = frame[(frame.lens == "tuned") & (frame.layer == 2)].prob1.to_numpy()
    np.testing.assert_allclose(read.softmax(-1).max(-1).values[0].detach(), wanted, rtol=1e-4)
    one = resid[0, 3].detach().requires_grad_()
    lensmith.logits(lens, model, one, 2).max().backward()
    assert one.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("resid", "layer", "says"),
    [
        ((torch.zeros(1, 3, 32),), 2, "resid is a tuple, must be a tensor"),
        (torch.zeros(3, 31), 2, r"resid is torch.float32 of shape \(3, 31\), must be \(\.\.\., 32\)"),
        (torch.zeros(3, 32, dtype=torch.long), 2, "resid is torch.int64"),
        (torch.zeros(3, 32), 0, r"layer is 0, must be in 1\.\.3"),
        (torch.zeros(3, 32), 4, r"layer is 4, must be in 1\.\.3"),
    ],
)
def test_what_is_no_residual_is_refused(parts, resid, layer, says):
    with pytest.raises(InputError, match=says):
        lensmith.logits(parts[2], parts[0], resid, layer)


def test_a_model_of_the_same_shape_with_other_weights_is_refused(parts):
    """Every number would be plausible and wrong."""
    model, tokenizer, lens = parts
    fitted = replace(lens, w_u_sha256=Backbone.from_model(model).head.fingerprint()["w_u_sha256"])
    lensmith.trajectory(fitted, model, tokenizer, TEXT)

    with pytest.raises(IntegrityError, match="W_U has sha256"):
        lensmith.trajectory(fitted, tiny_model("llama", seed=1), tokenizer, TEXT)


def state_of(model) -> dict[str, object]:
    """Modes, hooks and flags of a model, by module and parameter."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    modules = {
        name: (module.training, *(list(getattr(module, kind).items()) for kind in hooks))
        for name, module in model.named_modules()
    }
    return modules | {name: (p.requires_grad, p.grad, p.dtype) for name, p in model.named_parameters()}


@pytest.mark.parametrize("use", ["trajectory", "wrong lens", "too long", "load"])
def test_a_model_comes_back_as_it_was(parts, use, tmp_path):
    """A reader may be in the middle of training it, with hooks of his own."""
    _, tokenizer, lens = parts
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    model.model.layers[0].register_forward_hook(lambda *_: None)
    before = state_of(model)

    if use == "trajectory":
        lensmith.trajectory(lens, model, tokenizer, TEXT)
    elif use == "load":
        release, _, _ = save_release(tmp_path, n_layers=lens.n_layers + 1)
        with pytest.raises(IntegrityError):
            lensmith.load(release, base=model)
    elif use == "wrong lens":
        with pytest.raises(IntegrityError):
            lensmith.trajectory(random_lens(2, lens.d_model), model, tokenizer, TEXT)
    else:
        with pytest.raises(InputError):
            lensmith.trajectory(lens, model, tokenizer, "river " * model.config.max_position_embeddings)
    assert state_of(model) == before


def test_a_lens_and_a_trajectory_are_shown_in_one_line(parts, trajectory):
    """A notebook prints the last value of a cell: arrays would fill pages."""
    _, _, lens = parts

    assert repr(lens) == "Lens(low_rank, n_layers=3, d_model=32, rank=4, norm=final, cpu)"
    assert (
        repr(trajectory)
        == f"Trajectory({len(trajectory.readings.ids)} tokens, n_layers=3, lenses=norm, tuned, top_k=5)"
    )


def test_numbers_are_packed_to_the_last_shown_digit(trajectory):
    """A page holds hundredths of bits and per mille; a rank is exact."""
    packed, found = trajectory.readings.packed(), trajectory.readings.by_lens["tuned"]

    kl = np.array(packed["lenses"]["tuned"]["kl"]) / 100
    assert np.abs(kl - found.statistics["kl_final_lens_bits"]).max() <= 0.005 + 1e-9
    assert packed["lenses"]["tuned"]["rank"] == found.statistics["final_token_rank"].astype(int).tolist()
    assert [packed["words"][place] for place in packed["tokens"]] == [
        trajectory.readings.words[token] for token in trajectory.readings.ids
    ]

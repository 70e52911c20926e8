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
from lensmith.read.trajectory import KEYS, Trajectory
from lensmith.report import heatmap
from lensmith.source import backbone as backbone_module
from lensmith.source.backbone import Backbone
from lensmith.source.borrowed import borrow
from tests.support.bench import random_lens, tiny_bench
from tests.support.released import save_release
from tests.support.tiny import tiny_model, tiny_tokenizer

TEXT = "The capital of Ostra is Lume."


@pytest.fixture(scope="module")
def trajectory(parts) -> Trajectory:
    model, tokenizer, lens = parts
    return lensmith.bind(lens, model, tokenizer).trajectory(TEXT)


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
    whole = lensmith.bind(lens, model, tokenizer).trajectory(TEXT).frame()
    monkeypatch.setattr(walk, "ROWS", walk.ROWS._replace(cpu=3))
    pieces = lensmith.bind(lens, model, tokenizer).trajectory(TEXT).frame()

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
        wanted = np.log10(1 + values) if colour in ("kl", "rank") else values
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
    ids = lensmith.bind(lens, model, adds_end).trajectory(TEXT).readings.ids

    assert [*ids, 0] == adds_end(TEXT)["input_ids"]


def test_what_cannot_be_read_is_refused(parts):
    """Empty and too long texts, no tokens to keep, and a lens of another model, each in one clear line."""
    model, tokenizer, lens = parts
    with pytest.raises(InputError, match="has 0 tokens"):
        trajectories.read(tiny_bench().backbone, lens, [], str)
    with pytest.raises(InputError, match="tokens, must have 1"):
        lensmith.bind(lens, model, tokenizer).trajectory("river " * model.config.max_position_embeddings)
    with pytest.raises(InputError, match="the text is empty"):  # also where a tokenizer would make a BOS token of it
        lensmith.bind(lens, model, tokenizer).trajectory("")
    with pytest.raises(InputError, match="top_k is 0"):
        lensmith.bind(lens, model, tokenizer).trajectory(TEXT, top_k=0)
    with pytest.raises(IntegrityError, match=r"the lens is of \(layers, d_model\) \(2, 32\)"):
        lensmith.bind(random_lens(2, lens.d_model), model, tokenizer).trajectory(TEXT)


NO_IDS = (np.array([5, 9]), torch.ones(1, 2), [1.5])


@pytest.mark.parametrize("texts", [[TEXT], (TEXT, TEXT), None, b"text", [], [{"role": "user"}], "\ud800", *NO_IDS])
def test_what_is_no_text_is_refused_in_one_line(parts, texts):
    """A tokenizer would make a batch of a list."""
    model, tokenizer, lens = parts
    with pytest.raises(InputError, match=r"^(trajectory: the text is|the text holds '.ud800'|.*no chat template).*\.$"):
        lensmith.bind(lens, model, tokenizer).trajectory(texts)


def test_a_model_is_proven_once(parts, monkeypatch):
    """Not for each text of a loop; again where a part was replaced. The head is read anew: weights may be trained."""
    _, tokenizer, lens = parts
    proofs, model = [], tiny_model("llama")
    prove = backbone_module.prove
    monkeypatch.setattr(backbone_module, "prove", lambda *args: proofs.append(args[0]) or prove(*args))
    first, second = (lensmith.bind(lens, model, tokenizer).trajectory(TEXT).frame() for _ in range(2))
    assert len(proofs) == 1 and first.equals(second)

    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    doubled = lensmith.bind(lens, model, tokenizer).trajectory(TEXT).frame()
    fresh = lensmith.bind(lens, Backbone.from_model(model), tokenizer).trajectory(TEXT).frame()
    assert doubled.equals(fresh) and not doubled.equals(first)

    proofs.clear()
    model.resize_token_embeddings(model.config.vocab_size + 1)
    lensmith.bind(lens, model, tokenizer).trajectory(TEXT)
    assert len(proofs) == 1


def test_a_proven_model_is_not_kept_alive():
    """A notebook that loads one model after another would run out of memory."""
    model = tiny_model("llama")
    borrow(model)
    alive = weakref.ref(model)
    del model
    gc.collect()

    assert alive() is None


def test_a_model_of_the_same_shape_with_other_weights_is_refused(parts):
    """Every number would be plausible and wrong."""
    model, tokenizer, lens = parts
    fitted = replace(lens, w_u_sha256=Backbone.from_model(model).head.fingerprint()["w_u_sha256"])
    lensmith.bind(fitted, model, tokenizer).trajectory(TEXT)

    with pytest.raises(IntegrityError, match="W_U has sha256"):
        lensmith.bind(fitted, tiny_model("llama", seed=1), tokenizer).trajectory(TEXT)


def state_of(model) -> dict[str, object]:
    """Modes, hooks and flags of a model, by module and parameter."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    modules = {
        name: (module.training, *(list(getattr(module, kind).items()) for kind in hooks))
        for name, module in model.named_modules()
    }
    return modules | {name: (p.requires_grad, p.grad, p.dtype) for name, p in model.named_parameters()}


@pytest.mark.parametrize("use", ["trajectory", "wrong lens", "too long", "bind"])
def test_a_model_comes_back_as_it_was(parts, use, tmp_path):
    """A reader may be in the middle of training it, with hooks of his own."""
    _, tokenizer, lens = parts
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    model.model.layers[0].register_forward_hook(lambda *_: None)
    before = state_of(model)

    if use == "trajectory":
        lensmith.bind(lens, model, tokenizer).trajectory(TEXT)
    elif use == "bind":
        release, _, _ = save_release(tmp_path, n_layers=lens.n_layers + 1)
        with pytest.raises(IntegrityError):
            lensmith.bind(lensmith.load(release), model)
    elif use == "wrong lens":
        with pytest.raises(IntegrityError):
            lensmith.bind(random_lens(2, lens.d_model), model, tokenizer).trajectory(TEXT)
    else:
        with pytest.raises(InputError):
            lensmith.bind(lens, model, tokenizer).trajectory("river " * model.config.max_position_embeddings)
    assert state_of(model) == before


def test_a_lens_and_a_trajectory_are_shown_in_one_line(parts, trajectory):
    """A notebook prints the last value of a cell: arrays would fill pages."""
    _, _, lens = parts

    assert repr(lens) == "Lens(low_rank, n_layers=3, d_model=32, rank=4, norm=final, cpu)"
    assert (
        repr(trajectory) == f"Trajectory({len(trajectory.readings.ids)} tokens, 3 layers, lenses=norm, tuned, top_k=5)"
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


def test_chosen_layers_and_positions_read_as_in_the_whole(parts, trajectory):
    """Less work, the same numbers; the last layer is always there, since the others are compared with it."""
    model, tokenizer, lens = parts
    part = lensmith.bind(lens, model, tokenizer).trajectory(TEXT, layers=[1], positions=[-1, 2])
    whole, frame = trajectory.frame(), part.frame()
    n = len(trajectory.readings.ids)
    same = whole[whole.layer.isin([1, 3]) & whole.pos.isin([2, n - 1])].reset_index(drop=True)

    assert frame[[*KEYS, "token", "final_token", "top1"]].equals(same[[*KEYS, "token", "final_token", "top1"]])
    for name in STATISTICS:
        np.testing.assert_allclose(frame[name], same[name], rtol=1e-4, atol=1e-5)
    assert list(part.figure().data[0].y) == [1, 3]


def test_positions_of_special_tokens_can_be_left_out(parts):
    """A BOS position is like no other, and would set the scale of the colours."""
    model, tokenizer, lens = parts
    reader = lensmith.bind(lens, model, tokenizer)
    with_bos, without = (reader.trajectory(TEXT, skip_special=skip).readings for skip in (False, True))

    assert with_bos.ids[0] == tokenizer.bos_token_id and without.positions == with_bos.positions[1:]
    with pytest.raises(InputError, match="no position is left of 1 tokens"):
        reader.trajectory([tokenizer.bos_token_id], skip_special=True)


@pytest.mark.parametrize("wanted", [None, [3, " i"]])
def test_targets_are_followed_over_the_layers(parts, wanted):
    """By default those that are first at any layer, each at its own position; against fp64."""
    model, tokenizer, lens = parts
    followed = lensmith.bind(lens, model, tokenizer).trajectory(TEXT, targets=wanted).targets()
    ids, _, by_lens = plain_logits(parts)
    for name, logits in by_lens.items():
        q = logits.softmax(-1)
        for pos in (0, len(ids) - 1):
            if wanted is None:
                tokens = list(dict.fromkeys(torch.cat([x[:, pos].argmax(-1) for x in by_lens.values()]).tolist()))
            else:
                tokens = [3, *tokenizer.encode(" i", add_special_tokens=False)]
            for layer in followed[followed.lens == name].layer.unique():
                rows = followed[(followed.lens == name) & (followed.layer == layer) & (followed.pos == pos)]
                p = q[layer - (name == "tuned"), pos]
                assert rows.target.tolist() == [tokenizer.decode([token]) for token in tokens]
                np.testing.assert_allclose(rows.p, p[tokens], rtol=1e-4)
                assert rows["rank"].tolist() == [int((p > p[token]).sum()) for token in tokens]


def test_a_chat_is_read_by_the_models_template(parts):
    """With its special tokens once, opened for an answer unless the last message is one, and roles for the messages."""
    model, _, lens = parts
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}({{ m['role'] }}) {{ m['content'] | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}(assistant){% endif %}"
    )
    reader = lensmith.bind(lens, model, tokenizer)
    chat = [{"role": "user", "content": " The river \n"}, {"role": "assistant", "content": "is the sea"}]
    asked, answered = (reader.trajectory(messages) for messages in (chat[:1], chat))
    text = tokenizer.decode(list(asked.text.ids))
    frame = answered.frame()
    frame = frame[(frame.lens == "norm") & (frame.layer == 0)]

    assert text == "<s>(user) The river\n(assistant)" and asked.text.ids[0] == 0 and 0 not in asked.text.ids[1:]
    assert tokenizer.decode(list(answered.text.ids)).endswith("is the sea\n")
    said = {role: "".join(frame[frame.role == role].token).strip() for role in ("user", "assistant")}
    assert said == {"user": "The river", "assistant": "is the sea"}
    with pytest.raises(InputError, match="does not take these messages"):
        reader.trajectory([{"role": "user"}])


def test_two_lenses_or_models_are_subtracted(parts, trajectory):
    """Number by number; of another text there is no difference."""
    _, tokenizer, lens = parts
    other = lensmith.bind(random_lens(lens.n_layers, lens.d_model, size=0.4), tiny_model("llama", seed=1), tokenizer)
    theirs = other.trajectory(TEXT)
    difference = trajectory - theirs
    frame, a, b = difference.frame(), trajectory.frame(), theirs.frame()

    for name in STATISTICS:
        np.testing.assert_array_equal(frame[name], a[name] - b[name])
    assert (frame.top1 == a.top1).all() and (frame.top1_b == b.top1).all()
    cells = np.array(difference.figure("entropy_bits").data[1].z)
    tuned = frame[frame.lens == "tuned"].entropy_bits.to_numpy()
    np.testing.assert_array_equal(cells.ravel(), tuned)
    assert "plotly" in difference.to_html() and "plotly" in trajectory.to_html()
    with pytest.raises(InputError, match="other tokens, positions or layers"):
        trajectory - other.trajectory("The river.")
    with pytest.raises(InputError, match="must be one of entropy_bits"):
        difference.figure("kl")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": [4]}, r"layers are \[4\], must be in 0\.\.3"),
        ({"positions": [99]}, "position 99 does not exist"),
        ({"positions": []}, "no position is left"),
        ({"targets": "capital of"}, "tokens"),
        ({"targets": 97}, r"id 97, must be in 0\.\.96"),
    ],
)
def test_what_is_not_there_is_refused(parts, options, says):
    model, tokenizer, lens = parts
    with pytest.raises(InputError, match=says):
        lensmith.bind(lens, model, tokenizer).trajectory(TEXT, **options)


def test_ids_need_no_tokenizer(parts, trajectory):
    """A list or a tensor; a text does."""
    model, _, lens = parts
    reader, ids = lensmith.bind(lens, model), list(trajectory.readings.ids)

    assert reader.trajectory(torch.tensor(ids)).readings.ids == trajectory.readings.ids
    assert reader.trajectory(ids).frame().token[0] == f"#{ids[0]}"
    with pytest.raises(InputError, match="no tokenizer"):
        reader.trajectory(TEXT)

"""Verification passes for a lens, and for nothing that only looks like one."""

import math
import re
import shutil

import numpy as np
import pytest
import torch

from lensmith.judge import spot_check
from lensmith.judge.spot_check import SpotCheck
from lensmith.process.errors import IntegrityError, NumericError
from lensmith.release import verify
from lensmith.source.backbone import Backbone
from tests.support.released import TINY, save_release
from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return save_release(tmp_path_factory.mktemp("release"), n_layers=13)


def test_a_release_is_verified_as_a_stranger_would(made):
    """Nothing but the folder: the model is found and checked by its pin."""
    lines = list(verify.every(str(made[0]), None, None))

    assert lines[0] == f"{TINY}: verified: every hash, the model, and the lens measured again"
    assert lines == verify.run(made[0])


def test_what_the_release_records_stands_beside_it(made):
    """Of held-out text, at the three depths that a lab judges, with intervals."""
    last = verify.run(made[0])[-1]

    assert last == (
        "  recorded in the release, the same on held-out text: by layer 2: +3.00 (+2.88 to +3.12), 3: +2.25 (+2.12 to "
        "+2.38), 4: +0.88 (+0.75 to +1.00)"
    )


def test_all_layers_and_the_same_positions_are_measured_each_time(made):
    """Every layer below the last, a hundred drawn positions."""
    _, backbone, lens = made
    first, again = (spot_check.measure(backbone, lens) for _ in range(2))

    assert first == again
    assert list(first.gain) == list(range(1, 13))
    assert first.identity < 1e-6


def test_the_gain_is_the_difference_of_two_divergences(made):
    """Recomputed in fp64 from the model's hidden states, without any of our code but the lens's tensors."""
    _, backbone, lens = made
    tokens = spot_check.sample(backbone)
    states, norm, W_U = hidden_states(backbone, tokens)
    chosen = spot_check.Stream(spot_check.SEED, "spot-check/positions").subset(8 * 23, 100, step=0)
    final = log_softmax(norm(states[-1])[chosen] @ W_U.T)
    measured = spot_check.measure(backbone, lens)
    for layer, gain in measured.gain.items():
        x = norm(states[layer])[chosen]
        U, V, c, s = (getattr(lens, name)[layer - 1].double().numpy() for name in ("U", "V", "c", "scale"))
        tuned = log_softmax((s * x + x @ U @ V.T + c) @ W_U.T)
        plain = log_softmax(x @ W_U.T)
        saved = (np.exp(final) * (tuned - plain)).sum(-1) / math.log(2)
        own_norm = (
            backbone.head.norm(torch.from_numpy(states[layer]).float(), layer, "next_input").double().numpy()[chosen]
        )
        next_kl = (np.exp(final) * (final - log_softmax(own_norm @ W_U.T))).sum(-1) / math.log(2)
        plain_kl = (np.exp(final) * (final - plain)).sum(-1) / math.log(2)
        if np.median(next_kl) >= np.median(plain_kl):
            assert gain == pytest.approx(float(np.sort(saved)[49]), abs=1e-4)


def log_softmax(z):
    return z - z.max(-1, keepdims=True) - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))


def hidden_states(backbone: Backbone, tokens):
    """Residuals after each block at all positions but the first, fp64; Llama's final norm; W_U."""
    model = backbone.model
    seen = []
    hooks = [layer.register_forward_hook(lambda _m, _i, out: seen.append(out)) for layer in model.model.layers]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    states = [None, *((x[0] if isinstance(x, tuple) else x)[:, 1:].flatten(0, 1).double().numpy() for x in seen)]
    weight, eps = model.model.norm.weight.detach().double().numpy(), model.config.rms_norm_eps

    def norm(x):
        return weight * x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)

    return states, norm, model.lm_head.weight.detach().double().numpy()


def test_sampled_text_follows_the_models_own_distribution():
    """A model that always says token 5: so does the text. Its first tokens are drawn, since it has no BOS."""
    model = tiny_model("llama", n_layers=2)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight[:, 0] = 100.0
        model.lm_head.weight[5, 0] = 100.0
    tokens = spot_check.sample(Backbone.from_model(model))

    assert (tokens[:, 1:] == 5).all()
    assert len(set(tokens[:, 0].tolist())) > 1


def test_a_lens_that_makes_things_worse_is_not_verified(tmp_path):
    folder, _, _ = save_release(tmp_path, better=False)

    with pytest.raises(NumericError, match=r"median KL that the lens saves is -\d.* bits, must be above 0"):
        verify.run(folder)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"identity": 2e-4}, r"\(identity\) is 0.0002 bits, must be at most 0.0001"),
        ({"identity": math.nan}, "identity"),
        ({"last_norm": 0.06}, r"\(gate C\) is 0.06 bits, must be at most 0.05"),
        ({"median_gain": 0.0}, "must be above 0"),
        ({"median_gain": math.nan}, "must be above 0"),
    ],
)
def test_each_limit_is_a_limit(changed, words):
    good = SpotCheck(gain={1: 1.0}, median_gain=1.0, identity=0.0, last_norm=0.0)

    assert good.fault() is None
    assert re.search(words, str(good._replace(**changed).fault()))


def test_the_lines_say_units_text_and_what_is_compared():
    """A number without them could not be compared with any other."""
    saved, by_layer, last = SpotCheck(gain={1: 1.0, 2: 2.0}, median_gain=1.5, identity=1e-7, last_norm=1e-6).lines()

    assert saved == (
        "bits of KL to the model that the lens saves, against the stronger of the two norm lenses (the final norm, the "
        "next block's), median over 100 positions of 8 texts that the model wrote: +1.50 over layers 1..2"
    )
    assert by_layer == "by layer 1: +1.00, 2: +2.00"
    assert last == (
        "at the last layer the lens is the model's head within 1.0e-07 bits (limit 0.0001), the norm lens is the model "
        "within 1.0e-06 bits (limit 0.05)"
    )


def test_a_model_that_changed_since_is_refused(made, tmp_path):
    """The pin of the model is part of the release; its folder is not."""
    shutil.copytree(made[0].parent, tmp_path / "all")
    config = made[0].parent / "model" / "config.json"
    text = config.read_text()
    config.write_text(text + " ")
    try:
        with pytest.raises(IntegrityError, match=r"config\.json has sha256"):
            verify.run(tmp_path / "all" / "release")
    finally:
        config.write_text(text)

"""A model with its tokenizer and a lens, which every test of this room reads."""

import pytest

from tests.support.bench import random_lens
from tests.support.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def parts():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    lens = random_lens(model.config.num_hidden_layers, model.config.hidden_size)
    return model, tokenizer, lens

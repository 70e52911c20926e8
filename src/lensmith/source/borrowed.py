"""A model in somebody else's hands: read as a Backbone, and given back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lensmith.source.backbone import Backbone


@contextmanager
def borrowed(model: PreTrainedModel | Backbone, tokenizer: PreTrainedTokenizerBase | None = None) -> Iterator[Backbone]:
    """The model as a Backbone for the time of a block. Every module is in training mode afterwards as it was before.

    Weights, hooks and `requires_grad` are not touched. A Backbone is passed through.

    Raises:
        InputError: a part of the model was not found.
        NumericError: the head on the last layer does not give the model's own logits.
    """
    if isinstance(model, Backbone):
        yield model
        return
    training = {module: module.training for module in model.modules()}
    try:
        yield Backbone.from_model(model, tokenizer)
    finally:
        for module, flag in training.items():
            module.training = flag

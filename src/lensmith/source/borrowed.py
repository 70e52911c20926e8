"""A model in somebody else's hands: read as a Backbone, and given back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lensmith.source.backbone import Backbone
from lensmith.source.discovery import Anatomy
from lensmith.source.proof import Proof

# The anatomy and proof of each model that is still alive. A Backbone here would hold the model, and keep it alive.
_PROVEN: WeakKeyDictionary[PreTrainedModel, tuple[Anatomy, Proof]] = WeakKeyDictionary()


@contextmanager
def borrowed(model: PreTrainedModel | Backbone, tokenizer: PreTrainedTokenizerBase | None = None) -> Iterator[Backbone]:
    """The model as a Backbone for the time of a block. Every module is in training mode afterwards as it was before.

    Weights, hooks and `requires_grad` are not touched. A Backbone is passed through. The parts of a model are found and
    proven once, and again after one of them was replaced. The head is copied at each call: weights may have changed.

    Raises:
        InputError: a part of the model was not found.
        NumericError: the head on the last layer does not give the model's own logits.
    """
    if isinstance(model, Backbone):
        yield model
        return
    training = {module: module.training for module in model.modules()}
    try:
        anatomy, proof = _PROVEN.get(model, (None, None))
        if anatomy is not None and proof is not None and _parts(anatomy) <= training.keys():
            backbone = Backbone(model.eval(), tokenizer, anatomy, anatomy.head(), proof)
        else:
            backbone = Backbone.from_model(model, tokenizer)
            _PROVEN[model] = backbone.anatomy, backbone.proof
        yield backbone
    finally:
        for module, flag in training.items():
            module.training = flag


def _parts(anatomy: Anatomy) -> set[nn.Module]:
    return {anatomy.body, *anatomy.blocks, *chain(*anatomy.input_norms), anatomy.final_norm, anatomy.unembed}

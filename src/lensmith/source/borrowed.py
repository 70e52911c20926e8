"""A model in somebody else's hands: read as a Backbone, and given back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lensmith.process.errors import InputError
from lensmith.source.backbone import Backbone
from lensmith.source.discovery import Anatomy
from lensmith.source.proof import Proof

# The anatomy and proof of each model that is still alive, with the paths of its parts. A Backbone here would hold the
# model, and keep it alive.
_PROVEN: WeakKeyDictionary[PreTrainedModel, tuple[Anatomy, Proof, dict[str, nn.Module]]] = WeakKeyDictionary()
# Where wrappers keep the model: torch.compile, DataParallel, TransformerLens's TransformerBridge, nnsight.
_INSIDE = ("_orig_mod", "module", "original_model", "_module")


def borrow(model: object, tokenizer: PreTrainedTokenizerBase | None = None) -> Backbone:
    """The model as a Backbone; its weights, hooks, modes and `requires_grad` are not touched.

    A Backbone is passed through, a wrapped model is unwrapped. The parts of a model are found and proven once, and
    again after one of them was replaced. The head is copied at each call: weights may have changed. A forward pass
    through the Backbone belongs into `evaluating`.

    Raises:
        InputError: it is no transformers model, or a part of it was not found.
        NumericError: the head on the last layer does not give the model's own logits.
    """
    if isinstance(model, Backbone):
        return model
    plain = unwrapped(model)
    with evaluating(plain):
        if (proven := _PROVEN.get(plain)) is not None:
            anatomy, proof, parts = proven
            if _parts(plain, anatomy) == parts:
                return Backbone(plain, tokenizer, anatomy, anatomy.head(), proof)
        backbone = Backbone.from_model(plain, tokenizer)
        _PROVEN[plain] = backbone.anatomy, backbone.proof, _parts(plain, backbone.anatomy)
        return backbone


def unwrapped(model: object) -> PreTrainedModel:
    """The transformers model inside what other libraries make of it.

    Raises:
        InputError: there is none. TransformerLens's HookedTransformer, for one, holds weights of its own.
    """
    inner: object = model
    while not isinstance(inner, PreTrainedModel):
        held = vars(inner) if hasattr(inner, "__dict__") else {}
        modules = held.get("_modules", {})  # torch keeps a module's children apart from its other attributes
        inner = next((each for name in _INSIDE if (each := held.get(name, modules.get(name))) is not None), None)
        if inner is None:
            raise InputError(
                f"the model is a {type(model).__name__}, must be a transformers model as from_pretrained gives it, or "
                "one that nnsight, TransformerBridge, torch.compile or DataParallel wraps. Nothing was read."
            )
    if not hasattr(inner, "hf_device_map") and any(weight.is_meta for weight in inner.parameters()):
        raise InputError(
            f"the weights of this {type(model).__name__} are not loaded (device meta); nnsight loads them by "
            "dispatch=True. Nothing was read."
        )
    return inner


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards every module is in training mode or not as it was before."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def _parts(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, nn.Module]:
    """The modules of an anatomy by their paths in the model."""
    parts = {anatomy.body, *anatomy.blocks, *chain(*anatomy.input_norms), anatomy.final_norm, anatomy.unembed}
    return {path: module for path, module in model.named_modules() if module in parts}

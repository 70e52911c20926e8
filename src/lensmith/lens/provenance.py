"""provenance.json, the record of a lens: its counters are measured, its hashes can be checked (`audit`).

Stage `fit` writes one file beside each lens (`recording`). No torch here: report and release read it too.
"""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from lensmith.files.records import Number, Record
from lensmith.hub.pins import ModelPin
from lensmith.source.corpus import TokenizerFacts

PROVENANCE = "provenance.json"

Json = dict[str, Any]  # data whose form others decide


class HeadRecord(Record):
    """The head that the lens reads through: sha256 of W_U and of the final norm's tensors, fp32."""

    w_u_sha256: str
    final_norm_sha256: str


class RoundedHead(Record):
    """The same W_U in a coarser precision: sha256 of its values, fp32, and what that costs (`lens.precision`)."""

    w_u_sha256: str
    kl_bits: float


class ProofRecord(Record):
    """KL of the lens at the last block from the model's own logits, when the model was loaded."""

    max_kl_bits: float
    positions: int


class TextRecord(Record):
    """The text that the lens was fit and validated on."""

    kind: str
    repo: str | None
    name: str | None
    split: str | None
    revision: str | None
    commit: str | None
    content_hash: str
    tokens_sha256: str
    heldout_sha256: str
    bos: TokenizerFacts


class BudgetRecord(Record):
    """Tokens of a sequence, and how many of its positions were sampled."""

    seq_len: int
    positions_per_seq: int


class BatchingRecord(Record):
    batch_seqs: int
    layers_per_step: int


class CapacityRecord(Record):
    rank: int
    n_layers: int
    d_model: int


class OptimizerRecord(Record):
    optimizer: str
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    schedule: Literal["cosine_to_zero"]
    total_steps: int  # of the schedule; an early stop takes fewer
    warmup_steps: int


class PenaltyRecord(Record):
    l2_smallness: float
    smooth_depth: float


class PreconditionerRecord(Record):
    type: Literal["none", "prism"]


class FitRecord(Record):
    """What was counted and measured while the lens was fit."""

    tokens_forwarded: int  # through the frozen model, for training
    positions_trained: int  # repeats counted
    steps: int
    best_step: int
    stopped_early: bool
    low_rank_norms: tuple[float, ...]  # |U_l V_l^T|_F by layer; zero where the low-rank part never trained


class PrismRecord(Record):
    """The Prism beside the lens."""

    directions: int
    residuals: int
    sha256: str


class JacobianRecord(Record):
    """Of what a Jacobian lens is the mean."""

    derivative: Literal["same_position", "future_sum"]
    sequences: int
    tokens: int  # forwarded, once
    positions: int  # whose derivatives were sampled
    draws: int  # of signs at each position: a backward pass each
    agreement: tuple[float, ...]  # cosine between the maps of two halves of the sequences, by layer, without the last


class TransferRecord(Record):
    """Where a transferred lens comes from: another entry of the lab, and the model that it was fit to."""

    entry: str
    kind: str
    model_id: str
    model: ModelPin
    head: HeadRecord
    weights_sha256: str


class MachineRecord(Record):
    """What decides the last bits of the numbers."""

    device: str
    threads: int
    ranks: int
    dtype: str  # of the frozen model


class Provenance(Record):
    """One lens: model, text, settings, counters, hashes, code."""

    model_config = ConfigDict(allow_inf_nan=False)

    schema_version: Literal[1] = Field(alias="schema")
    weights_sha256: str
    model_key: str
    model_id: str
    model: ModelPin
    trust_remote_code: bool  # whether Python files of `model` ran
    quantization: Json | None  # how the weights are stored; None where they are plain
    head: HeadRecord
    rounded_heads: dict[str, RoundedHead]  # by dtype
    proof: ProofRecord
    seed: int
    dataset: TextRecord
    settings: Json  # section `fit`, as params.yaml and the defaults have it
    settings_sha256: str  # of all settings that decide the fit
    kind: str
    norm: str
    budget: BudgetRecord
    batching: BatchingRecord
    capacity: CapacityRecord
    optim: OptimizerRecord
    regularizers: PenaltyRecord
    preconditioner: PreconditionerRecord
    start: str
    coordinates: str
    ridge_by_layer: tuple[float, ...] | None  # of the closed form; None where the fit began at the norm lens
    vocabulary: str  # of a step's softmax: exact or sampled
    products: str  # dtype of the head's products
    temperatures: tuple[float, ...]  # by layer
    measured: FitRecord
    val_kl_bits: tuple[Number, Number, Number] = Field(alias="val_kl_bits@{25,50,75}%")
    val_kl_bits_by_layer: tuple[Number, ...]  # None where the lens lacks the layer
    prism: PrismRecord | None
    imported: Json | None  # a published lens: its pin, its configuration, what was left out
    transferred: TransferRecord | None
    jacobian: JacobianRecord | None
    git_commit: str | None  # the commit that last changed the code of the fit; None outside git
    git_dirty: bool | None  # whether that code was edited since
    code: dict[str, str]  # fingerprint by file
    versions: dict[str, str]
    machine: MachineRecord

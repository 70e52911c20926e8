"""What stages `sweep` and `suite-eval` say beside their tables: run.json and suite.json, one definition of each key.

The keys are those of the project that the CSVs come from. Layers count as in the CSVs; `p25` is 25 % of depth.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from lensmith.files.records import Number, Record

ByDepth = Mapping[str, Number]  # p25, p50, p75 -> a number
Tier = Literal["low", "medium", "high"]
TIERS: tuple[Tier, ...] = ("low", "medium", "high")


class LensIdentity(Record):
    """Which lens was measured."""

    weights_sha256: str
    kind: str
    norm: Literal["final", "next_input"]
    rank: int
    absent: tuple[int, ...] = ()  # layers that it lacks


class ModelStats(Record):
    """The model's shape; None where its configuration does not say."""

    num_layers: int
    d_model: int
    n_heads: int | None
    d_vocab: int
    n_ctx: int | None
    architecture: str
    dtype: str
    norm_note: str


class LogitTransform(Record):
    """What the model does to its logits after W_U."""

    scale: float
    softcap: float | None


class LastLayer(Record):
    """The norm lens after the last block against the model's own logits: means over positions.

    `kl_to_final_bits` is KL(lens || final); `kl_final_lens_bits`, which gate C judges, is KL(final || lens).
    """

    kl_to_final_bits: Number
    top1_agree: Number
    p_top1_lens: Number
    p_top1_model: Number
    temp_est: Number  # the temperature that suits the norm lens best
    temp_at_bound: bool
    cfg_transform: LogitTransform
    kl_after_temp_bits: Number
    kl_final_lens_bits: Number
    kl_final_lens_after_temp_bits_by_seq: tuple[Number, ...]
    n_positions: int
    warn_high_last_layer_kl: bool


class NormTemperature(Record):
    """The temperature that suits a norm lens best at each layer 0..L."""

    lens: str
    positions: int
    by_layer: tuple[Number, ...]
    at_bound: tuple[int, ...]  # layers where the search ended at its bound


class ContextPart(Record):
    """A stretch of the context: its first and last token, and the positions measured in it."""

    first: int
    last: int
    n_positions: int


class HeldoutFacts(Record):
    """What was measured of held-out text; heldout.csv and positions.csv hold the numbers."""

    block_seqs: int  # neighbouring sequences that a bootstrap draws together
    n_positions: int
    parts: tuple[ContextPart, ...]
    median_kl_final_lens_bits: Mapping[str, ByDepth]  # by lens, over positions
    tokens_per_byte: Number = None  # of the text in UTF-8


class ProbeText(Record):
    """One text of a probe: the prompt (pos) or its control (ctl), as it is (orig) or without filler words."""

    fact_key: str
    fact_index: int
    prompt_id: Literal["pos", "ctl"]
    variant: Literal["orig", "no_filler"]
    prompt: str
    answer: str
    aligned: bool  # whether the answer has a first token of its own


class RawLensCheck(Record):
    """How far a lens departs from reading the residual without a norm: `Probes.raw_lens_check` has the formula."""

    kl_ge_1_bit_share: float
    max_kl_lens_raw_bits: Number
    js_p50: Number
    l1_p50: Number
    lens_only_semantics: int
    lens_artifact_score: Number
    lens_artifact_score_v2: Number
    risk_tier: Tier
    score_by_prompt: tuple[Number, ...]  # the score of each text alone, in the order of `prompts`


class Contrast(Record):
    """Numbers of the baseline, of the tuned lens, and their difference."""

    baseline: Mapping[str, int | Number]
    tuned: Mapping[str, int | Number]
    delta: Mapping[str, int | Number]


class ProbeSummary(Record):
    """One text of a probe under the baseline and under the tuned lens.

    The difference of ranks and cosines is tuned - baseline, later being positive; that of KL is baseline - tuned.
    """

    fact_key: str
    prompt_id: str
    variant: str
    cosine_milestones: Contrast
    rank_milestones: Contrast
    kl_bits_at_percentiles: Contrast


class TemperatureShare(Record):
    """How much of what the tuned lens saves a temperature alone saves, by medians over held-out positions."""

    delta_kl_tuned_bits: ByDepth
    delta_kl_temperature_bits: ByDepth
    delta_kl_rotation_bits: ByDepth
    prefer_tuned: bool
    tuned_is_calibration_only: bool


class TunedLensFacts(Record):
    """The tuned lens on the probes, and what it says about itself."""

    status: Literal["loaded"]
    summaries: tuple[ProbeSummary, ...]
    attribution: TemperatureShare | None  # None where no lens of temperatures was fit
    provenance: dict[str, Any]  # as `fit` wrote it


class RunFacts(Record):
    """run.json of a sweep."""

    schema_version: Literal[4] = Field(alias="schema")
    model_key: str
    model_id: str
    model_stats: ModelStats
    lens: LensIdentity
    lenses: tuple[str, ...]
    last_layer_consistency: LastLayer
    norm_temperature: NormTemperature
    heldout: HeldoutFacts
    also_heldout: Mapping[str, HeldoutFacts] = {}  # texts of other kinds, by name
    prompts: tuple[ProbeText, ...]
    raw_lens_check: Mapping[str, RawLensCheck]  # by lens; empty without probes
    tuned_lens: TunedLensFacts


class SuiteFacts(Record):
    """suite.json of an evaluation."""

    schema_version: Literal[4] = Field(alias="schema")
    model_key: str
    n_layers: int
    lens: LensIdentity
    lenses: tuple[str, ...]
    files: Mapping[str, str]  # of prompts -> sha256
    in_training_text: tuple[str, ...]  # ids of prompts that stand there word for word

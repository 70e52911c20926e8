"""The settings of the lab: one strict class per section of params.yaml.

`params_yaml` reads that file. `resolve` checks it once and writes each model's settings to
resolved/models/<key>.json; every later stage reads them from there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lensmith.files import artifacts
from lensmith.files.records import explain
from lensmith.process.errors import InputError
from lensmith.settings.values import (
    COMMIT,
    Count,
    Dataset,
    Epochs,
    Fraction,
    GgufName,
    Label,
    License,
    NonNegative,
    NonNegativeInt,
    Repo,
    Revision,
    Seed,
    Word,
    int_or,
)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Placement = Literal["single", "auto", "tp"]
CorpusKind = Literal["hf", "files", "sampled", "atlas"]
BosPolicy = Literal["tokenizer", "never"]
SampleBy = Literal["line", "paragraph", "document"]


class Checked(BaseModel):
    """Settings with no unknown keys, no coercion, and no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.check()
        return self

    def check(self) -> None:
        """ValueError where values do not belong together; each value alone is checked by its type."""


class Section(Checked):
    """A section of params.yaml.

    `inputs` is written by `resolve`, never by hand: the sha256 of each local file that the section
    names, so that an edit of that file makes the stages that read it stale.
    """

    inputs: dict[str, str] = {}


class SourceParams(Section):
    """Section `source`: the frozen model that the lens reads."""

    repo: Repo | None  # Hub id; exactly one of repo and path
    file: GgufName | None  # of a repo: the GGUF file that is the model; None for safetensors
    path: Word | None  # a local model: its folder, or its GGUF file
    revision: Revision  # branch, tag or commit; prefetch pins it to a commit
    dtype: Dtype  # of the captured forward pass
    device: Literal["auto", "cpu", "cuda"]
    # All on one device; blocks over all GPUs, then memory, then disk; or each block split over processes.
    placement: Placement
    trust_remote_code: bool  # run the Python files of the repository; only of a commit that was read and is named

    def check(self) -> None:
        """One origin; code of others only at a commit."""
        if (self.repo is None) == (self.path is None):
            raise ValueError("needs exactly one of repo (a Hub id) and path (a folder or a GGUF file)")
        if self.file is not None and self.repo is None:
            raise ValueError(f"file is {self.file!r}, a file of a repo; a GGUF file of this machine is named by path")
        if self.trust_remote_code and (self.repo is None or not COMMIT.fullmatch(self.revision)):
            raise ValueError(
                f"trust_remote_code is true and revision is {self.revision!r}; code is run only of a repo at a commit, "
                "40 hex digits: a branch or tag would run what somebody puts there tomorrow"
            )


class CorpusParams(Section):
    """Section `corpus`: the text that the lens is fit and measured on."""

    kind: CorpusKind
    repo: Dataset | None  # hf
    name: Word | None  # hf: configuration, None for the default one
    split: Word  # hf
    revision: Revision  # hf: branch, tag or commit; prefetch pins it
    text_column: Word  # hf, and every file but .txt: text, or chats as lists of messages; `meta.text` is nested
    files: list[Word]  # files: .txt, .jsonl, .csv, .parquet; globs allowed. sampled: prompts
    sample_by: SampleBy  # of a .txt: what a document is
    temperature: Annotated[float, Field(gt=0, le=10)]  # sampled
    top_p: Annotated[float, Field(gt=0, le=1)]  # sampled: tokens are drawn from the likeliest that have this share
    seed: Seed
    seq_len: Annotated[int, Field(ge=8, le=2**20)]  # tokens in a packed sequence
    train_tokens: Count
    heldout_tokens: Count
    also_heldout: dict[Label, Annotated[list[Word], Field(min_length=1)]]  # other texts, files by name; judged as well
    bos: BosPolicy  # special tokens as the model's own tokenizer adds them, or none
    max_document_chars: Count  # longer documents are cut there, and counted

    def check(self) -> None:
        """A source for the kind, and budgets of at least one sequence."""
        if self.kind == "hf" and self.repo is None:
            raise ValueError("kind hf needs repo, a dataset id such as HuggingFaceFW/fineweb-edu")
        if self.kind == "files" and not self.files:
            raise ValueError("kind files needs files, a list of paths")
        for name in ("train_tokens", "heldout_tokens"):
            if (tokens := getattr(self, name)) < self.seq_len:
                raise ValueError(f"{name} is {tokens}, must be at least seq_len ({self.seq_len})")


class ImportedParams(Section):
    """Section `imported`: a lens that others published, for fit.kind imported."""

    format: Literal["tuned-lens", "jacobian"]
    repo: Repo | None  # Hub repository; None: folder is a local one
    repo_type: Literal["model", "dataset", "space"]
    revision: Revision  # branch, tag or commit; prefetch pins it
    folder: Word | None  # of the lens's files, in that repository or local

    def check(self) -> None:
        """A folder inside the repository."""
        if self.repo is not None:
            if self.folder is None:
                raise ValueError("repo needs folder, where in that repository the lens is, such as lens/gpt2")
            if {"", ".", ".."} & set(self.folder.split("/")):
                raise ValueError(f"folder is {self.folder!r}, must be one inside the repository, such as lens/gpt2")


class TransferredParams(Section):
    """Section `transferred`: the lens of another entry, for fit.kind transferred.

    `inputs` has the `fit_sha256` of that entry, by its key.
    """

    # Both ways, since `from` is a word of Python.
    model_config = ConfigDict(serialize_by_alias=True)

    entry: Word | None = Field(alias="from")  # its key; it stands above this one, so that DVC fits it first


class FitParams(Section):
    """Section `fit`: the lens and how it is trained."""

    kind: Literal["identity", "temperature", "bias", "low_rank", "full", "jacobian", "imported", "transferred"]
    rank: Annotated[int | Literal["auto"], int_or("auto")]  # auto: the smallest near the best, by the closed form
    norm: Literal["final", "next_input"]  # what a middle layer is normed with before it is decoded
    ladder: list[Literal["temperature", "bias", "full"]]  # smaller or larger kinds, fit beside the lens to compare it
    start: Literal["norm_lens", "closed_form"]
    coordinates: Literal["plain", "whitened"]  # that U and V are trained in
    scale: bool  # learn s, a factor per dimension
    temperature: bool  # learn tau, a temperature per layer
    prism: Literal["off", "lens", "precondition"]  # fit Prism too; `precondition`: and write U and V in its basis
    bank: Literal["disk", "stream"]
    positions_per_seq: Count
    position_min: Fraction  # of the sequence, where sampled positions begin
    position_max: Fraction
    epochs: Epochs
    batch_seqs: Count  # sequences per optimizer step
    layers_per_step: Annotated[int | Literal["all"], int_or("all")]
    vocab_scaling: bool  # the reference recipe's rule: fewer layers and positions for a large vocabulary
    vocabulary: Literal["auto", "exact", "sampled"]  # of a step's softmax; auto: sampled where it is large
    products: Literal["auto", "float32", "bfloat16"]  # of the head's two matrix products
    optimizer: Literal["adamw", "muon"]  # muon: for U and V, AdamW for the rest
    lr: Annotated[float, Field(gt=0, le=10)]  # peak
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegative
    warmup: Fraction  # of all steps
    l2_smallness: NonNegative
    smooth_depth: NonNegative
    validate_every: Count  # steps
    validation_seqs: Count  # the first ones of the held-out text; sweep measures on the others
    patience: Count  # validations without improvement before the fit stops
    jacobian: Literal["same_position", "future_sum"]  # of the final residual: there, or summed over later positions too
    jacobian_seqs: Count  # training sequences that kind jacobian reads at most
    jacobian_agreement: Fraction  # least cosine between both halves of them, over all layers, at which it stops
    seed: Seed

    def check(self) -> None:
        """Positions to sample from; a norm for the kind."""
        if self.kind == "jacobian" and self.norm != "final":
            raise ValueError("norm is next_input, must be final for kind jacobian: its maps lead to the final residual")
        if self.position_min >= self.position_max:
            raise ValueError(f"position_min is {self.position_min}, must be below position_max ({self.position_max})")


class SweepParams(Section):
    """Section `sweep`: what is measured layer by layer."""

    heldout_seqs: Count  # sequences measured
    positions_per_seq: Count  # one in each of as many equal stretches of a sequence
    causal_positions: NonNegativeInt  # residuals that are changed to see what a lens causes, one a sequence
    seed: Seed  # of these positions and changes
    raw: bool  # read the residual without a norm as well
    batch_seqs: Count
    probes: list[Word]  # .jsonl of probe prompts, suites/README.md has the form
    top_k: Annotated[int, Field(ge=2, le=20)]


class SuiteParams(Section):
    """Section `suite`: the prompts that the lens is judged on."""

    files: Annotated[list[Word], Field(min_length=1)]  # of prompts
    batch_prompts: Count
    trajectories: NonNegativeInt  # prompts that the report shows position by position, beside the probes


class GatesParams(Section):
    """Section `gates`: limits of acceptance, and how intervals are made."""

    delta_kl_bits_25: float
    delta_kl_bits_50: float
    delta_kl_bits_75: float
    delta_kl_share: Fraction  # 0.1: that of the stronger norm lens's KL, so that 0.3 bits are not enough beyond 3
    earliness_le_10_layers: float
    earliness_le_5_layers: float
    earliness_share: Fraction
    last_layer_kl_bits: NonNegative
    worst_delta_kl_bits: float
    ladder_gain_bits: float
    position_delta_kl_bits: float
    text_delta_kl_bits: float
    artifact_score_increase: NonNegative  # 0.3: what the score adds for answers that only the lens has on top
    min_prompts: Count
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    seed: Seed


class PublishParams(Section):
    """Section `publish`: what the packaged lens says about itself, and where it is sent."""

    license: License  # of the lens, an SPDX id
    base_license: Word | None  # of the base model, None where it is not known
    base_license_file: Word | None  # its text; None to take it from the model's own repository
    repo: Repo | None  # dataset repository on the Hub; None to package only
    tag: Annotated[str | None, Field(pattern=r"^v\d{4}\.\d\d\.\d\d(\.[1-9]\d*)?$")]  # None: today's, in UTC
    allow_failed_gates: bool  # send a lens that did not pass every gate, and say so in the index


class FleetParams(Section):
    """Section `fleet`: what a task of `lensmith fleet` asks of a machine. It decides nothing that is computed."""

    gpus: Annotated[int | Literal["auto"], int_or("auto", least=0)]  # auto: by the size of the model
    memory_gib: Annotated[int | Literal["auto"], int_or("auto")]  # auto: by the size of the model
    cpus: Count  # cores, and threads of its stages; the number of threads is part of what makes two fits the same


ANYWHERE = FleetParams(gpus="auto", memory_gib="auto", cpus=1)


class ModelParams(Checked):
    """Everything that the lab knows of one model before it runs."""

    key: str
    source: SourceParams
    corpus: CorpusParams
    imported: ImportedParams
    transferred: TransferredParams
    fit: FitParams
    sweep: SweepParams
    suite: SuiteParams
    gates: GatesParams
    publish: PublishParams
    # Not in resolved/: a stage that cannot see it does not become stale with it.
    fleet: FleetParams = Field(default=ANYWHERE, exclude=True)

    def check(self) -> None:
        """A lens for a kind that is read, a model that can write, no more positions and sequences than there are."""
        if self.corpus.kind == "sampled" and self.source.placement == "tp":
            raise ValueError("source.placement is tp, must be single or auto for corpus.kind sampled")
        origins = {"imported": ("folder", self.imported.folder), "transferred": ("from", self.transferred.entry)}
        for kind, (name, origin) in origins.items():
            if (self.fit.kind == kind) != (origin is not None):
                raise ValueError(
                    f"fit.kind is {self.fit.kind} and {kind}.{name} is {origin}; kind {kind} needs one, and no other "
                    "kind may have one"
                )
        if self.fit.kind in origins and self.fit.prism != "off":
            raise ValueError(f"fit.prism is {self.fit.prism}, must be off for fit.kind {self.fit.kind}: nothing is fit")
        window = int(self.corpus.seq_len * self.fit.position_max) - int(self.corpus.seq_len * self.fit.position_min)
        if self.fit.positions_per_seq > window:
            raise ValueError(
                f"fit.positions_per_seq is {self.fit.positions_per_seq}, but position_min..position_max of "
                f"corpus.seq_len ({self.corpus.seq_len}) leaves {window}"
            )
        heldout = self.corpus.heldout_tokens // self.corpus.seq_len
        wanted = self.fit.validation_seqs + self.sweep.heldout_seqs
        if wanted > heldout:
            raise ValueError(
                f"fit.validation_seqs ({self.fit.validation_seqs}) and sweep.heldout_seqs ({self.sweep.heldout_seqs}) "
                f"ask for {wanted} held-out sequences, but corpus.heldout_tokens gives {heldout}"
            )
        if self.sweep.positions_per_seq > self.corpus.seq_len:
            raise ValueError(
                f"sweep.positions_per_seq is {self.sweep.positions_per_seq}, "
                f"must be at most corpus.seq_len ({self.corpus.seq_len})"
            )

    @property
    def model_id(self) -> str:
        """The model's name in a release: its Hub id, or `local/<key>`."""
        return self.source.repo or f"local/{self.key}"


def fit_sha256(resolved: Mapping[str, Any]) -> str:
    """The sha256 of what decides a model's fit, of its settings as `resolve` wrote them. Code is not among them."""
    sections = {name: resolved[name] for name in ("source", "corpus", "imported", "fit")}
    return artifacts.sha256_text(artifacts.canonical_json(sections))


def read_resolved(path: Path) -> ModelParams:
    """One model's settings as `resolve` wrote them."""
    try:
        return ModelParams.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: missing. `dvc repro resolve` writes it.") from None
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error)}. `dvc repro resolve` rewrites it.") from None

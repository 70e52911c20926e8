"""A model's configuration, read without the code that runs a model."""

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from lensmith.process.errors import InputError, first_line
from lensmith.settings.sections import ModelParams
from lensmith.source import remote_code

# Names that configurations use for the number of tokens that a model reads at once; the first one present counts.
_WINDOWS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "model_max_length",
    "seq_length",
    "seq_len",
    "n_ctx",
    "context_length",
    "max_target_positions",
)

NOT_LOADED = "The model was not loaded."
UNWRITTEN = "Nothing was written."


def read_config(path: Path, name: str, *, trusted: bool = False) -> PretrainedConfig:
    """The configuration of the model in the folder `path`; `name` is the model's in messages.

    Raises:
        InputError: the configuration is broken; this version of transformers does not know the architecture, and code
            of the folder is not `trusted`; or a file names code of another repository.
    """
    remote_code.check(path, name)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=trusted, local_files_only=True)
    except Exception as error:
        raise InputError(f"{name}: config.json cannot be used ({first_line(error)}). {NOT_LOADED}") from error
    return config


def max_length(config: PretrainedConfig) -> int | None:
    """The most tokens that a model reads at once; None where its configuration has no limit."""
    values = (getattr(config.get_text_config(), name, None) for name in _WINDOWS)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def check_sizes(config: PretrainedConfig, name: str, settings: ModelParams) -> None:
    """Check `corpus.seq_len` and `fit.rank` against the model: `fit` would find them too large after the capture.

    Raises:
        InputError: one is too large.
    """
    seq_len, rank = settings.corpus.seq_len, settings.fit.rank
    window, d_model = max_length(config), getattr(config.get_text_config(), "hidden_size", None)
    if settings.fit.kind == "low_rank" and isinstance(rank, int) and isinstance(d_model, int) and rank > d_model:
        raise InputError(f"fit.rank is {rank}, but {name} has d_model {d_model}, the most it may be. {UNWRITTEN}")
    if window is not None and window < seq_len:
        raise InputError(f"corpus.seq_len is {seq_len}, but {name} reads at most {window} tokens. {UNWRITTEN}")


def is_quantised(config: PretrainedConfig) -> bool:
    """Whether weights are stored in fewer bits than the configuration's dtype has."""
    return getattr(config, "quantization_config", None) is not None

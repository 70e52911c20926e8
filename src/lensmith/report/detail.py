"""What the page shows of single prompts and of where a lens comes from: plots/detail/<model>.json, as `plots` wrote it.

Everything that is text becomes one visible line here (`heatmap.label`), so that the page's script only has to put it
in place.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensmith.files import artifacts
from lensmith.process import wording
from lensmith.process.errors import IntegrityError
from lensmith.report import heatmap

PROMPT = 300  # characters of a prompt that are shown
TEXTS = ("id", "domain", "prompt", "answer")

# (label, paths in provenance.json). A model in a folder has no commit, and generated text no repository.
FACTS = (
    ("Lens, sha256 of the weights", "weights_sha256"),
    ("Model", "model_id"),
    ("Model, commit", "model.commit"),
    ("Unembedding W_U, sha256", "head.w_u_sha256"),
    ("Final norm, sha256", "head.final_norm_sha256"),
    ("Text", "dataset.repo"),
    ("Text, commit", "dataset.commit"),
    ("Training tokens, sha256", "dataset.tokens_sha256"),
    ("Held-out tokens, sha256", "dataset.heldout_sha256"),
    ("Code, git commit", "git_commit"),
    ("Tokens through the model", "measured.tokens_forwarded"),
    ("Positions trained on", "measured.positions_trained"),
    ("Steps taken, best step", "measured.steps+measured.best_step"),
    ("Proof: largest KL at the last block, bits", "proof.max_kl_bits"),
    ("Seed", "seed"),
    ("Device, dtype", "machine.device+machine.dtype"),
    ("torch, transformers", "versions.torch+versions.transformers"),
)


@dataclass(frozen=True)
class Detail:
    """One model's prompts, trajectories and provenance."""

    columns: tuple[str, ...]
    prompts: list[list[Any]]
    trajectories: list[dict[str, Any]]
    provenance: Mapping[str, Any]

    def facts(self) -> Iterator[tuple[str, str]]:
        """Provenance in words, as far as there is any."""
        for name, paths in FACTS:
            found = [_at(self.provenance, path) for path in paths.split("+")]
            if known := [_word(value) for value in found if value is not None]:
                yield name, ", ".join(known)

    def page(self, room: int) -> dict[str, Any]:
        """What the page's script reads: all prompts, and as many trajectories as fit into `room` bytes."""
        table = [[_shown(name, value) for name, value in zip(self.columns, row, strict=True)] for row in self.prompts]
        room -= len(artifacts.canonical_json(table).encode())
        kept: list[dict[str, Any]] = []
        for text in map(_labelled, self.trajectories):
            room -= len(artifacts.canonical_json(text).encode())
            if room < 0:
                break
            kept.append(text)
        left_out = len(self.trajectories) - len(kept)
        return {"columns": self.columns, "prompts": table, "trajectories": kept, "left_out": left_out}


def read(path: Path) -> Detail:
    """One model's detail.

    Raises:
        IntegrityError: missing, or not what `plots` writes.
    """
    data = artifacts.read_json(path)
    try:
        return Detail(tuple(data["columns"]), data["prompts"], data["trajectories"], data["provenance"])
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"{path}: lacks {error}. `dvc repro` writes it again.") from None


def _shown(column: str, value: Any) -> Any:
    return heatmap.label(value, PROMPT) if column in TEXTS else value


def _labelled(text: dict[str, Any]) -> dict[str, Any]:
    """A trajectory with its words as labels for Plotly, in a cell and on hover."""
    words = {"short": heatmap.labels(text["words"], heatmap.SHORT), "long": heatmap.labels(text["words"], heatmap.LONG)}
    about = {name: heatmap.label(text[name], PROMPT) for name in ("id", "prompt", "answer")}
    return {**words, **about, "tokens": text["tokens"], "lenses": text["lenses"]}


def _at(data: Any, path: str) -> Any:
    for name in path.split("."):
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def _word(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return wording.count(value) if isinstance(value, int) else wording.number(value)

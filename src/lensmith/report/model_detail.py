"""Single prompts, their trajectories and the lens's provenance, from plots/detail/<model>.json to the page.

All text becomes one visible line here (`heatmap.label`), so that the page's script only puts it in place.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensmith.files import artifacts
from lensmith.process import wording
from lensmith.process.errors import IntegrityError
from lensmith.report import heatmap

PROMPT = 300  # characters of a prompt that the page shows
TEXT_COLUMNS = ("id", "domain", "prompt", "answer")

# (label, paths in provenance.json). A model in a folder has no commit, and generated text no repository.
FACTS = (
    ("Lens, sha256 of the weights", "weights_sha256"),
    ("Model", "model_id"),
    ("Model, commit", "model.commit"),
    ("Lens fit to another model: entry, model", "transferred.entry+transferred.model_id"),
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
    ("Proof at load: largest KL at the last layer, bits", "proof.max_kl_bits"),
    ("Seed", "seed"),
    ("Device, dtype", "machine.device+machine.dtype"),
    ("torch, transformers", "versions.torch+versions.transformers"),
)


@dataclass(frozen=True)
class ModelDetail:
    """What stage `plots` wrote of one model's prompts and provenance."""

    columns: tuple[str, ...]  # of `prompts`
    prompts: list[list[Any]]
    trajectories: list[dict[str, Any]]
    provenance: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "ModelDetail":
        """One model's file.

        Raises:
            IntegrityError: missing, or not what `plots` writes.
        """
        data = artifacts.read_json(path)
        try:
            return cls(tuple(data["columns"]), data["prompts"], data["trajectories"], data["provenance"])
        except (KeyError, TypeError) as error:
            raise IntegrityError(f"{path}: lacks {error}. `dvc repro` writes it again.") from None

    def facts(self) -> Iterator[tuple[str, str]]:
        """(label, value in words) of FACTS that the provenance holds."""
        for name, paths in FACTS:
            values = [self._provenance_at(path) for path in paths.split("+")]
            if known := [wording.value(value) for value in values if value is not None]:
                yield name, ", ".join(known)

    def _provenance_at(self, path: str) -> Any:
        value: Any = self.provenance
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def page_data(self, budget: int) -> dict[str, Any]:
        """What the page's script reads: all prompts, and as many trajectories as fit into `budget` bytes."""
        prompts = [
            [
                heatmap.label(value, PROMPT) if name in TEXT_COLUMNS else value
                for name, value in zip(self.columns, prompt, strict=True)
            ]
            for prompt in self.prompts
        ]
        budget -= len(artifacts.canonical_json(prompts).encode())
        shown: list[dict[str, Any]] = []
        for trajectory in self.trajectories:
            labelled = {
                "short": heatmap.labels(trajectory["words"], heatmap.SHORT),
                "long": heatmap.labels(trajectory["words"], heatmap.LONG),
                **{name: heatmap.label(trajectory[name], PROMPT) for name in ("id", "prompt", "answer")},
                "tokens": trajectory["tokens"],
                "blank": _before_text(trajectory),
                "pieces": _pieces(trajectory["words"]),
                "lenses": trajectory["lenses"],
            }
            budget -= len(artifacts.canonical_json(labelled).encode())
            if budget < 0:
                break
            shown.append(labelled)
        left_out = len(self.trajectories) - len(shown)
        return {"columns": self.columns, "prompts": prompts, "trajectories": shown, "left_out": left_out}


def _before_text(trajectory: Mapping[str, Any]) -> int:
    """How many tokens the tokenizer put before the text, such as BOS: the text does not begin with their words."""
    words, text = (trajectory["words"][place].strip() for place in trajectory["tokens"]), trajectory["prompt"].lstrip()
    # A token that is a part of a character has no word of its own: U+FFFD.
    begins = (word == "" or text.startswith(word) or "\ufffd" in word for word in words)
    return next((number for number, begun in enumerate(begins) if begun), 0)


def _pieces(words: list[str]) -> list[int]:
    """Places of words that go on inside a word: letters or digits without the space that others begin with."""
    if not any(word.startswith(" ") for word in words):
        return []  # a tokenizer that gives no spaces says nothing of it
    return [place for place, word in enumerate(words) if word[:1].isalnum()]

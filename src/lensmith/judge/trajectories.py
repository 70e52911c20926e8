"""trajectories.json: texts that the report shows token by token and layer by layer, packed to the digits it shows."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lensmith.files import artifacts
from lensmith.judge import readings
from lensmith.judge.bench import Bench
from lensmith.judge.tables import TRAJECTORIES


@dataclass(frozen=True)
class Shown:
    """One text."""

    id: str
    prompt: str
    answer: str
    ids: list[int]


def write(folder: Path, bench: Bench, texts: Iterable[Shown]) -> None:
    """Read every text under the norm lens and the tuned lens; write `folder`/trajectories.json."""
    assert bench.backbone.tokenizer is not None  # a bench has one: prompts were tokenized with it
    found = [
        {"id": text.id, "prompt": text.prompt, "answer": text.answer}
        | readings.read(bench.backbone, bench.lens, text.ids, bench.backbone.tokenizer).packed()
        for text in texts
    ]
    artifacts.write_text(folder / TRAJECTORIES, artifacts.canonical_json(found) + "\n")

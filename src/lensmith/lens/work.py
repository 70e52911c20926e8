"""Where the checkpoints of a fit lie, named by everything that decides its bits.

A rung below the lens of an entry depends on fewer settings than that lens. It has a folder of its own, so a fit of
another rank, or of another kind on the same text, finds the rung and does not fit it again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lensmith.files import artifacts, cache
from lensmith.lens import recording
from lensmith.settings.sections import FitParams
from lensmith.source import corpus
from lensmith.source.backbone import Backbone

UNREAD = {"ladder", "rank", "jacobian", "jacobian_seqs", "jacobian_agreement"}  # settings that no rung reads


@dataclass(frozen=True)
class Work:
    """The folder of a fit under LENSMITH_HOME, and what it is named by."""

    folder: Path
    key: dict[str, Any]

    @classmethod
    def of(cls, key: dict[str, Any]) -> Self:
        """The folder of this key."""
        return cls(cache.folder("fit", artifacts.sha256_text(artifacts.canonical_json(key))[:32]), key)

    def rung(self, settings: FitParams, below: Sequence[str]) -> "Work":
        """That of a rung with these settings and these kinds below it, whatever lens it stands beside."""
        shared = {name: value for name, value in self.key.items() if name not in {"model_key", "lens"}}
        return Work.of(shared | {"fit": settings.model_dump(mode="json", exclude=UNREAD), "below": [*below]})

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, which one process writes at a time."""
        with cache.held(self.folder):
            artifacts.write_json(self.folder / "key.json", self.key)
            yield

    def link(self, rung: "Work", kind: str) -> None:
        """Show a rung below this folder, for those who watch the fit or list the cache."""
        (self.folder / kind).unlink(missing_ok=True)
        (self.folder / kind).symlink_to(rung.folder / kind)


def work_key(
    model_key: str, settings: FitParams, manifest: corpus.Manifest, backbone: Backbone, code: dict[str, str]
) -> dict[str, Any]:
    """Everything that decides the bits of a model's fits. Its hash names the folder of their checkpoints."""
    return {
        "schema": 1,
        "model_key": model_key,
        "model_files": manifest.model.files,
        "tokens_sha256": manifest.tokens_sha256,
        "heldout_sha256": manifest.heldout_sha256,
        "fit": settings.model_dump(mode="json"),
        "lens": None if manifest.lens is None else manifest.lens.model_dump(mode="json"),
        "code": code,
        "versions": recording.versions(),
        "machine": recording.machine(backbone).data(),
    }

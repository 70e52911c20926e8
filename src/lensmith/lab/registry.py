"""Lenses as artifacts of DVC: lenses/<key>/dvc.yaml names the released lens of a model.

`dvc artifacts get`, `dvc.api.artifacts_show` and the model registry look for such entries. DVC has no `foreach` for
them, so each model has a file.
"""

from pathlib import Path

from lensmith.files import artifacts
from lensmith.lab.layout import RELEASES

LENSES = Path("lenses")

# A release, as `lensmith.load` reads it. The name is the same in every file: the folder holds the key, of which some
# are no valid names of artifacts.
ENTRY = """\
artifacts:
  lens:
    path: ../../{release}
    type: model
    labels:
    - lens
"""


def entry(root: Path, key: str) -> Path:
    """The file of a model."""
    return root / LENSES / key / "dvc.yaml"


def write(root: Path, key: str) -> None:
    """Write the file of a model; one that is there stays. Raises ResourceError where the disk is full."""
    file = entry(root, key)
    if not file.exists():
        artifacts.write_text(file, ENTRY.format(release=(RELEASES / key).as_posix()))

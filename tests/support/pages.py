"""What README and docs/ print: their blocks of code, for the tests that run it."""

import re
from pathlib import Path

from tests.support.settings import REPOSITORY

README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "SECURITY.md", REPOSITORY / "suites/README.md"]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    """The text of a page's blocks of one language, in their order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks; comments that have a line of their own are left out."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if not line.lstrip().startswith("#")]

"""The list of the library's files in docs/how-it-works.md: each file with the first sentence of its docstring.

python -m tests.support.tree    write it again
"""

import ast
import re
from pathlib import Path

from tests.test_layout import ROOMS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-it-works.md"
LIBRARY = ROOT / "src" / "lensmith"
BEGIN, END = "<!-- tree: written by tests/support/tree.py -->", "<!-- end of tree -->"


def tree() -> str:
    """A table for each room."""
    tables = [f"| file | |\n|---|---|\n{_line(LIBRARY / '__init__.py')}"]
    for room in ROOMS:
        files = sorted(path for path in (LIBRARY / room).rglob("*.py") if path.name != "__init__.py")
        tables.append(f"| `{room}/` | |\n|---|---|\n" + "\n".join(map(_line, files)))
    return "\n\n".join([BEGIN, *tables, END])


def with_tree(text: str) -> str:
    """The page with the list as it should be."""
    before, rest = text.split(BEGIN)
    return before + tree() + rest.split(END)[1]


def _line(file: Path) -> str:
    paragraph = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
    sentence = re.split(r"(?<=\.) (?=[A-Z])", " ".join(paragraph.split()))[0].rstrip(".")
    parts = sentence.replace("|", r"\|").split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]  # outside backticks it would be markup
    return f"| `{file.name}` | {'`'.join(parts)} |"


if __name__ == "__main__":
    PAGE.write_text(with_tree(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

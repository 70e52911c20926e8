"""The table of model families in docs/models.md, from the list that the tests go through.

python -m tests.support.families    write it again
"""

from pathlib import Path

from lensmith.source.logit_transform import SCALES, SOFTCAPS
from tests.support.tiny import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families: written by tests/support/families.py -->", "<!-- end of families -->"


def table() -> str:
    """A line for each way of making logits, with the model types that are tested with it."""
    ways: dict[str, list[str]] = {}
    for family, settings in FAMILIES.items():
        names = [name for name in (*SCALES, *SOFTCAPS) if name in settings]
        ways.setdefault(" and ".join(f"`{name}`" for name in names) or "W_U alone, or with a bias", []).append(family)
    rows = [f"| {way} | {', '.join(sorted(families))} |" for way, families in ways.items()]
    count = f"{len(FAMILIES)} configurations, by what stands between W_U and the logits:"
    return "\n".join([BEGIN, count, "", "| logits | model types |", "|---|---|", *rows, END])


def with_table(text: str) -> str:
    """The page with the table as it should be."""
    before, rest = text.split(BEGIN)
    return before + table() + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))

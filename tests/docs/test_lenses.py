"""What docs/lenses.md says of a lab whose numbers are made by hand."""

import json
from pathlib import Path

import pytest

from docs import write_lenses

HEADER = "lens,number,value,lo,hi,units\n"


def entry(lab: Path, key: str, kind: str, numbers: dict[str, dict[str, tuple[float, float]]]) -> None:
    """An entry of a lab: of each lens its numbers, as value and half width."""
    for folder, text in (
        ("metrics", "{}"),
        ("resolved/models", json.dumps({"fit": {"kind": kind}, "source": 1, "suite": 2})),
    ):
        (lab / folder).mkdir(parents=True, exist_ok=True)
        (lab / folder / f"{key}.json").write_text(text)
    lines = [
        f"{lens},{name},{value},{value - half},{value + half},40\n"
        for lens, known in numbers.items() for name, (value, half) in known.items()
    ]  # fmt: skip
    (lab / "plots/lenses").mkdir(parents=True, exist_ok=True)
    (lab / "plots/lenses" / f"{key}.csv").write_text(HEADER + "".join(lines))


def numbers(kl: float, within: float, chance: float = 0.05, depth: float = 0.5) -> dict[str, tuple[float, float]]:
    kls = dict.fromkeys(("kl_25", "kl_50", "kl_75", "kl_mean"), (kl, 0.5)) | {"causal_cosine": (within / 2, 0.125)}
    shares = dict.fromkeys(("within_1", "within_5", "within_10"), (within, 0.1)) | dict.fromkeys(
        ("chance_1", "chance_5", "chance_10"), (chance, 0.05)
    )
    held = shares | {"best_depth": (depth, 0.1), "skip_ahead": (1 - within, 0.1)}
    return kls | held | {f"answered_{name}": (value, half) for name, (value, half) in held.items()}


@pytest.fixture
def page(tmp_path: Path) -> str:
    norm = numbers(9.0, 0.1)
    entry(tmp_path, "one", "low_rank", {"norm": norm, "bias": numbers(4.0, 0.2), "tuned": numbers(2.0, 0.3)})
    entry(tmp_path, "one-jacobian", "jacobian", {"norm": norm, "tuned": numbers(7.0, 0.8, depth=0.9)})
    entry(tmp_path, "bare", "low_rank", {"norm": {"kl_mean": (9.0, 0.5)}})
    return write_lenses.page(tmp_path)


def test_each_lens_of_a_model_has_a_row(page: str) -> None:
    """The norm lens that both entries share stands once; an entry without intermediates has no section."""
    kl = page.split("## one")[1].split("Intermediates", maxsplit=1)[0]
    assert [line.split(" | ")[0] for line in kl.splitlines() if line.startswith("| ")][2:] == [
        "| norm lens", "| tuned lens `one`", "| Jacobian lens `one-jacobian`",
    ]  # fmt: skip
    assert "| tuned lens `one` | 2.00 [1.50 2.50] |" in kl
    assert "80 [70 90] | 80 [70 90] | 80 [70 90] | 5 [0 10] | 90 [80 100] | 20 [10 30] |" in page
    assert "bare" not in page


def test_words_follow_the_numbers(page: str) -> None:
    """Who wins, who loses, what is not apart, and what is no better than chance."""
    words = page.split("In words")[1]

    assert "do to it? Best: Jacobian lens `one-jacobian` 0.40 [0.28 0.53], not apart from the next." in words
    assert "- What will the model say? Best: tuned lens `one` 2.00 [1.50 2.50] bits, apart from the next." in words
    assert "Then: Jacobian lens `one-jacobian` 7.00 [6.50 7.50] bits, norm lens 9.00 [8.50 9.50] bits." in words
    assert "in the top 10? Best: Jacobian lens `one-jacobian` 80 [70 90] %, apart" in words
    assert "more than chance, in the top 10? Not for norm lens." in words
    assert (
        "clearest? Best: norm lens 50 [40 60] %, not apart from the next. Then: tuned lens `one` 50 [40 60] %," in words
    )

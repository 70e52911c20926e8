"""Every colour, once: for the report page, its charts and heat maps, `dvc plots`, the terminal and the benchmarks.

Colours of lines have middle lightness and read well on white and on black. Neighbours in a list stay apart for
colour-blind readers.
"""

from collections.abc import Mapping

# Lenses in the order of `dvc plots`. Vega gives the colour of a missing lens to the next one, so those that are always
# measured come first.
LENSES = {
    "norm": "#7d8590",
    "tuned": "#1f7fc4",
    "norm_next": "#d98200",
    "temperature": "#009e73",
    "bias": "#c65fa0",
    "full": "#8a7cd6",
    "prism": "#d5592b",
    "raw": "#a08c00",
}
# Lines that stand for no lens: models, settings, contenders.
SERIES = ("#1f7fc4", "#d98200", "#009e73", "#c65fa0", "#7d8590", "#d5592b", "#8a7cd6", "#a08c00")
TUNED_PALE = "#8dbde2"  # a second bar beside one in the tuned lens's colour
ANSWER_RANKS = {10: TUNED_PALE, 5: "#1f7fc4", 1: "#d98200"}
PERCENTILES = {10: "#b3cde3", 25: "#6baed6", 50: "#1f7fc4", 75: "#d98200", 90: "#8c510a"}
TRAINING = {
    "training": "#7d8590",
    "held out, 25 %": "#d98200",
    "held out, 50 %": "#1f7fc4",
    "held out, 75 %": "#009e73",
}
RANK_CURVES = {"trained": "#1f7fc4", "closed form": "#7d8590"}
LIMIT = "#d5592b"
WHISKER = "#7d8590"
GUIDE = "#808891"
TRANSPARENT = "rgba(0,0,0,0)"

# Heat maps run from dark blue by grey to yellow, even in lightness. Yellow is near the model.
HEAT = ((0.0, "#00204d"), (0.25, "#3b496c"), (0.5, "#7b7b78"), (0.75, "#b8a95b"), (1.0, "#ffe945"))

# Of the norm lens less the tuned lens: orange where the norm lens is nearer to the model, blue where the tuned lens is.
DIFFERENCE = ((0.0, "#d98200"), (0.5, "#e8ebef"), (1.0, "#1f7fc4"))

VERDICTS_IN_A_TERMINAL = {"pass": "green", "fail": "red", "inconclusive": "yellow", "invalid": "magenta"}

# CSS variables of pages, for readers who prefer a light or a dark page.
LIGHT = {
    "page": "#f6f7f9", "card": "#fff", "ink": "#15191e", "muted": "#59636f", "line": "#e1e5ea", "accent": "#17649f",
    "grid": "#e8ebef", "edge": "#15191e40", "chosen": "#e0303a", "pass": "#0a664a", "pass-bg": "#def3ea",
    "fail": "#ae241b", "fail-bg": "#fce4e1", "inconclusive": "#7d5200", "inconclusive-bg": "#fcefd2",
    "invalid": "#4f5963", "invalid-bg": "#e8ebef",
}  # fmt: skip
DARK = {
    "page": "#0d1115", "card": "#151a20", "ink": "#e9ecef", "muted": "#9ba5b0", "line": "#2a323b", "accent": "#78b9ee",
    "grid": "#262d35", "edge": "#000c", "chosen": "#e0303a", "pass": "#74d7b2", "pass-bg": "#11342a",
    "fail": "#ffa196", "fail-bg": "#45201d", "inconclusive": "#f1c66f", "inconclusive-bg": "#3a2d10",
    "invalid": "#b1bac4", "invalid-bg": "#28303a",
}  # fmt: skip


def css_variables(theme: Mapping[str, str]) -> str:
    """LIGHT or DARK as declarations of CSS variables."""
    return " ".join(f"--{name}: {colour};" for name, colour in theme.items())

"""Writes offline.html, the page that `dvc plots` fills: Vega inlined, so that charts show without a network.

    npm install --prefix FOLDER vega@5 vega-lite@5 vega-embed@6
    python .dvc/plots/build_offline.py FOLDER/node_modules

Run it when Vega's version, the palette or the page below changes. `.dvc/config` names the page:
`plots.html_template`. DVC replaces {refresh_tag} and {plot_divs}; its own {scripts}, loaded from a CDN, are left out.
"""

# ruff: noqa: INP001, a script and no part of a package

import json
import sys
from pathlib import Path

from lensmith.report import palette

# Each before those that use it. Major versions are those that DVC's own templates are written for.
PACKAGES = ("vega", "vega-lite", "vega-embed")

# Vega's browser build bundles these as well; `vega` itself ships no licence file.
BUNDLED = ("vega-util", "d3-array", "topojson-client", "delaunator")

# Marks of the template language of DVC, and those that would end a script early.
FORBIDDEN = ("{refresh_tag}", "{plot_divs}", "{scripts}", "</script", "<!--")

HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh_tag}
<title>Lensmith plots</title>
<style>
:root { color-scheme: light dark; LIGHT }
@media (prefers-color-scheme: dark) { :root { DARK } }
body { margin: 0 auto; max-width: 90rem; padding: 1.5rem clamp(1rem, 3vw, 2.5rem); background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.3rem; margin: 0 0 1rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1rem; }
.grid > div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; min-width: 0;
  overflow-x: auto; }
.grid img { max-width: 100%; }
.grid > div.vega-embed { width: 100%; padding: 0; }
</style>
""".replace("LIGHT", palette.css_variables(palette.LIGHT)).replace("DARK", palette.css_variables(palette.DARK))

SETUP = """<script>
(function () {
  const embed = window.vegaEmbed;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const colours = getComputedStyle(document.documentElement);
  const shown = [];
  const draw = ([target, spec]) => {
    const [ink, line, muted] = ["--ink", "--line", "--muted"].map((name) => colours.getPropertyValue(name).trim());
    const axis = { labelColor: muted, titleColor: muted, gridColor: line, domainColor: line, tickColor: line };
    const config = {
      background: "transparent", padding: 16, font: "system-ui, sans-serif", axis, view: { stroke: null },
      title: { color: ink, anchor: "start", fontSize: 14, offset: 14 },
      legend: { labelColor: ink, titleColor: muted, orient: "bottom" }, text: { color: ink },
    };
    return embed(target, spec, { renderer: "svg", actions: false, config });
  };
  window.vegaEmbed = (target, spec) => {
    if (typeof spec.width === "number") {
      spec.width = "container";
      spec.autosize = { type: "fit-x", contains: "padding" };
    }
    shown.push([target, spec]);
    return draw(shown[shown.length - 1]);
  };
  dark.addEventListener("change", () => shown.forEach(draw));
})();
</script>
"""

BODY = """</head>
<body>
<h1>Lensmith plots</h1>
<div class="grid">
{plot_divs}
</div>
</body>
</html>
"""


def notices(modules: Path) -> str:
    """One HTML comment: the versions that the page holds, and the licences that they come with."""
    lines = ["Made by .dvc/plots/build_offline.py from npm packages:"]
    for name in PACKAGES:
        about = json.loads((modules / name / "package.json").read_text(encoding="utf-8"))
        lines.append(f"  {name} {about['version']}, {about['license']}, {about.get('homepage', '')}")
    for name in (*PACKAGES, *BUNDLED):
        licence = modules / name / "LICENSE"
        if licence.exists():
            lines += ["", f"{name}:", licence.read_text(encoding="utf-8").strip()]
    # Two hyphens may not stand in a comment.
    return "<!--\n" + "\n".join(lines).replace("--", "- -") + "\n-->\n"


def script(modules: Path, name: str) -> str:
    """The package's browser build as a script element."""
    code = (modules / name / "build" / f"{name}.min.js").read_text(encoding="utf-8")
    code = "\n".join(line for line in code.splitlines() if not line.startswith("//# sourceMappingURL"))
    if found := [mark for mark in FORBIDDEN if mark in code]:
        raise SystemExit(f"{name}: its build contains {found}, which would break the page. Nothing was written.")
    return f"<script>{code}</script>\n"


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} FOLDER/node_modules")
    modules = Path(sys.argv[1])
    head, rest = HEAD.split("<html", 1)
    page = head + notices(modules) + "<html" + rest + "".join(script(modules, name) for name in PACKAGES) + SETUP + BODY
    Path(__file__).with_name("offline.html").write_text(page, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()

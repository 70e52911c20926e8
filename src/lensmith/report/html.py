"""What every page has: one style for light and dark, Plotly and one script of ours, and no need of a network."""

import plotly.offline
from markupsafe import Markup

from lensmith.process import wording
from lensmith.report import palette


def plotly_script() -> str:
    """Plotly's own code."""
    return str(plotly.offline.get_plotlyjs())


def page(template: str, script: str, **values: object) -> str:
    """A page from a template that extends base.html.j2, with `script`, another template, beside Plotly's."""
    # Plotly's script and our own, in which no value stands.
    scripts = [Markup(text) for text in (plotly_script(), wording.render(__package__, script))]  # noqa: S704
    light, dark = palette.css_variables(palette.LIGHT), palette.css_variables(palette.DARK)
    return wording.render(__package__, template, light=light, dark=dark, scripts=scripts, **values)

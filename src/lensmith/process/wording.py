"""Numbers and names in words, and the templates that hold them."""

import base64
import hashlib
from functools import cache

import jinja2

MINUS = "\u2212"
SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
# In the order in which readers meet them.
LENSES = {
    "norm": "norm lens",
    "norm_next": "norm lens, next layer's norm",
    "raw": "no norm at all",
    "prism": "prism lens",
    "temperature": "a temperature alone",
    "bias": "a bias alone",
    "full": "full-rank lens",
    "tuned": "tuned lens",
}
# By kind, where it is not fit to the output of its model.
JUDGED = {"jacobian": "Jacobian lens", "imported": "imported lens", "transferred": "transferred lens"}
KINDS = {
    "identity": "norm lens",
    "temperature": "+ temperature",
    "bias": "+ bias",
    "low_rank": "+ scale and low-rank map",
    "full": "+ full-rank map",
}
SYMBOLS = {"pass": "\u2713", "fail": "\u2715", "inconclusive": "?", "invalid": "!"}


def number(value: float | None, *, plus: bool = False) -> str:
    """A number with as many digits as a reader can use: 2.31, 0.042, 3.1 x 10^-8."""
    if value is None:
        return "n/a"
    size = abs(value)
    if size == 0:
        text = "0"
    elif size < 5e-4:
        digits, power = f"{size:.1e}".split("e")
        text = f"{digits} \u00d7 10{str(int(power)).translate(SUPERSCRIPTS)}"
    else:
        text = f"{size:.{1 if size >= 9.995 else 2 if size >= 0.0995 else 3}f}"
    sign = MINUS if value < 0 else "+" if plus and value > 0 else ""
    return sign + text


def signed(value: float | None) -> str:
    """As `number`, with a sign where it is above zero too."""
    return number(value, plus=True)


def percent(value: float | None) -> str:
    """A share in whole percent: 0.25 is 25 %."""
    if value is None:
        return "n/a"
    whole = round(100 * value)
    return f"{MINUS if whole < 0 else ''}{abs(whole)} %"


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return "n/a" if value is None else f"{value:,.0f}".replace(",", "\u202f")


def value(value: object) -> str:
    """A number as `count` or `number` has it; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return count(value) if isinstance(value, int) else number(value)


def lens(name: object) -> str:
    """A lens by its name in tables: `tuned` is the tuned lens."""
    return LENSES.get(str(name), str(name))


def symbol(verdict: str) -> str:
    """The mark of a gate's verdict."""
    return SYMBOLS.get(verdict, "!")


def cell(value: object) -> str:
    """One line that can stand in a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def digest(script: str) -> str:
    """What a Content-Security-Policy calls a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def render(package: str, template: str, /, **values: object) -> str:
    """Fill a template of the package's folder `templates`. Values are escaped as HTML, also in Markdown."""
    return environment(package).get_template(template).render(**values)


@cache
def environment(package: str) -> jinja2.Environment:
    """The templates of a package, with the functions of this module as filters."""
    # By hand: `select_autoescape` goes by the file's ending, and would leave `.html.j2` unescaped.
    env = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    forms = (number, signed, percent, count, lens, symbol, cell, digest)
    env.filters |= {form.__name__: form for form in forms}
    env.globals |= {"as_number": number, "as_signed": signed, "as_percent": percent}
    return env

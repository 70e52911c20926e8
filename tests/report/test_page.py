"""The report in a real browser, with no network: it draws, sorts, switches, and no word of a prompt is markup."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.browser import Browser
from tests.support.desk import Desk
from tests.support.scores import N_LAYERS, detail, with_intermediates
from tests.support.settings import REPOSITORY

# What a token or prompt may hold: markup, the end of a script, a terminal's colours, writing from right to left,
# overrides of direction, line breaks of several kinds.
HOSTILE = (
    "</script><script>document.title='gone'</script>", "<script>document.title='gone'</script>",
    "<img src=x onerror=\"document.title='gone'\">", "\x1b[31mred", "\u05e9\u05dc\u05d5\u05dd", "\u202egnorw",
    "\n\n", "\u2028", "&lt;b&gt;", "<b>bold</b>", "--><!--", "{{ models }}", "%{z}", "\U0001f642",
)  # fmt: skip

# The document's structure: each element's name, and how deep it lies.
STRUCTURE = """[...document.querySelectorAll('body *')].filter((e) => !e.closest('svg, .heat, .chart')).map((e) => {
  let depth = 0;
  for (let up = e; up; up = up.parentElement) depth++;
  return depth + e.tagName;
})"""

# Whether a chart's drawing goes over the right edge of its card.
WIDER = """(chart) => chart.querySelector('svg.main-svg').getBoundingClientRect().right >
  chart.parentElement.getBoundingClientRect().right"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def page(folder: Path, about: dict[str, Any] | None = None) -> Path:
    desk = Desk(folder).add("one", with_intermediates(), about=about)
    desk.build()
    return desk.html


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return page(tmp_path_factory.mktemp("plain"), detail(prompts=40))


def drawn(browser: Browser) -> None:
    """Bring every chart and heat map into view, one after another, and wait for each."""
    for place in range(browser.run("document.querySelectorAll('.chart, .heat').length")):
        one = f"document.querySelectorAll('.chart, .heat')[{place}]"
        browser.run(f"{one}.scrollIntoView()")
        browser.until(f"{one}.querySelector('svg.main-svg') !== null")


def column(browser: Browser, number: int) -> list[str]:
    return list(
        browser.run(f"[...document.querySelectorAll('.sortable tbody tr')].map(r => r.cells[{number}].textContent)")
    )


def asked_for(browser: Browser) -> list[str]:
    """Requests beyond the page itself; Plotly measures pictures that it holds as data."""
    own = browser.run("location.href")
    return [url for url in browser.requests if url != own and not url.startswith(("data:", "blob:"))]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_draws_everything_and_asks_for_nothing(browser, plain, width, dark):
    """On a desk in the light and on a telephone in the dark: every chart, no complaint, no request, nothing cut off."""
    browser.open(plain, width=width, dark=dark)
    drawn(browser)

    assert browser.errors == [] and asked_for(browser) == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(f"[...document.querySelectorAll('.chart, .heat')].filter({WIDER}).length") == 0
    assert browser.run("document.querySelectorAll('.chart').length") == 10
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(13, 17, 21)" if dark else "rgb(246, 247, 249)")


def test_the_table_sorts_and_searches(browser, plain):
    """Once up, twice down; numbers as numbers; what is missing stays last either way."""
    browser.open(plain)
    press = "document.querySelector('[data-column=\"{}\"] button').click()".format
    rank, tuned, saved, norm = 3, 5, 10, 6

    assert len(column(browser, tuned)) == 15
    browser.run("document.querySelector('.more').click()")
    assert len(column(browser, tuned)) == 40
    browser.run(press("tuned_le_10"))
    assert column(browser, tuned) == [str(3 + i) for i in range(40)]
    assert browser.run("document.querySelector('[data-column=\"tuned_le_10\"]').ariaSort") == "ascending"
    browser.run(press("saved"))
    browser.run(press("saved"))
    assert [float(value.replace("\N{MINUS SIGN}", "-")) for value in column(browser, saved)] == [
        1.75 - i / 2 for i in range(40)
    ]
    assert set(column(browser, norm)) == {"\N{EN DASH}"}
    for turn in (1, -1):
        browser.run(press("final_rank"))
        assert column(browser, rank)[:32] == sorted(column(browser, rank)[:32], key=lambda text: turn * int(text))
        assert column(browser, rank)[32:] == ["\N{EN DASH}"] * 8
    browser.run(
        "Object.assign(document.querySelector('.search'), {value: 'prompt 7'}).dispatchEvent(new Event('input'))"
    )
    assert column(browser, 0) == ["river prompt 7"]
    assert browser.errors == []


def heat(browser: Browser, lens: str) -> Any:
    return browser.run(f"document.querySelector('.heat[data-lens={lens}]').data[0]")


def test_prompts_and_colours_switch(browser, plain):
    """The same numbers as in the data, both maps on one scale; a prompt of the table leads to its maps.

    The text of the last prompt begins with its third token, as if two like BOS stood before it: they have no colour.
    """
    browser.open(plain)
    drawn(browser)
    shown = detail()["trajectories"]
    choose = (
        "Object.assign(document.querySelector('.choose-{}'), {{value: '{}'}}).dispatchEvent(new Event('change'))".format
    )

    for index in (0, 2):
        browser.run(choose("prompt", index))
        lenses = shown[index]["lenses"]
        for name, first in (("norm", 0), ("tuned", 1)):
            map_ = heat(browser, name)
            wanted = np.log10(1 + np.array(lenses[name]["kl"]) / 100)
            wanted = np.where(np.arange(3) < index, np.nan, wanted)
            np.testing.assert_allclose(np.array(map_["z"], dtype=float), wanted)
            assert map_["y"] == list(range(first, N_LAYERS + 1))
            words = [word.strip() for word in shown[index]["words"]]
            assert map_["text"] == [[words[cell[0]] for cell in row] for row in lenses[name]["top"]]
            assert (map_["zmin"], map_["zmax"]) == (0, pytest.approx(np.log10(11)))
    browser.run(choose("colour", "probability"))
    assert heat(browser, "norm")["z"][0] == [None, None, 0] and heat(browser, "tuned")["zmax"] == 1
    browser.run("document.querySelectorAll('.jump')[1].click()")
    assert browser.run("document.querySelector('.choose-prompt').value") == "1"
    assert browser.run("document.activeElement.className") == "choose-prompt"
    assert browser.errors == []


def change(browser: Browser, selector: str, **values: Any) -> None:
    """Set properties of a control as a reader does, and tell the page."""
    one = f"document.querySelector({json.dumps(selector)})"
    browser.run(f"Object.assign({one}, {json.dumps(values)}).dispatchEvent(new Event('change')) && null")


def test_the_third_map_is_the_difference_of_the_others(browser, plain):
    """Positive where the tuned lens is nearer, whatever colours the cells; a word where it reads another one."""
    browser.open(plain)
    drawn(browser)
    lenses = detail()["trajectories"][0]["lenses"]
    norm, tuned = (np.array(lenses[name]["kl"])[-N_LAYERS:] / 100 for name in ("norm", "tuned"))

    np.testing.assert_allclose(heat(browser, "difference")["z"], np.log10(1 + norm) - np.log10(1 + tuned))
    assert heat(browser, "difference")["zmin"] == -heat(browser, "difference")["zmax"]
    assert {*np.ravel(heat(browser, "difference")["text"])} == {""}  # both lenses read the same words here
    change(browser, ".choose-colour", value="probability")
    assert np.count_nonzero(heat(browser, "difference")["z"]) == 0
    assert browser.errors == []


def test_a_token_is_followed_and_pieces_of_words_are_hidden(browser, tmp_path):
    """Cells hold 50 % of one word and 25 % of the next; `iver` goes on inside a word, so the next word stands there."""
    browser.open(page(tmp_path, detail(words=(" the", "iver", " sea"))))
    drawn(browser)
    offered = browser.run("[...document.querySelectorAll('.trajectories datalist option')].map(o => o.value)")
    shares = {"the": 0.5, "iver": 0.125, "sea": 0.25}  # of ` the` in cells that begin with each of the words
    before = heat(browser, "norm")["text"]
    change(browser, ".follow", value="the")
    change(browser, ".whole", checked=True)
    map_ = heat(browser, "norm")

    assert sorted(offered) == ["iver", "sea", "the"]
    assert map_["z"] == [[shares[word] for word in row] for row in before]
    assert map_["text"] == [[{"iver": "sea"}.get(word, word) for word in row] for row in before]
    assert browser.errors == []


def test_a_link_leads_to_its_cell(browser, plain, tmp_path):
    """To the text, the layer and the position; a link that names no cell chooses none."""
    browser.open(plain)
    drawn(browser)
    change(browser, ".choose-prompt", value="2")
    browser.run("document.querySelector('.heat').focus()")
    for key in ("ArrowDown", "ArrowDown", "ArrowLeft"):
        browser.key(key)
    said = browser.run("document.querySelector('.cell').innerText")
    link = browser.run("document.querySelector('.cell a').getAttribute('href')")

    assert link == f"#cell/detail-one/p2/{N_LAYERS - 1}/1"
    browser.open(plain)
    for wrong in (link.replace("p2", "p9"), link[:-1] + "7", link.replace("one", "two"), "#cell/%/x"):
        browser.run(f"location.hash = {json.dumps(wrong)}")
        assert browser.run("document.querySelector('.cell').innerText") == "", wrong
    browser.run(f"location.hash = {json.dumps(link)}")
    browser.until("document.querySelector('.cell').innerText !== ''")
    assert browser.run("document.querySelector('.cell').innerText") == said
    assert browser.run("document.querySelector('.choose-prompt').value") == "2" and browser.errors == []


def test_a_cell_is_reached_by_keyboard(browser, plain):
    """Hover is not for everyone: with the arrow keys a cell is chosen in all maps, and read out beside them."""
    browser.open(plain)
    drawn(browser)
    browser.run("document.querySelector('.whole').focus()")
    browser.key("Tab")
    assert browser.run("document.activeElement.dataset.lens") == "norm"
    browser.key("ArrowDown")
    top = browser.run("document.querySelector('.cell').innerText")
    browser.key("ArrowDown")
    browser.key("ArrowLeft")
    below = browser.run("document.querySelector('.cell').innerText")

    assert f"Layer {N_LAYERS}, after sea" in top and f"Layer {N_LAYERS - 1}, after river" in below
    assert "norm lens" in below and "Jacobian lens" in below and "50.0 %" in below
    frames = browser.run("[...document.querySelectorAll('.heat')].map(m => m.layout.shapes.length)")
    assert frames == [1, 1, 1]


def test_no_word_of_a_prompt_is_markup(browser, tmp_path):
    """Prompts and tokens come from files that others may send: they change nothing in the document's structure."""
    tame = page(tmp_path / "tame", detail(words=[f"word{i}" for i in range(len(HOSTILE))], prompts=len(HOSTILE)))
    browser.open(tame)
    drawn(browser)
    wanted = browser.run(STRUCTURE)
    browser.open(page(tmp_path / "hostile", detail(words=HOSTILE, prompts=len(HOSTILE))))
    drawn(browser)

    assert browser.run(STRUCTURE) == wanted
    assert browser.run("document.title") == "Lensmith report"
    assert browser.errors == [] and asked_for(browser) == []
    for index in range(3):
        browser.run(f"document.querySelector('.choose-prompt').selectedIndex = {index}")
        browser.run("document.querySelector('.choose-prompt').dispatchEvent(new Event('change'))")
        browser.run("document.querySelector('.heat').focus()")
        for _ in range(4):  # five tokens in each cell: between them all words are read out
            browser.key("ArrowDown")
            tags = set(browser.run("[...document.querySelectorAll('.cell *')].map(e => e.tagName)"))
            assert tags == {"P", "BDI", "DIV", "A"}
    shown = browser.run("document.body.innerText + [...document.querySelectorAll('option')].map(o => o.text).join()")
    assert not any(char in shown for char in "\x1b\u202e\u2028")
    assert browser.run("document.querySelectorAll('.heat b, .heat img, .heat script').length") == 0
    assert browser.run("document.title") == "Lensmith report" and browser.errors == []


MISSED = (
    "<script>document.title='gone'</script>", "<img src=x onerror=\"document.title='gone'\">",
    "<svg onload=\"document.title='gone'\"></svg>",
    "<iframe srcdoc=\"<script>parent.document.title='gone'</script>\"></iframe>",
    "<script src='data:text/javascript,document.title=1'></script>", "<base href='https://example.org/'>",
)  # fmt: skip


def test_markup_that_escaping_had_missed_runs_nothing(browser, plain, tmp_path):
    """The second wall: the browser runs the scripts that the page's policy names by their sha256, and no other."""
    text = plain.read_text(encoding="utf-8")
    (tmp_path / "page.html").write_text(text.replace("<main>", f"<main>{''.join(MISSED)}", 1), encoding="utf-8")
    browser.open(tmp_path / "page.html")
    drawn(browser)

    assert browser.run("document.title") == "Lensmith report"
    # The picture is refused twice: what it loads, and what it does where that fails.
    assert sum("Content Security Policy" in error for error in browser.errors) == len(MISSED) + 1
    assert browser.run("document.baseURI").startswith("file:")


def test_no_template_says_that_a_value_is_safe():
    """What is markup in a page stands in a template, or in the one line of html.py that ruff points at."""
    for template in (REPOSITORY / "src/lensmith").glob("*/templates/*"):
        text = template.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b", text), template
        assert "autoescape false" not in text or template.name == "notice.j2", template


def test_a_missing_browser_is_a_failure_where_it_is_asked_for(monkeypatch):
    """`.ci/run` sets LENSMITH_BROWSER: a skip there would look like a pass."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("LENSMITH_BROWSER", raising=False)
    from tests.support.browser import find

    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        find()
    monkeypatch.setenv("LENSMITH_BROWSER", "required")
    with pytest.raises(pytest.fail.Exception, match="none of chromium"):
        find()


def test_ten_models_of_a_real_size_stay_below_eight_megabytes(tmp_path):
    """Ten models of 32 layers, 6 texts of 20 tokens and 240 prompts each; what is left out is said."""
    big = json.loads(json.dumps(detail(words=[f"word{i}" for i in range(20)], prompts=240)))
    text = big["trajectories"][0]
    for lens in text["lenses"].values():
        for name in ("top", "p", "entropy", "kl", "rank", "p_final"):
            lens[name] = [lens[name][i % 6] for i in range(33 - lens["layers"][0])]
    big["trajectories"] = [{**text, "id": f"p{i}"} for i in range(6)]
    desk = Desk(tmp_path)
    for index in range(10):
        desk.add(f"model{index}", about=big)
    shown = desk.build()

    assert 6_000_000 < desk.html.stat().st_size <= 8_000_000
    assert "would make this page too large" in shown

"""Reports are for everyone: screen readers, keyboards, phones, dark pages, paper, and eyes that see no colours."""

import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex
from reports.accessible import complaints
from reports.every_report import RUNS
from reports.measured_synthetic import view

from mergescope import reports
from mergescope.protocols.search import choose
from mergescope.reports import build_report
from mergescope.reports.heat import ON_DARK, ON_LIGHT, over
from mergescope.reports.html import MAKERS, inline_svg, parts_of, read_about
from mergescope.reports.measured_figures import by_layer
from mergescope.reports.measured_models import matrices
from mergescope.reports.search_addition import lambda_curves
from mergescope.reports.style import INK, MUTED, SCHEMED, look

CSS = (Path(reports.__file__).parent / "page.css").read_text()
SERIES = {look(number).colour.lower() for number in range(7)} - {INK}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = {}

    def run(kind):
        if kind not in made:
            made[kind] = RUNS[kind](tmp_path_factory.mktemp("run"))
        return made[kind]

    return run


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


# --- pages


@pytest.mark.parametrize("kind", RUNS)
def test_a_page_keeps_nobody_out(kind, runs):
    text = build_report(runs(kind)).read_text(encoding="utf-8")
    assert text.count("<svg") >= 1 and text.count("<table") >= 1
    assert complaints(text) == []
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert set(re.findall(r"var\(--(\w+)", text)) <= {*schemes()[0], "own"}
    assert not set(re.findall(r"#[0-9a-f]{6}\b", drawn)) & set(SCHEMED)


def test_no_kind_of_report_is_left_out(runs):
    assert {read_about(runs(kind))["study"] for kind in RUNS} == {*MAKERS, "ctl-fig7"}


GOOD = (
    '<html lang="en"><head><meta name="viewport" content="width=device-width"><title>t</title></head><body>'
    '<a href="#m">Skip</a><header><h1>a</h1><nav aria-label="n"><a href="#m">m</a></nav></header>'
    '<main id="m"><h2>b</h2>'
    '<p class="headline holds">c</p><div class="verdict holds"><h3>d<span class="badge">holds</span></h3></div>'
    '<figure><div class="scroll" role="region" tabindex="0" aria-label="f"><svg role="img" aria-label="s"/></div>'
    "<figcaption>e</figcaption></figure>"
    '<div class="scroll" role="region" tabindex="0" aria-label="g"><table><caption>h</caption>'
    '<tr><th scope="col">i</th><th scope="col">j</th></tr><tr><th scope="row">k</th><td>l</td></tr></table></div>'
    '<div class="scroll" role="region" tabindex="0" aria-label="o"><pre class="terminal">p</pre></div>'
    "<details><summary>q</summary></details></main><footer>r</footer></body></html>"
)


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        (' lang="en"', "", "no lang"),
        ("<title>t</title>", "<title> </title>", "no title"),
        ("width=device-width", "width=980", "no viewport"),
        ("width=device-width", "width=device-width, user-scalable=no", "can't be zoomed"),
        ("<footer>r</footer>", "", "not one <footer>"),
        (' aria-label="n"', "", "<nav> has no name"),
        ('<a href="#m">Skip</a>', "", "no link past the header"),
        ('<a href="#m">Skip</a>', '<a href="#h">Skip</a>', "no link past the header"),
        ("<h1>a</h1>", "<h1>a</h1><h1>a</h1>", "2 h1"),
        ("<h2>b</h2>", "", "h3 after h1"),
        ("<h2>b</h2>", "<h2></h2>", "an empty heading"),
        ("<h2>b", '<h2 id="m">b', "two of id m"),
        ('<nav aria-label="n"><a href="#m"', '<nav aria-label="n"><a href="#n"', "#n leads nowhere"),
        ('<svg role="img" aria-label="s"/>', '<svg role="img"/>', "has no text instead"),
        ('<svg role="img"', "<svg", "has no text instead"),
        ("<figcaption>e</figcaption>", "", "has no caption"),
        ("<caption>h</caption>", "", "has no name"),
        ("<td>l</td>", "", "rows of different lengths"),
        ('<th scope="row">', "<th>", "heading without scope"),
        (">j<", "><", "an empty heading"),
        ('<th scope="col">j</th>', "<td>j</td>", "does not begin with headings"),
        ('<th scope="row">k</th>', "<td>k</td>", "a row without a name"),
        (' tabindex="0" aria-label="g"', ' aria-label="g"', "can't be scrolled by keyboard"),
        ('aria-label="g"', 'aria-label="f"', "two regions called f"),
        ('<div class="scroll" role="region" tabindex="0" aria-label="g">', "<div>", "makes the page wide"),
        ('<div class="scroll" role="region" tabindex="0" aria-label="o">', "<div>", "makes the page wide"),
        ("<h2>b", '<h2 tabindex="3">b', "jumps the queue"),
        ("<h2>b", '<h2 onclick="f()">b', "waits for a pointer"),
        (">m</a>", "></a>", "a link without words"),
        ("<summary>q</summary>", "<p>q</p>", "can't be opened"),
        ("<h2>b", "<script></script><h2>b", "<script>"),
        ("<h2>b", '<img alt="i" src="https://a/b"><h2>b', "loads https://a/b"),
        ("<h2>b", '<h2 style="color: red">b', "has looks of its own"),
        ("<title>", "<style>@import 'a';</style><title>", "the style loads something"),
        ('<span class="badge">holds</span>', "", "by its looks alone"),
    ],
)
def test_the_checks_of_pages_can_fail(good, bad, says):
    assert complaints(GOOD) == []
    assert good in GOOD
    found = complaints(GOOD.replace(good, bad, 1))
    assert any(says in said for said in found), found


# --- colours


def schemes():
    """Names of colours to their values, on a light and on a dark page."""
    return [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root \{(.*?)\}", CSS, re.S)
    ]


def test_both_schemes_have_all_colours_and_the_light_one_is_that_of_the_files():
    light, dark = schemes()
    assert set(light) == set(dark) >= set(SCHEMED.values())
    assert {light[name]: name for name in SCHEMED.values()} == SCHEMED
    assert set(re.findall(r"var\(--(\w+)", CSS)) <= {*light, "own"}
    rest = CSS[CSS.rindex(":root") :].partition("}")[2]
    assert not re.findall(r"#[0-9a-f]{3,6}\b(?!\")", rest)  # no colour without a name


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_stand_out_from_their_ground_as_wcag_asks(scheme):
    colours = schemes()[scheme]
    for text in ("ink", "muted", "link"):
        for ground in ("page", "soft"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for ground in ("holds", "ink"):  # of badges
        assert contrast(colours["page"], colours[ground]) >= 4.5, ground
    for mark in ("holds", "partly", "ink"):
        assert contrast(colours[mark], colours["page"]) >= 3, mark
    for ground in ("shade", "band", "warm", "faint"):  # of drawings
        assert contrast(colours["ink"], colours[ground]) >= 4.5, ground


def test_words_on_a_heat_map_stand_out_from_every_cell():
    for name in ("cividis", "viridis", "RdBu_r", "PuOr", "PuOr_r"):
        for ground in matplotlib.colormaps[name](np.linspace(0, 1, 101)):
            assert contrast(over(ground), to_hex(ground)) >= 4.4, name  # a hex colour is rounded


def test_a_drawing_on_a_page_takes_its_colours_and_a_heat_map_keeps_its_own():
    svg = (
        '<svg width="9pt"><path style="fill: #222222; stroke: #ffffff"/>'
        '<path style="fill: #fefefe; stroke: #0072b2"/></svg>'
    )
    assert inline_svg(svg, "f") == (
        '<svg style="--own: 9pt"><path style="fill: var(--ink); stroke: var(--page)"/>'
        '<path style="fill: #fefefe; stroke: #0072b2"/></svg>'
    )
    assert not {ON_DARK, ON_LIGHT} & set(SCHEMED)


def test_no_letters_on_a_page_are_tiny():
    screen = CSS.partition("@page")[0]
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:\d+ )?([\d.]+)px", screen)]
    assert len(sizes) > 10 and min(sizes) >= 11


# --- drawings without colours


def alike(figure):
    """Series of one panel that only their colours tell apart, and heat maps that grey turns around."""
    found = []
    for axes in figure.axes:
        looks = {}
        for line in axes.lines:
            colour = to_hex(line.get_color())
            marked = line.get_marker() not in ("None", "")
            # What joins a mark to another, or stands at a value, is no series.
            joins = not marked and 1 in (len(set(line.get_xdata())), len(set(line.get_ydata())))
            if colour in SERIES and len(line.get_xdata()) and not joins:
                hollow = marked and to_hex(line.get_markerfacecolor()) != colour
                style = (line.get_marker(), line._unscaled_dash_pattern, line.get_linewidth(), hollow)
                looks.setdefault(style, set()).add(colour)
        found += [colours for colours in looks.values() if len(colours) > 1]
        areas = {}
        for area in axes.patches:
            colour = to_hex(area.get_facecolor())
            if colour in SERIES:
                areas.setdefault(area.get_hatch(), set()).add(colour)
        found += [colours for colours in areas.values() if len(colours) > 1]
        maps = [*axes.images, *(each for each in axes.collections if isinstance(each, QuadMesh))]
        for each in maps:
            greys = [luminance(to_hex(colour)) for colour in each.cmap(np.linspace(0, 1, 32))]
            grows = all(a <= b + 1e-9 for a, b in zip(greys, greys[1:], strict=False))
            cells = np.isfinite(np.ma.filled(each.get_array(), np.nan)).sum()
            if not grows and len(axes.texts) < cells and axes.get_label() != "<colorbar>":
                found.append(each.cmap.name)
    return found


@pytest.mark.parametrize("kind", RUNS)
def test_drawings_are_told_apart_without_colours(kind, runs):
    for name, figure in parts_of(runs(kind)).figures.items():
        assert alike(figure) == [], name
        colours = {
            to_hex(text.get_color()) for text in figure.findobj(matplotlib.text.Text) if text.get_text()
        }
        assert colours <= {INK, MUTED, ON_DARK, ON_LIGHT}, name


def test_the_check_of_drawings_can_fail():
    def panel():
        return matplotlib.figure.Figure().subplots()

    one, other = look(0), look(1)
    axes = panel()
    axes.plot([0, 1], [0, 1], color=one.colour)
    axes.plot([0, 1], [1, 0], color=other.colour)
    assert alike(axes.figure) == [{one.colour.lower(), other.colour.lower()}]
    axes = panel()
    axes.plot([0, 1], [0, 1], color=one.colour)
    axes.plot([0, 1], [1, 0], color=other.colour, ls=other.line)
    assert alike(axes.figure) == []
    axes = panel()
    axes.bar([0], [1], color=one.colour)
    axes.bar([1], [1], color=other.colour)
    assert len(alike(axes.figure)) == 1
    axes = panel()
    axes.imshow([[0.0, 1.0]], cmap="RdBu_r")
    assert alike(axes.figure) == ["RdBu_r"]
    axes.text(0, 0, "0")
    axes.text(1, 0, "1")
    assert alike(axes.figure) == []


def test_many_series_and_cells_without_numbers_are_told_apart_as_well():
    lams = [0.0, 0.25, 0.5, 0.75, 1.0]
    tasks = {f"task {number}": {lam: lam * number for lam in lams} for number in range(8)}
    many = view(models=tuple("abcdefghijkl"), layers=tuple(f"blocks.{number}" for number in range(12)))
    drawn = (
        lambda_curves(choose({lam: 1 - (lam - 0.5) ** 2 for lam in lams}), tasks),
        by_layer(many),
        matrices(many),
    )
    assert [alike(figure) for figure in drawn] == [[], [], []]

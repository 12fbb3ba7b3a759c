"""How results show themselves in notebooks, at a prompt and in pandas: every kind of them, hostile names, cuts."""

import importlib
import inspect
import math
import pkgutil
import sys
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest
from shown_results import MAKERS, made
from support import family, make_net

import mergescope
import mergescope as ms
from mergescope.display import (
    MOST_COLUMNS,
    MOST_LETTERS,
    MOST_LINES,
    Cell,
    Table,
    View,
    as_html,
    as_pretty,
    as_text,
    frame,
    number,
    pivot,
)
from mergescope.errors import MergescopeError

NASTY = "<script>alert('x')</script>\x1b[2J"
ALWAYS_OPEN = ("br",)


class Tags(HTMLParser):
    """Tables of a fragment as lists of texts, with tags that are closed as they were opened."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.tables, self.texts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ALWAYS_OPEN:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if "th" in self.open or "td" in self.open:
            self.tables[-1][-1][-1] += data

    def having(self, name):
        return [attributes for tag, attributes in self.seen if tag == name]


class Printer:
    """What IPython hands over."""

    said = ""

    def text(self, text):
        self.said += text


@dataclass
class Shown:
    """A result with any view."""

    view: View

    def _view(self):
        return self.view

    __str__, _repr_html_, _repr_pretty_ = as_text, as_html, as_pretty


# -- every result ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_a_notebook_shows_a_verdict_and_tables_with_headings_and_no_colours(name):
    result = made(name)
    html = result._repr_html_()
    page, view = Tags(html), result._view()
    assert len(html) < 20_000 and "color" not in html and "background" not in html and "object at" not in html
    assert view.said and "".join(page.texts).startswith(view.said)
    assert len(page.tables) == len(view.tables) == len(page.having("caption")) > 0
    scopes = [attributes.get("scope") for attributes in page.having("th")]
    for found, table in zip(page.tables, view.tables, strict=True):
        assert len(found) == len(table.lines) + 1 and {len(line) for line in found} == {len(table.heads)}
        assert all(found[0]) and table.lines
    assert scopes.count("col") == sum(len(table.heads) for table in view.tables)
    assert scopes.count("row") == sum(len(table.lines) for table in view.tables)


@pytest.mark.parametrize("name", MAKERS)
def test_pandas_has_every_row(name):
    result = made(name)
    table = result.to_pandas()
    if name in ("point", "direction", "checkpoint"):
        assert len(table) == (len(result.spec) if name == "checkpoint" else len(result.terms))
        return
    rows = [row if isinstance(row, dict) else vars(row) for row in result.rows()]
    assert len(table) == len(rows) > 0 and set(table.columns) == {key for row in rows for key in row}
    if "mean" in table:
        found = [row.get("mean", math.nan) for row in rows]
        assert table["mean"].tolist() == pytest.approx(found, nan_ok=True)
    if "layer" in table:
        assert set(table["layer"]) == {row.get("layer", "") for row in rows}


@pytest.mark.parametrize("name", MAKERS)
def test_a_prompt_shows_the_text_and_not_the_insides(name):
    printer, result = Printer(), made(name)
    result._repr_pretty_(printer, False)
    assert printer.said == str(result) and 0 < len(printer.said) < 10_000
    assert [inside for inside in ("object at", "array(", "Summary(") if inside in printer.said] == []


def test_every_table_that_prints_has_these_displays():
    """A result is a class with ``rows()`` and a format of its own: none is forgotten."""
    lacking, known = [], set()
    for module in pkgutil.walk_packages(mergescope.__path__, "mergescope."):
        if module.name.split(".")[1] in ("cli", "reports") or module.name.endswith("__main__"):
            continue
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if not kind.__module__.startswith("mergescope") or not callable(getattr(kind, "rows", None)):
                continue
            if "__str__" in vars(kind):
                known.add(name)
                lacking += [
                    f"{module.name}.{name}.{part}"
                    for part in ("_repr_html_", "_repr_pretty_", "to_pandas")
                    if not hasattr(kind, part)
                ]
    assert lacking == [] and len(known) > 20
    assert {type(made(name)).__name__ for name in MAKERS} >= known


# -- verdicts ----------------------------------------------------------------------------------------


def test_the_verdict_is_the_result_s_own():
    linearity, pair = made("linearity"), made("pair")
    assert linearity.says in linearity._repr_html_() and linearity.says in str(linearity)
    assert pair.word in pair._view().said and pair.reason in pair._view().said
    words = [pair.word for pair in made("measurement").pairs if pair.kind == "FT–FT"]
    assert f"CTL holds for {words.count('CTL holds')} of {len(words)} pairs" in str(made("measurement"))
    addition = made("addition")
    assert f"lambda = {addition.lam:g}" in addition._view().said
    best = max(made("evaluated").models, key=lambda line: line.normalised.mean)
    assert made("evaluated")._view().said.endswith(f"of {best.name}.")
    assert made("check").says.startswith("Can be merged: no errors")
    assert made("theorem").says in str(made("theorem"))


def test_a_soup_says_whether_intervals_overlap():
    found = made("soups")
    greedy, best = found["greedy"].test, found["best"].test
    apart = greedy.low > best.high or best.low > greedy.high
    assert ("do not overlap" if apart else "intervals overlap") in found.says
    assert f"{greedy.mean:.4f}" in found.says and " + ".join(found["greedy"].members) in found.says


def test_a_check_that_fails_says_so():
    from mergescope.merging.findings import Finding, Report

    findings = [Finding("error", "keys", f"{NASTY} is missing"), Finding("warning", "dtypes", "They differ.")]
    report = Report(("a", "b"), findings=findings, skipped=["weights: nobody asked"])
    html = report._repr_html_()
    assert "Can&#x27;t be merged: 1 error, 1 warning." in html and "<script>" not in html
    assert "Note: not checked: weights: nobody asked." in str(report)
    assert report.to_pandas()["kind"].tolist() == ["error", "warning"]


def test_layers_that_are_linear_by_construction_are_named():
    net = ms.MLP((4, 8, 2))
    base, a, b, _ = family(net)
    test = ms.ctl(a, b, reference=base)
    batch = [next(iter(net.parameters())).detach().new_ones(3, 4)]
    found = ms.linearity(
        ms.trace(test.points, batch, net, layers=["blocks.0.0", "output"], progress=False), test
    )
    assert found["blocks.0.0"].trivial and "blocks.0.0 (trivial)" in found._repr_html_()
    assert found.to_pandas().query("layer == 'blocks.0.0'")["trivial"].all()


# -- what names may hold -----------------------------------------------------------------------------


def test_names_are_escaped():
    a, b = family(make_net("mlp"), names=(NASTY, "b"))
    for result in (a, a + b, ms.trace([a, b], [make_batch()], make_net("mlp"), progress=False)):
        html = result._repr_html_()
        assert "<script>" not in html and "&lt;script&gt;" in html and "\x1b" not in html
        assert [tag for tag, _ in Tags(html).seen if tag == "script"] == []


def make_batch():
    import torch

    return torch.ones(2, 1, 8, 8)


def test_everything_of_a_view_is_escaped():
    view = View(
        NASTY, (Table(NASTY, (NASTY, NASTY), ((NASTY, Cell(NASTY, NASTY)), (NASTY, NASTY))),), (NASTY,)
    )
    html = Shown(view)._repr_html_()
    assert "<script" not in html and "\x1b" not in html and html.count("&lt;script&gt;") == 10
    assert "\x1b" not in str(Shown(view))


# -- cuts --------------------------------------------------------------------------------------------


def test_long_tables_are_cut_in_the_middle_and_say_so():
    lines = tuple((f"line {n}", Cell(str(n))) for n in range(100))
    html = Shown(View("x", (Table("t", ("name", "number"), lines),)))._repr_html_()
    (shown,) = Tags(html).tables
    names = [line[0] for line in shown[1:]]
    assert len(names) == MOST_LINES + 1 and names[0] == "line 0" and names[-1] == "line 99"
    assert names[MOST_LINES // 2] == "…"
    left = 100 - (len(names) - 1)
    assert f"{left} of 100 lines left out; to_pandas() has all." in html


def test_wide_tables_keep_their_first_and_last_columns():
    wide = Table("t", tuple(f"h{n}" for n in range(40)), (tuple(str(n) for n in range(40)),))
    text = str(Shown(View("x", (wide,))))
    (shown,) = Tags(Shown(View("x", (wide,)))._repr_html_()).tables
    assert len(shown[0]) == MOST_COLUMNS + 1 and shown[0][0] == "h0" and shown[1][-1] == "39"
    assert f"{40 - MOST_COLUMNS} of 40 columns left out" in text


def test_what_just_fits_is_whole():
    fits = Table("t", tuple(f"h{n}" for n in range(MOST_COLUMNS)), (tuple("x" * MOST_COLUMNS),) * MOST_LINES)
    html = Shown(View("x", (fits,)))._repr_html_()
    assert "left out" not in html and "…" not in html


def test_long_names_are_cut_and_kept_for_a_pointer():
    name = "/".join("abc" for _ in range(40))
    html = Shown(View("x", (Table("t", ("n", "m"), ((name, "1"),)),)))._repr_html_()
    (shown,) = Tags(html).tables
    assert len(shown[1][0]) <= MOST_LETTERS + 1 and f'title="{name}"' in html


# -- pieces ------------------------------------------------------------------------------------------


def test_rows_become_lines_and_columns():
    rows = [
        {"points": p, "measure": m, "mean": value, "low": value - 1, "high": value + 1}
        for p, m, value in (("a", "cos", 2.0), ("a", "coef", 3.0), ("b", "coef", 4.0))
    ]
    table = pivot(rows, "t", "points", "measure")
    assert table.heads == ("points", "cos", "coef")
    assert table.lines[0][1:] == (Cell("2.0000", "[1.0000, 3.0000]"), Cell("3.0000", "[2.0000, 4.0000]"))
    assert table.lines[1][1:] == (Cell("–"), Cell("4.0000", "[3.0000, 5.0000]"))
    assert pivot(rows, "t", "points", "measure", only=["coef"], points="b").lines == (table.lines[1][::2],)


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0, "0.0000"), (1.0, "1.0000"), (7, "7"), (-1500, "−1,500"), (123.456, "123.5"), (1e-5, "1e−05"),
     (math.inf, "∞"), (-math.inf, "−∞"), (math.nan, "–")],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_columns_of_a_frame_have_one_order_and_one_kind():
    table = frame([
        {"mean": 1.0, "other": 2},
        {"layer": "a", "trivial": True, "kind": "ctl", "mean": 2.0, "n": 3},
    ])
    assert table.columns.tolist() == ["kind", "layer", "trivial", "mean", "n", "other"]
    assert table["layer"].tolist() == ["", "a"] and table["trivial"].tolist() == [False, True]
    assert math.isnan(table["n"][0]) and len(frame([])) == 0


def test_without_pandas_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MergescopeError, match=r"pip install pandas.*rows\(\)"):
        made("linearity").to_pandas()
    assert made("linearity")._repr_html_()


def test_models_of_one_name_keep_their_own_lines():
    rows = [{"model": "m", "data": data, "mean": mean} for mean in (0.25, 0.5) for data in ("a", "b")]
    found = pivot(rows, "accuracy", "model", "data")
    assert [line[0] for line in found.lines] == ["m", "m (2)"]
    assert [cell.text for line in found.lines for cell in line[1:]] == [
        "0.2500",
        "0.2500",
        "0.5000",
        "0.5000",
    ]

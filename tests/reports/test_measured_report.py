"""The report of a measurement: what it says follows from the rows, and survives what may be missing."""

import re
from dataclasses import replace
from itertools import combinations
from math import nan

import numpy as np
import pytest
import torch
import yaml
from reports.looking import NASTY, Page, overlaps
from reports.measured_synthetic import make_measured, make_measured_run, view, without
from rich.console import Console
from typer.testing import CliRunner

import mergescope as ms
from mergescope.cli import app
from mergescope.errors import StudyError
from mergescope.reports import build_report, depth, measured_figures, measured_main, summary_parts
from mergescope.reports.html import read_about
from mergescope.reports.measured import Measured
from mergescope.reports.measured_page import draw, load_measured
from mergescope.reports.measured_tables import layer_grid, loss_grid, merged_grid, verdict_grid
from mergescope.reports.measured_words import headline, sentences
from mergescope.reports.measurement import measured_parts, measurement_parts
from mergescope.reports.scales import NEAREST, cos_ticks, cosines, spaced, steps
from mergescope.reports.style import render
from mergescope.studies.measured import write_measurement
from mergescope.studies.rundir import RESULTS, RunDirectory, read_rows, write_rows

SHAPES = {
    "a base and one fine-tune": {"models": ("a",), "labels": False, "predicts": False},
    "one pair without a base": {
        "models": ("org/a-model-with-a-long-name", "org/another-model-with-a-long-name"),
        "base": None,
        "layers": (*(f"model.layers.{i}" for i in range(32)), "output"),
    },
    "28 pairs": {
        "models": tuple(f"model number {i}" for i in range(8)),
        "alphas": (0.25, 0.5, 0.75),
        "data": ("one", "two"),
        "trivial": ("blocks.0",),
    },
}
DRAWN = {
    "a base and one fine-tune": {"main", "depth-cos", "depth-coef", "depth-gap", "local"},
    "one pair without a base": {"main", "depth-cos", "depth-coef", "depth-gap", "barriers"},
    "28 pairs": {
        "main", "depth-cos", "depth-coef", "depth-gap", "local", "layers", "models", "alpha", "barriers",
    },
}  # fmt: skip


def dead(row):
    """The first layer has no live features, the second of one pair neither."""
    if row.layer == "blocks.0" or (row.layer == "blocks.1" and row.points == "a + b"):
        return replace(row, mean=nan, low=nan, high=nan, n=0, dead=20)
    return row


@pytest.mark.parametrize("shape", SHAPES)
def test_no_text_of_a_figure_touches_another_or_leaves_the_page(shape):
    drawn = draw(view(**SHAPES[shape]))
    assert set(drawn) == DRAWN[shape]
    for name, figure in drawn.items():
        count, found = overlaps(figure)
        assert count >= 4, name
        assert not found, name


@pytest.mark.parametrize("change", [dead, without("cos")])
def test_figures_survive_what_has_no_value(change):
    for name, figure in draw(view(models=("a", "b"), change=change)).items():
        assert not overlaps(figure)[1], name


def test_gaps_of_zero_are_drawn_at_the_end_of_a_logarithmic_axis():
    def change(row):
        none = row.layer == "blocks.0" and row.measure == "gap" and row.points == "a + b"
        return replace(row, mean=0.0, low=0.0, high=0.0) if none else row

    figure = depth.gap_by_depth(view(models=("a", "b"), change=change))
    first, *others = figure.axes
    assert first.lines[0].get_ydata()[0] == 0 and first.get_yticklabels()[0].get_text() == "0"
    for axes in (first, *others):  # one scale in all
        assert axes.get_yscale() == "symlog" and axes.get_ylim()[0] < 0


def test_equal_rows_give_equal_drawings_and_other_rows_others():
    one, again, other = (view(change=change) for change in (lambda r: r, lambda r: r, without("coef")))
    for figure in (measured_main.main, depth.coef_by_depth):
        first = render(figure(one), "svg")
        assert first == render(figure(again), "svg")
        assert first != render(figure(other), "svg")


@pytest.fixture(scope="module")
def nasty_report(tmp_path_factory):
    def spoil(row):
        row = replace(row, mean=nan) if row.layer == "</svg>-->" and row.measure == "coef" else row
        return replace(row, mean=nan) if row.kind == "barrier" and row.measure == "error" else row

    shape = {
        "models": (NASTY, "$a_1", "_[red]&"),
        "base": "b + <b>",
        "layers": ("$x_{", "</svg>-->", "output"),
        "data": (NASTY, "two"),
        "change": spoil,
    }
    provenance = {
        "data": {NASTY: {NASTY: NASTY, "rows": 3, "kept": True, "notes": []}},
        "notes": [NASTY],
    }
    path = make_measured_run(tmp_path_factory.mktemp("runs") / "run", provenance, **shape)
    return build_report(path)


def test_names_from_data_are_escaped(nasty_report):
    text = nasty_report.read_text()
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert NASTY not in text
    assert text.count("alert") > 10
    assert not page.open


def test_the_page_loads_nothing_and_its_ids_are_its_own(nasty_report):
    text = nasty_report.read_text()
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 20
    links = [attrs[key] for _, attrs in page.tags for key in ("href", "xlink:href", "src") if key in attrs]
    inside = {link for link in links if not link.startswith("data:image/png;base64,")}
    assert inside and {link[0] for link in inside} == {"#"}
    assert {link[1:] for link in inside} <= set(ids)
    assert {name[0] for name in re.findall(r"url\(([^)]*)\)", text)} <= {"#"}
    assert not {tag for tag, _ in page.tags} & {"link", "script", "img", "iframe", "object"}


@pytest.mark.parametrize("labels", [True, False])
def test_every_link_of_the_navigation_leads_to_a_section(tmp_path, nasty_report, labels):
    shape = SHAPES["a base and one fine-tune"]
    path = nasty_report if labels else build_report(make_measured_run(tmp_path / "run", **shape))
    page = Page(path.read_text())
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    targets = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert {"verdicts", "depth", "local", "numbers", "origin"} <= targets <= ids
    assert ("losses" in targets) == ("pairs" in targets) == labels


def test_figures_are_files_in_both_formats_and_values_that_are_missing_dashes(nasty_report):
    files = {path.name for path in (nasty_report.parent / "figures").iterdir()}
    assert files == {
        f"{name}.{suffix}" for name in DRAWN["28 pairs"] - {"alpha"} for suffix in ("svg", "png")
    }
    page = re.sub(r"<svg.*?</svg>", "", nasty_report.read_text(), flags=re.DOTALL)
    assert "<td>–</td>" in page
    assert not re.search(r"\bnan\b", page, flags=re.IGNORECASE)


def test_the_page_says_what_was_measured_and_made_it(tmp_path):
    text = build_report(make_measured_run(tmp_path / "run")).read_text()
    for expected in (
        "CTL holds for all 3 pairs of fine-tunes at α = 0.5.",
        "Reason of base + b.",
        "/models/a",
        'title="0123456789abcdef0123456789abcdef"',
        "2 rows are empty",
        "20 samples, 5 points at most in a pass, 12 forward passes, 8 local passes, 1.5 s, 2.00 GB peak memory",
        "base: base\n",
        "torch ",
    ):
        assert expected in text


def spoil_about(key, value):
    def spoil(path):
        about = yaml.safe_load((path / "run.yaml").read_text())
        about["provenance"][key] = value
        (path / "run.yaml").write_text(yaml.safe_dump(about, allow_unicode=True))

    return spoil


def keep(test):
    return lambda path: write_rows(path / RESULTS, [row for row in make_measured()[0] if test(row)])


VERDICT = {
    "pair": "a + b",
    "kind": "FT–FT",
    "a": "a",
    "b": "b",
    "data": ["one"],
    "says": "CTL holds",
    "reason": ".",
}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "run.yaml").unlink(), "no run.yaml"),
        (lambda path: (path / "run.yaml").write_text("study: measure\n"), "lacks 'config'"),
        (lambda path: (path / "run.yaml").write_text("study: mesure\nconfig: {}\nprovenance: {}\n"),
         "Did you mean: measure?"),
        (spoil_about("verdicts", []), "no verdicts"),
        (spoil_about("verdicts", [{"pair": "a + b"}]), "verdict 1 lacks a, b, data, kind, reason, says"),
        (spoil_about("verdicts", [{**VERDICT, "says": "perhaps"}]), "verdict 1 is 'perhaps'"),
        (spoil_about("verdicts", [{**VERDICT, "pair": "a + z"}]), "lack the rows of a + z"),
        (spoil_about("cost", None), "no cost"),
        (lambda path: (path / RESULTS).unlink(), "does not exist"),
        (lambda path: (path / RESULTS).write_bytes(b"PAR1"), "can't be read"),
        (keep(lambda row: False), "is empty"),
        (keep(lambda row: row.kind != "pt-ft"), "lack the rows of base + a; base + b; base + c"),
        (keep(lambda row: row.measure != "gap"), "lacks gap of a + b at blocks.0; gap of a + b at blocks.1"),
    ],
)  # fmt: skip
def test_an_incomplete_run_is_an_error_that_names_what_is_missing(tmp_path, spoil, message):
    path = make_measured_run(tmp_path / "run")
    spoil(path)
    with pytest.raises(StudyError, match=re.escape(message)):
        build_report(path)
    assert not (path / "report.html").exists()
    assert not (path / "figures").exists()


@pytest.mark.parametrize(
    ("shape", "status", "words"),
    [
        ({}, "holds", "CTL holds for all 3 pairs of fine-tunes at α = 0.5."),
        ({"says": {"a + b": "not linear", "a + c": "LLFC only"}}, "partly",
         "CTL holds for 1 of 3 pairs of fine-tunes at α = 0.5 (LLFC only: 1; not linear: 1)."),
        ({"models": ("a", "b"), "says": {"a + b": "LLFC only"}}, "fails",
         "CTL does not hold for the pair of fine-tunes at α = 0.5 (LLFC only: 1)."),
        ({"models": ("a",)}, "holds", "CTL holds for base and fine-tune at α = 0.5."),
        ({"linearized": True}, "holds",
         "CTL holds for all 3 pairs of fine-tunes at α = 0.5 (in the linearised network, by construction)."),
        ({"alphas": (0.25, 0.5)}, "holds",
         "CTL holds for all 3 pairs of fine-tunes at α = 0.5 (6 of 6 tests over all α)."),
        ({"change": without("cos"), "says": dict.fromkeys(("a + b", "a + c", "b + c"), "no verdict")}, "unknown",
         "No verdict on any of 3 pairs of fine-tunes: no layer is evidence."),
    ],
)  # fmt: skip
def test_the_headline_counts_pairs(shape, status, words):
    says = shape.get("says", {})
    assert headline(view(**{**shape, "says": lambda pair: says.get(pair, "CTL holds")})) == (status, words)


def test_sentences_name_what_is_worst_but_no_trivial_layer():
    def change(row):
        if (row.kind, row.points, row.measure) == ("ctl", "a + c", "cos"):
            return replace(row, mean={"blocks.0": 0.1, "blocks.1": 0.91}.get(row.layer, row.mean))
        if (row.kind, row.points, row.measure) == ("ctl", "b + c", "coef"):
            return replace(row, mean={"blocks.0": 9.0, "output": -0.7}.get(row.layer, row.mean))
        return row

    said = sentences(view(change=change, trivial=("blocks.0",)))
    assert said[0] == "CTL holds for all 3 pairs of base and fine-tune at α = 0.5."
    assert said[1].startswith("Lowest cos 0.910 (a + c, blocks.1; baseline 0.69")
    assert said[1].endswith("coef furthest from 1: −0.700 (b + c, output).")
    assert said[2] == "Largest loss barrier +0.270 (b + c)."


def test_no_barrier_is_said_where_the_loss_stays_below_the_chord():
    def change(row):
        return replace(row, mean=-0.1) if row.kind == "barrier" else row

    assert sentences(view(change=change))[-1] == "No loss barrier on any line between two models."
    assert not any("barrier" in said for said in sentences(view(labels=False)))


def test_the_view_finds_layers_that_decide():
    found = view(trivial=("blocks.0",), alphas=(0.1, 0.6))
    pair = found.pairs[0]
    assert (found.alpha, found.gap, found.local) == (0.6, "gap_rel", True)
    assert found.worst(pair, "cos").layer == "output"
    assert found.worst(pair, "cos", local=True).layer == "blocks.1"
    assert found.worst(pair, "gap").layer == "blocks.1"
    assert found.worst(pair, "cos", alpha=0.1).parameter == 0.1
    assert found.models == ["base", "a", "b", "c"]
    assert view(base=None).gap == "gap_between"
    assert not view(base=None).local
    assert [told.name for told in found.least_linear(found.pairs, 1)] == ["base + c"]


def test_a_pair_without_live_features_has_no_verdict_and_comes_last():
    found = view(
        change=lambda row: replace(row, mean=nan) if row.points == "a + b" else row,
        says=lambda pair: "no verdict" if pair == "a + b" else "CTL holds",
    )
    assert [pair.word for pair in found.of_kind("FT–FT")] == ["no verdict", "CTL holds", "CTL holds"]
    assert found.least_linear(found.pairs, 9)[-1].name == "a + b"


def test_names_may_hold_a_plus():
    found = view(models=("a + b", "c"), base="x + y")
    assert found.models == ["x + y", "a + b", "c"]


def printed(parts, width=80):
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()


def test_the_terminal_shows_a_line_a_pair_within_80_columns():
    text = printed(measured_parts(view(), {"samples": 20}, ["[red]a note"]))
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    assert flat.startswith(
        "CTL holds for all 3 pairs of fine-tunes at α = 0.5. CTL holds for all 3 pairs of base"
    )
    assert "a + CTL holds 0.986 (output) 1.020 0.400 +0.250 80.0%" in flat
    assert "b 0.982–0.990 (0)" in flat
    assert "• base + c (PT–FT): Reason of base + c." in flat
    assert "base 50.0% (1.000)" in flat
    assert "a + b one 51.0% (1.010) 52.0% (1.020) 54.0% (1.040)" in flat
    assert "20 samples" in flat
    assert "note: [red]a note" in flat


TASKS = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")


@pytest.mark.parametrize("width", [80, 100])
def test_eight_tasks_are_readable_on_a_terminal(width):
    text = printed(measured_parts(view(models=TASKS, data=TASKS), {}), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width and "…" not in text
    for one, other in combinations(TASKS, 2):  # one line a pair
        (line,) = [line for line in lines if line.startswith(f"{one} + {other}  ") and "CTL holds" in line]
        assert re.search(r"\+0\.\d{3} +80\.0%$", line)
    assert "The report (--out) has every layer, with intervals." in " ".join(text.split())
    scores = [line.split() for line in lines if line.startswith("sun397  ")]
    assert [len(cells) for cells in scores] == [
        1 + 2 * 4,
        1 + 2 * 4,
    ]  # accuracy and loss of four data sets, twice
    assert all(re.fullmatch(r"[0-9.]+%|\([0-9.]+\)", cell) for cells in scores for cell in cells[1:])
    heads = [line for line in lines if line.startswith("model  ")]
    assert " ".join(heads).split() == ["model", *TASKS[:4], "model", *TASKS[4:]]


def test_the_terminal_leaves_out_what_was_not_measured():
    text = printed(measured_parts(view(base=None, labels=False, predicts=False), {}))
    for word in ("barrier", "answer", "change", "PT–FT", "Accuracy"):
        assert word not in text
    assert "gap / distance: " in text


def test_of_many_pairs_the_terminal_shows_reasons_of_the_worst_only():
    models = tuple(f"m{i}" for i in range(9))
    text = printed(measured_parts(view(models=models, says=lambda pair: "not linear"), {}))
    assert "the 28 least linear of 36 pairs" in text
    assert text.count("• ") == 6
    assert "… and 39 more that CTL does not hold for." in text
    assert "the 28 with the largest loss above the ends' mean, of 36" in " ".join(text.split())
    assert "Why" not in printed(measured_parts(view(models=models), {}))


def test_a_value_that_is_missing_is_a_dash_on_the_terminal():
    text = printed(measured_parts(view(change=without("cos"), says=lambda pair: "no verdict"), {}))
    assert "no verdict" in text
    assert " – " in text
    assert "nan" not in text


def test_tables_hold_means_and_intervals_and_mark_trivial_layers():
    found = view(trivial=("blocks.0",))
    pair = found.pairs[0]
    rows = dict(verdict_grid(found, "FT–FT").rows)
    assert [cell.text for cell in rows["a + b"]] == [
        "CTL holds", "0.986 (output)", "0.696", "1.018 (1)", "0.398 (1)", "+0.250", "+0.250", "80.0%", "90.0%", "85.0%",
    ]  # fmt: skip
    grid = layer_grid(found, pair)
    assert [name for name, _ in grid.rows] == ["blocks.0 (trivial)", "blocks.1", "output"]
    cells = dict(zip(grid.columns[1:], grid.rows[1][1], strict=True))
    cos = found.row(pair, "cos", "blocks.1")
    assert (cells["cos"].text, cells["cos"].note) == (f"{cos.mean:.4f}", f"{cos.low:.4f} to {cos.high:.4f}")
    assert (cells["samples"].text, cells["dead"].text) == ("20", "0")
    alone = found.mean(pair, "cos", "blocks.1", local=True)
    assert cells["cos by itself"].text == f"{alone:.4f}" != cells["cos"].text
    assert dict(zip(grid.columns[1:], grid.rows[2][1], strict=True))["cos by itself"].text == "–"
    assert "gap / change" not in layer_grid(view(base=None), view(base=None).pairs[0]).columns


def test_merged_models_stand_next_to_their_ends():
    found = view(data=("one", "two"))
    assert loss_grid(found).columns == ("model", "one: accuracy", "one: loss", "two: accuracy", "two: loss")
    assert [name for name, _ in loss_grid(found).rows] == ["base", "a", "b", "c"]
    name, cells = merged_grid(found).rows[3]
    assert name == "a + c · two"
    assert [cell.text for cell in cells] == ["0.510", "0.530", "0.550", "1.010", "1.030", "1.050"]
    assert loss_grid(view(labels=False)) is None
    assert merged_grid(view(models=("a",))) is None


def test_the_axis_of_cosines_is_spread_out_and_its_inverse_is_right():
    values = np.array([-1.0, 0.0, 0.5, 0.9, 0.99, 0.999, 1 - NEAREST, 1.0, 1.0 + NEAREST])
    places = steps(values)
    assert np.all(np.diff(places) > 0)
    assert places[3:6] == pytest.approx([1, 2, 3])
    assert cosines(places) == pytest.approx(values, abs=1e-12)
    for low, high in ((-1.0, 1.0), (0.3, 0.96), (0.9989, 0.9991)):
        ticks = steps(np.array(sorted(cos_ticks(low, high))))
        assert np.all(np.diff(ticks) > 0.09 * (steps(np.array(high)) - steps(np.array(low))))
    assert cos_ticks(0.5, 1.0)[1 - NEAREST] == "≈ 1"


@pytest.mark.parametrize("count", [1, 2, 7, 13, 33, 81])
@pytest.mark.parametrize("inches", [0.4, 1.9, 9.0])
def test_labels_of_an_axis_have_room_and_include_the_last(count, inches):
    shown = spaced([0.15] * count, inches)
    assert shown[-1] == count - 1
    assert shown == sorted(set(shown))
    assert len(shown) == 1 or min(np.diff(shown)) * inches / count >= 0.15


def test_panels_are_at_most_four_side_by_side():
    for left in range(1, 13):
        for right in range(1, 13):
            a, b = depth.split_columns(left, right)
            assert 1 <= a <= left and 1 <= b <= right and a + b <= depth.COLUMNS
    assert depth.split_columns(3, 3) == [2, 2]


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    net = ms.MLP((6, 12, 12, 3))
    base = ms.Checkpoint(net.state_dict(), name="base")
    models = {name: ms.random_neighbour(base, base * 1.3, seed=i, name=name) for i, name in enumerate("ab")}
    batches = [(torch.randn(10, 6), torch.randint(3, (10,))) for _ in range(2)]
    settings = ms.protocols.Settings(alphas=(0.25, 0.5), executor="resident", progress=False)
    return ms.measure(base, models, [ms.HeldOut("noise", batches, net)], settings)


def test_a_real_measurement_looks_the_same_from_memory_and_from_disk(measured, tmp_path):
    run = RunDirectory(tmp_path / "run")
    write_measurement(run, measured, {"alphas": [0.25, 0.5]}, {"models": {}, "data": {}})
    stored = load_measured(run.path, read_about(run.path))
    live = Measured.of(measured)
    assert stored.pairs == live.pairs
    assert [pair.word for pair in live.pairs] == [pair.word for pair in measured.pairs]
    for pair, told in zip(measured.pairs, stored.pairs, strict=True):
        for layer in pair.middle.layers:
            assert stored.mean(told, "cos", layer.layer) == layer.measures["cos"].mean
        assert stored.barrier(told) == pair.barrier.loss_barrier
    assert printed(measurement_parts(measured)) == printed(summary_parts(run.path))
    assert {row.layer for row in read_rows(run.path / RESULTS) if row.layer} == set(stored.layers)


def test_the_command_rebuilds_the_report_of_a_measurement_and_prints_it(measured, tmp_path):
    run = RunDirectory(tmp_path / "run")
    write_measurement(run, measured, {}, {})
    result = CliRunner().invoke(app, ["report", str(run.path)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(headline(Measured.of(measured))[1][:60])
    assert f"Report: {run.path / 'report.html'}" in result.output
    assert Page((run.path / "report.html").read_text()).tags


def test_maps_by_layer_show_the_least_linear_of_many_pairs():
    found = view(models=tuple(f"m{number}" for number in range(10)), trivial=("blocks.0",))
    maps = measured_figures.by_layer(found).axes[:2]
    assert {axes.images[0].get_array().shape for axes in maps} == {(measured_figures.MOST_ROWS, 3)}
    shown = [label.get_text() for label in maps[0].get_yticklabels()]
    kept = found.least_linear(found.pairs, measured_figures.MOST_ROWS)
    assert len(found.pairs) == 55 and set(shown) == {pair.name for pair in kept}

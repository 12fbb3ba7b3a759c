"""Reports: what they say follows from the rows; files are whole, escaped, equal for equal rows."""

import importlib
import io
import logging
import re
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from mergeable_cases import planted
from reports.looking import NASTY, Page, overlaps
from reports.synthetic import make_rows, make_run, make_samples
from rich.console import Console

import mergescope as ms
from mergescope.errors import StudyError
from mergescope.merging import relations
from mergescope.protocols.mergeability import analyse
from mergescope.protocols.mergeability.predictors import FLOOR
from mergescope.reports import (
    build_report,
    check_tables,
    curves,
    figures,
    geometry_figures,
    mergeability_figures,
    mergeability_page,
    summary_table,
    verdict_sentences,
)
from mergescope.reports.cost import costs, learning_rates
from mergescope.reports.html import clear_figures
from mergescope.reports.results import Results
from mergescope.reports.style import new_figure, render, settle, styled
from mergescope.reports.tables import (
    accuracy_grid,
    barrier_grid,
    equation_grid,
    null_grid,
    number,
    pair_grid,
    significant,
)
from mergescope.reports.verdicts import headline_of_regimes
from mergescope.studies.rundir import RESULTS, SAMPLES, read_table, write_rows, write_table
from mergescope.weights.geometry import geometry


def table_of(rows):
    samples = make_samples(rows)
    table = {}
    for network, regime, layer, value in zip(
        *(samples[k] for k in ("network", "regime", "layer", "value")), strict=True
    ):
        table.setdefault((network, regime, layer), []).append(value)
    return {key: np.array(values) for key, values in table.items()}


def all_figures(rows):
    results = Results(rows)
    yield "main", figures.main(results)
    yield "alpha", figures.alpha_dependence(results)
    yield "equations", figures.equations(results)
    yield "null", figures.null_baselines(results)
    yield "coef", figures.coef_distributions(results, table_of(rows))
    yield "pairs-cos", curves.pair_matrices(results, "cos")
    yield "pairs-coef", curves.pair_matrices(results, "coef")
    yield "lambda", curves.lambda_search(results)
    yield "barrier", curves.barrier_curves(results, results.networks[0])


SHAPES = {
    "one of each": {},
    "the demo": {
        "networks": ("mlp", "vit"),
        "regimes": ("moderate", "high"),
        "tasks": ("22.5°", "45°", "67.5°", "90°"),
        "layers": ("blocks.0", "blocks.1", "blocks.2", "output"),
    },
    "many and long": {
        "networks": ("a network with quite a long name",),
        "regimes": ("the first of the regimes", "second"),
        "tasks": ("2/3", "a task whose name is long", "6/7", "8/9", "0/1"),
        "layers": tuple(f"encoder.layers.{i}" for i in range(9)),
        "trivial": ("encoder.layers.0",),
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_text_of_a_figure_touches_another_or_leaves_the_page(shape):
    for name, figure in all_figures(make_rows(**SHAPES[shape])):
        count, found = overlaps(figure)
        assert count >= 4, name
        assert not found, name


def test_the_check_for_overlaps_can_fail_and_settle_cures_it():
    with styled():
        figure = new_figure(2, 2)
        axes = figure.subplots()
        axes.set_xticks(range(9), ["a long label"] * 9)
    assert overlaps(figure)[1]
    assert not overlaps(settle(figure))[1]


def test_equal_rows_give_equal_files_and_other_rows_others():
    rows = make_rows()
    moved = [replace(row, mean=row.mean - 0.1) if row.measure == "cos" else row for row in rows]
    for format in ("svg", "png"):
        first, again, other = (render(figures.main(Results(r)), format) for r in (rows, rows, moved))
        assert first == again
        assert first != other
    assert b"<dc:date>" not in render(figures.main(Results(rows)), "svg")


def test_figures_do_not_depend_on_the_users_matplotlib_settings():
    plain = render(figures.main(Results(make_rows())), "svg")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "text.parse_math": True}):
        assert render(figures.main(Results(make_rows())), "svg") == plain


@pytest.fixture(scope="module")
def nasty_report(tmp_path_factory):
    def spoil(row):
        row = replace(row, mean=nan) if row.layer == "$x_{" and row.measure in ("cos", "coef", "gap") else row
        return replace(row, mean=nan) if row.kind == "barrier" and row.measure == "error" else row

    rows = make_rows(
        (NASTY,), ("_[red]&",), ("$a_1", f"b {NASTY}"), ("first", "$x_{", "</svg>-->"), change=spoil
    )
    path = make_run(tmp_path_factory.mktemp("runs") / "run", rows)
    return build_report(path)


def test_names_from_data_are_escaped(nasty_report):
    text = nasty_report.read_text()
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "alert" in text
    assert NASTY not in text
    assert not page.open


def test_the_page_loads_nothing_and_its_ids_are_its_own(nasty_report):
    page = Page(nasty_report.read_text())
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 20
    links = [attrs[key] for _, attrs in page.tags for key in ("href", "xlink:href", "src") if key in attrs]
    assert links
    inside = {link for link in links if not link.startswith("data:image/png;base64,")}
    assert {link[0] for link in inside} == {"#"}
    assert {link[1:] for link in inside} <= set(ids)
    used = re.findall(r"url\(([^)]*)\)", nasty_report.read_text())
    assert {name[0] for name in used} == {"#"}
    assert {name[1:] for name in used} <= set(ids)
    assert not {tag for tag, _ in page.tags} & {"link", "script", "img", "iframe", "object"}
    assert "@import" not in nasty_report.read_text()


def test_every_figure_is_a_file_in_both_formats_and_no_temporary_stays(nasty_report):
    files = sorted(path.name for path in (nasty_report.parent / "figures").iterdir())
    assert len(files) == 18
    assert {name.rsplit(".", 1)[1] for name in files} == {"png", "svg"}
    assert {"main.svg", "main.png", "barrier-script-alert-x-script.svg"} <= set(files)


def test_a_value_that_is_missing_is_a_dash(nasty_report):
    page = nasty_report.read_text()
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower().replace("nance", "")
    assert "<td>–</td>" in page


def test_the_page_says_what_was_measured_and_made_it(nasty_report):
    text = nasty_report.read_text()
    for expected in (
        "made-up digits",
        "$a_1: 10",
        "<dd>3</dd>",
        "0123456789ab",
        'title="fedcba9876543210"',
        "torch ",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: (path / "run.yaml").unlink(), "no run.yaml"),
        (lambda path: (path / "run.yaml").write_text("study: digits\n"), "lacks 'config'"),
        (lambda path: (path / RESULTS).unlink(), "does not exist"),
        (lambda path: (path / RESULTS).write_bytes(b"PAR1"), "can't be read"),
        (lambda path: (path / SAMPLES).unlink(), "does not exist"),
        (lambda path: write_rows(path / RESULTS, []), "is empty"),
        (lambda path: write_rows(path / RESULTS, make_rows(change=lambda r: None if r.kind == "eq3" else r)),
         "lacks net, mild: eq3"),
        (lambda path: write_rows(path / RESULTS, make_rows(("other",))), "lacks net, mild: ctl"),
        (lambda path: write_table(path / SAMPLES, {"measure": ["coef"]}), "lacks the column 'network'"),
        (lambda path: write_table(path / SAMPLES, _without_coef(path)), "has no coef of net, mild"),
    ],
)  # fmt: skip
def test_an_incomplete_run_is_an_error_that_names_what_is_missing(tmp_path, spoil, message):
    path = make_run(tmp_path / "run", make_rows())
    spoil(path)
    with pytest.raises(StudyError, match=re.escape(message)):
        build_report(path)
    assert not (path / "report.html").exists()
    assert not (path / "figures").exists()


def _without_coef(path):
    lines = read_table(path / SAMPLES)
    return {name: [line[name] if name != "measure" else "cos" for line in lines] for name in lines[0]}


def test_a_directory_that_is_absent_is_not_made(tmp_path):
    with pytest.raises(StudyError, match="no run directory"):
        build_report(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def holding(pairs):
    """Rows of three pairs, of which these pass at alpha 0.5."""

    def change(row):
        if row.kind == "ctl" and row.measure in ("CTL holds", "LLFC holds") and row.points not in pairs:
            return replace(row, mean=0.0)
        return row

    return make_rows(tasks=("a", "b", "c"), change=change)


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (("a + b", "a + c", "b + c"), "CTL holds for all 3 pairs at α = 0.5 (9 of 9 tests over all α)."),
        (("a + b",), "CTL holds for 1 of 3 pairs at α = 0.5 (3 of 9 tests over all α; LLFC for 1 of 3)."),
        ((), "CTL does not hold for any of 3 pairs at α = 0.5 (0 of 9 tests over all α; LLFC for 0 of 3)."),
    ],
)
def test_the_verdict_counts_pairs(pairs, words):
    (sentence,) = verdict_sentences(holding(pairs))
    assert sentence.startswith(f"net, mild: {words}")


def one(change):
    return verdict_sentences(make_rows(change=change))[0]


def test_the_verdict_names_the_worst_layer_but_no_trivial_one():
    def change(row):
        if row.kind == "ctl" and row.parameter == 0.5:
            if row.measure == "cos":
                return replace(row, mean={"one": 0.1, "two": 0.91}[row.layer], trivial=row.layer == "one")
            if row.measure == "coef":
                return replace(row, mean={"one": 9.0, "two": -0.7}[row.layer], trivial=row.layer == "one")
        return row

    assert "Lowest cos 0.910 (two, a + b; baseline 0.499), coef furthest from 1: −0.700 (two, a + b)." in one(
        change
    )


def test_the_barrier_in_words_follows_its_sign():
    def barrier(value):
        return one(
            lambda row: replace(row, mean=value) if (row.kind, row.measure) == ("barrier", "error") else row
        )

    assert "No error barrier on any line" in barrier(0.0)
    assert "Largest error barrier 2.5 percentage points (a + b)." in barrier(0.025)
    assert "barrier" not in barrier(nan)


def null(kind, measure, value):
    return one(lambda row: replace(row, mean=value) if (row.kind, row.measure) == (kind, measure) else row)


def test_what_the_null_baselines_mean_follows_from_their_numbers():
    assert "another initialisation: cos is lower at 2 of 2 layers" in null("null-init", "cos", 0.2)
    assert "The common start matters." in null("null-init", "cos", 0.2)
    assert "makes no difference" in null("null-init", "cos", 1.0)
    assert "the two measures disagree" in null("null-init", "gap_between", 0.01)
    assert "does not show that fine-tuned directions are special" in null("null-random", "gap_between", 0.01)
    assert "short steps look straight" in null("null-random", "gap_between", 0.01)
    assert "short steps" not in null("null-random", "baseline", 0.2)
    assert "more linear than random ones" in null("null-random", "gap_between", 0.9)


def test_the_verdict_warns_when_lambda_is_at_the_end_of_its_grid():
    assert "largest tried" not in one(lambda row: row)
    assert "largest tried" in one(
        lambda row: replace(row, mean=row.parameter) if row.kind == "lambda-search" else row
    )


def test_sentences_survive_results_without_numbers():
    (sentence,) = verdict_sentences(make_rows(change=lambda row: replace(row, mean=nan)))
    assert sentence == "net, mild: No verdict: no pair has one. No layer has live features that are evidence."
    with pytest.raises(StudyError, match="no Cross-Task Linearity rows"):
        verdict_sentences([])


def test_the_headline_blames_the_learning_rate_only_if_the_counts_do():
    def rows(share):
        def change(row):
            fails = row.regime == "hot" and row.measure == "CTL holds" and row.kind == "ctl"
            return replace(row, mean=float(row.parameter in share)) if fails else row

        return Results(make_rows(regimes=("cold", "hot"), change=change))

    rates = {("net", "cold"): 0.1, ("net", "hot"): 1.0}
    title, (sentence,) = headline_of_regimes(rows((0.25, 0.5)), rates)
    assert title == "The learning rate decides"
    assert "3 of 3 tests in the regime “cold” (learning rate 0.1), in 2 of 3" in sentence
    assert headline_of_regimes(rows((0.25, 0.5, 0.75)), rates)[0] != title
    assert headline_of_regimes(rows((0.25, 0.5)), {})[0] != title
    assert headline_of_regimes(rows(()), {key: 1 / rate for key, rate in rates.items()})[0] != title


def test_learning_rates_count_only_if_nothing_else_differs():
    regimes = {"cold": {"net": {"lr": 0.1, "epochs": 2}}, "hot": {"net": {"lr": 1.0, "epochs": 3}}}
    assert learning_rates({"regimes": regimes}) == {}
    regimes["hot"]["net"]["epochs"] = 2
    assert learning_rates({"regimes": regimes}) == {("net", "cold"): 0.1, ("net", "hot"): 1.0}


def test_the_terminal_table_has_a_line_a_family_and_takes_names_literally():
    rows = make_rows(("[red]net",), ("mild", "hot"), tasks=("a", "b", "c"))
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(summary_table(rows))
    text = capture.get()
    lines = [line.split() for line in text.splitlines() if "[red]net" in line]
    assert [line[1] for line in lines] == ["mild", "hot"]
    assert lines[0][2:] == ["0.980", "0.500", "1.02–1.02", "3/3", "3/3", "−2.0%", "0.60", "0.65", "0.70"]


def test_the_best_merged_model_is_bold_and_the_ensemble_never():
    grid = accuracy_grid(Results(make_rows()), ("net", "mild"))
    assert [name for name, _ in grid.rows][-3:] == [
        "average",
        "task arithmetic (λ = 0.5)",
        "ensemble of logits",
    ]
    bold = {
        (name, column)
        for name, cells in grid.rows
        for column, cell in zip(grid.columns[1:], cells, strict=True)
        if cell.bold
    }
    assert bold == {("task arithmetic (λ = 0.5)", column) for column in ("a", "b", "mean", "normalised")}


def test_tables_hold_means_and_ranges_and_mark_trivial_layers():
    results = Results(make_rows(tasks=("a", "b", "c"), trivial=("one",)))
    rows = dict(equation_grid(results, ("net", "mild")).rows)
    assert set(rows) == {
        f"{test} · {layer}"
        for test in ("CTL", "Eq. 1", "Eq. 2", "Eq. 3")
        for layer in ("one (trivial)", "two")
    }
    assert (rows["CTL · two"][0].text, rows["CTL · two"][0].note) == ("0.980", "0.98 to 0.98")
    assert rows["Eq. 3 · two"][-1].text == "–"
    assert dict(barrier_grid(results).rows)["a + c"][1].text == "−0.020"
    assert [cells[0].text for name, cells in null_grid(results, ("net", "mild")).rows if "other" in name] == [
        "0.400"
    ] * 2


def test_minus_zero_has_no_sign():
    assert number(-0.0001) == "0.000"
    assert number(-0.0001, sign=True) == "+0.000"


def test_the_cost_of_measuring_apart_is_counted_from_the_rows():
    (cost,) = costs(Results(make_rows(alphas=(0.5,))), {"settings": {"batch": 5}})
    # 2 tasks of 2 batches. On both: CTL, Eq. 2, two null baselines of 4 points each, Eq. 1 of 4, a line of 3.
    # On each alone: Eq. 3 of 3 points; 5 models and an ensemble of 2.
    assert cost.apart == 4 * (4 * 4 + 4 + 3) + 2 * 2 * (3 + 5 + 2)
    assert (cost.seconds, cost.passes, cost.search_seconds, cost.search_passes) == (4.0, 16, 1.5, 30)
    assert costs(Results(make_rows()), {})[0].apart is None


def test_every_pair_and_layer_shows_its_interval_and_baseline():
    rows = make_rows(tasks=("a", "b", "c"), layers=("first", "second"), trivial=("first",))
    grid = pair_grid(Results(rows), ("net", "mild"))
    assert grid.columns == ("pair", "first (trivial)", "second")
    assert [pair for pair, _ in grid.rows] == ["a + b", "a + c", "b + c"]
    chosen = {"kind": "ctl", "points": "b + c", "layer": "second", "parameter": 0.5}
    cos, base = (
        next(r for r in rows if r.measure == name and all(getattr(r, k) == v for k, v in chosen.items()))
        for name in ("cos", "baseline")
    )
    cell = grid.rows[2][1][1]
    assert cell.text == number(cos.mean, 4)
    assert number(cos.low, 4) in cell.note and number(cos.high, 4) in cell.note
    assert cell.note.endswith(f"; {number(base.mean, 2)}")


def test_infinite_numbers_are_told_from_missing_ones_and_small_ones_keep_their_digits():
    assert [number(value) for value in (inf, -inf, nan)] == ["∞", "−∞", "–"] and number(
        inf, sign=True
    ) == "+∞"
    values = (0.5, 12.0, 0.0, 0.00042, -0.00042, -1.5e-7, -inf, nan)
    said = ["0.500", "12.000", "0.000", "0.00042", "−0.00042", "−1.5e−07", "−∞", "–"]
    assert [significant(value) for value in values] == said


def test_figures_of_an_earlier_report_go_and_other_files_stay(tmp_path):
    folder = tmp_path / "figures"
    folder.mkdir()
    kept = {"main.svg", "notes.txt", "mine.pdf", "similarity.png", ".main.svg.1.tmp.svg"}
    for name in (*kept, "old.svg", "old.png", "old.csv"):
        (folder / name).write_text("")
    clear_figures(folder, {"main.svg"})
    assert {file.name for file in folder.iterdir()} == kept
    clear_figures(tmp_path / "none", set())
    assert not (tmp_path / "none").exists()


def test_only_fonts_that_are_installed_are_asked_for_and_none_is_missed(monkeypatch):
    from matplotlib.font_manager import fontManager

    known, logger = fontManager.ttflist, logging.getLogger("matplotlib.font_manager")
    monkeypatch.setattr(fontManager, "ttflist", [font for font in known if font.name == "DejaVu Sans"])
    with styled():
        assert matplotlib.rcParams["font.family"] == ["DejaVu Sans"]
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.isEnabledFor(logging.WARNING)
    other = replace(known[0], name="PingFang SC")
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist, other])
    with styled():
        assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "PingFang SC"]


def test_crowded_names_beside_a_figure_are_thinned_out():
    with styled():
        figure = new_figure(4, 2)
        axes = figure.subplots()
        axes.set_yticks(range(60), [f"name {number}" for number in range(60)])
        assert overlaps(figure)[1]
        assert not overlaps(settle(figure))[1]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown[0] == "name 0" and 4 < len(shown) < 31


# --- geometry


def geometry_of(count, still=0):
    """Random task vectors; the first models equal the base."""
    generator = torch.Generator().manual_seed(0)
    base = {f"h.{block}.w": torch.ones(8) for block in range(2)}
    models = [
        {key: value + (place >= still) * torch.randn(8, generator=generator) for key, value in base.items()}
        for place in range(count)
    ]
    named = [ms.Checkpoint(state, name=f"model {place}") for place, state in enumerate(models)]
    return geometry(ms.Checkpoint(base, name="base"), named)


def drawn(axes):
    return np.ma.filled(axes.images[0].get_array().astype(float), nan)


def test_a_model_that_equals_its_base_has_no_cosines():
    found = geometry_of(3, still=1)
    for axes in geometry_figures.similarity(found).axes[:2]:
        values = drawn(axes)
        assert np.isnan(values[0]).all() and np.isnan(values[:, 0]).all() and np.isfinite(values[1, 2])
    heat, blocks = geometry_figures.by_regime({"full": found}).axes[:2]
    cosine = float(found.total.cosines[1, 2])
    assert heat.get_title(loc="left") == f"full: mean {cosine:.3f}" and np.isnan(drawn(heat)[0]).all()
    each = [float(sums.cosines[1, 2]) for sums in found.groups("layer").values()]
    np.testing.assert_allclose(blocks.lines[0].get_ydata(), each)
    nothing = geometry_figures.by_regime({"none": geometry_of(2, still=2)})
    assert nothing.axes[0].get_title(loc="left") == "none"


def test_a_model_that_equals_its_base_has_dashes_in_tables_and_no_part_in_what_is_said():
    found = geometry_of(3, still=1)
    console = Console(width=100, record=True, file=io.StringIO())
    for part in check_tables.geometry_parts(found):
        console.print(part)
    lines = [line.split() for line in console.export_text().splitlines()]
    _, *first = [line[2:] for line in lines if line[:2] == ["model", "0"] and len(line) == 5]
    assert first == [["·", "–", "–"]] * 2  # of cosines and of conflicts
    cosine = float(found.total.cosines[1, 2])
    assert f": their cosines are {cosine:.3f} to {cosine:.3f}" in str(found)
    shown = str(found).partition("Cosine of task vectors")[2].partition("Relative distance")[0]
    assert [line.count("–") for line in shown.splitlines() if line.startswith("model ")] == [0, 3, 2, 2]
    verdicts = relations.verdicts(found, has_base=True)[3:]
    assert [verdict.cosine for verdict in verdicts] == [None, None, cosine]
    assert "cosines are" not in str(geometry_of(2, still=1))


def test_figures_of_many_models_stay_small_and_say_what_they_leave_out():
    figure = geometry_figures.by_group(geometry_of(9))
    assert drawn(figure.axes[0]).shape == (2, geometry_figures.PAIRS)
    assert "28 of 36 pairs" in figure.get_suptitle() and figure.get_figwidth() < 24
    assert geometry_figures.similarity(geometry_of(20)).get_figheight() < 7


# --- mergeability


def test_what_no_rule_can_be_judged_by_has_no_drawing(monkeypatch):
    found = analyse(planted(units=1, networks=("Net",)))
    monkeypatch.setattr(mergeability_page, "ROWS", 2)
    drawings = mergeability_page.draw(replace(found, verdicts=()))
    assert set(drawings) == {"predictors", "correlations"}
    assert "tasks first, the first 2 of " in drawings["correlations"].caption
    assert mergeability_page.draw(replace(found, verdicts=(), related=())) == {}


def test_values_that_count_as_the_floor_are_drawn_there():
    cases = planted(units=1, networks=("Net",))
    cases[0].predictors["length"] = 0.0
    found = analyse(cases)
    (length,) = [it for it in found.of("average") if it.predictor == "length"]
    (axes,) = mergeability_figures.scatter(found, [length]).axes
    drawn = axes.collections[0].get_offsets()[:, 0]
    assert axes.get_xscale() == "log" and drawn.min() == FLOOR and len(drawn) == len(cases)
    assert all(line.get_xdata()[0] == pytest.approx(FLOOR) for line in axes.lines)
    alone = mergeability_page.draw(replace(found, related=(length,), verdicts=()))["predictors"].caption
    assert alone.endswith(" Values below 1e-06 count, and are drawn, as that.")


def test_the_benchmark_shows_the_figures_that_a_run_has(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    benchmark = importlib.import_module("mergeability")
    monkeypatch.setattr(benchmark, "PAGE", tmp_path / "page")
    found = analyse(planted(units=1, networks=("Net",)))
    drawings = mergeability_page.draw(found)
    assert {name: it.alt for name, it in drawings.items()} == mergeability_page.DRAWINGS
    said = {
        "headline": "it",
        **dict.fromkeys(("findings", "networks", "tasks", "notes", "rules", "predictors"), []),
    }
    (tmp_path / "figures").mkdir()
    for name in set(drawings) - {"held-out"}:  # no rules to judge
        (tmp_path / "figures" / f"{name}.svg").write_text("<svg/>")
    page = benchmark.page({**said, "cases": 1, "units": 1}, tmp_path)
    shown = re.findall(r"!\[(.*)\]\(mergeability/(.*).svg\)", page)
    assert shown == [(text, name) for name, text in mergeability_page.DRAWINGS.items() if name != "held-out"]
    assert {file.stem for file in benchmark.PAGE.iterdir()} == {name for _, name in shown}


def test_an_interval_that_is_not_known_is_left_out():
    found = analyse(planted(units=1, networks=("Net",)))  # one unit: nothing to draw anew
    grid = mergeability_page.related_grid(found, "average")
    assert grid.rows and {cell.note for _, cells in grid.rows for cell in cells} == {""}

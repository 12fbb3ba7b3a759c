"""Figures of protocols: what is drawn, that it is what is stored, and that nothing overlaps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from reports.looking import NASTY, overlaps
from reports.protocol_runs import KINDS, make_run, read
from reports.protocol_runs import given as given_parts
from support import family, labelled_batches

import mergescope as ms
from mergescope.protocols.disentanglement import DisentanglementSettings, disentanglement
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.search import Choice
from mergescope.protocols.stitching import StitchingSettings, stitch_addition, stitch_negation
from mergescope.reports.curvature_figures import bound_figure
from mergescope.reports.curvature_view import Curved, Sides
from mergescope.reports.disentanglement_figures import error_maps
from mergescope.reports.disentanglement_page import stored_grids
from mergescope.reports.prediction_figures import against_measured
from mergescope.reports.prediction_figures import by_layer as gaps_by_layer
from mergescope.reports.prediction_view import Predicted
from mergescope.reports.protocol_figures import Line, ranking, score_panels
from mergescope.reports.protocol_view import scores_in
from mergescope.reports.search_addition import lambda_curves
from mergescope.reports.search_coefficients import Found, coefficient_figure
from mergescope.reports.search_negation import forgetting_curves, searched
from mergescope.reports.soup_figures import greedy_steps, weights_against_logits
from mergescope.reports.stitching_figures import by_coefficient, by_layer, mean_by_layer
from mergescope.reports.stitching_page import stored_stitching
from mergescope.reports.style import STRONG, render
from mergescope.studies.rundir import Row

NAMES = ("one", "a task with quite a long name", NASTY, "_hidden $x_0$")


def given(count=4):
    torch.manual_seed(0)
    net = ms.ViT(image=8, patch=4, width=16, depth=3, heads=2, classes=3).eval()
    base, *models = family(net, names=("base", *"abcd"), scale=0.2)
    models = dict(zip(NAMES[:count], models, strict=False))
    test = {name: HeldOut(name, labelled_batches(10, 5, seed=i), net, name) for i, name in enumerate(models)}
    return base, models, test


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("distance", ["predictions", "kl"])
def test_every_pair_has_a_heat_map_with_the_search_box(count, distance):
    s = DisentanglementSettings(points=4, reach=2.0, distance=distance, box=(-0.5, 1.5), progress=False)
    found = disentanglement(*given(count), s)
    drawn = error_maps(found.grids)
    maps = [axes for axes in drawn.axes if axes.get_xlabel()]
    assert len(maps) == len(found.grids) == count * (count - 1) // 2
    for axes, grid in zip(maps, found.grids, strict=True):
        # Task 1 goes to the right, task 2 up.
        shown = np.asarray(axes.collections[0].get_array()).reshape(4, 4)
        np.testing.assert_array_equal(shown, grid.error.T)
        (box,) = [line for line in axes.lines if line.get_color() == STRONG]
        assert set(map(tuple, box.get_xydata())) == {(x, y) for x in (-0.5, 1.5) for y in (-0.5, 1.5)}
    assert maps[0].get_xlabel() == "α of one" and maps[0].get_ylabel().startswith("α of a task")
    amount, touching = overlaps(drawn)
    assert amount > 10 and not touching


def test_every_pair_and_data_set_has_a_panel_of_curves():
    found = stitch_addition(*given(3), StitchingSettings(lams=(0.2, 0.4), progress=False))
    drawn = by_layer(found), by_coefficient(found)
    panels = [axes for axes in drawn[0].axes if axes.axison]
    assert len(panels) == 6
    mixed = [found.score("mixed", f"{NAMES[0]} + {NAMES[1]}", NAMES[0], f"blocks.{k}", 0.4) for k in range(3)]
    np.testing.assert_array_equal(panels[0].lines[0].get_ydata(), [score.accuracy.mean for score in mixed])
    (base,) = {tuple(line.get_ydata()) for line in panels[0].lines[3:]}
    assert base == (found.base[NAMES[0]].accuracy.mean,) * 2
    for figure in drawn:
        amount, touching = overlaps(figure)
        assert amount > 10 and not touching


def test_negation_is_drawn_over_coefficients():
    base, models, test = given(2)
    found = stitch_negation(base, models, test, StitchingSettings(lams=(0.0, 0.5, 1.0), progress=False))
    drawn = by_coefficient(found)
    panel = drawn.axes[0]
    assert list(panel.lines[0].get_xdata()) == [0.0, 0.5, 1.0]
    whole = [found.score("whole", "- one", "one", "", lam).accuracy.mean for lam in found.lams]
    assert any(np.array_equal(line.get_ydata(), whole) for line in panel.lines)
    assert not overlaps(drawn)[1]


def test_equal_results_are_equal_files():
    s = DisentanglementSettings(points=3, reach=2.0, progress=False)
    first, second = (render(error_maps(disentanglement(*given(2), s).grids), "svg") for _ in range(2))
    assert first == second and first.startswith(b"<?xml")


# -- from what is stored -----------------------------------------------------------------------------


def test_stored_grids_are_those_that_were_measured(tmp_path):
    found, _ = KINDS["disentanglement"][1](*given_parts(3))
    again = stored_grids(read(make_run("disentanglement", tmp_path)))
    for one, other in zip(found.grids, again, strict=True):
        assert (one.tasks, one.coefficients, one.box, one.threshold) == (
            other.tasks, other.coefficients, other.box, other.threshold,
        )  # fmt: skip
        np.testing.assert_array_equal(one.parts, other.parts)
        assert all(other.summaries[name].low == summary.low for name, summary in one.summaries.items())
    assert render(error_maps(found.grids), "svg") == render(error_maps(again), "svg")


@pytest.mark.parametrize("kind", ["stitched addition", "stitched negation"])
def test_stored_stitching_is_what_was_measured(kind, tmp_path):
    found, _ = KINDS[kind][1](*given_parts(3))
    again = stored_stitching(read(make_run(kind, tmp_path)))
    assert (again.protocol, again.lams, again.layers) == (found.protocol, found.lams, found.layers)
    assert {points: again.members[points] for points in found.members} == dict(found.members)
    assert again.scores == found.scores and dict(again.base) == dict(found.base)
    for draw in (by_layer, by_coefficient, mean_by_layer):
        assert render(draw(found), "svg") == render(draw(again), "svg")


def test_means_of_stitching_are_means_over_pairs_and_data(tmp_path):
    found = stored_stitching(read(make_run("stitched addition", tmp_path)))
    (panel,) = mean_by_layer(found).axes
    mixed = [score for score in found.select(kind="mixed", lam=found.shown)]
    for place, layer in enumerate(found.layers[NAMES[0]]):
        values = [score.accuracy.mean for score in mixed if score.layer == layer]
        assert len(values) == 6 and panel.lines[0].get_ydata()[place] == pytest.approx(np.mean(values))
    own = [
        s.accuracy.mean
        for s in found.select(kind="single", lam=found.shown, layer="blocks.0")
        if s.points == s.data
    ]
    assert panel.lines[1].get_ydata()[0] == pytest.approx(np.mean(own))


# -- from rows ---------------------------------------------------------------------------------------


def row(mean, low=None, high=None, **more):
    return Row("net", "full", "kind", "points", "data", "measure", mean,
               low=mean - 0.1 if low is None else low, high=mean + 0.1 if high is None else high, **more)  # fmt: skip


def marks(axes):
    """Positions of single marks, in the order in which they are drawn."""
    return [tuple(np.ravel(line.get_xydata())) for line in axes.lines if len(line.get_xdata()) == 1]


def test_a_ranking_draws_every_mark_at_its_number():
    lines = [
        Line("first", [row(0.2), row(0.9)], "1 s"),
        Line(NASTY, [row(0.4), None]),
        Line("c", [row(np.nan), None]),
    ]
    figure = ranking(lines, ["as it is", "tuned"], "accuracy", [("base", 0.1)])
    axes, beside = figure.axes
    found = marks(axes)
    assert [x for x, _ in found] == [0.2, 0.9, 0.4]
    assert found[0][1] < 0 < found[1][1] < found[2][1] and axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2] == [
        (pytest.approx(0.1), pytest.approx(0.3)), (pytest.approx(0.8), pytest.approx(1.0)),
        (pytest.approx(0.3), pytest.approx(0.5)), (0.1, 0.1),
    ]  # fmt: skip
    assert [text.get_text() for text in beside.get_yticklabels()] == ["1 s", "", ""]
    assert not overlaps(figure)[1]


def test_scores_have_a_panel_a_task_in_which_the_own_model_stands_out(tmp_path):
    scores = scores_in(read(make_run("evaluation", tmp_path)), "accuracy")
    figure = score_panels(scores, lambda name, task: name == task)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels][:2] == ["normalised accuracy", "one"]
    for axes, task in zip(panels[1:], scores.tasks, strict=True):
        assert [x for x, _ in marks(axes)] == [scores.accuracy(name, task).mean for name in scores.names]
        strong = [line for line in axes.lines if line.get_color() == STRONG]
        assert [line.get_ydata()[0] for line in strong] == [scores.names.index(task)]


@pytest.mark.parametrize("count", [2, 14])
def test_the_search_of_a_coefficient_marks_the_choice_and_one(count):
    scores = {0.0: 0.1, 0.5: 0.8, 1.0: 0.6}
    curves = {f"task {i}": {lam: value + 0.01 * i for lam, value in scores.items()} for i in range(count)}
    figure = lambda_curves(Choice(0.5, 0.8, scores, False), curves)
    (axes,) = figure.axes
    (mean,) = [line for line in axes.lines if line.get_linewidth() == 2.6]
    assert list(mean.get_ydata()) == [0.1, 0.8, 0.6]
    vertical = [
        line.get_xdata()[0]
        for line in axes.lines
        if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert sorted(vertical) == [0.5, 1.0] and marks(axes) == [(0.5, 0.8)]
    assert len(figure.legends[0].get_texts()) == (5 if count == 2 else 4)  # many tasks share an entry
    assert not overlaps(figure)[1]


def test_forgetting_shows_the_floor_and_the_choice_of_every_task(tmp_path):
    found = searched(read(make_run("negation", tmp_path)), 0.95)
    figure = forgetting_curves(found)
    panels = [axes for axes in figure.axes if axes.axison]
    for axes, each in zip(panels, found.values(), strict=True):
        target, control, floor, *_ = axes.lines
        assert list(target.get_ydata()) == [each.targets[lam] for lam in sorted(each.targets)]
        assert list(control.get_ydata()) == [each.controls[lam] for lam in sorted(each.controls)]
        assert floor.get_ydata()[0] == pytest.approx(0.95 * each.controls[0.0])
        assert marks(axes) == [(each.choice.lam, each.choice.target)]
        # All of it is in view: the panels share an axis.
        low, high = axes.get_ylim()
        assert low < 0 and high > max([*each.targets.values(), *each.controls.values()])


@pytest.mark.parametrize("groups", [1, 3])
def test_coefficients_are_drawn_by_task_and_group(groups):
    names = [f"{i + 1}/{groups}" for i in range(groups)]
    ways = [
        Found(name, name == "surrogate", row(0.5), 3, None,
              {(task, group): value + 0.1 * i for i, group in enumerate(names) for task in NAMES})
        for name, value in (("base", 0.0), ("grid", 0.3), ("surrogate", 0.5), ("random", 0.7))
    ]  # fmt: skip
    figure = coefficient_figure(ways)
    if groups == 1:
        searched_, drawn, line = figure.axes[0].lines
        assert list(searched_.get_xdata()) == [0.5] * 4 and list(drawn.get_xdata()) == [0.7] * 4
        assert line.get_xdata()[0] == 0.3
    else:
        tables = [axes.images[0].get_array() for axes in figure.axes if axes.images]
        np.testing.assert_allclose(tables, [[[0.5, 0.6, 0.7]] * 4, [[0.7, 0.8, 0.9]] * 4])
    assert not overlaps(figure)[1]


def test_greedy_steps_go_on_from_what_was_taken():
    figure = greedy_steps([("a", 0.5, True), ("b", 0.4, False), ("c", 0.6, True)], "accuracy")
    (axes,) = figure.axes
    assert [y for _, y in marks(axes)] == [0.5, 0.4, 0.6]
    pieces = [tuple(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert (0.5, 0.4) in pieces and (0.5, 0.5) in pieces and (0.5, 0.6) in pieces


def test_subsets_are_drawn_against_the_diagonal():
    subsets = [(row(0.5), row(0.6), row(0.4)), (row(0.7), row(0.6), row(0.5))]
    left, right = weights_against_logits(subsets, [row(0.4), row(0.5)]).axes
    diagonal, points = left.lines
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    np.testing.assert_array_equal(points.get_xydata(), [[0.6, 0.5], [0.6, 0.7]])
    np.testing.assert_allclose([line.get_ydata() for line in right.lines[:2]], [[0.1, 0.2], [0.1, 0.2]])
    assert right.lines[3].get_ydata()[0] == pytest.approx(0.05)


def at_zero(axes, side):
    """Whether an axis has a tick for 0 at its lower end, with room below it."""
    ticks = [label.get_text() for label in getattr(axes, f"get_{side}ticklabels")()]
    low, high = getattr(axes, f"{side}axis").get_transform().transform(getattr(axes, f"get_{side}lim")())
    return ticks[0] == "0" and low < 0 < high and -low < 0.1 * high


def test_gaps_of_zero_count_in_means_and_are_drawn_at_the_bottom():
    each = (("a", 0.0), ("b", 0.4), ("c", 0.8))
    gaps = {("eq1", name, -1.0): {"blocks.0": (gap, np.nan)} for name, gap in each}
    found = Predicted(("blocks.0",), frozenset(), ("eq1",), gaps, {}, (), {})
    (axes,) = gaps_by_layer(found).axes
    bar, mark = axes.lines
    np.testing.assert_allclose(bar.get_ydata(), [0, 0.8])
    np.testing.assert_allclose(mark.get_ydata(), [found.mean_gap("eq1", "blocks.0")])
    assert found.mean_gap("eq1", "blocks.0") == pytest.approx(0.4) and at_zero(axes, "y")


def test_measured_gaps_of_zero_are_seen_on_a_logarithmic_axis():
    each = (("a", 1e-4, 0.0), ("b", 0.0, 0.4), ("c", 0.5, 0.8))
    gaps = {("eq1", name, -1.0): {"blocks.0": pair} for name, *pair in each}
    agreement = {"blocks.0": {name: row(1.0) for name in ("slope", "r2")}}
    found = Predicted(("blocks.0",), frozenset(), ("eq1",), gaps, agreement, (), {})
    figure = against_measured(found)
    axes = figure.axes[0]
    marks, equal = axes.lines
    np.testing.assert_array_equal(marks.get_xydata(), [pair for _, *pair in each])
    assert at_zero(axes, "x") and at_zero(axes, "y")
    np.testing.assert_array_equal(*equal.get_data())
    # All marks are within the panel, those at 0 apart from the others.
    places = axes.transAxes.inverted().transform(axes.transData.transform(marks.get_xydata()))
    assert (places > 0.01).all() and (places < 0.99).all() and places[0, 0] - places[1, 0] > 0.05
    without = against_measured(replace(found, gaps={("eq1", "c", -1.0): {"blocks.0": (0.5, 0.8)}})).axes[0]
    assert without.get_xscale() == without.get_yscale() == "log"


@pytest.mark.parametrize("bound", [0.3, 0.0])
def test_a_gap_of_zero_has_a_mark_beside_its_bound(bound):
    def sides(gap, bound, term):
        return Sides("a + b", "data", row(gap), {"bound": bound, "exact term": term})

    found = [sides(0.0, bound, 1e-3), sides(-1e-3, 0.2, 2e-3), sides(2e-2, 0.5, -1e-2)]
    curved = Curved(("data",), {}, {}, {}, [], {}, found, {})
    left, right = bound_figure(curved, "the base").axes
    for axes, name in ((left, "bound"), (right, "exact term")):
        *marks, equal = axes.lines
        wanted = [(abs(side.found[name]), abs(side.gap.mean)) for side in found]
        np.testing.assert_array_equal([line.get_xydata()[0] for line in marks], wanted)
        np.testing.assert_array_equal(*equal.get_data())
        assert at_zero(left, "y") and (axes.get_xscale() == "symlog") is (name == "bound" and bound == 0)
        places = axes.transAxes.inverted().transform(axes.transData.transform(wanted))
        assert (places > 0.01).all() and (places < 0.99).all()

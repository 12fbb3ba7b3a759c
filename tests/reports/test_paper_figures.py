"""Figures of the papers' studies: what is drawn is what the steps found, in all regimes and repetitions."""

import csv
import io
import json
import math

import numpy as np
import pytest
from reports.looking import overlaps
from reports.paper_runs import equations_run, geometry_run, study_run
from reports.protocol_runs import make_run

from mergescope.errors import StudyError
from mergescope.readings import Histogram
from mergescope.reports import build_report
from mergescope.reports.html import as_csv
from mergescope.reports.paper_figures.averages import LOGITS, WEIGHTS, averages_figure
from mergescope.reports.paper_figures.barriers import PAIRS, barriers_figure
from mergescope.reports.paper_figures.coef import coef_figure
from mergescope.reports.paper_figures.coefficients import lambda_figure
from mergescope.reports.paper_figures.cosines import cosines_figure
from mergescope.reports.paper_figures.disentanglement import disentanglement_figure
from mergescope.reports.paper_figures.drawn import SINGLE, TOGETHER, drawn_figures
from mergescope.reports.paper_figures.kernel import kernel_figure
from mergescope.reports.paper_figures.layers import layers_figure
from mergescope.reports.paper_figures.multiples import PANELS, Band, columns_of
from mergescope.reports.paper_figures.ran import Ran, read_ran
from mergescope.reports.paper_figures.regimes import regimes_figure
from mergescope.reports.paper_figures.stitching import stitching_figure
from mergescope.reports.publish import differences, publish
from mergescope.reports.style import PAGE, STRONG, render
from mergescope.studies.claims import over_seeds
from mergescope.studies.papers.figures import DRAWN_FROM, Quoted
from mergescope.studies.papers.spec import paper_studies, read_study
from mergescope.studies.rundir import DISTRIBUTIONS, RESULTS, Row, write_rows, write_table


def rows_run(path, rows):
    path.mkdir(parents=True, exist_ok=True)
    write_rows(path / RESULTS, rows)
    return path


def row(kind, measure, mean, points="a", data="d", **more):
    return Row("net", "full", kind, points, data, measure, mean, **more)


def clear(drawing):
    """Nothing overlaps, there is something to read, and equal results are equal files."""
    amount, touching = overlaps(drawing.figure)
    assert amount > 5 and not touching, touching
    assert drawing.alt and drawing.caption and drawing.table
    assert render(drawing.figure, "svg").startswith(b"<?xml") and b"<text" not in render(
        drawing.figure, "svg"
    )
    return drawing


# --- what files may ask for


def changed(figures, **more):
    said = json.loads(next(s for s in paper_studies() if s.name == "attn-kernel").model_dump_json())
    return read_study({**said, **more, "figures": figures}, "mine.yaml")


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ([{"draw": "layer"}], r"figures.0: Input tag 'layer' .* expected tags: 'layers', 'coef'"),
        ([{"kind": "eq1"}], "figures.0: Unable to extract tag using discriminator 'draw'"),
        ([{"draw": "layers"}], "figures.0.layers.kind: Field required"),
        ([{"draw": "layers", "kind": "eq4"}], "figures.0.layers.kind: Input should be"),
        ([{"draw": "cosines", "kind": "eq1"}], "figures.0.cosines.kind: Extra inputs are not permitted"),
        ([{"draw": "cosines", "name": "A/b"}], "figures.0.cosines.name: String should match"),
        ([{"draw": "regimes", "reference": {"full": {"best": 1}}}], "reference.full.best: Extra inputs"),
        ([{"draw": "cosines"}], "cosines is drawn from 1 of the steps of geometry, and steps of no number"),
        ([{"draw": "kernel", "step": 0, "linearized": 0}], "drawn from 2 of the steps of evaluate, and steps 0 "),
        ([{"draw": "kernel", "step": 0, "linearized": 1}] * 2, "several are called kernel"),
    ],
)  # fmt: skip
def test_wrong_figures_are_errors_when_the_file_is_read(figures, says):
    with pytest.raises(StudyError, match=says):
        changed(figures)


def test_a_figure_names_its_step_where_several_fit():
    steps = [{"command": "equations"}, {"command": "measure"}]
    layers = {"draw": "layers", "kind": "ctl"}
    with pytest.raises(StudyError, match="layers is drawn from 1 of the steps .*, and steps 0, 1 "):
        changed([layers], steps=steps)
    (figure,) = changed([{**layers, "step": 1}], steps=steps).figures
    assert figure.steps(["equations", "measure"]) == [1]


def test_every_study_shows_a_figure_and_every_drawing_is_used():
    shown = {figure.draw for study in paper_studies() for figure in study.figures}
    assert all(study.figures for study in paper_studies())
    assert shown == set(DRAWN_FROM) == set(SINGLE) | set(TOGETHER)


# --- by layer


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """Two repetitions of Eq. 2 and 3, and what was measured."""
    root = tmp_path_factory.mktemp("equations")
    found = [equations_run(root / str(seed), seed) for seed in range(2)]
    return [Ran(0, "full", seed, root / str(seed)) for seed in range(2)], found


def measured(found, kind, name, measure):
    (test,) = [test for test in found.of(kind) if test.name == name]
    return [entry.measures[measure].mean for entry in test.found.layers]


def test_layers_are_means_over_tests_and_repetitions(tested):
    ran, found = tested
    drawing = clear(layers_figure(ran, "eq2"))
    linear, log, *small = [axes for axes in drawing.figure.axes if axes.axison]
    names = [test.name for test in found[0].of("eq2")]
    every = np.array([[measured(one, "eq2", name, "cos") for name in names] for one in found])
    for axes in (linear, log):
        cos, baseline = axes.lines
        np.testing.assert_allclose(cos.get_ydata(), 1 - every.mean((0, 1)), atol=1e-12)
        assert cos.get_markerfacecolor() != PAGE and baseline.get_markerfacecolor() == PAGE
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log") and linear.get_ylim()[0] == 0
    assert len(small) == len(names) == 3
    for axes, name in zip(small, names, strict=True):
        per_seed = np.array([measured(one, "eq2", name, "baseline") for one in found])
        np.testing.assert_allclose(axes.lines[1].get_ydata(), 1 - per_seed.mean(0), atol=1e-12)
    lines = [line for line in drawing.table if line["test"] == names[0] and line["measure"] == "1 - cos"]
    ends = 1 - np.array([measured(one, "eq2", names[0], "cos") for one in found])
    np.testing.assert_allclose([line["low"] for line in lines], ends.min(0), atol=1e-12)
    np.testing.assert_allclose([line["high"] for line in lines], ends.max(0), atol=1e-12)
    assert "3 pairs in 2 repetitions" in drawing.caption and "of 12 cases" in drawing.caption


def test_of_one_repetition_the_ends_are_those_of_the_samples(tested):
    ran, found = tested
    drawing = layers_figure(ran[:1], "eq3")
    entry = next(test for test in found[0].of("eq3") if test.name == "− third").found.layers[1]
    (line,) = [
        line
        for line in drawing.table
        if (line["test"], line["measure"], line["layer"]) == ("− third", "1 - cos", entry.layer)
    ]
    said = entry.measures["cos"]
    assert (line["low"], line["mean"], line["high"]) == (1 - said.high, 1 - said.mean, 1 - said.low)
    assert "95 % interval over samples" in drawing.caption


def test_layers_that_are_linear_by_construction_are_shaded_and_no_evidence(tmp_path):
    rows = [
        row("ctl", measure, value, "a + b", parameter=0.5, layer=layer, trivial=layer == "stem", low=value, high=value)
        for layer, cos in (("stem", 1.0), ("blocks.0", 0.99))
        for measure, value in (("cos", cos), ("baseline", 0.5))
    ]  # fmt: skip
    drawing = layers_figure([Ran(0, "full", 0, rows_run(tmp_path, rows))], "ctl")
    assert "in 1 of 1 cases; it comes nearest at blocks.0, with 0.01 against 0.5" in drawing.caption
    assert all(len(axes.patches) == 1 for axes in drawing.figure.axes)
    assert len(drawing.figure.axes) == 2  # one test is in the overview
    assert drawing.figure.axes[1].get_ylim()[0] > 1e-4  # the exact zero is not on the logarithmic axis


@pytest.mark.parametrize("count", [6, 8, 28, 40])
def test_many_tests_stay_apart(tmp_path, count):
    rows = [
        row("eq2", measure, value, f"a-longer-name-{i} + another-name-{i}", parameter=0.4, layer=f"blocks.{layer}",
            low=value, high=value)
        for i in range(count) for layer in range(13) for measure, value in (("cos", 0.99), ("baseline", 0.4))
    ]  # fmt: skip
    drawing = clear(layers_figure([Ran(0, "full", 0, rows_run(tmp_path, rows))], "eq2"))
    panels = [axes for axes in drawing.figure.axes[2:] if axes.axison]
    assert len(panels) == min(count, PANELS)
    assert (f"the first {PANELS} of {count}" in drawing.caption) == (count > PANELS)
    assert len({line["test"] for line in drawing.table}) == count + 1
    assert columns_of(len(panels)) <= 7


def test_of_several_weights_the_one_in_the_middle_is_drawn(tmp_path):
    rows = [
        row("ctl", measure, value, "a + b", parameter=alpha, layer="blocks.0", low=value, high=value)
        for alpha in (0.25, 0.5, 0.9)
        for measure, value in (("cos", 1 - alpha), ("baseline", 0.1))
    ]
    drawing = layers_figure([Ran(0, "full", 0, rows_run(tmp_path, rows))], "ctl")
    assert {line["mean"] for line in drawing.table} == {0.5, 0.9} and "CTL at 0.5" in drawing.caption


def test_coef_is_drawn_as_it_is_distributed(tested):
    ran, found = tested
    drawing = clear(coef_figure(ran, "eq2"))
    names = [test.name for test in found[0].of("eq2")]

    def samples(name, layer):
        tests = [next(test for test in one.of("eq2") if test.name == name) for one in found]
        return np.concatenate([test.found[layer].values["coef"] for test in tests])

    for line in drawing.table:
        chosen = names if line["test"] == "all tests" else [line["test"]]
        values = np.concatenate([samples(name, line["layer"]) for name in chosen])
        assert line["samples"] == len(values)
        histogram = Histogram.of("coef", values)
        assert line["quantile 0.5"] == histogram.quantile(0.5)
        quarter = np.quantile(values, 0.25, method="inverted_cdf")
        assert line["quantile 0.25"] == pytest.approx(quarter, abs=0.001)  # to a bin
    wide, *small = [axes for axes in drawing.figure.axes if axes.axison]
    assert len(wide.collections) == len(found[0].of("eq2")[0].found.layers) and len(small) == 3
    for place, body in enumerate(wide.collections):  # violins stand over their layers
        inside = body.get_paths()[0].get_extents()
        assert place - 0.43 < inside.x0 < place < inside.x1 < place + 0.43
    assert {axes.get_ylim() for axes in (wide, *small)} == {wide.get_ylim()}
    assert wide.get_ylim()[0] < 1 < wide.get_ylim()[1]


def test_without_distributions_it_is_said_what_to_do(tmp_path):
    equations_run(tmp_path, kinds=("eq3",))
    (tmp_path / DISTRIBUTIONS).unlink()
    with pytest.raises(StudyError, match="an earlier version made it. Remove that directory"):
        coef_figure([Ran(0, "full", 0, tmp_path)], "eq3")


# --- averages, stitching


def test_averages_are_one_mark_a_subset(tmp_path):
    for seed in range(2):
        make_run("subsets", tmp_path / str(seed))
    ran = [Ran(0, "full", seed, tmp_path / str(seed)) for seed in range(2)]
    drawing = clear(averages_figure(ran))
    (axes,) = drawing.figure.axes
    assert axes.get_xlim() == axes.get_ylim()
    diagonal, *marks = axes.lines
    assert np.array_equal(diagonal.get_xdata(), diagonal.get_ydata()) and len(marks) == 2
    weights = {r.points: r.mean for r in ran[0].of(measure="accuracy of averaged weights")}
    logits = {r.points: r.mean for r in ran[0].of(measure="accuracy of averaged logits")}
    found = sorted(zip(marks[0].get_xdata(), marks[0].get_ydata(), strict=True))
    assert found == sorted((logits[name], weights[name]) for name in weights) and len(found) == 3
    assert len(drawing.table) == 6


@pytest.mark.parametrize("along", ["layer", "lambda"])
def test_stitched_pairs_are_judged_on_both_tasks(tmp_path, along):
    make_run("stitched addition", tmp_path)
    ran = Ran(0, "full", 0, tmp_path)
    drawing = clear(stitching_figure([ran], along))

    def accuracy(kind, points, layer, lam):
        found = ran.of(kind=kind, points=points, layer=layer, parameter=lam, measure="accuracy")
        return np.mean([
            r.mean for r in found if r.data in (points if " + " in points else pair).split(" + ")
        ])

    pairs = list(dict.fromkeys(r.points for r in ran.of(kind="stitch-addition")))
    pair = pairs[0]
    first, second = pair.split(" + ")
    layers, lams = [f"blocks.{place}" for place in range(3)], [0.2, 0.4]
    at = [(layer, 0.4) for layer in layers] if along == "layer" else [("blocks.1", lam) for lam in lams]
    wide = 1 if along == "layer" else 3
    panels = [axes for axes in drawing.figure.axes if axes.axison]
    assert len(panels) == wide + len(pairs)
    mixed, one, other, _base = panels[wide].lines
    for line, kind, points in (
        (mixed, "stitch-addition", pair), (one, "stitch-addition-single", first),
        (other, "stitch-addition-single", second),
    ):  # fmt: skip
        np.testing.assert_allclose(line.get_ydata(), [accuracy(kind, points, *place) for place in at])
    top = panels[wide // 2].lines[0].get_ydata()
    every = [[accuracy("stitch-addition", name, *place) for place in at] for name in pairs]
    np.testing.assert_allclose(top, np.mean(every, axis=0))


def test_negated_tasks_are_told_from_the_others(tmp_path):
    make_run("stitched negation", tmp_path)
    ran = Ran(0, "full", 0, tmp_path)
    drawing = clear(stitching_figure([ran], "lambda"))
    panels = [axes for axes in drawing.figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels[:3]] == [
        f"after the {it} block" for it in ("first", "middle", "last")
    ]
    own, _weights, others, _ = panels[3].lines[:4]
    found = ran.of(kind="stitch-negation", points="- one", layer="blocks.1", measure="accuracy")
    for line, on_own in ((own, True), (others, False)):
        expected = [
            np.mean([r.mean for r in found if (r.data == "one") == on_own and r.parameter == lam])
            for lam in (0.0, 0.5)
        ]
        np.testing.assert_allclose(line.get_ydata(), expected)
    (base,) = {r.mean for r in ran.of(kind="accuracy", data="one", measure="accuracy")}
    assert panels[3].lines[4].get_ydata()[0] == base


# --- regimes


def search_run(path, single, absolute, normalised, lams=None):
    common = {"low": math.nan, "high": math.nan}
    rows = [
        row("addition", "mean accuracy", single, "single-task models", **common),
        row("addition", "mean accuracy", 0.1, "base", **common),
        row("addition", "normalised accuracy", 0.2, "base", **common),
        row("addition", "accuracy", 0.3, "lambda = 0.3 (tuned)", **common),
        row("addition", "mean accuracy", absolute, "lambda = 0.3 (tuned)", **common),
        row("addition", "normalised accuracy", normalised, "lambda = 0.3 (tuned)", **common),
    ]
    for lam, value in (lams or {}).items():
        rows.append(row("lambda-search", "validation normalised accuracy", value, "p", parameter=lam))
        rows += [
            row("lambda-search", "validation accuracy", value * share, "p", task, parameter=lam)
            for task, share in (("a", 0.5), ("b", 1.0))
        ]
    rows.append(row("lambda-search", "validation accuracy", 0.9, "single-task models", "a"))
    return rows_run(path, rows)


def test_regimes_are_bars_with_their_spread_and_the_papers_figures(tmp_path):
    ran = [
        Ran(0, regime, seed, search_run(tmp_path / f"{regime}{seed}", 0.9, level + 0.01 * seed, level + 0.1))
        for regime, level in (("full", 0.4), ("attention-1", 0.6))
        for seed in range(3)
    ]
    drawing = clear(regimes_figure(ran, {"full": Quoted(absolute=70.0, normalised=77.04)}))
    (axes,) = drawing.figure.axes
    heights = [round(bar.get_height(), 6) for bar in axes.patches]
    assert heights == [90, 41, 50, 90, 61, 70]
    assert len({bar.get_hatch() for bar in axes.patches}) == 2  # told apart without colours
    whiskers = [tuple(np.round(line.get_ydata(), 6)) for line in axes.lines]
    assert (40, 42) in whiskers and (60, 62) in whiskers
    diamonds = [line.get_ydata()[0] for line in axes.lines if line.get_marker() == "D"]
    assert diamonds == [70.0, 77.04]
    assert [line["paper"] for line in drawing.table][:3] == [None, 70.0, 77.04]
    assert "attention-1, 70.0 %" in drawing.caption
    # True of larger models on the paper's tasks too.
    assert "own figures, of its models and tasks. Where those here are others" in drawing.caption
    with pytest.raises(StudyError, match="no mean accuracy of single-task models in the regime full"):
        regimes_figure([Ran(0, "full", 0, rows_run(tmp_path / "none", [row("x", "y", 0.0)]))], {})


def test_lambda_is_one_line_a_regime(tmp_path):
    curves = {"full": {0.0: 0.1, 0.5: 0.6, 1.0: 0.3}, "linearized": {0.0: 0.1, 0.5: 0.5, 1.0: 0.5}}
    ran = [
        Ran(0, regime, seed, search_run(tmp_path / f"{regime}{seed}", 0.9, 0.5, 0.5,
                                        {lam: value + 0.02 * seed for lam, value in curve.items()}))
        for regime, curve in curves.items() for seed in range(2)
    ]  # fmt: skip
    drawing = clear(lambda_figure(ran))
    normalised, absolute = drawing.figure.axes
    np.testing.assert_allclose(normalised.lines[0].get_ydata(), [0.11, 0.61, 0.31])
    np.testing.assert_allclose(absolute.lines[0].get_ydata(), 0.75 * np.array([0.11, 0.61, 0.31]))
    assert normalised.lines[0].get_linestyle() != normalised.lines[2].get_linestyle()
    assert "51% (full), 100% (linearized)" in drawing.caption


def test_searches_of_negation_show_both_accuracies(tmp_path):
    make_run("negation", tmp_path)
    ran = Ran(0, "full", 0, tmp_path)
    drawing = clear(lambda_figure([ran]))
    own, other = drawing.figure.axes
    titles = [axes.get_title(loc="left") for axes in (own, other)]
    assert titles == ["accuracy on the task", "accuracy on the other tasks"]
    for axes, measure in ((own, "validation target accuracy"), (other, "validation control accuracy")):
        found = [r for r in ran.of(kind="negation-search", measure=measure) if r.parameter == 0.5]
        line = axes.lines[0]
        drawn = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert drawn[0.5] == pytest.approx(np.mean([r.mean for r in found])) and len(found) == 3


def test_maps_of_all_regimes_share_one_scale(tmp_path):
    regimes = ("full", "attention-1")
    for regime in regimes:
        make_run("disentanglement", tmp_path / regime)
    ran = [Ran(0, regime, 0, tmp_path / regime) for regime in regimes]
    drawing = clear(disentanglement_figure(ran))
    maps = [axes for axes in drawing.figure.axes if axes.collections and axes.lines]
    assert len(maps) == 2 * 4  # the mean, and three pairs
    assert len({axes.collections[0].get_clim() for axes in maps}) == 1
    from mergescope.reports.disentanglement_page import stored_grids

    grids = stored_grids(ran[0].stored)
    drawn = np.asarray(maps[0].collections[0].get_array()).reshape(4, 4)
    np.testing.assert_allclose(drawn, np.mean([grid.error for grid in grids], axis=0).T)
    np.testing.assert_allclose(np.asarray(maps[2].collections[0].get_array()).reshape(4, 4), grids[0].error.T)
    for axes in maps:
        (box,) = [line for line in axes.lines if line.get_color() == STRONG]
        assert set(map(tuple, box.get_xydata())) == {(x, y) for x in (0.0, 1.0) for y in (0.0, 1.0)}


def test_grids_that_differ_are_not_put_side_by_side(tmp_path):
    for regime in ("full", "lora"):
        make_run("disentanglement", tmp_path / regime)
    from mergescope.studies.disentangled import GRIDS
    from mergescope.studies.rundir import read_table

    table = read_table(tmp_path / "lora" / GRIDS)
    write_table(
        tmp_path / "lora" / GRIDS,
        {
            name: [2 * line[name] if name.startswith("alpha") else line[name] for line in table]
            for name in table[0]
        },
    )
    with pytest.raises(StudyError, match="lora are of other coefficients"):
        disentanglement_figure([Ran(0, regime, 0, tmp_path / regime) for regime in ("full", "lora")])


def test_matrices_of_cosines_share_one_diverging_scale(tmp_path):
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    values = {"full": (0.3, -0.1, 0.2), "attention-1": (0.1, 0.0, 0.05)}
    ran = [
        Ran(0, regime, seed, geometry_run(tmp_path / f"{regime}{seed}",
                                          {pair: v + 0.1 * seed for pair, v in zip(pairs, of, strict=True)}))
        for regime, of in values.items() for seed in range(2)
    ]  # fmt: skip
    drawing = clear(cosines_figure(ran))
    images = [axes.images[0] for axes in drawing.figure.axes if axes.images]
    assert len(images) == 2
    limits = {image.get_clim() for image in images}
    assert len(limits) == 1 and sum(*limits) == 0
    shown = np.ma.filled(images[0].get_array(), np.nan)
    np.testing.assert_allclose(shown[[1, 2, 2], [0, 0, 1]], [0.35, -0.05, 0.25])
    assert np.isnan(np.diag(shown)).all()
    line = next(
        line
        for line in drawing.table
        if line["regime"] == "full" and {line["model"], line["other"]} == {"a", "b"}
    )
    assert (line["low"], line["high"]) == (0.3, 0.4)
    with pytest.raises(StudyError, match="two models or more"):
        write_table(tmp_path / "geometry.parquet", {"scope": ["tensor"], "measure": ["cos"], "other": ["b"]})
        cosines_figure([Ran(0, "full", 0, tmp_path)])


def test_a_model_that_equals_the_base_is_grey_and_takes_no_part_in_means(tmp_path):
    pairs = {("a", "b"): 0.0, ("a", "c"): 0.0, ("b", "c"): 0.3}
    moved = {**pairs, ("a", "b"): 0.2, ("a", "c"): 0.1}
    ran = [
        Ran(0, "full", 0, geometry_run(tmp_path / "full", pairs, still="a")),
        Ran(0, "lora", 0, geometry_run(tmp_path / "lora0", pairs, still="a")),
        Ran(0, "lora", 1, geometry_run(tmp_path / "lora1", moved)),
        Ran(0, "none", 0, geometry_run(tmp_path / "none", dict.fromkeys(pairs, 0.0), still="abc")),
    ]
    drawing = cosines_figure(ran)
    full, lora, none = (axes for axes in drawing.figure.axes if axes.images)
    shown = np.ma.filled(full.images[0].get_array().astype(float), np.nan)
    assert np.isnan(shown[0]).all() and np.isnan(shown[:, 0]).all() and shown[1, 2] == 0.3
    titles = [axes.get_title(loc="left") for axes in (full, lora, none)]
    assert titles == ["full: mean 0.300", "lora: mean 0.200", "none"]
    assert len(full.texts) == 2 and len(lora.texts) == 6 and not none.texts
    assert "Mean over pairs: 0.300 (full), 0.200 (lora)." in drawing.caption
    assert drawing.caption.endswith("Grey: no cosine, as a model equals the base.")
    told = {(line["regime"], line["model"], line["other"]): line for line in drawing.table}
    assert math.isnan(told["full", "b", "a"]["cos"]) and told["full", "b", "a"]["repetitions"] == 0
    assert (told["lora", "b", "a"]["cos"], told["lora", "b", "a"]["repetitions"]) == (0.2, 1)
    grey = cosines_figure(ran[-1:])
    assert "Mean over pairs" not in grey.caption and "Grey" in grey.caption


# --- lines between models, and linearised networks


def test_barriers_are_drawn_above_the_chord_and_without_the_base(tmp_path):
    rows = []
    for name in ("a + b", "a + c", "base + a"):
        if name != "base + a":
            rows.append(row("ctl", "cos", 0.9, name, layer="blocks.0", parameter=0.5))
        rows += [
            row("line", "loss", value, name, parameter=alpha)
            for alpha, value in ((0.0, 1.0), (0.5, 2.5 if "b" in name else 1.0), (1.0, 2.0))
        ]
        rows.append(row("barrier", "loss", 1.0 if "b" in name else -0.5, name))
    drawing = barriers_figure([Ran(0, "full", 0, rows_run(tmp_path, rows))])
    above, barriers = drawing.figure.axes
    *single, mean, _zero = above.lines
    assert sorted(tuple(line.get_ydata()) for line in single) == [(0, -0.5, 0), (0, 1, 0)]
    np.testing.assert_allclose(mean.get_ydata(), [0, 0.25, 0])
    assert [text.get_text() for text in barriers.get_xticklabels()] == ["a + b", "a + c"]
    assert "at most 1" in drawing.caption and not any("base" in line["pair"] for line in drawing.table)


def test_models_stand_beside_their_linearisations(tmp_path):
    ran = [
        Ran(number, regime, 0, rows_run(tmp_path / f"{regime}{number}", [
            row("accuracy", "accuracy", value * (share if number else 1), task, on)
            for task in "ab" for on, value in (("a", 0.9), ("b", 0.8))
        ]))
        for regime, share in (("full", 0.5), ("attention-1", 0.9)) for number in range(2)
    ]  # fmt: skip
    drawing = clear(kernel_figure(ran, 1))
    _diagonal, full, attention = drawing.figure.axes[0].lines
    assert sorted(full.get_xdata()) == [0.8, 0.9] and sorted(full.get_ydata()) == [0.4, 0.45]
    assert full.get_marker() != attention.get_marker()
    assert "50% (full), 90% (attention-1)" in drawing.caption


# --- pages


def test_pages_and_publications_have_figures_and_what_is_drawn_as_tables(tested, tmp_path):
    ran, _ = tested
    path = study_run(tmp_path / "run", "ctl-fig7", ran, [
        {"draw": "layers", "kind": "eq2", "after": "CTL Fig. 7"}, {"draw": "coef", "name": "lengths", "kind": "eq2"},
    ])  # fmt: skip
    page = build_report(path).read_text()
    files = {file.name for file in (path / "figures").iterdir()}
    assert files == {f"{name}.{suffix}" for name in ("layers", "lengths") for suffix in ("svg", "png", "csv")}
    assert "As CTL Fig. 7. Eq. 2, addition at 0.4." in page and 'href="figures/lengths.csv"' in page
    drawn = layers_figure(ran, "eq2").table
    stored = list(csv.DictReader(io.StringIO((path / "figures" / "layers.csv").read_text())))
    assert [line["test"] for line in stored] == [line["test"] for line in drawn]
    assert float(stored[0]["mean"]) == pytest.approx(drawn[0]["mean"], rel=1e-5)
    (tmp_path / "pages" / "ctl-fig7").mkdir(parents=True)
    (tmp_path / "pages" / "ctl-fig7" / "of-an-earlier-version.svg").write_text("<svg/>")
    published = publish(path, tmp_path / "pages").read_text()
    assert "[What is drawn, as a table](ctl-fig7/layers.csv)" in published
    assert {file.name for file in (tmp_path / "pages" / "ctl-fig7").iterdir()} == files - {
        "layers.png",
        "lengths.png",
    }


def test_of_several_regimes_there_is_a_figure_each(tested):
    ran, _ = tested
    figures = next(s for s in paper_studies() if s.name == "ctl-fig7").figures[:1]
    both = [*ran, *(Ran(0, "lora", each.seed, each.folder) for each in ran)]
    found = drawn_figures(figures, both, ["equations"])
    assert list(found) == ["layers-full", "layers-lora"]
    assert found["layers-lora"].caption.startswith("Lora: as CTL Fig. 7. ")
    assert list(drawn_figures(figures, ran, ["equations"])) == ["layers"]


def test_what_is_gone_or_unknown_is_said(tested, tmp_path):
    ran, _ = tested
    with pytest.raises(StudyError, match="run directory .*none of a step is gone"):
        read_ran([{"number": 0, "regime": "full", "seed": 0, "run": str(tmp_path / "none")}])
    with pytest.raises(StudyError, match="no tests of eq1 to be drawn"):
        layers_figure(ran, "eq1")
    for draw in (averages_figure, lambda_figure, barriers_figure):
        with pytest.raises(StudyError, match="steps have no "):
            draw(ran)
    with pytest.raises(StudyError, match="no model on its own task in both"):
        kernel_figure(ran, 1)
    path = study_run(tmp_path / "run", "ctl-fig7", ran, [{"draw": "pie"}])
    with pytest.raises(StudyError, match="asks for figures that this version doesn't draw"):
        build_report(path)


def test_tables_are_plain():
    text = as_csv([
        {"name": "a, b", "value": np.float64(0.1234567), "n": 3},
        {"name": "c", "value": math.nan, "n": None},
    ])
    assert text == 'name,value,n\n"a, b",0.123457,3\nc,,\n'


def test_bands_turn_around():
    band = Band(np.array([0.9]), np.array([0.8]), np.array([0.95])).from_one()
    np.testing.assert_allclose([band.low, band.middle, band.high], [[0.05], [0.1], [0.2]])


# --- what is cut or can't be known


def test_of_many_pairs_those_with_the_largest_barriers_are_named(tmp_path):
    rows = []
    for number in range(PAIRS + 4):
        name = f"a + m{number}"
        rows.append(row("ctl", "cos", 0.9, name, layer="blocks.0", parameter=0.5))
        rows += [row("line", "loss", 1.0, name, parameter=alpha) for alpha in (0.0, 1.0)]
        rows.append(row("barrier", "loss", float(number), name))
    drawing = barriers_figure([Ran(0, "full", 0, rows_run(tmp_path, rows))])
    assert f"the barrier of the {PAIRS} pairs with the largest barriers of the loss, bars" in drawing.caption
    assert drawing.figure.axes[1].get_xticklabels()[0].get_text() == f"a + m{PAIRS + 3}"


def test_no_optimum_of_a_search_is_cut_off_and_what_is_cut_is_said(tmp_path):
    near, far = {0.0: 0.1, 0.5: 0.6, 1.0: 0.3}, {0.0: 0.1, 1.0: 0.3, 2.0: 0.9, 3.0: 0.5}
    curves = {"full": near, "lora": near, "attention-1": far}
    ran = [
        Ran(0, regime, 0, search_run(tmp_path / regime, 0.9, 0.5, 0.5, curve)) for regime, curve in curves.items()
    ]  # fmt: skip
    drawing = lambda_figure(ran)
    assert all(2 < axes.get_xlim()[1] < 3 for axes in drawing.figure.axes)
    assert "What was tried beyond λ = 2 is not shown: attention-1." in drawing.caption
    assert "beyond" not in lambda_figure(ran[:2]).caption


def test_a_correlation_that_can_not_be_told_is_unknown(tmp_path):
    names, both = ("a + b", "a + c"), (WEIGHTS, LOGITS)
    rows = [row("averaging", measure, 0.5, name) for name in names for measure in both]
    rows.append(row("averaging", "pearson", math.nan, "2 subsets"))
    drawing = averages_figure([Ran(0, "full", 0, rows_run(tmp_path, rows))])
    (axes,) = drawing.figure.axes
    assert len(axes.lines) == 2 and drawing.caption.endswith("r: unknown.")
    assert "one subset, r = unknown" in [text.get_text() for text in drawing.figure.legends[0].get_texts()]


def test_claims_without_an_interval_are_published_as_unbounded(tmp_path):
    path = study_run(tmp_path / "run", "ctl-fig7", [], [])
    claim = over_seeds("it holds", [0.0004])
    write_rows(path / RESULTS, [claim.row("net")])
    assert "| 0.0004 [−∞, ∞] |" in publish(path, tmp_path / "pages").read_text()
    assert "0.0004<small>−∞ to ∞</small>" in build_report(path).read_text()
    text = (tmp_path / "pages" / "ctl-fig7.json").read_text()
    (said,) = json.loads(text)["claims"]
    assert (said["value"], said["low"], said["high"]) == (0.0004, None, None) and "Infinity" not in text
    assert differences(path, tmp_path / "pages") == []
    said |= {"value": 9.0, "low": 8.5}  # no upper end
    (tmp_path / "pages" / "ctl-fig7.json").write_text(json.dumps({"claims": [said]}))
    write_rows(path / RESULTS, [over_seeds("it holds", [0.9, 1.0, 1.1]).row("net")])
    (line,) = differences(path, tmp_path / "pages")
    assert line.endswith("was 9.000 [8.500, ∞]")

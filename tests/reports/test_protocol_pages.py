"""Pages of protocols: built from stored files alone, complete or refused, and saying what the numbers say."""

import io
import math
import shutil
from dataclasses import replace
from html import unescape

import pytest
import yaml
from reports.looking import NASTY, Page, overlaps
from reports.protocol_runs import KINDS, NAMES, make_run, read, shown
from rich.console import Console
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.errors import StudyError
from mergescope.protocols.theorem_result import REGRESSORS, RESPONSES
from mergescope.readings import MEASURES, RELATIVE
from mergescope.reports import build_report, summary_parts
from mergescope.reports.curvature_page import curvature_page
from mergescope.reports.protocol_view import Stored
from mergescope.reports.protocol_words import TERMS
from mergescope.reports.theorems_view import stored_theorems
from mergescope.studies.disentangled import GRIDS
from mergescope.studies.rundir import RESULTS, read_rows, read_table, write_rows, write_table

DRAWN = {
    "evaluation": {"scores", "ranking"},
    "addition": {"lambda", "scores"},
    "negation": {"lambda", "target", "control"},
    "methods": {"methods"},
    "coefficients": {"found", "coefficients"},
    "groups": {"found", "coefficients"},
    "soups": {"soups", "greedy"},
    "subsets": {"subsets", "layers"},
    "disentanglement": {"disentanglement", "pairs"},
    "stitched addition": {"stitching-mean", "stitching-layers", "stitching-coefficients"},
    "stitched negation": {"stitching-mean", "stitching-layers", "stitching-coefficients"},
    "prediction": {"layers", "interactions", "accuracy", "surfaces"},
    "measured prediction": {"agreement", "layers", "third-order", "interactions", "accuracy", "surfaces"},
    "curvature": {"eigenvalues", "bound", "along", "explained"},
    "theorems": {"gaps", "barriers"},
}

SPARED = {"loss", "mean accuracy", "pearson", "spearman", "correlation", "confirmed gain"}
"""What a page can do without, or what no row need tell of."""

SPARED_BY = {
    "evaluation": {"normalised accuracy"},  # without models of the tasks' own
    "negation": {"feasible", "at_end", "control_binds"},  # these follow from the search
    **dict.fromkeys(
        ("prediction", "measured prediction"),
        {*MEASURES, *RELATIVE, "accuracy", "interaction size", "gap error"} - {"gap"},
    ),
    "curvature": {
        "products",
        "|gap|",
        *(
            f"{what} of {response} on {name}"
            for what in ("R^2", "slope")
            for response in RESPONSES
            for name in REGRESSORS
        ),
    },
    "theorems": {"conclusion: effect of own", "conclusion: effect of others"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = {}

    def run(kind, count=3):
        if (kind, count) not in made:
            made[kind, count] = make_run(kind, tmp_path_factory.mktemp("run"), count)
        return made[kind, count]

    return run


@pytest.fixture
def copied(runs, tmp_path):
    def copy(kind):
        return shutil.copytree(runs(kind), tmp_path / "run")

    return copy


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_built_from_stored_files(kind, copied):
    path = copied(kind)
    result = CliRunner().invoke(app, ["report", str(path)], catch_exceptions=False)
    assert result.exit_code == 0 and str(path / "report.html") in result.stdout.replace("\n", "")
    names = {file.stem for file in (path / "figures").iterdir()}
    assert names == DRAWN[kind]
    said = (path / "report.html").read_text(encoding="utf-8")
    page, text = Page(said), unescape(said)
    assert not page.open and NASTY not in said and NASTY in text
    found = shown(path)
    assert found.headline in text and all(sentence in text for sentence in found.sentences)
    assert all(drawing.caption in text for drawing in found.drawings.values())
    assert found.small in text and ("Small numbers" in text) == bool(found.small)
    assert set(found.terms) <= set(TERMS) and all(TERMS[term][0] in text for term in found.terms)
    assert "forward passes of a batch, 1.5 s" in text and "somewhere/one" in text
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "link")]


@pytest.mark.parametrize("kind", ["coefficients", "curvature", "subsets"])
def test_the_same_files_give_the_same_page_and_figures(kind, copied):
    path = copied(kind)

    def built():
        report = build_report(path)
        return {file.name: file.read_bytes() for file in (report, *(path / "figures").iterdir())}

    first = built()
    (path / "figures" / "of-an-earlier-version.svg").write_text("<svg/>")
    assert built() == first


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_no_text_of_a_figure_touches_another_or_leaves_the_page(kind, count, runs):
    if count == 8 and kind not in (
        "evaluation",
        "addition",
        "negation",
        "groups",
        "disentanglement",
        "soups",
    ):
        count = 4  # others have as many texts, and take longer
    for name, drawing in shown(runs(kind, count)).drawings.items():
        amount, touching = overlaps(drawing.figure)
        assert amount >= 4 and not touching, name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_damaged_is_told_and_nothing_is_written(kind, copied):
    path = copied(kind)
    rows, about = read_rows(path / RESULTS), yaml.safe_load((path / "run.yaml").read_text())

    def refused(words):
        with pytest.raises(StudyError, match=words) as found:
            build_report(path)
        assert str(path) in str(found.value)
        assert not (path / "report.html").exists() and not (path / "figures").exists()

    (path / RESULTS).unlink()
    refused(r"results\.parquet does not exist")
    (path / RESULTS).write_bytes(b"PAR1")
    refused(r"results\.parquet can't be read as parquet")
    write_rows(path / RESULTS, [])
    refused(r"results\.parquet is empty")
    write_rows(path / RESULTS, [replace(row, kind="other") for row in rows])
    refused(r"results\.parquet has no rows of the study")
    for measure in dict.fromkeys(row.measure for row in rows):
        if measure in SPARED | SPARED_BY.get(kind, set()):
            continue
        write_rows(path / RESULTS, [row for row in rows if row.measure != measure])
        refused(r"results\.parquet (is not complete|has no rows)")
    write_rows(path / RESULTS, rows)
    for change, words in (
        ({"provenance": {**about["provenance"], "cost": None}}, "lacks the cost"),
        ({"provenance": {**about["provenance"], "test": None}}, "lacks the models and data"),
        ({"provenance": {"cost": about["provenance"]["cost"]}}, "lacks 'says'"),
        ({"config": {}}, "lacks 'settings'"),
    ):
        (path / "run.yaml").write_text(yaml.safe_dump({**about, **change}))
        refused(words)
    (path / "run.yaml").write_text("study: [")
    refused("is not valid YAML")


def test_settings_that_a_page_needs_are_told(copied):
    path = copied("negation")
    about = yaml.safe_load((path / "run.yaml").read_text())
    del about["config"]["settings"]["control_share"]
    (path / "run.yaml").write_text(yaml.safe_dump(about))
    with pytest.raises(StudyError, match=r"run\.yaml lacks 'control_share' under 'config: settings'"):
        build_report(path)


def test_grids_that_are_damaged_are_told(copied):
    path = copied("disentanglement")
    table = read_table(path / GRIDS)

    def refused(words):
        with pytest.raises(StudyError, match=words):
            build_report(path)
        assert not (path / "report.html").exists()

    def write(cells):
        write_table(path / GRIDS, {name: [cell[name] for cell in cells] for name in cells[0]})

    write(table[:-1])
    refused(r"grids\.parquet: the grid of .* is not complete, it has 15 cells for 4 coefficients")
    write([{name: cell[name] for name in cell if name != "term 2"} for cell in table])
    refused(r"grids\.parquet has no column term 2")
    (path / GRIDS).unlink()
    refused(r"grids\.parquet does not exist")


@pytest.mark.parametrize("kind", ["stitched addition", "stitched negation"])
def test_stitching_that_lacks_a_score_is_told(kind, copied):
    path = copied(kind)
    rows = read_rows(path / RESULTS)
    gone = next(row for row in rows if row.kind.endswith("-single") and row.layer == "blocks.1")
    write_rows(path / RESULTS, [row for row in rows if row != gone])
    with pytest.raises(StudyError, match=r"blocks\.1"):
        build_report(path)
    about = yaml.safe_load((path / "run.yaml").read_text())
    about["provenance"]["protocol"] = "other"
    (path / "run.yaml").write_text(yaml.safe_dump(about))
    with pytest.raises(StudyError, match=r"names no protocol of stitching \(addition or negation\)"):
        build_report(path)


def test_the_terminal_is_told_what_the_command_printed(runs):
    (text,) = summary_parts(runs("soups"))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(text)
    assert "Greedy: " in console.export_text()


# -- words follow from numbers -----------------------------------------------------------------------


def changed(value, low=None, high=None, **having):
    """Rows with these fields get another number."""

    def change(rows):
        ends = {} if low is None else {"low": low, "high": high}
        fit = [all(getattr(row, name) == want for name, want in having.items()) for row in rows]
        assert any(fit), having
        return [replace(row, mean=value, **ends) if hit else row for row, hit in zip(rows, fit, strict=True)]

    return change


def after(*changes):
    def change(rows):
        for each in changes:
            rows = each(rows)
        return rows

    return change


def lams(scores):
    """The search of addition finds these scores."""

    def change(rows):
        found = [row for row in rows if row.measure != "validation normalised accuracy"]
        (like, *_) = [row for row in rows if row.measure == "validation normalised accuracy"]
        return found + [replace(like, parameter=lam, mean=score) for lam, score in scores.items()]

    return change


def test_addition_says_what_is_chosen_and_whether_an_end_binds(runs):
    path = runs("addition")
    tried = sorted({row.parameter for row in read(path).of(measure="validation normalised accuracy")})
    inner = dict.fromkeys(tried, 0.5) | {0.25: 0.9}
    tuned = read(path).of(kind="addition")[-1].points
    worth = {"points": tuned, "measure": "normalised accuracy"}
    average = {"points": "average", "measure": "normalised accuracy"}
    found = shown(
        path, after(lams(inner), changed(0.8, 0.75, 0.85, **worth), changed(0.6, 0.55, 0.65, **average))
    )
    assert found.headline.startswith("λ = 0.25, chosen on validation data, keeps 0.800 of")
    assert "(0.750 to 0.850)" in found.headline and not found.caveat
    assert any(
        "+0.200 over the average of the models, which needs no labels." in text for text in found.sentences
    )
    assert found.sentences[-1].startswith("The grid’s end does not bind")
    last = dict.fromkeys(tried, 0.5) | {tried[-1]: 0.9}
    found = shown(path, after(lams(last), changed(0.6, 0.5, 0.7, **worth), changed(0.6, 0.5, 0.7, **average)))
    assert found.caveat and f"the largest that was tried, {tried[-1]:g}" in found.sentences[-1]
    assert any("no clear difference" in text for text in found.sentences)


def test_negation_says_which_rule_binds_and_what_is_lost_on_test_data(runs):
    path = runs("negation")
    task = NAMES[0]
    floor = read(path).one(kind="negation", points="base", data=task, measure="control accuracy").mean

    def search(target, control):
        def change(rows):
            out = []
            for row in rows:
                if (
                    row.kind == "negation-search"
                    and row.data == task
                    and row.measure.startswith("validation")
                ):
                    values = target if "target" in row.measure else control
                    row = replace(row, mean=values(row.parameter))
                out.append(row)
            return out

        return change

    falls = search(lambda lam: 0.9 - 0.1 * lam, lambda lam: 0.8 if lam <= 0.5 else 0.1)
    found = shown(path, falls)
    assert any("control rule binds for one" in text for text in found.sentences)
    (grid,) = [grid for grid in found.grids if grid.title == "Choices on validation data"]
    cells = {name: [cell.text for cell in cells] for name, cells in grid.rows}[task]
    assert cells[:4] == ["0.5", "0.850", "0.800", "0.760"] and cells[-1] == "control rule"
    found = shown(path, search(lambda lam: 0.9 - 0.1 * lam, lambda lam: 0.8))
    assert found.caveat and any("grid’s end binds for" in text for text in found.sentences)
    found = shown(path, search(lambda lam: 0.9 - 0.1 * lam, lambda lam: 0.1 if lam else 0.8))
    assert found.caveat and any(
        "every coefficient above 0 costs too much" in text for text in found.sentences
    )
    lost = changed(0.9 * floor, points="tuned", data=task, measure="control accuracy")
    assert any("on test data" in text and "falls below 95 %" in text for text in shown(path, lost).sentences)
    ends = changed(0.123, 0.1, 0.2, points="tuned", measure="mean target accuracy")
    assert "to 0.123 (0.100 to 0.200), control" in shown(path, ends).headline


def test_methods_are_ranked_as_they_are_and_tuned(runs):
    path = runs("methods")
    whole = {"measure": "normalised accuracy"}
    (tuned,) = {row.points for row in read(path).of(measure="at_end") if row.points.startswith("ties")}
    (other,) = {row.points for row in read(path).of(measure="at_end") if row.points.startswith("task")}
    low = after(*(
        changed(0.2, 0.1, 0.3, points=name, **whole)
        for name in ("linear", "ties, lambda 1", tuned, "task_arithmetic, lambda 1", other)
    ))  # fmt: skip
    won = after(low, changed(0.9, 0.85, 0.95, points=tuned, **whole), changed(0, measure="at_end"))
    found = shown(path, won)
    assert found.headline.startswith("Best on test data: ties tuned to λ = ") and not found.caveat
    assert "without labels: " in found.headline and "0.900 (0.850 to 0.950)" in found.headline
    assert "overlaps with no other one" in found.sentences[0]
    assert [name for name, _ in found.grids[0].rows][0] == "ties"
    plain = after(low, changed(0.9, 0.1, 0.95, points="linear", **whole), changed(1, measure="at_end"))
    found = shown(path, plain)
    assert found.headline.startswith("Best on test data: linear as it is") and found.caveat
    assert "tuning gives no more" in found.headline and "is not certain" in found.sentences[0]
    assert any("grid’s end binds for ties and task_arithmetic" in text for text in found.sentences)


def kept(name):
    """Coefficients of this way are kept."""

    def change(rows):
        ways = ("base", "grid", "surrogate", "random")
        return [
            replace(row, parameter=float(row.points == name))
            if row.points in ways and row.parameter == row.parameter
            else row
            for row in rows
        ]

    return change


def test_coefficients_say_whether_they_beat_the_grid(runs):
    path = runs("coefficients")
    gain = {"points": "surrogate", "measure": "confirmed gain"}
    like = read(path).one(points="surrogate", measure="mean error")

    def with_gain(rows):
        found = [row for row in rows if row.measure != "confirmed gain"]
        return [*found, replace(like, measure="confirmed gain")]

    test = {"measure": "test normalised accuracy"}
    own, single = {"points": "surrogate", **test}, {"points": "grid", **test}
    won = after(
        with_gain, kept("surrogate"), changed(0.05, 0.01, 0.09, **gain), changed(0.9, 0.8, 0.95, **own),
        changed(0.7, 0.6, 0.75, **single), changed(0, points="grid", measure="at_end"),
    )  # fmt: skip
    found = shown(path, won)
    assert found.headline.startswith(
        "Coefficients of the tasks’ own are kept: test normalised accuracy 0.900"
    )
    assert "against 0.700 (0.600 to 0.750) of the single coefficient" in found.headline and not found.caveat
    assert "a clear gain" in found.sentences[0]
    lost = after(
        with_gain,
        kept("grid"),
        changed(0.01, -0.02, 0.03, **gain),
        changed(1, points="grid", measure="at_end"),
    )
    found = shown(path, lost)
    assert found.headline.startswith("A single coefficient, λ = ") and found.caveat
    assert "+0.0100 (−0.0200 to +0.0300)" in found.sentences[0] and "no clear gain" in found.sentences[0]

    def without_surrogate(rows):
        some = [row for row in rows if row.points != "surrogate" or row.parameter != row.parameter]
        return [row for row in kept("grid")(some) if row.measure != "confirmed gain"]

    found = shown(path, after(without_surrogate, changed(0, points="surrogate", measure="trusted")))
    assert "not to be trusted" in found.sentences[0]
    alone = shown(path, lambda rows: [row for row in without_surrogate(rows) if row.points != "random"])
    assert set(alone.drawings) == {"found"}


def test_soups_say_whether_the_average_is_better(runs):
    path = runs("soups")
    names = {row.points.partition(": ")[0]: row.points for row in read(path).of(measure="test accuracy")}
    first, *rest = [row.points for row in read(path).of(measure="taken")]

    def soup(taken, best, greedy):
        changes = [changed(float(taken), points=name, measure="taken") for name in rest]
        changes += [
            changed(*numbers, points=names[name], measure="test accuracy")
            for name, numbers in (("best", best), ("greedy", greedy))
        ]
        return shown(path, after(*changes))

    found = soup(True, (0.5, 0.45, 0.55), (0.8, 0.75, 0.85))
    assert found.headline.startswith(
        "The greedy soup, of 3 of 3 models, has test accuracy 0.800 (0.750 to 0.850)"
    )
    assert found.sentences[0] == "The soup is better than the best model clearly."
    assert found.sentences[-1] == "No model is left out of the greedy soup."
    found = soup(True, (0.5, 0.4, 0.6), (0.45, 0.4, 0.5))
    assert found.sentences[0].startswith("The soup is worse than the best model, not clearly")
    found = soup(False, (0.5, 0.4, 0.6), (0.5, 0.4, 0.6))
    assert found.headline.startswith("The greedy soup is the best model alone")


def test_subsets_say_whether_weights_do_what_logits_do(runs):
    path, less = runs("subsets"), {"measure": "weights less logits"}
    same = shown(path, changed(0.01, -0.02, 0.03, **less)).headline
    assert "averaged weights and averaged logits don’t clearly differ in accuracy: +0.0100" in same
    worse = shown(path, changed(-0.05, -0.06, -0.04, **less)).headline
    assert "worth less in accuracy than averaged logits: −0.0500 (−0.0600 to −0.0400)" in worse
    few = shown(path, lambda rows: [row for row in rows if row.measure not in ("pearson", "spearman")])
    assert any("no correlation to tell" in text for text in few.sentences)
    unknown = shown(path, after(*(changed(math.nan, measure=name) for name in ("pearson", "spearman"))))
    assert (unknown.headline, unknown.sentences) == (few.headline, few.sentences)


def test_disentanglement_names_the_least_and_the_most_entangled(runs):
    path = runs("disentanglement")
    pairs = list(dict.fromkeys(row.points for row in read(path).rows))
    changes = [
        changed(value, value - 0.05, value + 0.05, points=pair, measure="mean error of the box (predictions)")
        for pair, value in zip(pairs, (0.3, 0.6, 0.15), strict=True)
    ]
    found = shown(path, after(*changes))
    assert found.headline.startswith("Mean error in the search box: 0.350 over 3 pairs, from 0.150 to 0.600")
    assert f"Least entangled: {pairs[2]}, 0.150 (0.100 to 0.200); most: {pairs[1]}" in found.sentences[0]
    assert [name for name, _ in found.grids[0].rows] == [pairs[2], pairs[0], pairs[1]]
    one = shown(runs("disentanglement", 2), changes[0]).headline
    assert one.startswith(f"{pairs[0]}: mean error 0.300 (0.250 to 0.350) in the search box")


def test_stitching_tells_means_of_mixed_and_single_features(runs):
    path = runs("stitched addition")

    def planted(rows):
        out = []
        for row in rows:
            if row.measure == "accuracy" and row.kind.startswith("stitch"):
                value = 0.6 if row.kind == "stitch-addition" else 0.9 if row.points == row.data else 0.1
                row = replace(row, mean=value)
            out.append(row)
        return out

    found = shown(path, planted)
    assert "accuracy 0.600; the task’s own features alone reach 0.900" in found.headline
    assert any("the other model’s alone 0.100" in text for text in found.sentences)
    negated = shown(
        runs("stitched negation"),
        lambda rows: [
            replace(row, mean=0.5 if row.kind == "stitch-negation" else 0.4)
            if row.measure == "accuracy"
            else row
            for row in rows
        ],
    )
    assert "changes accuracy by 0.100 on the task itself and 0.100 on other data" in negated.headline


def test_an_evaluation_names_the_best_point(runs):
    whole = {"measure": "normalised accuracy"}
    every = changed(0.3, 0.25, 0.35, **whole)
    found = shown(runs("evaluation"), after(every, changed(0.8, 0.7, 0.9, points="average", **whole)))
    assert found.headline == "Best over 3 tasks: average, normalised accuracy 0.800 (0.700 to 0.900)."
    assert found.sentences[0] == "To compare with: base 0.300 (0.250 to 0.350)."
    tied = shown(runs("evaluation"), after(every, changed(0.31, 0.2, 0.4, points="average", **whole)))
    assert "which of them is best is not certain" in tied.sentences[0]


def test_curvature_says_where_it_is_taken_and_what_has_no_mark(runs):
    stored = read(runs("curvature"))
    data = stored.of(measure="eigenvalue")[0].data
    negative = changed(-1.0, kind="eigenvalue of base", data=data, measure="eigenvalue")
    more = [
        replace(row, points="other") for row in stored.of(kind="eigenvalue of fine-tune") if row.data == data
    ]
    rows = [*negative(list(stored.rows)), *more]
    found = curvature_page(Stored(stored.path, rows, stored.settings, stored.provenance))
    every = [row.mean for row in rows if row.measure == "eigenvalue"]
    lost = sum(value <= 0 for value in every)
    assert lost and f" {lost} of {len(every)} are not positive" in found.drawings["eigenvalues"].caption
    (grid,) = [grid for grid in found.grids if grid.title.startswith("Largest eigenvalues")]
    assert {data, f"other on {data}"} < {name for name, _ in grid.rows}
    along = found.drawings["along"]
    assert "dᵀHd at the base, λ at the merged point." in along.caption and "above 1" in along.caption
    assert along.figure.axes[0].get_xlabel().endswith("as a share of λ")
    same = curvature_page(
        Stored(stored.path, stored.rows, {**stored.settings, "term": "midpoint"}, stored.provenance)
    )
    assert same.drawings["along"].figure.axes[0].get_xlabel().endswith("(1: the bound is tight)")
    assert same.drawings["bound"].figure.axes[1].get_xlabel() == "|exact term|, from the merged point"
    assert "above 1" not in same.drawings["along"].caption
    pair, *others = stored.of(measure="gap")
    equal = changed(0.0, points=pair.points, data=pair.data, measure="gap")(list(stored.rows))
    drawn = curvature_page(Stored(stored.path, equal, stored.settings, stored.provenance)).drawings["bound"]
    assert f" 1 of {1 + len(others)} gaps are exactly 0: see the tick 0." in drawn.caption
    assert "exactly 0" not in same.drawings["bound"].caption


def test_theorems_without_cases_of_layers_have_no_drawing_of_them(runs, monkeypatch):
    path = runs("theorems")
    found = stored_theorems(read(path))
    silent = replace(found, counts=tuple(count for count in found.counts if count.theorem == "Theorem 3.3"))
    monkeypatch.setattr("mergescope.reports.theorems_page.stored_theorems", lambda stored: silent)
    assert found.of_layers and set(shown(path).drawings) == {"barriers"}


def test_only_layers_with_kinks_are_said_to_have_them(runs):
    path = runs("measured prediction")
    layer = read(path).of(kind="prediction", measure="takes over")[-1].layer
    kinked = shown(path, changed(0.0, kind="prediction", layer=layer, measure="takes over"))
    assert f" No mark at {layer}: kinks (ReLU)" in kinked.drawings["third-order"].caption


def test_gaps_that_are_too_small_to_predict_are_said_to_be(runs):
    path, fixed = runs("measured prediction"), {"kind": "prediction", "measure": "takes over"}
    silent = " ".join(shown(path, changed(math.nan, **fixed)).sentences)
    assert "too small to tell where the third order takes over" in silent and "takes over first" not in silent
    never = " ".join(shown(path, changed(math.inf, **fixed)).sentences)
    assert "takes over at no layer, so the second one covers whole task vectors" in never
    layer = read(path).of(**fixed)[-1].layer
    some = after(changed(math.nan, **fixed), changed(0.5, layer=layer, **fixed))
    assert f"takes over first at {layer}, at 0.50 times" in " ".join(shown(path, some).sentences)
    unfit = after(*(changed(math.nan, kind="prediction", measure=name) for name in ("slope", "r2")))
    assert shown(path, unfit).headline.startswith("Predicted gaps are too small, or too few")


def test_theorems_at_negative_coefficients_are_told_apart(runs):
    def negated(row):
        if row.kind == "theorem 4.3":
            return replace(row, parameter=-row.parameter)
        return replace(row, points=row.points.replace(" at ", " at -")) if row.kind == "tally" else row

    found = shown(runs("theorems"), lambda rows: [negated(row) for row in rows])
    (grid,) = [grid for grid in found.grids if grid.title.startswith("Gaps by layer")]
    assert {"4.2: largest premise", "4.3 at -0.4: largest premise"} < set(grid.columns)

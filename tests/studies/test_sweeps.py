"""Sweeps: trainings that are kept and gone on with, root causes, Theorem 5.1, and their claims."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_images import write_pictures
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.data.prompts import known_classes
from mergescope.errors import MergescopeError, StudyError
from mergescope.models import net_config
from mergescope.models.resnet import ResNet
from mergescope.protocols.theorem import TheoremSettings
from mergescope.protocols.theorem_result import TheoremCheck, TheoremPair
from mergescope.readings import Summary
from mergescope.reports import build_report
from mergescope.studies.claims import Claim, claim_of, over_seeds
from mergescope.studies.rundir import RESULTS, Row, read_rows, write_rows
from mergescope.studies.sweeps import root_causes, theorem, trainings
from mergescope.studies.sweeps.root_causes import KIND, PRETRAINING, SWEEPS, RootCausesConfig
from mergescope.studies.sweeps.theorem import TheoremConfig
from mergescope.studies.sweeps.trainings import Images, Mixture, Training, merge_keeps
from mergescope.studies.sweeps.trends import series, trends
from mergescope.tracing.engines import LocalEngine
from mergescope.training import Recipe, fit
from mergescope.weights import Checkpoint

COSTS = {"seconds": 0.0, "peak_bytes": 0}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def images(pictures):
    return Images(str(pictures), parts=3, train=12, test=8)


def small_network(classes=6):
    return json.dumps(net_config(ResNet(image=8, width=2, stages=(1, 1), classes=classes)))


def training(images, run, **more):
    said = {"name": "it", "run": run, "network": small_network(), "data": Mixture(images, 0),
            "recipe": Recipe("sgd", lr=0.05, batch=8), "seed": 3, "keep": (2,)}  # fmt: skip
    return Training(**{**said, **more})


def weights(trained):
    return Checkpoint(trained.path).state_dict()


# --- trainings


def test_weights_after_some_epochs_are_those_of_a_training_of_that_length(images, tmp_path):
    it = training(images, tmp_path, keep=(0, 1, 3))
    it.carry_out()
    for epochs in (1, 3):
        model = it.model()
        fit(model, it.data.split("train"), Recipe("sgd", lr=0.05, batch=8, epochs=epochs), seed=3,
            classes=it.data.classes, progress=False)  # fmt: skip
        found = weights(it.after(epochs))
        assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
    start = weights(it.after(0))
    assert all(torch.equal(start[key], value) for key, value in it.model().state_dict().items())


def test_fine_tuning_goes_on_from_its_start_and_leaves_other_logits_alone(images, tmp_path):
    base = training(images, tmp_path, name="base", keep=(1,))
    tuned = training(
        images, tmp_path, name="tuned", data=Mixture(images, 1), start=base.after(1), keep=(0, 2)
    )
    with LocalEngine(1) as engine:
        trainings.train_all([tuned, base], engine)
    before, begun, after = weights(base.after(1)), weights(tuned.after(0)), weights(tuned.after(2))
    assert all(torch.equal(before[key], begun[key]) for key in before)
    assert not torch.equal(before["stem.0.weight"], after["stem.0.weight"])
    # Classes of part 1 are 2 and 3; the loss is over their logits only.
    assert torch.equal(before["head.bias"][:2], after["head.bias"][:2])
    assert not torch.equal(before["head.bias"][2:4], after["head.bias"][2:4])


def test_what_decides_the_weights_is_in_the_key(images, tmp_path):
    it = training(images, tmp_path)
    other = [
        training(images, tmp_path, seed=4),
        training(images, tmp_path, recipe=Recipe("sgd", lr=0.06, batch=8)),
        training(images, tmp_path, data=Mixture(images, 1)),
        training(images, tmp_path, data=Mixture(images, 0, 1, 0.5)),
        training(images, tmp_path, start=it.after(2)),
    ]
    assert len({each.key for each in (it, *other)}) == len(other) + 1
    assert training(images, tmp_path, keep=(5,)).key == it.key
    assert training(images, tmp_path, recipe=Recipe("sgd", lr=0.05, batch=8, epochs=9)).key == it.key


def test_trainings_that_are_asked_for_twice_are_made_once(images, tmp_path):
    it = training(images, tmp_path)
    merged = merge_keeps([dataclasses.replace(it, keep=(3,)), dataclasses.replace(it, keep=(1,))])
    assert [one.keep for one in merged] == [(1, 3)]


def test_replaced_samples_bring_their_classes(images):
    assert Mixture(images, 1).classes == (2, 3)
    assert Mixture(images, 1, 0, 0.5).classes == (0, 1, 2, 3)
    assert Mixture(images, 1, 0, 1.0).classes == (0, 1)
    assert set(Mixture(images, 1, 0, 1.0).split("test").labels.tolist()) == {0, 1}


# --- claims


def test_verdicts_follow_from_intervals():
    assert Claim("a", 1.0, 0.1, 2.0, 3).verdict == "holds"
    assert Claim("a", -1.0, -2.0, -0.1, 3).verdict == "does not hold"
    assert Claim("a", 1.0, -0.1, 2.0, 3).verdict == "inconclusive"
    assert over_seeds("a", [1.0]).verdict == "inconclusive"
    assert over_seeds("a", [float("nan"), 1.0]).n == 1


def test_intervals_over_seeds_are_students():
    # Mean 2, standard deviation 1, n = 3: half width 4.3027 / sqrt(3).
    claim = over_seeds("a", [1.0, 2.0, 3.0])
    assert (claim.value, claim.n) == (2.0, 3)
    assert math.isclose(claim.high - claim.value, 4.30265 / 3**0.5, rel_tol=1e-5)


def planted(slope, noise=0.0):
    rng = np.random.default_rng(0)
    rows = []
    for sweep in SWEEPS:
        for seed in range(4):
            for value in (0.0, 0.5, 1.0):
                for layer in ("blocks.0", "blocks.1"):
                    along = slope * value if sweep in (PRETRAINING, SWEEPS[2]) else 0.1 * slope * value
                    cos = 0.5 + along + noise * rng.normal()
                    for measure, mean in (("cos", cos), ("baseline", cos - 0.2), ("coef", 0.4 + along)):
                        rows.append(
                            Row(
                                "net",
                                sweep,
                                KIND,
                                f"a + b, seed {seed}",
                                "a ∪ b",
                                measure,
                                mean,
                                value,
                                layer,
                            )
                        )
    return rows


def verdicts(rows):
    return {row.points: claim_of(row).verdict for row in trends(rows, ["blocks.0", "blocks.1"])}


def test_a_planted_trend_holds_its_reverse_does_not_and_noise_is_inconclusive():
    held, failed, unsure = (
        verdicts(planted(0.3, 0.01)),
        verdicts(planted(-0.3, 0.01)),
        verdicts(planted(0.0, 0.2)),
    )
    falls = "blocks.0: 1 - cos falls from the smallest to the largest pretraining epochs"
    assert (held[falls], failed[falls], unsure[falls]) == ("holds", "does not hold", "inconclusive")
    less = "blocks.1: varying the fine-tuning epochs changes 1 - cos less than varying the pretraining epochs"
    assert held[less] == "holds"
    length = "blocks.0: |coef - 1| falls from the smallest to the largest similarity to the pretraining data"
    assert (held[length], failed[length]) == ("holds", "does not hold")


def test_series_are_means_over_pairs_in_each_repetition():
    rows = [
        Row("net", PRETRAINING, KIND, f"{pair}, seed {seed}", "d", "cos", cos, 1.0, "blocks.0")
        for pair, seed, cos in (("a + b", 0, 0.9), ("a + c", 0, 0.7), ("a + b", 1, 0.6))
    ]
    found = series(rows, PRETRAINING, "blocks.0", "1 - cos")
    assert [round(one[1.0], 6) for one in found] == [0.2, 0.4]


# --- root causes


@pytest.fixture(scope="module")
def causes(images):
    return RootCausesConfig(
        images=images, width=2, stages=(1, 1, 1, 1), recipe=Recipe("sgd", lr=0.1, batch=8), epochs=(1, 1),
        pretraining_epochs=(0, 1), fine_tuning_epochs=(1, 2), shares=(0.0, 1.0), tuned_shares=(0.0, 0.5), seeds=2,
        batch=12,
    )  # fmt: skip


@pytest.fixture(scope="module")
def caused(causes, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "causes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(root_causes.PRESETS, "tiny", causes)
        return root_causes.run_preset("tiny", path, workers=1).path


def comparable(path):
    return [repr(dataclasses.replace(row, **COSTS)) for row in read_rows(path / RESULTS)]


def test_every_sweep_has_all_values_layers_and_repetitions(causes, caused):
    rows = read_rows(caused / RESULTS)
    for sweep, values in zip(SWEEPS, ((0, 1), (1, 2), (0, 1), (0, 0.5)), strict=True):
        for layer in causes.shown_layers:
            found = series(rows, sweep, layer, "cos")
            assert [sorted(one) for one in found] == [sorted(values)] * 2
            assert all(-1 <= cos <= 1 for one in found for cos in one.values())
    assert {row.regime for row in rows if row.kind == "claim"} == set(SWEEPS)


def test_the_same_setting_in_two_sweeps_gives_the_same_numbers(causes, caused):
    # One epoch of both trainings on unmixed data occurs in all four sweeps.
    rows = read_rows(caused / RESULTS)
    found = [
        series(rows, sweep, causes.shown_layers[1], "cos")[0][value]
        for sweep, value in zip(SWEEPS, (1, 1, 0.0, 0.0), strict=True)
    ]
    assert len(set(found)) == 1


def test_a_killed_run_goes_on_to_the_same_numbers(causes, caused, tmp_path, monkeypatch):
    monkeypatch.setitem(root_causes.PRESETS, "tiny", causes)
    measured, count = root_causes.measure_place, 0

    def breaks(place):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        measured(place)

    monkeypatch.setattr(root_causes, "measure_place", breaks)
    with pytest.raises(KeyboardInterrupt):
        root_causes.run_preset("tiny", tmp_path / "run", workers=1)
    assert not (tmp_path / "run" / RESULTS).exists()
    monkeypatch.setattr(root_causes, "measure_place", measured)
    lines = root_causes.plan_lines("tiny", tmp_path / "run")
    assert "0 are to be trained" in lines[1] and "13 are to be measured" in lines[2]
    again = root_causes.run_preset("tiny", tmp_path / "run", workers=1)
    assert comparable(again.path) == comparable(caused)


def test_a_plan_writes_nothing(causes, tmp_path, monkeypatch):
    monkeypatch.setitem(root_causes.PRESETS, "tiny", causes)
    monkeypatch.setitem(
        theorem.PRESETS, "tiny", TheoremConfig(images=dataclasses.replace(causes.images, parts=1))
    )
    root_causes.plan_lines("tiny", tmp_path / "a")
    theorem.plan_lines("tiny", tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_parts_to_fine_tune_on_are_checked(causes, tmp_path):
    for tuned in ((0, 1), (1,), (1, 3)):
        with pytest.raises(StudyError, match="two or more of the parts 1 to 2"):
            root_causes.Plan(dataclasses.replace(causes, tuned=tuned), tmp_path)


def test_other_test_data_are_measured_anew_with_the_same_models(causes, tmp_path):
    fewer = dataclasses.replace(causes, images=dataclasses.replace(causes.images, test=4))
    one, other = (root_causes.Plan(config, tmp_path) for config in (causes, fewer))
    assert [it.key for it in one.trainings] == [it.key for it in other.trainings]
    assert not {it.rows for it in one.places} & {it.rows for it in other.places}


SHORT = {
    "epochs": (1, 1), "pretraining_epochs": (0, 1), "fine_tuning_epochs": (1, 2), "shares": (0.0, 1.0),
    "tuned_shares": (0.0, 1.0), "seeds": 2, "width": 2, "tuned": (1, 2),
}  # fmt: skip
"""Lengths, in place of the paper's."""


def test_root_causes_of_the_paper_run_on_copies_of_both_data_sets(tmp_path, monkeypatch):
    root = tmp_path / "hub"
    write_pictures(root / "cifar100", classes=100, train=12, test=1, columns=("img", "fine_label"),
                   names=known_classes()["cifar100"])  # fmt: skip
    write_pictures(root / "tiny-imagenet", classes=200, train=12, test=1, splits=("train", "valid"))
    paper = dataclasses.replace(root_causes.PRESETS["paper"], **SHORT)
    monkeypatch.setitem(root_causes.PRESETS, "paper", paper)
    words = ["study", "run", "root-causes", "--preset", "paper", "--data-root", root, "--workers", 1, "--out",
             tmp_path / "run"]  # fmt: skip
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = [row for row in read_rows(tmp_path / "run" / RESULTS) if row.kind == KIND]
    parts = {sweep: {row.data for row in rows if row.regime == sweep} for sweep in SWEEPS}
    assert parts[PRETRAINING] == parts[SWEEPS[1]] == {"5-9 ∪ 10-14"}  # CIFAR-100, fives
    assert parts[SWEEPS[2]] == parts[SWEEPS[3]] == {"10-19 ∪ 20-29"}  # Tiny ImageNet, tens
    text = (tmp_path / "run" / "run.yaml").read_text()
    assert "tiny-imagenet" in text


def test_theorem_51_of_the_paper_runs_on_a_copy_of_its_data(tmp_path, monkeypatch):
    root = tmp_path / "hub"
    write_pictures(root / "cifar10", classes=10, train=12, test=2, columns=("img", "label"),
                   names=known_classes()["cifar10"])  # fmt: skip
    paper = dataclasses.replace(
        theorem.PRESETS["paper"], width=2, stages=(1, 1, 1), checkpoints=(1, 2),
        tunings=tuple(Recipe("sgd", lr=lr, epochs=1) for lr in (0.01, 0.03, 0.1)),
    )  # fmt: skip
    monkeypatch.setitem(theorem.PRESETS, "paper", paper)
    theorem.run_preset("paper", tmp_path / "run", root=root, workers=1)
    claims = [row for row in read_rows(tmp_path / "run" / RESULTS) if row.kind == "claim"]
    assert {row.regime for row in claims} == set(theorem.PLACES)


@pytest.mark.parametrize("study", [root_causes, theorem])
def test_a_device_that_is_not_there_is_told_before_anything_is_written(study, tmp_path):
    with pytest.raises(MergescopeError, match="device='abacus' can't be used here"):
        study.run_preset("quick", tmp_path / "run", device="abacus")
    assert not (tmp_path / "run").exists()


def test_lengths_that_a_sweep_varies_are_not_cut(tmp_path):
    words = [
        "study",
        "run",
        "root-causes",
        "--preset",
        "quick",
        "--train-steps",
        2,
        "--out",
        tmp_path / "run",
    ]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert "takes no --train-steps" in str(result.exception) and "--preset quick" in str(result.exception)


@pytest.mark.parametrize("study", [root_causes, theorem])
def test_unknown_presets_are_named_with_near_matches(study):
    with pytest.raises(StudyError, match=r"no preset 'papr'.*Did you mean: paper"):
        study.plan_lines("papr", Path("run"))


def test_the_page_of_root_causes_shows_claims_and_figures(caused):
    page = build_report(caused).read_text()
    assert "1 - cos falls from the smallest to the largest pretraining epochs" in page
    assert {path.name for path in (caused / "figures").glob("*.svg")} == {
        "features.svg",
        "coef.svg",
        "accuracy.svg",
    }


def test_results_without_claims_are_refused(caused, tmp_path):
    rows = [row for row in read_rows(caused / RESULTS) if row.kind != "claim"]
    write_rows(tmp_path / RESULTS, rows)
    (tmp_path / "run.yaml").write_text((caused / "run.yaml").read_text())
    with pytest.raises(StudyError, match="it has no claims"):
        build_report(tmp_path)


# --- Theorem 5.1


@pytest.fixture(scope="module")
def proved(images, tmp_path_factory):
    config = TheoremConfig(
        images=dataclasses.replace(images, parts=1), width=2, stages=(1, 1), checkpoints=(1, 2),
        tunings=tuple(Recipe("sgd", lr=lr, batch=8, epochs=1) for lr in (0.01, 0.05, 0.1)), batch=24,
        settings=TheoremSettings(tolerance=0.05, max_steps=12, progress=False, resamples=100),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("runs") / "theorem"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(theorem.PRESETS, "tiny", config)
        return theorem.run_preset("tiny", path, workers=1).path


def test_all_pairs_of_each_checkpoint_are_checked_at_both_places(proved):
    rows = [row for row in read_rows(proved / RESULTS) if row.measure == "lambda"]
    assert [sum(row.regime == place for row in rows) for place in theorem.PLACES] == [6, 6]
    base = {row.points.partition(":")[0]: row.mean for row in rows if row.regime == "base"}
    for row in rows:  # at the base, lambda is one number for all pairs of a checkpoint
        if row.regime == "base":
            assert row.mean == base[row.points.partition(":")[0]]


def test_regressions_are_over_the_pairs_of_all_checkpoints(proved):
    rows = read_rows(proved / RESULTS)
    found = [row for row in rows if row.measure == "R^2 of |gap| on distance" and row.regime == "midpoint"]
    pairs = {row.points: row.mean for row in rows if row.regime == "midpoint" and row.measure == "|gap|"}
    square = {row.points: row.mean for row in rows if row.regime == "midpoint" and row.measure == "|d|^2"}
    expected = np.corrcoef([pairs[name] for name in pairs], [square[name] for name in pairs])[0, 1] ** 2
    assert found[0].n == 6 and math.isclose(found[0].mean, expected, rel_tol=1e-9)


def test_the_claim_about_the_bound_is_of_the_worst_pair(proved):
    rows = [row for row in read_rows(proved / RESULTS) if row.regime == "midpoint"]
    claim = next(claim_of(row) for row in rows if row.kind == "claim" and "every pair" in row.points)
    bounds = {row.points: row.mean for row in rows if row.measure == "bound"}
    gaps = {row.points: row.mean for row in rows if row.measure == "|gap|"}
    assert math.isclose(
        claim.value, min(math.log10(bounds[name] / gaps[name]) for name in gaps), rel_tol=1e-9
    )


def theorem_pair(place, gap, bound, eigenvalue, residual):
    nan = math.nan
    said = Summary(gap, nan, nan, nan, 9, 0)
    return TheoremPair(str(place), said, (0.1, 0.1), eigenvalue, residual, True, 1.0, 0.1, bound)


def claimed(*pairs, resamples=20):
    """What is said of pairs of (gap, bound, eigenvalue, residual)."""
    found = tuple(theorem_pair(place, *pair) for place, pair in enumerate(pairs))
    return theorem.claims(TheoremCheck(found, {}, "digits", 9, ()), resamples=resamples, seed=0)


def about_the_bound(*pairs):
    return claimed(*pairs)[0]


def test_one_pair_above_its_bound_is_enough():
    kept = [(0.001 * place, 0.1, 1.0, 0.0) for place in range(1, 40)]
    assert about_the_bound(*kept).verdict == "holds"
    found = about_the_bound(*kept, (-0.2, 0.1, 1.0, 0.0))  # which many resamples lack
    assert found.verdict == "does not hold" and found.value == pytest.approx(-math.log10(2))


def test_the_bound_is_known_as_far_as_its_eigenvalue():
    found = about_the_bound((0.1, 0.2, 4.0, 1.0), (0.1, 1.0, 4.0, 3.0))
    assert (found.value, found.low, found.high) == pytest.approx(tuple(map(math.log10, (2.0, 1.5, 2.5))))
    assert about_the_bound((0.1, 0.12, 4.0, 1.0)).verdict == "inconclusive"


def test_gaps_and_bounds_of_zero_have_a_verdict():
    assert about_the_bound((0.0, 0.1, 1.0, 0.0), (0.1, 0.2, 1.0, 0.0)).value == pytest.approx(math.log10(2))
    assert about_the_bound((0.1, 0.2, 1.0, 0.0), (0.1, 0.0, 0.0, 0.0)).verdict == "does not hold"
    assert about_the_bound((0.1, 0.2, 1.0, 0.0), (0.1, -0.2, -1.0, 0.0)).verdict == "does not hold"


def test_a_pair_without_a_value_lets_nothing_hold():
    others = [(0.1 * n, n, n, 0.0) for n in range(1, 9)]
    for unknown in ((math.nan, 0.2, 1.0, 0.0), (0.1, math.nan, math.nan, 0.0)):
        assert "holds" not in {claim.verdict for claim in claimed(unknown, *others, resamples=200)}
    assert about_the_bound((math.nan, 0.2, 1.0, 0.0), (0.3, 0.2, 1.0, 0.0)).verdict == "does not hold"


def test_the_page_of_the_theorem_shows_both_places(proved):
    page = build_report(proved).read_text()
    assert "λ at midpoint" in page and "λ at base" in page
    assert {path.name for path in (proved / "figures").glob("*.svg")} == {
        "gaps-midpoint.svg",
        "gaps-base.svg",
    }


# --- pages


def test_published_pages_hold_claims_figures_and_no_paths(caused, proved, pictures, tmp_path):
    from mergescope.reports.publish import publish

    for run, name in ((caused, "root-causes"), (proved, "theorem-5.1")):
        page = publish(run, tmp_path)
        text = page.read_text()
        assert page == tmp_path / f"{name}.md"
        assert str(pictures) not in text and "--data pictures" in text
        claims = [row for row in read_rows(run / RESULTS) if row.kind == "claim"]
        said = json.loads((tmp_path / f"{name}.json").read_text())["claims"]
        assert [(claim["says"], claim["verdict"]) for claim in said if claim["of"] == claims[0].regime] == [
            (row.points, row.measure) for row in claims if row.regime == claims[0].regime
        ]
        build_report(run)
        figures = list((run / "figures").glob("*.svg"))
        assert figures
        for figure in figures:
            assert (tmp_path / name / figure.name).read_bytes() == figure.read_bytes()
            assert f"]({name}/{figure.name})" in text
    index = (tmp_path / "studies.md").read_text()
    assert "[root-causes](root-causes.md)" in index and "[theorem-5.1](theorem-5.1.md)" in index
    held = [row.measure for row in read_rows(caused / RESULTS) if row.kind == "claim"].count("holds")
    (line,) = [line for line in index.splitlines() if "(root-causes.md)" in line]
    first = json.loads((tmp_path / "root-causes.json").read_text())["claims"][0]
    assert f"| CTL Figs 11 and 12 | {first['says']} |" in line and f"| {first['verdict']} | {held} |" in line


def test_the_index_passes_over_other_results(caused, tmp_path):
    from mergescope.reports.publish import publish

    (tmp_path / "others.json").write_text('{"glyphs": {}}')
    publish(caused, tmp_path, "again")
    index = (tmp_path / "studies.md").read_text()
    assert "[again](again.md)" in index and "others" not in index


def test_runs_without_claims_are_not_published(tmp_path):
    from mergescope.reports.publish import publish

    (tmp_path / "run.yaml").write_text("study: root-cause\nconfig: {}\nprovenance: {}\n")
    with pytest.raises(StudyError, match=r"no claims to publish. Did you mean: root-causes"):
        publish(tmp_path, tmp_path / "out")

"""Theorems on a family: the same figures as one by one, and counts that follow from them."""

from dataclasses import replace

import numpy as np
import pytest
from support import family, labelled_batches, make_net

import mergescope as ms
from mergescope.errors import MergescopeError
from mergescope.protocols.family_theorems import TheoremsSettings, check_family, plan
from mergescope.protocols.linearity import COS_HOLDS
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.premises import disentangled_from_pairs, many_from_pairs, no_barrier
from mergescope.protocols.resume import resumable
from mergescope.protocols.tallies import GAP_HOLDS
from mergescope.protocols.transitivity import pair_gaps, triples

QUIET = TheoremsSettings(coefficients=(0.4,), progress=False)


class Printed(list):
    """Batches that say what is in them."""

    fingerprint = "0" * 40


def given(kind="vit", owned=True, scale=0.3):
    net = make_net(kind)
    base, *tuned = family(net, scale=scale)
    models = {model.name: model for model in tuned}
    names = models if owned else ("common",)
    held = {
        name: HeldOut(name, labelled_batches(8, 4, seed=i), net, name if owned else None)
        for i, name in enumerate(names)
    }
    return base, models, held


def test_all_figures_are_those_of_the_theorems_one_by_one():
    base, models, held = given()
    found = check_family(base, models, held, QUIET)
    alone = [
        theorem
        for name, data in held.items()
        for theorem in (
            no_barrier(
                {
                    f"{a} + {b}": (models[a], models[b])
                    for a, b in (("a", "b"), ("a", "c"), ("b", "c"))
                    if name in (a, b)
                },
                data,
                progress=False,
            ),
            many_from_pairs(models, data, progress=False),
            disentangled_from_pairs(base, models, {name: data}, 0.4, tasks=[name], progress=False),
        )
    ]
    for (_, one), other in zip(found.found, alone, strict=True):
        assert one.theorem == other.theorem
        for line, wanted in zip(one.checked, other.checked, strict=True):
            assert (line.points, line.data, line.layer) == (wanted.points, wanted.data, wanted.layer)
            for part in ("premises", "conclusions"):
                assert {k: v.mean for k, v in getattr(line, part).items()} == pytest.approx({
                    k: v.mean for k, v in getattr(wanted, part).items()
                })
    assert sum(len(entry.checked) for _, entry in found.found if entry.theorem == "3.3") == 6


def test_counts_follow_from_the_figures():
    base, models, held = given()
    found = check_family(base, models, held, QUIET)
    gaps = sorted(entry.gap.mean for entry in found.gaps if not entry.trivial)
    for gap in (gaps[0] / 2, float(np.median(gaps)), 2 * gaps[-1]):
        counts = {it.theorem: it for it in replace(found, settings=replace(QUIET, gap=gap)).tallies}
        small = {
            (entry.data, entry.layer, frozenset((entry.one, entry.other))): entry.gap.mean <= gap
            for entry in found.gaps
            if not entry.trivial
        }
        premises = conclusions = both = cases = 0
        for data in held:
            for layer in {key[1] for key in small}:
                for i, k, j in (("a", "b", "c"), ("a", "c", "b"), ("b", "c", "a")):
                    first, second, third = (
                        small[data, layer, frozenset(pair)] for pair in ((i, j), (j, k), (i, k))
                    )
                    cases += 1
                    premises += first and second
                    conclusions += third
                    both += first and second and third
        it = counts["Transitivity"]
        assert (it.cases, it.premises, it.conclusions, it.both) == (cases, premises, conclusions, both)
        assert all(count.proved == count.provable for count in counts.values())
    assert abs(GAP_HOLDS - (1 / COS_HOLDS**2 - 1) ** 0.5) < 1e-3


def test_equal_models_fulfil_every_premise_and_conclusion():
    base, models, held = given()
    same = dict.fromkeys(models, models["a"])
    found = check_family(base, same, held, replace(QUIET, coefficients=(1 / 3,)))
    for count in found.tallies:
        assert count.premises == count.conclusions == count.both == count.cases > 0, count.theorem


def test_layers_that_are_linear_by_construction_are_told_and_not_counted():
    base, models, held = given()
    found = check_family(base, models, held, replace(QUIET, layers=["patch_embed", "blocks.1"]))
    assert found.trivial == {"patch_embed"}
    assert {case.layer for case in found.cases} == {"blocks.1", "output"}  # Theorem 3.3 is about the output
    rows = {row["layer"]: row["trivial"] for row in found.rows() if row["kind"] == "theorem 4.2"}
    assert {layer for layer, trivial in rows.items() if trivial} == {"patch_embed"} and len(rows) == 2


def test_data_that_are_nobodys_have_no_own_effect():
    base, models, held = given(owned=False)
    found = check_family(base, models, held, QUIET)
    (apart,) = [theorem for _, theorem in found.found if theorem.theorem == "4.3"]
    assert set(apart.checked[0].conclusions) == {"gap of all", "sum of steps"}
    data = next(iter(held.values()))
    far = {name: base + 1.2 * (ms.Point.of(model) - base) for name, model in models.items()}
    wanted = many_from_pairs(far, data, progress=False)
    for line, other in zip(apart.checked, wanted.checked, strict=True):
        assert line.conclusions["gap of all"].mean == pytest.approx(
            other.conclusions["gap of all"].mean, rel=1e-5
        )


def test_a_negative_coefficient_is_said():
    base, models, held = given()
    found = check_family(base, models, held, replace(QUIET, coefficients=(-0.4,)))
    assert "Theorem 4.3, a = -0.4: " in str(found) and "Theorem 4.2: " in str(found)


def test_gaps_of_pairs_are_those_of_ctl():
    _, models, held = given()
    data = held["a"]
    found = pair_gaps(models, data, progress=False)
    test = ms.ctl(models["a"], models["c"])
    traced = ms.trace(test.points, data.batches, data.model)
    for entry in ms.linearity(traced, test).layers:
        mine = next(it for it in found if (it.one, it.other, it.layer) == ("a", "c", entry.layer))
        assert mine.gap.mean == pytest.approx(entry.measures["gap"].mean, rel=1e-5)
    layer = [entry for entry in found if entry.layer == found[0].layer]
    assert len(list(triples(layer))) == 3


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    base, models, held = given()
    held = {name: replace(data, batches=Printed(data.batches)) for name, data in held.items()}
    with pytest.raises(ZeroDivisionError), resumable(tmp_path / "passes"):
        check_family(base, models, held, QUIET)
        1 / 0  # noqa: B018 (killed before the results are written)
    kept = {path.name for path in (tmp_path / "passes").iterdir()}
    assert {name.rpartition("-")[0] for name in kept} == {"no-barrier", "many", "disentangled", "pair-gaps"}
    monkeypatch.setattr("mergescope.protocols.family_theorems.many_from_pairs", None)
    with resumable(tmp_path / "passes"):
        again = check_family(base, models, held, QUIET)
    fresh = given()
    monkeypatch.undo()
    assert [str(it) for it in again.tallies] == [str(it) for it in check_family(*fresh, QUIET).tallies]


@pytest.mark.parametrize("count", [2, 3])
def test_the_plan_counts_distinct_models(count):
    base, models, held = given()
    few = dict(list(models.items())[:count])
    held = {name: held[name] for name in few}
    found = plan(base, few, held, QUIET)
    pairs = count * (count - 1) // 2
    chain = count + pairs + count - 2
    assert set(found["passes_a_batch"].values()) == {count + count - 1 + count + pairs + chain + chain + 1}


def test_what_can_not_be_checked_is_refused():
    base, models, held = given()
    with pytest.raises(MergescopeError, match="no data to check"):
        check_family(base, models, {}, QUIET)
    with pytest.raises(MergescopeError, match="makes no threshold"):
        check_family(base, models, held, replace(QUIET, loss=0.0))
    with pytest.raises(MergescopeError, match="two fine-tuned models"):
        check_family(base, {"a": models["a"]}, held, QUIET)

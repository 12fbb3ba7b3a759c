"""Coefficients by a surrogate, against the grid; what is kept and why; and that test data are never chosen by."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from given_models import make
from tuned_tasks import TASKS, held_out, tuned

import mergescope as ms
from mergescope.errors import DataError, MergescopeError, PointError
from mergescope.protocols.coefficients import SearchSettings, planned_points, search_coefficients
from mergescope.protocols.coefficients.space import CoefficientSpace
from mergescope.protocols.coefficients.surrogate import Surrogate, design
from mergescope.protocols.coefficients.values import CoefficientValues
from mergescope.studies.rundir import Row
from mergescope.training.linearized import linearized_network

QUIET = SearchSettings(progress=False, grid=tuple(i / 10 for i in range(11)))


class Printed(list):
    """Batches that say which samples they hold."""

    fingerprint = "these"


def found_by(objective="loss", validation=None, test=None, **settings):
    _, base, models = tuned()
    return search_coefficients(
        base, models, validation or held_out(), test, replace(QUIET, objective=objective, **settings)
    )


def space_of(groups=1):
    _, base, models = tuned()
    return CoefficientSpace(
        ms.Point.of(base), {task: ms.Point.of(model) for task, model in models.items()}, groups
    )


def values_of(space, held, objective="accuracy", around=None):
    return CoefficientValues(
        space, held, objective, around=around, executor="auto", device="cpu", memory=2**28, progress=False
    )


def slow_logits(state, batches):
    net = copy.deepcopy(tuned()[0])
    net.load_state_dict(state)
    with torch.no_grad():
        return torch.cat([net(x) for x, _ in batches])


# -- the surrogate -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "least"), [(1, 0.9), (2, 0.8)])
def test_it_predicts_the_normalised_accuracy_of_random_coefficients(groups, least):
    space, held = space_of(groups), held_out(samples=400)
    values = values_of(space, held)
    fitted = values.evaluate([
        *design(len(space.axes)),
        *(space.uniform(lam) for lam in (0.2, 0.4, 0.6, 0.8)),
    ])
    values.evaluate(space.single(task) for task in TASKS)
    random = values.evaluate(np.random.default_rng(0).uniform(0, 1, (20, len(space.axes))))
    true = [values.score(number) for number in random]
    correlation = {}
    for order in (1, 2):
        surrogate = Surrogate(values.positions[fitted], order)
        said = [
            np.mean([
                values.worth(task, surrogate.predict(values.positions[n], values.values(task)[fitted])).mean()
                for task in TASKS
            ])
            for n in random
        ]
        correlation[order] = np.corrcoef(said, true)[0, 1]
    assert correlation[2] > least and correlation[2] > correlation[1]


def test_it_is_exact_to_first_order_in_linearised_networks():
    _, base, models = tuned()
    space, held = space_of(), held_out(samples=40)
    values = values_of(space, held, "loss", ms.Point.of(base))
    fitted = values.evaluate(design(3, order=1))
    at = np.array([0.3, 1.7, 0.9])
    (number,) = values.evaluate([at])
    surrogate = Surrogate(values.positions[fitted], 1)
    for task, data in held.items():
        said = surrogate.predict(at, values.values(task)[fitted])
        torch.testing.assert_close(said, values.values(task)[number], atol=1e-4, rtol=1e-4)
        network = linearized_network(copy.deepcopy(data.model), ms.Point.of(base))
        ms.load_weights(network, space.point(at))
        with torch.no_grad():
            torch.testing.assert_close(
                said, torch.cat([network(x) for x, _ in data.batches]), atol=1e-4, rtol=1e-4
            )
    result = found_by(linearized=True)
    assert result.fit.order == 1 and result.fit.points == 4 and result.fit.error < 1e-4 and result.fit.trusted
    # Three models and the base serve the grid, the design and everything drawn.
    assert result.forward_passes <= 8 * 4 * len(TASKS)


# -- what is kept, and why ---------------------------------------------------------------------------


def test_scores_are_those_of_a_slow_computation():
    test = held_out(50)
    result = found_by("accuracy", test=test)
    _, base, models = tuned()
    grid = result["grid"]
    lam = result.grid.lam
    state = (base + lam * sum((model - base for model in models.values()), 0 * (base - base))).state_dict()
    for data, said in ((held_out(), grid.validation), (test, grid.test.mean)):
        ratios = []
        for task, held in data.items():
            labels = torch.cat([y for _, y in held.batches])
            hits = [
                (slow_logits(weights, held.batches).argmax(-1) == labels).double().mean()
                for weights in (state, models[task].state_dict())
            ]
            ratios.append(float(hits[0] / hits[1]))
        assert said == pytest.approx(np.mean(ratios), abs=1e-6)
    assert result["base"].validation < grid.validation
    assert {name.name.split(" ")[0] for name in result.methods} == {"base", "grid", "surrogate"}


def test_a_clear_gain_replaces_the_grids_answer_and_holds_on_test_data():
    result = found_by("loss", validation=held_out(samples=400), test=held_out(50, 400))
    assert result.kept == "surrogate" and result.gain.low > 0
    assert result["surrogate"].validation < result["grid"].validation
    assert result["surrogate"].test.mean > result["grid"].test.mean
    assert result.point == space_of().point(list(result.coefficients.values()))
    assert dict(result["surrogate"].coefficients) == dict(result.coefficients)


def test_what_is_optimised_on_noise_is_not_kept():
    held, misleading = held_out(samples=40), 0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        noise = {
            task: replace(
                data, batches=[(x, torch.randint(5, y.shape, generator=generator)) for x, y in data.batches]
            )
            for task, data in held.items()
        }
        result = found_by(
            "accuracy", noise, groups=2, seed=seed, upper=2.0, pulls=(0.1, 0.0), trust=-1.0, tolerance=9.0
        )
        assert result.kept == "grid" and "no clear gain" in result.reason
        # Where it was optimised it is a gain, large enough to show on all samples.
        misleading += result["surrogate"].validation > result["grid"].validation
    assert misleading >= 1


def test_a_surrogate_that_is_wrong_is_not_optimised():
    # Networks far apart are no polynomials of their coefficients.
    _, base, models = tuned()
    far = {task: ms.random_neighbour(base, base * 9.0, seed=n) for n, task in enumerate(models)}
    settings = replace(QUIET, objective="accuracy")
    result = search_coefficients(base, far, held_out(), settings=settings)
    assert result.fit.correlation < 0.5 and result.fit.error > 0.1
    assert result.kept == "grid" and not result.fit.trusted and "not to be trusted" in result.reason
    assert [method.name.split(" ")[0] for method in result.methods] == ["base", "grid"]
    assert result["grid"].coefficients == result.coefficients


def test_random_search_is_given_as_many_points_as_the_surrogate():
    result = found_by("loss", random=True)
    assert result["random"].points == result["surrogate"].points > result["grid"].points
    assert result["random"].validation <= result["grid"].validation
    # Its passes are further ones, those through held-out points apart.
    without = found_by("loss")
    further = result["random"].points - result["grid"].points - QUIET.held_out
    assert result.forward_passes - without.forward_passes == further * len(TASKS)
    assert without.coefficients == result.coefficients


@pytest.mark.parametrize(("groups", "random"), [(1, False), (1, True), (2, False)])
def test_plans_say_how_many_points_there_will_be(groups, random):
    settings = replace(QUIET, objective="loss", groups=groups, random=random)
    _, base, models = tuned()
    result = search_coefficients(base, models, held_out(), settings=settings)
    batches = len(held_out()["one"].batches)
    planned = planned_points(len(TASKS), groups, settings)
    # Candidates may fall together.
    assert planned - 6 * (1 + random) <= result.forward_passes / (len(TASKS) * batches) <= planned


def test_a_seed_decides_everything():
    first, again, other = (found_by("loss", seed=seed) for seed in (1, 1, 2))
    assert str(first) == str(again) and first.rows() == again.rows()
    assert first["surrogate"].coefficients != other["surrogate"].coefficients


# -- test data ---------------------------------------------------------------------------------------


class Watched:
    """Batches that note when they are read, and that favour another point than validation does."""

    def __init__(self, batches, log):
        self.batches, self.log = batches, log

    def __iter__(self):
        self.log.append("test")
        state = tuned()[1].state_dict()
        return iter([(x, slow_logits(state, [(x, y)]).argmax(-1)) for x, y in self.batches])


def test_nothing_is_chosen_by_test_data(monkeypatch):
    log = []
    evaluated = CoefficientValues.evaluate

    def noted(self, positions):
        log.append("validation")
        return evaluated(self, positions)

    monkeypatch.setattr(CoefficientValues, "evaluate", noted)
    leak = {task: replace(held, batches=Watched(held.batches, log)) for task, held in held_out().items()}
    alone, with_test = found_by("accuracy"), found_by("accuracy", test=leak)
    assert "test" in log and "validation" not in log[log.index("test") :]
    assert with_test.coefficients == alone.coefficients and with_test.reason == alone.reason
    assert [m.coefficients for m in with_test.methods] == [m.coefficients for m in alone.methods]
    # By these labels the base is the best of all: who chose by them would keep it.
    assert with_test["base"].test.mean > with_test["grid"].test.mean


def test_test_data_that_are_the_validation_data_are_refused():
    held = held_out(samples=20)
    with pytest.raises(MergescopeError, match="data of one, two, three are the test data as well: each coef"):
        found_by(validation=held, test=held)


# -- without labels, texts, limits -------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["entropy", "agreement"])
def test_no_labels_are_needed_by_entropy_and_agreement(objective):
    plain, labelled = (
        found_by(objective, held_out(labelled=labels), test=held_out(50)) for labels in (False, True)
    )
    assert plain.coefficients == labelled.coefficients and plain.measure == objective
    assert plain["grid"].test.mean == labelled["grid"].test.mean
    if objective == "agreement":
        assert (
            plain["grid"].validation > plain["base"].validation
            and plain["grid"].test.mean > plain["base"].test.mean
        )
    else:
        assert plain["grid"].validation < plain["base"].validation


def test_texts_are_searched_by_their_losses():
    network = make("GPT2LMHeadModel")
    base = ms.Checkpoint({key: value.clone() for key, value in network.state_dict().items()}, name="base")
    models = {name: ms.random_neighbour(base, base * 1.3, seed=n) for n, name in enumerate("ab")}
    generator = torch.Generator().manual_seed(0)
    data = {}
    for name in models:
        tokens = torch.randint(3, 30, (8, 6), generator=generator)
        data[name] = ms.HeldOut(name, [{"input_ids": tokens, "labels": tokens}], network)
    again = {name: replace(held, batches=list(held.batches)) for name, held in data.items()}
    result = search_coefficients(base, models, data, again, QUIET)
    assert result.objective == result.measure == result.test_measure == "loss"
    assert result.fit.trusted and result.fit.correlation > 0.8
    assert result["grid"].test.mean == pytest.approx(result["grid"].validation, abs=1e-5)
    with pytest.raises(MergescopeError, match="only losses are kept"):
        search_coefficients(base, models, data, settings=replace(QUIET, objective="accuracy"))


def test_samples_and_memory_have_limits():
    with pytest.raises(DataError, match="MiB they may take"):
        found_by("loss", memory=2**14)
    few = found_by("loss", samples=30)
    assert few.gain is None or few.gain.n == 15 * len(TASKS)


def test_a_gain_on_shared_samples_counts_them_once():
    batches = Printed(held_out()["one"].batches)
    shared = {task: replace(held, batches=batches) for task, held in held_out().items()}
    result = found_by("loss", shared, trust=-1.0, tolerance=9.0)
    assert result.gain.n == 60  # one half of 120 samples, the same one for all tasks


# -- what is refused ---------------------------------------------------------------------------------


def test_what_does_not_fit_is_said():
    _, base, models = tuned()
    held = held_out(samples=20)
    with pytest.raises(DataError, match="choose entropy or agreement"):
        found_by("accuracy", held_out(labelled=False))
    with pytest.raises(MergescopeError, match="Did you mean: accuracy"):
        found_by("acuracy")
    with pytest.raises(MergescopeError, match="validation data must be of the same tasks; two"):
        found_by(validation={task: data for task, data in held.items() if task != "two"})
    with pytest.raises(MergescopeError, match="test data must be of the same tasks; more"):
        found_by(test={**held, "more": held["two"]})
    with pytest.raises(MergescopeError, match="at least one fine-tuned"):
        search_coefficients(base, {}, {}, settings=QUIET)
    with pytest.raises(MergescopeError, match="between 0 and 1"):
        found_by(confirm=1.0)
    with pytest.raises(MergescopeError, match="must be above 0"):
        found_by(upper=0.0)
    with pytest.raises(MergescopeError, match="Choose 1 to 2 groups"):
        found_by(groups=9)
    with pytest.raises(MergescopeError, match="can't be split"):
        found_by(validation=held_out(samples=1))
    wrong = {
        task: replace(data, batches=[(x, slow_wrong(task, x)) for x, _ in data.batches])
        for task, data in held.items()
    }
    with pytest.raises(PointError, match="gets none of its validation samples right"):
        found_by("accuracy", wrong)


def slow_wrong(task, inputs):
    return (slow_logits(tuned()[2][task].state_dict(), [(inputs, None)]).argmax(-1) + 1) % 5


def test_the_result_prints_and_gives_rows():
    result = found_by("loss", test=held_out(50), groups=2)
    text = str(result)
    assert f"Kept: the {result.kept}'s answer" in text and "1/2" in text and "surrogate" in text
    rows = result.rows()
    assert all(Row(network=result.network, regime="full", **row).kind == "coefficient-search" for row in rows)
    kept = [row for row in rows if row["measure"] == "coefficient" and row["parameter"] == 1]
    assert {(row["data"], row["layer"]): row["mean"] for row in kept} == result.coefficients
    assert {row["measure"] for row in rows} >= {
        "validation loss",
        "evaluated points",
        "correlation",
        "mean error",
    }
    flags = {
        row["measure"]: (row["points"], row["mean"])
        for row in rows
        if row["measure"] in ("at_end", "trusted")
    }
    assert flags == {"at_end": ("grid", result.grid.at_end), "trusted": ("surrogate", result.fit.trusted)}

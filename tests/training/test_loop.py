"""The training loop: interrupted and resumed, in parts, on schedules, and what it leaves alone."""

import copy
import math

import numpy as np
import pytest
import torch
from support import Drops, make_net
from tiny_transformers import padded, texts, tiny
from torch import nn
from torch.nn import functional as F

import mergescope as ms
from mergescope.errors import DataError, MergescopeError
from mergescope.training import loop
from mergescope.training.loop import SplitData, evaluate, train
from mergescope.training.objective import Objective
from mergescope.training.runner import OneProcess

SAMPLES = 22  # the last batch of an epoch is a smaller one
STEPS = 9  # of all recipes: three epochs


def toy(samples=SAMPLES, seed=0, classes=3):
    x = torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    labels = x.flatten(1)[:, :classes].argmax(1)
    return SplitData(ms.Split(x, labels, np.arange(samples)))


def made(kind=Drops):
    torch.manual_seed(3)
    return kind()


def recipe(**settings):
    return ms.Recipe(**{"lr": 0.05, "epochs": 3, "batch": 8} | settings)


RECIPES = {
    "sgd": recipe(),
    "adamw": recipe(optimizer="adamw", lr=1e-2, weight_decay=0.1),
    "everything": recipe(
        optimizer="adamw", lr=1e-2, weight_decay=0.05, warmup=2, schedule="cosine", clip=0.5, accumulate=3,
        label_smoothing=0.1,
    ),
}  # fmt: skip


def frozen_copy(net):
    return copy.deepcopy(net.state_dict())


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key


def assert_same_history(one, two):
    assert str(one.steps) == str(two.steps)  # NaN is the norm of gradients that are not clipped
    assert (one.evaluations, one.best) == (two.evaluations, two.best)


def saved(path):
    return torch.load(path, weights_only=True)


def assert_same_state(one, two):
    """All that a state file holds, but seconds."""
    assert one.keys() == two.keys() and (one["places"], one["key"]) == (two["places"], two["key"])
    assert_same(one["model"], two["model"])
    for name in ("random", "begun"):
        assert torch.equal(one[name], two[name])
    assert one["optimizer"]["param_groups"] == two["optimizer"]["param_groups"]
    first, second = (state["optimizer"]["state"] for state in (one, two))
    assert first.keys() == second.keys() and first
    for place, entries in first.items():
        assert entries.keys() == second[place].keys()
        for name, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second[place][name])), (place, name)


class Killed(Exception):
    pass


def kill_after(step, what="train"):
    def look(kind, numbers):
        if kind == what and numbers["step"] == step:
            raise Killed

    return look


# -- interrupted and resumed -----------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kills", [(1,), (3,), (4,), (8,), (2, 5, 7)])
def test_a_killed_run_goes_on_to_the_same_weights_bit_for_bit(tmp_path, name, every, kills):
    how = ms.Recipe(**{**RECIPES[name].__dict__, "save_every": every})
    settings = {"seed": 4, "evaluation": toy(9, 1), "key": "k", "progress": False}
    whole = made()
    history = train(whole, toy(), how, state=tmp_path / "whole", **settings)
    for step in kills:
        with pytest.raises(Killed):
            train(made(), toy(), how, state=tmp_path / "parts", on_log=kill_after(step), **settings)
    taken, last = [], made()
    resumed = train(
        last,
        toy(),
        how,
        state=tmp_path / "parts",
        on_log=lambda kind, numbers: taken.append(kind),
        **settings,
    )
    done = (kills[-1] - 1) // every * every  # the step that was killed had not been saved
    assert taken.count("train") == STEPS - done and len(resumed.steps) == STEPS
    assert_same(whole.state_dict(), last.state_dict())
    assert_same_history(history, resumed)
    assert_same_state(saved(tmp_path / "whole"), saved(tmp_path / "parts"))


def test_a_run_that_is_killed_in_an_evaluation_evaluates_again(tmp_path):
    settings = {"seed": 4, "evaluation": toy(9, 1), "progress": False, "state": tmp_path / "state"}
    whole = train(made(), toy(), recipe(), **{**settings, "state": None})
    with pytest.raises(Killed):
        train(made(), toy(), recipe(save_every=1), on_log=kill_after(6, "evaluation"), **settings)
    assert_same_history(whole, train(made(), toy(), recipe(save_every=1), **settings))


def test_a_finished_run_is_not_trained_further(tmp_path):
    settings = {"seed": 4, "state": tmp_path / "state", "progress": False, "evaluation": toy(9, 1)}
    net, taken, how = made(), [], recipe(save_every=STEPS)
    history = train(net, toy(), how, **settings)
    again = made()
    found = train(
        again, toy(), how, on_log=lambda *said: taken.append(said), on_best=taken.append, **settings
    )
    assert not taken and not again.training
    assert_same(net.state_dict(), again.state_dict())
    assert_same_history(history, found)
    assert found.seconds == history.seconds > 0


def test_a_state_is_saved_where_its_time_has_come_and_not_at_the_end(tmp_path):
    states, settings = [], {"seed": 4, "state": tmp_path / "state", "progress": False}

    def look(kind, numbers):
        if settings["state"].exists():
            states.append(saved(settings["state"])["places"][0])

    train(made(), toy(), recipe(save_every=4), on_log=look, **settings)
    assert states == [4, 4, 4, 4, 8] and saved(settings["state"])["places"][0] == 8
    train(made(), toy(), recipe(), **{**settings, "state": tmp_path / "other"})
    assert not (tmp_path / "other").exists()


def test_the_end_of_a_run_that_took_long_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SHORT", 0.0)
    train(made(), toy(), recipe(save_every=4), seed=4, state=tmp_path / "state", progress=False)
    assert saved(tmp_path / "state")["places"][0] == STEPS


def test_an_epoch_resumed_in_its_middle_sees_the_rest_of_its_samples(tmp_path):
    class Seen:
        def __init__(self):
            self.data, self.places = toy(), []

        def __len__(self):
            return len(self.data)

        def batch(self, places):
            self.places.append(places.tolist())
            return self.data.batch(places)

    whole, first, second = Seen(), Seen(), Seen()
    settings = {"seed": 4, "progress": False}
    train(made(), whole, recipe(), **settings)
    settings |= {"state": tmp_path / "state"}
    with pytest.raises(Killed):
        train(made(), first, recipe(save_every=1), on_log=kill_after(6), **settings)
    train(made(), second, recipe(save_every=1), **settings)
    assert first.places[:5] + second.places == whole.places
    for epoch in range(3):
        assert sorted(sum(whole.places[3 * epoch : 3 * epoch + 3], [])) == list(range(SAMPLES))
    assert [len(places) for places in whole.places] == [8, 8, 6] * 3


def test_the_state_of_another_training_is_refused_and_left_as_it_is(tmp_path):
    path, settings = tmp_path / "state", {"seed": 4, "progress": False}
    train(made(), toy(), recipe(save_every=1), state=path, key="one", **settings)
    before, net = path.read_bytes(), made()
    start = frozen_copy(net)
    with pytest.raises(
        MergescopeError, match="state of a training with another configuration.*Nothing was changed"
    ):
        train(net, toy(), recipe(), state=path, key="two", **settings)
    assert path.read_bytes() == before
    assert_same(net.state_dict(), start)


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_state_is_an_error_that_names_it(tmp_path, damage):
    path, settings = tmp_path / "state", {"seed": 4, "progress": False, "key": "k"}
    train(made(), toy(), recipe(save_every=1), state=path, **settings)
    whole = path.read_bytes()
    if damage == "other":  # a file of torch that holds something else
        torch.save({"weights": torch.ones(2)}, path)
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    before = path.read_bytes()
    with pytest.raises(
        MergescopeError, match=r"state, the state of an interrupted training, can't be read.*Delete it"
    ):
        train(made(), toy(), recipe(), state=path, **settings)
    assert path.read_bytes() == before


def test_a_state_runs_no_code(tmp_path):
    class Sly:
        def __reduce__(self):
            return (tmp_path / "ran").write_text, ("code",)

    torch.save({"key": "", "model": Sly()}, tmp_path / "state")
    with pytest.raises(MergescopeError, match="can't be read"):
        train(made(), toy(), recipe(), seed=0, state=tmp_path / "state", progress=False)
    assert not (tmp_path / "ran").exists()


def test_a_state_whose_network_does_not_fit_is_an_error(tmp_path):
    path, settings = tmp_path / "state", {"seed": 4, "progress": False}
    train(made(), toy(), recipe(save_every=1), state=path, **settings)
    with pytest.raises(MergescopeError, match="does not fit"):
        train(make_net("mlp"), toy(), recipe(), state=path, **settings)


# -- what a step is --------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3, 8, 100])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_accumulating_is_one_batch(parts, optimizer):
    nets, losses = [], []
    for accumulate in (1, parts):
        net = make_net("vit").double()
        data = toy()
        data = SplitData(ms.Split(data.split.inputs.double(), data.split.labels, np.arange(SAMPLES)))
        how = recipe(optimizer=optimizer, lr=1e-2, accumulate=accumulate, clip=0.5, label_smoothing=0.1)
        history = train(net, data, how, seed=4, progress=False)
        nets.append(net)
        losses.append([(entry["loss"], entry["gradient_norm"], entry["samples"]) for entry in history.steps])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)  # the loss is taken in float32
    for one, two in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


class Texts:
    """Texts of very different lengths, one of a single token, which has no next one."""

    def __init__(self):
        self.texts = texts((12, 2, 9, 3, 1, 2, 7, 4))

    def __len__(self):
        return len(self.texts)

    def batch(self, places):
        return padded([self.texts[place] for place in places]), None


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulating_texts_counts_every_token_alike(parts):
    nets, steps = [], []
    for accumulate in (1, parts):
        net = tiny("llama")
        how = recipe(lr=1e-3, batch=8, accumulate=accumulate, clip=1e6)
        steps.append(train(net, Texts(), how, seed=4, progress=False).steps)
        nets.append(net)
    for one, two in zip(*steps, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
    for one, two in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)


def test_gradients_are_scaled_down_to_the_largest_norm_and_no_further():
    norms = {}
    for clip in (None, 1e-3, 1e6):
        net = make_net("mlp")
        before = frozen_copy(net)
        history = train(net, toy(8), recipe(clip=clip, steps=1, momentum=0.0, lr=1.0), seed=4, progress=False)
        moved = math.sqrt(
            sum(float((net.state_dict()[k] - v).double().norm() ** 2) for k, v in before.items())
        )
        norms[clip] = history.steps[0]["gradient_norm"], moved
    assert math.isnan(norms[None][0]) and norms[1e-3][0] == norms[1e6][0] > 1e-3
    assert norms[1e-3][1] == pytest.approx(1e-3, rel=1e-2)
    assert norms[1e6][1] == norms[None][1] == pytest.approx(norms[1e6][0], rel=1e-3)


def torch_rates(factor, total):
    """What torch's LambdaLR sets before every step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(("warmup", "warm"), [(0, 0), (3, 3), (0.25, 3), (1, 1), (12, 12)])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_are_torchs(schedule, warmup, warm):
    total = 12

    def factor(step):
        if step < warm:
            return (step + 1) / warm
        after = (step - warm) / max(total - warm, 1)
        return {"constant": 1, "linear": 1 - after, "cosine": (1 + math.cos(math.pi * after)) / 2}[schedule]

    how = recipe(lr=0.3, warmup=warmup, schedule=schedule, steps=total)
    history = train(make_net("mlp"), toy(), how, seed=4, progress=False)
    assert [entry["lr"] for entry in history.steps] == pytest.approx(torch_rates(factor, total), rel=1e-12)


@pytest.mark.parametrize("warmup", [1.5, float("inf")])
def test_a_warm_up_of_parts_of_a_step_is_refused(warmup):
    with pytest.raises(MergescopeError, match=rf"warmup={warmup}\. A warm-up is a whole number of steps"):
        recipe(warmup=warmup)


def test_without_warm_up_schedules_are_those_that_torch_has_by_name():
    def by_name(make):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
        schedule, rates = make(optimizer), []
        for _ in range(10):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return rates

    schedulers = torch.optim.lr_scheduler
    for name, make in (
        ("linear", lambda o: schedulers.LinearLR(o, 1.0, 0.0, total_iters=10)),
        ("cosine", lambda o: schedulers.CosineAnnealingLR(o, 10)),
        ("constant", lambda o: schedulers.ConstantLR(o, 1.0)),
    ):
        rates = [recipe(lr=0.3, schedule=name).rate(step, 10) for step in range(10)]
        assert rates == pytest.approx(by_name(make), rel=1e-9), name


@pytest.mark.parametrize("classes", [None, [0, 2], [2, 0, 1]])
def test_label_smoothing_is_spread_over_the_tasks_classes(classes):
    net, data = make_net("mlp"), toy(30)
    if classes == [0, 2]:
        data.split.labels[data.split.labels == 1] = 0
    with torch.no_grad():
        logits = net(data.split.inputs).double()
    chosen = sorted(classes or range(3))
    wanted = []
    for row, label in zip(logits[:, chosen], data.split.labels.tolist(), strict=True):
        target = torch.full((len(chosen),), 0.2 / len(chosen), dtype=torch.float64)
        target[chosen.index(label)] += 0.8
        wanted.append(-(target * row.log_softmax(-1)).sum().item())
    how = recipe(lr=0.0, steps=1, batch=30, label_smoothing=0.2)
    (entry,) = train(net, data, how, seed=4, classes=classes, progress=False).steps
    assert entry["loss"] == pytest.approx(np.mean(wanted), rel=1e-5)


def test_a_smaller_last_batch_counts_by_its_samples():
    history = train(make_net("mlp"), toy(), recipe(lr=0.0), seed=4, progress=False)
    assert [entry["samples"] for entry in history.steps] == [8, 8, 6] * 3
    with torch.no_grad():
        data = toy().split
        wanted = F.cross_entropy(make_net("mlp")(data.inputs), data.labels).item()
    assert history.epoch_losses() == pytest.approx([wanted] * 3, rel=1e-5)
    assert [entry["epoch"] for entry in history.steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("none", [{"epochs": 0}, {"steps": 0}])
def test_no_epochs_leave_the_network_as_it_was(tmp_path, none):
    net = made()
    before = frozen_copy(net)
    state = tmp_path / "state"
    history = train(net, toy(), recipe(**none), seed=4, evaluation=toy(9, 1), state=state, progress=False)
    assert (history.steps, history.evaluations, history.best) == ([], [], None)
    assert_same(net.state_dict(), before)
    assert not net.training and not state.exists()


def test_steps_say_how_long_whatever_the_epochs():
    history = train(make_net("mlp"), toy(), recipe(steps=5, epochs=100), seed=4, progress=False)
    assert [entry["step"] for entry in history.steps] == [1, 2, 3, 4, 5]


def test_divergence_is_an_error_and_the_last_state_is_from_before(tmp_path):
    net = make_net("mlp")
    how = recipe(lr=1e25, epochs=5, save_every=1)
    with pytest.raises(
        MergescopeError, match=r"diverged in epoch 1, step \d+: the loss is (nan|inf).*now 1e\+25"
    ):
        train(net, toy(), how, seed=4, state=tmp_path / "state", progress=False)
    steps = saved(tmp_path / "state")["history"]["steps"]
    assert steps and all(math.isfinite(entry["loss"]) for entry in steps)
    assert not net.training


def test_nothing_to_train_is_an_error():
    with pytest.raises(DataError, match="training split is empty"):
        train(made(), toy(0), recipe(), seed=0)
    with pytest.raises(MergescopeError, match="no parameter may change"):
        train(made(), toy(), recipe(), seed=0, trainable=[])


# -- evaluation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [None, 1, 2])
def test_evaluating_leaves_training_untouched(every):
    plain, watched = made(), made()
    history = train(plain, toy(), recipe(), seed=4, progress=False)
    seen = train(watched, toy(), recipe(evaluate_every=every), seed=4, evaluation=toy(9, 1), progress=False)
    assert_same(plain.state_dict(), watched.state_dict())
    assert str(history.steps) == str(seen.steps)
    due = {None: [3, 6, 9], 1: list(range(1, 10)), 2: [2, 4, 6, 8, 9]}[every]
    assert [entry["step"] for entry in seen.evaluations] == due


def test_every_module_is_in_the_same_mode_after_an_evaluation():
    net = made()
    net.train()
    net.body.blocks[0][1].eval()  # a BatchNorm that is frozen
    modes = {name: module.training for name, module in net.named_modules()}
    before = frozen_copy(net)
    random = torch.get_rng_state()
    found = evaluate(net, toy(9, 1), Objective(net))
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert_same(net.state_dict(), before)
    assert found == evaluate(net.eval(), toy(9, 1), Objective(net))


def test_modes_are_put_back_when_an_evaluation_fails():
    net = made().train()
    with pytest.raises(DataError, match="Labels"):
        evaluate(
            net,
            SplitData(ms.Split(torch.randn(4, 1, 8, 8), torch.full((4,), 7), np.arange(4))),
            Objective(net),
        )
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_an_evaluation_is_the_mean_over_samples(batch):
    net, data = made().eval(), toy(9, 1).split
    with torch.no_grad():
        logits = net(data.inputs)
    loss, accuracy = evaluate(net, SplitData(data), Objective(net), batch=batch)
    assert loss == pytest.approx(F.cross_entropy(logits, data.labels).item(), rel=1e-5)
    assert accuracy == (logits.argmax(1) == data.labels).double().mean().item()


def test_an_evaluation_of_nothing_is_no_number():
    assert all(map(math.isnan, evaluate(made(), toy(0), Objective(made()))))


def test_the_best_is_the_most_accurate_and_then_the_one_of_least_loss(monkeypatch):
    said = iter([(0.9, 0.5), (0.8, 0.5), (0.1, 0.4), (0.8, 0.5), (2.0, 0.6), (1.0, 0.6)])
    monkeypatch.setattr(loop, "evaluate", lambda *given: next(said))
    best, net, weights = [], made(), {}

    def keep():
        best.append(len(weights))
        weights[len(weights)] = frozen_copy(net)

    history = train(
        net,
        toy(),
        recipe(steps=6, evaluate_every=1),
        seed=4,
        evaluation=toy(9, 1),
        on_best=keep,
        progress=False,
    )
    assert history.best == {"step": 6, "loss": 1.0, "accuracy": 0.6} and len(best) == 4  # steps 1, 2, 5 and 6
    assert_same(weights[3], net.state_dict())
    assert not torch.equal(weights[2]["head.weight"], net.head.weight)


def test_the_best_of_a_resumed_run_is_not_beaten_by_a_worse_one(tmp_path, monkeypatch):
    scores = {step: (1.0, accuracy) for step, accuracy in enumerate((0.5, 0.9, 0.6, 0.7, 0.8, 0.9), 1)}
    order = iter([1, 2, 3, 4, 4, 5, 6])
    monkeypatch.setattr(loop, "evaluate", lambda *given: scores[next(order)])
    settings = {"seed": 4, "evaluation": toy(9, 1), "state": tmp_path / "state", "progress": False}
    how, best = recipe(steps=6, evaluate_every=1, save_every=1), []
    with pytest.raises(Killed):
        train(
            made(), toy(), how, on_log=kill_after(4, "evaluation"), on_best=lambda: best.append(1), **settings
        )
    history = train(made(), toy(), how, on_best=lambda: best.append(2), **settings)
    assert best == [1, 1] and history.best["step"] == 2 and len(history.evaluations) == 6


# -- what does not change --------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_only_what_is_trainable_moves_and_statistics_of_frozen_norms_stay(name):
    net = made()
    chosen = [*net.head.parameters(), *net.body.blocks[1].parameters()]
    flags = [parameter.requires_grad for parameter in net.parameters()]
    before = frozen_copy(net)
    train(net, toy(), RECIPES[name], seed=4, trainable=chosen, progress=False)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]) != key.startswith(("head", "body.blocks.1")), key
    assert [parameter.requires_grad for parameter in net.parameters()] == flags


def test_statistics_move_where_one_parameter_of_the_norm_does():
    net = made()
    before = frozen_copy(net)
    train(net, toy(), recipe(), seed=4, trainable=[net.body.blocks[0][1].bias], progress=False)
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    names = ("bias", "running_mean", "running_var", "num_batches_tracked")
    assert moved == {f"body.blocks.0.1.{name}" for name in names}


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_random_state_is_left_as_it_was(tmp_path, fails):
    settings = {"seed": 4, "evaluation": toy(9, 1), "state": tmp_path / "state", "progress": False}
    torch.manual_seed(11)
    wanted = torch.get_rng_state()
    if fails:
        with pytest.raises(Killed):
            train(made_without_drawing(), toy(), recipe(save_every=1), on_log=kill_after(4), **settings)
    train(made_without_drawing(), toy(), recipe(), **settings)
    assert torch.equal(torch.get_rng_state(), wanted)


def made_without_drawing():
    with torch.random.fork_rng():
        return made()


# -- where it runs ---------------------------------------------------------------------------------


def accelerator(**settings):
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    return accelerate.Accelerator(cpu=True, **settings)


@pytest.mark.parametrize("name", RECIPES)
def test_accelerate_gives_the_same_weights(tmp_path, name):
    nets = []
    for make in (None, accelerator):
        net, runner = made(), None if make is None else make()
        inside = net if runner is None else runner.prepare(net)
        train(inside, toy(), RECIPES[name], seed=4, runner=runner, like=net, progress=False)
        nets.append(net)
    assert_same(nets[0].state_dict(), nets[1].state_dict())


def test_a_run_of_accelerate_goes_on_where_it_was_killed(tmp_path):
    how, settings = (
        recipe(optimizer="adamw", save_every=1),
        {"seed": 4, "state": tmp_path / "state", "progress": False},
    )
    whole, last = made(), made()
    train(whole, toy(), how, **{**settings, "state": None})
    for step in (2, 5):
        runner, net = accelerator(), made()
        with pytest.raises(Killed):
            train(
                runner.prepare(net), toy(), how, runner=runner, like=net, on_log=kill_after(step), **settings
            )
    runner = accelerator()
    train(runner.prepare(last), toy(), how, runner=runner, like=last, **settings)
    assert_same(whole.state_dict(), last.state_dict())


def test_bf16_autocast_runs_and_is_another_rounding():
    exact, rounded = make_net("vit"), make_net("vit")
    plain = train(exact, toy(), recipe(), seed=4, progress=False)
    runner = accelerator(mixed_precision="bf16")
    wrapped = runner.prepare(rounded)
    found = train(
        wrapped, toy(), recipe(), seed=4, runner=runner, like=rounded, evaluation=toy(9, 1), progress=False
    )
    losses = [[entry["loss"] for entry in history.steps] for history in (plain, found)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in rounded.parameters())


def test_several_processes_take_shares_of_a_batch():
    taken = []

    class Share(OneProcess):
        num_processes = 3

        def __init__(self, index):
            super().__init__(torch.device("cpu"))
            self.process_index = index

    class Seen(SplitData):
        def batch(self, places):
            taken.append(places.tolist())
            return super().batch(places)

    for index in range(3):
        train(made(), Seen(toy().split), recipe(steps=3), seed=4, runner=Share(index), progress=False)
    shares = [[taken[step + 3 * index] for index in range(3)] for step in range(3)]
    assert [[len(share) for share in step] for step in shares] == [[3, 3, 2], [3, 3, 2], [2, 2, 2]]
    assert sorted(sum(sum(shares, []), [])) == list(range(SAMPLES))

"""Options that many commands have: each of them does what they say, as its own figures and costs show."""

import json
import sys

import numpy as np
import pytest
import torch
import typer
from entered import entered
from small_families import described, make_inputs, save_task

from mergescope import data
from mergescope.cli import app
from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family
from mergescope.tracing import parts

COMMANDS = {
    "measure": ("--no-local",),
    "equations": ("--tests", "ctl"),
    "evaluate": (),
    "search": ("--grid", 0, 0.5, 1, "--no-extend"),
    "soup": (),
    "disentangle": ("--points", 3, "--distance", "kl"),
    "stitch": ("--lambdas", 0.4),
    "predict": (),
    "theorems": ("--layers", "output"),
    "curvature": ("--at", "base", "--max-steps", 2),
}
"""Commands that run models on data, and what makes them cheap."""


def having(option):
    """Those that take an option."""
    found = typer.main.get_command(app).commands
    return [name for name in found if name in COMMANDS and _takes(found[name], option)]


def _takes(command, option):
    return any(option in (*param.opts, *param.secondary_opts) for param in command.params)


def test_every_command_that_runs_models_is_here():
    found = typer.main.get_command(app).commands
    assert {name for name in found if _takes(found[name], "--batch-size")} == {*COMMANDS, "mergeability"}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Two tasks in two regimes, trained until every model is right at times."""
    folder = make_inputs(tmp_path_factory.mktemp("family"))
    for shift, task in enumerate(("left", "right")):
        save_task(folder / task, shift, train=50)
    config = read_family_config(described(folder, regimes=["full", "linearized"]))
    return plan_family(config, folder / "made").run(progress=False, device="cpu").path


@pytest.fixture(scope="module")
def typed(family):
    """A command as it is typed, which is run once: what it prints, or why it does not run."""
    known = {}

    def run(name, *more, regime="full"):
        given = ("--family", family, "--regime", regime, "--batch-size", 9)
        words = (name, *given, *COMMANDS[name], *more, "--json")
        if words not in known:
            done = entered(*words)
            known[words] = json.loads(done.stdout) if done.returncode == 0 else done.stderr
        return known[words]

    run.inputs = family.parent
    return run


def figures(found, *names):
    """All numbers of these names, in their order."""
    if isinstance(found, dict):
        own = [value for name, value in found.items() if name in names and not isinstance(value, dict)]
        return own + [number for value in found.values() for number in figures(value, *names)]
    return [number for value in found for number in figures(value, *names)] if isinstance(found, list) else []


@pytest.mark.parametrize("name", having("--seed"))
def test_the_seed_draws_intervals(typed, name):
    one, other = typed(name), typed(name, "--seed", 1)
    assert figures(one, "mean") == figures(other, "mean") != []
    assert figures(one, "low", "high") != figures(other, "low", "high")


@pytest.mark.parametrize("name", having("--dtype"))
def test_networks_compute_in_the_type_that_is_asked_for(typed, name):
    wide, narrow = (figures(typed(name, *more), "mean") for more in ((), ("--dtype", "bfloat16")))
    assert wide != narrow and len(wide) == len(narrow) and None not in narrow


@pytest.mark.parametrize("name", having("--device"))
def test_networks_are_where_they_are_asked_to_be(typed, name):
    assert "Did you mean: cuda" in typed(name, "--device", "cdua")


@pytest.mark.parametrize("name", having("--executor"))
def test_passes_are_run_by_the_executor_and_where_it_is_asked_for(typed, name, monkeypatch):
    ran, places = [], []
    for executor, run in parts.EXECUTORS.items():
        monkeypatch.setitem(
            parts.EXECUTORS, executor, lambda job, own=executor, run=run: (ran.append(own), run(job))
        )

    def usable_device(place):
        places.append(str(place))
        return torch.device("cpu")

    for module in ("mergescope.models.loading", "mergescope.tracing.trace"):
        monkeypatch.setattr(sys.modules[module], "usable_device", usable_device)
    found = typed(name, "--executor", "batched", "--device", "elsewhere")
    assert {*ran} == {"batched"} and {*places} == {"elsewhere"}
    assert figures(found, "mean") == pytest.approx(figures(typed(name), "mean"), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", having("--linearized"))
def test_models_run_in_the_linearised_network_if_asked_to(typed, name):
    if name in ("predict", "curvature"):  # nothing of second order is left there
        assert "network linearised around their base" in typed(name, "--linearized")
        return
    ordinary, asked, not_asked = (
        typed(name, *more, regime=regime)["cost"]["forward_passes"]
        for more, regime in (((), "full"), (("--linearized",), "full"), (("--no-linearized",), "linearized"))
    )
    assert asked < ordinary == not_asked  # all points follow from those of the checkpoints


@pytest.mark.parametrize("name", having("--split"))
def test_the_seed_draws_so_many_samples_of_the_split(typed, name, monkeypatch):
    tables, real = [], data.load_split

    def load_split(*arguments, **how):
        tables.append(real(*arguments, **how))
        return tables[-1]

    monkeypatch.setattr(data, "load_split", load_split)
    found = typed(name, "--split", "train", "--limit", 20, "--seed", 3, "--dry-run")["samples"]
    assert found.get("test", found) == {"left": 20, "right": 20}  # of the test split there are nine
    rows = np.sort(np.random.default_rng(3).permutation(45)[:20])
    for task in ("left", "right"):
        whole = real(data.task_spec(str(typed.inputs / task)), "train")
        assert whole.select(rows)["text"][:] in [table["text"][:] for table in tables]

"""What each of the processes does that ``accelerate launch`` starts for ``training/test_processes.py``."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from support import Drops, make_net
from tiny_transformers import PAD, T5, padded, texts, tiny
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import mergescope as ms
from mergescope import cli
from mergescope.errors import MergescopeError
from mergescope.training.linearized import linearize
from mergescope.training.loop import SplitData, evaluate, train
from mergescope.training.objective import Objective

FIRST = os.environ.get("RANK") == "0"


def toy(samples=11):
    x = torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(samples))
    return SplitData(ms.Split(x, x.flatten(1)[:, :3].argmax(1), np.arange(samples)))


class Texts:
    """Texts of very different lengths, one of a single token, which has no next one."""

    texts = texts((12, 2, 9, 3, 1, 2, 7, 4))

    def __len__(self):
        return len(self.texts)

    def batch(self, places):
        return padded([self.texts[place] for place in places]), None


class Answers(Texts):
    """The same texts, with answers of other lengths."""

    def batch(self, places):
        answers = padded([self.texts[-1 - place] for place in places])
        labels = answers["input_ids"].masked_fill(answers["attention_mask"] == 0, -100)
        return super().batch(places)[0], labels


class Idle(nn.Module):
    """A layer that no output depends on: without a gradient, weight decay leaves it alone."""

    def __init__(self):
        super().__init__()
        self.body, self.idle, self.head = make_net("mlp"), nn.Linear(4, 4), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.body(x))


def t5():
    ids = {"decoder_start_token_id": PAD, "pad_token_id": PAD}
    return T5ForConditionalGeneration(T5Config(dropout_rate=0.0, **ids, **T5))


CASES = {
    "shares of two sizes": (lambda: make_net("mlp"), toy(), {"clip": 0.5, "label_smoothing": 0.1}),
    "shares in parts": (lambda: make_net("vit"), toy(), {"accumulate": 2, "clip": 0.5}),
    "fewer samples than processes": (lambda: make_net("mlp"), toy(), {"batch": 1, "epochs": 1}),
    "no gradient": (Idle, toy(), {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1}),
    "linearised": (lambda: linearize(make_net("mlp")), toy(), {"accumulate": 2}),
    "tokens": (lambda: tiny("llama"), Texts(), {"lr": 1e-3}),
    "a share without a token": (lambda: tiny("llama"), Texts(), {"lr": 1e-3, "batch": 2, "epochs": 1}),
    "tokens in parts": (lambda: tiny("llama"), Texts(), {"lr": 1e-3, "accumulate": 2, "clip": 1.0}),
    "answers": (t5, Answers(), {"lr": 1e-3, "accumulate": 2}),
}


def recipe(**settings):
    return ms.Recipe(**{"lr": 0.05, "epochs": 2, "batch": 5} | settings)


def trained(make, data, how, runner=None, **more):
    """Train a network of its own; its weights and buffers, and what happened."""
    torch.manual_seed(0)
    network = make()
    model = network if runner is None else runner.prepare_model(network, evaluation_mode=True)
    history = train(model, data, how, seed=4, runner=runner, like=network, progress=False, **more)
    return {name: value.detach() for name, value in network.state_dict().items()}, history


def steps_are_those_of_one_process(runner):
    for name, (make, data, settings) in CASES.items():
        how = recipe(**settings)
        alone, history = trained(make, data, how, evaluation=data)
        shared, found = trained(make, data, how, runner, evaluation=data)
        for key, value in alone.items():
            assert torch.allclose(shared[key], value, rtol=1e-4, atol=2e-6), (name, key)
        for kind in ("steps", "evaluations"):
            for one, two in zip(getattr(history, kind), getattr(found, kind), strict=True):
                for what, value in one.items():
                    np.testing.assert_allclose(two[what], value, rtol=1e-4, err_msg=f"{name}: {what}")


def processes_stay_the_same(runner, folder):
    """With dropout and BatchNorm as well, and where a killed run goes on."""
    how, settings, seeds = recipe(epochs=3, save_every=1, batch=6), {"evaluation": toy(9)}, []

    def look(kind, numbers):
        if kind == "train":
            seeds.append(torch.initial_seed())

    whole, _ = trained(Drops, toy(), how, runner, on_log=look, **settings)
    own = [float(value.double().sum()) for value in whole.values()]
    assert gather_object([own]) == [own] * runner.num_processes
    assert all(one != two for one, two in zip(*gather_object([seeds]), strict=True)), "dropout is the same"

    def kill(kind, numbers):
        if numbers["step"] == 4:
            raise InterruptedError

    with suppress(InterruptedError):
        trained(Drops, toy(), how, runner, state=folder / "state", on_log=kill, **settings)
    again, _ = trained(Drops, toy(), how, runner, state=folder / "state", **settings)
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
    # What accelerate wraps, as its own loops have it, is the same network.
    torch.manual_seed(0)
    network = Drops()
    wrapped = runner.prepare(network)
    assert wrapped is not network
    train(wrapped, toy(), how, seed=4, runner=runner, like=network, progress=False, **settings)
    assert all(torch.equal(value, whole[name]) for name, value in network.state_dict().items())
    one, two = (evaluate(each, toy(), Objective(network), runner, 3) for each in (network, wrapped))
    assert one == two


def all_know_when_it_diverges(runner):
    try:
        trained(lambda: make_net("mlp"), toy(), recipe(lr=1e25, epochs=5), runner)
    except MergescopeError as error:
        said = gather_object([str(error)])
        assert said[0] == said[1] and "Training diverged in epoch 1" in said[0]
        return
    raise AssertionError("it did not diverge")


def enter(words):
    """A command as it is typed."""
    sys.argv = ["mergescope", *words]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise


def watch_writing(folder):
    """What this process opens for writing, or moves, in a folder."""
    written = []

    def look(event, given):
        if event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR) or event == "os.rename":
            written.extend([str(given[0])] if str(given[0]).startswith(str(folder)) else [])

    sys.addaudithook(look)
    return written


def main(folder):
    *commands, wrong = json.loads((folder / "commands.json").read_text())
    written = watch_writing(folder)
    for words in commands:
        enter(words)
    assert bool(written) is FIRST, written
    assert PartialState().num_processes == 2
    runner = Accelerator(cpu=True)
    torch.set_num_threads(1)
    steps_are_those_of_one_process(runner)
    processes_stay_the_same(runner, folder)
    all_know_when_it_diverges(runner)
    print("All is as it should be.", file=sys.stderr)
    enter(wrong)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

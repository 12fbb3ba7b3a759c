"""Running ``mergescope measure`` in a test, and the same numbers from transformers, one text at a time."""

import json

import pytest
import torch
import transformers
from given_models import encoded
from torch.nn import functional as F

from mergescope.protocols.measure import Settings
from mergescope.studies.given import DataOptions, Options, prepare
from mergescope.studies.measured import to_dict

COST = ("seconds", "peak_bytes", "executor")


def options(base, models, data, dtype="float32", rows=None, **settings):
    how = DataOptions(tuple(map(str, data)), **{"batch_size": 4} | (rows or {}))
    start = None if base is None else str(base)
    return Options(start, tuple(map(str, models)), how, Settings(**{"progress": False} | settings), dtype)


def run(*given, calibrate=False, **more):
    return prepare(options(*given, **more), calibrate=calibrate).run()


def said(found):
    """The results without what a run costs."""
    plain = to_dict(found)
    plain["cost"] = {key: value for key, value in plain["cost"].items() if key not in COST}
    return plain


def assert_alike(one, two, tolerance=1e-5):
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_alike(one[key], two[key], tolerance)
    elif isinstance(one, list):
        assert len(one) == len(two)
        for both in zip(one, two, strict=True):
            assert_alike(*both, tolerance)
    elif isinstance(one, float):
        assert one == pytest.approx(two, abs=tolerance)
    elif not isinstance(one, str) or "." not in one:  # sentences hold figures
        assert one == two


def loads(folder):
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder).eval()


def loss_and_accuracy(network, lines, wanted):
    """Of a classifier, one text at a time."""
    with torch.no_grad():
        logits = torch.cat([network(input_ids=encoded(line)).logits for line in lines])
    wanted = torch.tensor(wanted)
    return F.cross_entropy(logits, wanted).item(), (logits.argmax(1) == wanted).double().mean().item()


def losses(found, model, data):
    values = found.losses[model, data]
    return values["loss"].mean, values["accuracy"].mean


def next_token_loss(network, ids, first=1):
    """What transformers computes with labels=, of the tokens from the first one on."""
    wanted = ids.clone()
    wanted[:, :first] = -100
    with torch.no_grad():
        out = network(input_ids=ids, labels=wanted)
    hits = (out.logits[0, :-1].argmax(-1) == ids[0, 1:])[max(first - 1, 0) :]
    return out.loss.item(), hits.double().mean().item()

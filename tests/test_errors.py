"""Errors between processes: they arrive as they were raised."""

import pickle

import pytest

from mergescope import errors
from mergescope.errors import MergescopeError, MismatchError, RecipeError


def kinds(kind):
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


MADE = {
    MismatchError: lambda: MismatchError("They differ:", ["a", "b"], "Mend them."),
    RecipeError: lambda: RecipeError("recipe.yml:", ["line 1: what?"]),
}


@pytest.mark.parametrize("kind", list(kinds(MergescopeError)), ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling(kind):
    if kind.__module__ != errors.__name__ and kind.__init__ is not MergescopeError.__init__:
        pytest.fail(f"{kind.__name__} takes arguments of its own: make one in this test")
    error = MADE.get(kind, lambda: kind("What happened."))()
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) and vars(again) == vars(error)

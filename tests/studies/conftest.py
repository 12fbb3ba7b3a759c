"""What tests of given models share."""

import pytest


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Ten texts with two classes."""
    from given_models import labels, save_rows, texts

    return save_rows(tmp_path_factory.mktemp("data") / "reviews.csv", texts(), label=labels(10, 2))


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """A base and two fine-tunes, all with a head of two classes: names to directories."""
    from given_models import family

    return family(tmp_path_factory.mktemp("classifiers"))

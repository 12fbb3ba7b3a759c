"""Cases of merging whose outcome follows what a test plants."""

import math

import numpy as np

from mergescope.protocols.mergeability import Case, groups_of

LETTERS = "abcdefgh"


def planted(useful="conflict", units=8, networks=("Net", "Other", "Third"), noise=0.01, seed=0):
    """Pairs and triples whose average follows one figure and the number of models; another figure is random."""
    rng, out = np.random.default_rng(seed), []
    for unit in range(units):
        for group in groups_of(LETTERS, (3,), 6, 14, seed=unit):
            figures = {
                name: float(rng.uniform(0.1, 0.4)) for name in ("cosine", "conflict", "length", "base")
            }
            value = 1.2 - 0.9 * figures.get(useful, 0.0) - 0.2 * math.log2(len(group)) + rng.normal(0, noise)
            found = {"average": value, "task_arithmetic": value, "ties": value, "recovered": value}
            network = networks[unit % len(networks)]
            out.append(Case(f"f{unit}", "full", network, group, False, figures, found, {}))
    return out

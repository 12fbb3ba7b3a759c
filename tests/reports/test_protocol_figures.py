"""Figures of weight disentanglement and of stitching: what is drawn, and that nothing overlaps."""

import numpy as np
import pytest
import torch
from looking import NASTY, overlaps
from support import family, labelled_batches

import mergescope as ms
from mergescope.protocols.disentanglement import DisentanglementSettings, disentanglement
from mergescope.protocols.measure import HeldOut
from mergescope.protocols.stitching import StitchingSettings, stitch_addition, stitch_negation
from mergescope.reports.disentanglement_figures import BOX_COLOUR, disentanglement_figures
from mergescope.reports.stitching_figures import stitching_figures
from mergescope.reports.style import render

NAMES = ("one", "a task with quite a long name", NASTY, "_hidden $x_0$")


def given(count=4):
    torch.manual_seed(0)
    net = ms.ViT(image=8, patch=4, width=16, depth=3, heads=2, classes=3).eval()
    base, *models = family(net, names=("base", *"abcd"), scale=0.2)
    models = dict(zip(NAMES[:count], models, strict=False))
    test = {name: HeldOut(name, labelled_batches(10, 5, seed=i), net, name) for i, name in enumerate(models)}
    return base, models, test


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("distance", ["predictions", "kl"])
def test_every_pair_has_a_heat_map_with_the_search_box(count, distance):
    s = DisentanglementSettings(points=4, reach=2.0, distance=distance, box=(-0.5, 1.5), progress=False)
    found = disentanglement(*given(count), s)
    drawn = disentanglement_figures(found.grids)
    assert list(drawn) == ["disentanglement"]
    maps = [axes for axes in drawn["disentanglement"].axes if axes.get_xlabel()]
    assert len(maps) == len(found.grids) == count * (count - 1) // 2
    for axes, grid in zip(maps, found.grids, strict=True):
        # Task 1 goes to the right, task 2 up.
        shown = np.asarray(axes.collections[0].get_array()).reshape(4, 4)
        np.testing.assert_array_equal(shown, grid.error.T)
        (box,) = [line for line in axes.lines if line.get_color() == BOX_COLOUR]
        assert set(map(tuple, box.get_xydata())) == {(x, y) for x in (-0.5, 1.5) for y in (-0.5, 1.5)}
    assert maps[0].get_xlabel() == "α of one" and maps[0].get_ylabel().startswith("α of a task")
    amount, touching = overlaps(drawn["disentanglement"])
    assert amount > 10 and not touching


def test_every_pair_and_data_set_has_a_panel_of_curves():
    found = stitch_addition(*given(3), StitchingSettings(lams=(0.2, 0.4), progress=False))
    drawn = stitching_figures(found)
    assert list(drawn) == ["stitching-layers", "stitching-coefficients"]
    panels = [axes for axes in drawn["stitching-layers"].axes if axes.axison]
    assert len(panels) == 6
    mixed = [found.score("mixed", f"{NAMES[0]} + {NAMES[1]}", NAMES[0], f"blocks.{k}", 0.4) for k in range(3)]
    np.testing.assert_array_equal(panels[0].lines[0].get_ydata(), [score.accuracy.mean for score in mixed])
    (base,) = {tuple(line.get_ydata()) for line in panels[0].lines[3:]}
    assert base == (found.base[NAMES[0]].accuracy.mean,) * 2
    for figure in drawn.values():
        amount, touching = overlaps(figure)
        assert amount > 10 and not touching


def test_negation_is_drawn_over_coefficients_and_only_if_there_are_several():
    base, models, test = given(2)
    found = stitch_negation(base, models, test, StitchingSettings(lams=(0.0, 0.5, 1.0), progress=False))
    drawn = stitching_figures(found)
    panel = drawn["stitching-coefficients"].axes[0]
    assert list(panel.lines[0].get_xdata()) == [0.0, 0.5, 1.0]
    whole = [found.score("whole", "- one", "one", "", lam).accuracy.mean for lam in found.lams]
    assert any(np.array_equal(line.get_ydata(), whole) for line in panel.lines)
    assert not overlaps(drawn["stitching-coefficients"])[1]
    single = stitch_negation(base, models, test, StitchingSettings(lams=(0.5,), progress=False))
    assert list(stitching_figures(single)) == ["stitching-layers"]


def test_equal_results_are_equal_files():
    s = DisentanglementSettings(points=3, reach=2.0, progress=False)
    first, second = (
        render(disentanglement_figures(disentanglement(*given(2), s).grids)["disentanglement"], "svg")
        for _ in range(2)
    )
    assert first == second and first.startswith(b"<?xml")

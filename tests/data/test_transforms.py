import math

import pytest
import torch

from mergescope.data import rotate

IMAGES = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [28, 7])
@pytest.mark.parametrize("quarter", [1, 2, 3, -1, 5])
def test_quarter_turns_are_rot90_at_every_pixel(side, quarter):
    images = IMAGES[..., :side, :side]
    turned = rotate(images, 90.0 * quarter)
    torch.testing.assert_close(turned, torch.rot90(images, quarter, dims=(2, 3)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("degrees", [0, 0.0, 360, -720])
def test_whole_turns_are_the_identity_bit_for_bit(degrees):
    assert torch.equal(rotate(IMAGES, degrees), IMAGES)


@pytest.mark.parametrize("degrees", [22.5, -45.0, 67.5])
def test_a_rotation_is_bilinear_and_counter_clockwise(degrees):
    side, centre, angle = 28, 13.5, math.radians(degrees)
    turned = rotate(IMAGES[:1], degrees)[0, 0]
    for row, column in [(13, 13), (5, 20), (20, 6), (0, 0), (27, 14)]:
        # Where the pixel comes from: its place turned back, with y upwards.
        x, y = column - centre, centre - row
        back_x = x * math.cos(angle) + y * math.sin(angle)
        back_y = -x * math.sin(angle) + y * math.cos(angle)
        c, r = back_x + centre, centre - back_y
        value = 0.0
        for i in (math.floor(r), math.floor(r) + 1):
            for j in (math.floor(c), math.floor(c) + 1):
                if 0 <= i < side and 0 <= j < side:
                    value += (1 - abs(r - i)) * (1 - abs(c - j)) * IMAGES[0, 0, i, j].item()
        assert turned[row, column].item() == pytest.approx(value, abs=1e-4)


def test_many_images_are_turned_as_one_is():
    many = IMAGES[:1].expand(4099, -1, -1, -1)
    turned = rotate(many, 30)
    assert turned.shape == many.shape
    torch.testing.assert_close(turned[-1], rotate(IMAGES[:1], 30)[0], rtol=0, atol=1e-6)

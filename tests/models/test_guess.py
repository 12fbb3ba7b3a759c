import pytest
from torch import nn

from mergescope.models.guess import longest_run


def block(width=2):
    return nn.Sequential(nn.Linear(width, width), nn.ReLU())


class Block(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def test_the_longest_run_of_one_class_wins():
    net = Block(a=nn.ModuleList(block() for _ in range(3)), b=nn.ModuleList(block() for _ in range(4)))
    assert longest_run(net) == ["b.0", "b.1", "b.2", "b.3"]


def test_a_run_ends_where_the_class_changes():
    net = nn.Sequential(nn.Linear(2, 2), Block(x=block()), Block(x=block()), nn.Flatten(), Block(x=block()))
    assert longest_run(net) == ["1", "2"]


def test_sequences_are_equal_if_made_of_the_same_classes():
    stem = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    body = nn.Sequential(*(Block(x=block()) for _ in range(2)))
    head = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    assert longest_run(nn.Sequential(stem, body, head)) == ["1.0", "1.1"]
    # Stages of different length are equal, and the blocks in one of them are a part of the network only.
    stages = [nn.Sequential(*(Block(x=block()) for _ in range(depth))) for depth in (2, 5, 3)]
    assert longest_run(Block(stages=nn.Sequential(*stages))) == ["stages.0", "stages.1", "stages.2"]


def test_modules_that_every_block_has_are_no_blocks():
    experts = lambda: nn.ModuleList(block() for _ in range(8))  # noqa: E731
    net = Block(xs=nn.ModuleList(Block(experts=experts()) for _ in range(3)))
    assert longest_run(net) == ["xs.0", "xs.1", "xs.2"]


def test_lists_in_a_list_are_one_list():
    net = Block(xs=nn.ModuleList(nn.ModuleList(block() for _ in range(depth)) for depth in (1, 2)))
    assert longest_run(net) == ["xs.0.0", "xs.1.0", "xs.1.1"]


def test_numbered_attributes_are_siblings():
    net = Block(conv=nn.Conv2d(1, 1, 1), stage1=block(), stage2=block(), stage10=block(), head=block())
    assert longest_run(net) == ["stage1", "stage2", "stage10"]
    assert longest_run(Block(block_1=block(), other_2=block())) == []


def test_composed_modules_come_before_single_operations():
    net = Block(
        xs=nn.ModuleList(block() for _ in range(2)), tables=nn.ModuleList(nn.Linear(1, 1) for _ in range(9))
    )
    assert longest_run(net) == ["xs.0", "xs.1"]
    assert longest_run(Block(fc1=nn.Linear(2, 2), fc2=nn.Linear(2, 2))) == ["fc1", "fc2"]


@pytest.mark.parametrize("order", [1, -1])
def test_ties_go_to_the_outermost_then_to_the_larger(order):
    inner = Block(deep=nn.ModuleList(block(9) for _ in range(2)))
    parts = [("first", inner), ("second", nn.ModuleList(block() for _ in range(2)))][::order]
    assert longest_run(Block(**dict(parts))) == ["second.0", "second.1"]
    parts = [
        ("small", nn.ModuleList(block(2) for _ in range(2))),
        ("large", nn.ModuleList(block(3) for _ in range(2))),
    ]
    assert longest_run(Block(**dict(parts[::order]))) == ["large.0", "large.1"]


def test_what_has_no_weights_or_stands_alone_is_no_block():
    assert longest_run(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Linear(1, 1), nn.Tanh())) == []
    assert longest_run(nn.Linear(1, 1)) == []
    assert longest_run(Block(xs=nn.ModuleList([block()]))) == []

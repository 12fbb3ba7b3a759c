"""Small networks, families of checkpoints, data and stand-ins that the tests share."""

import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch
from torch import nn

import mergescope as ms


class ConvNet(nn.Module):
    """Two convolution blocks with BatchNorm and in-place ReLU, as torchvision writes them."""

    def __init__(self, width=4, classes=3):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            for i in (1, width)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Drops(nn.Module):
    """A convolution with BatchNorm, then dropout: random numbers and statistics in one network."""

    def __init__(self):
        super().__init__()
        self.body, self.drop, self.head = ConvNet(), nn.Dropout(0.4), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.drop(self.body(x)))


NETS = {
    "mlp": lambda: ms.MLP((64, 12, 10, 3)),
    "vit": lambda: ms.ViT(image=8, patch=4, width=16, depth=2, heads=2, classes=3),
    "packed vit": lambda: ms.ViT(image=8, patch=4, width=16, depth=2, heads=2, classes=3, packed=True),
    "convnet": ConvNet,
}


def make_net(kind, seed=0):
    torch.manual_seed(seed)
    return NETS[kind]().eval()


def family(net, names=("base", "a", "b", "c"), scale=0.1, seed=1):
    """Checkpoints around a network's weights: the first is exact, the others are perturbed."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for name in names:
        state = {}
        for key, value in net.state_dict().items():
            noise = torch.randn(value.shape, generator=generator) * scale if out else 0.0
            if not value.is_floating_point():
                state[key] = value + len(out)
            elif key.endswith("running_var"):
                state[key] = value * torch.exp(torch.as_tensor(noise))
            else:
                state[key] = value + noise
        out.append(ms.Checkpoint(state, name=name))
    return out


def labelled_batches(samples=10, size=4, classes=3, side=8, seed=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 1, side, side, generator=generator)
    y = torch.randint(classes, (samples,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def scalars(**values):
    """One checkpoint a name, with a single weight of that value."""
    return [ms.Checkpoint({"w": torch.tensor([float(v)])}, name=name) for name, v in values.items()]


def stand_in_for_tensorboard(monkeypatch):
    """What a writer of TensorBoard is given: the directory, name and step of every number, and that it is closed."""
    written = []

    class Writer:
        def __init__(self, folder):
            written.append(folder)

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    return written


def counted_threads(monkeypatch, module):
    """How many threads a module asks for, each time that it starts some."""
    asked = []

    class Counted(ThreadPoolExecutor):
        def __init__(self, workers):
            asked.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(module, "ThreadPoolExecutor", Counted)
    return asked

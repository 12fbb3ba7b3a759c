"""A data set of small pictures that networks can learn in seconds."""

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image

SIDE = 8


def picture(label, rng):
    """A noisy picture with a bright column where its label says."""
    pixels = rng.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:, label % SIDE] += 150
    return pixels


def write_pictures(
    folder, classes=6, train=24, test=12, sizes=(SIDE,), columns=("image", "label"), splits=("train", "test"),
    names=None,
):  # fmt: skip
    """Parquet files in the layout of the hub: train and test."""
    from PIL import Image as Pillow

    folder.mkdir(parents=True, exist_ok=True)
    features = Features({
        columns[0]: Image(),
        columns[1]: ClassLabel(names=list(names or (f"column {i}" for i in range(classes)))),
    })
    for seed, (split, count) in enumerate(zip(splits, (train, test), strict=True)):
        rng = np.random.default_rng(seed)
        labels = [label for label in range(classes) for _ in range(count)]
        pictures = [Pillow.fromarray(picture(label, rng)) for label in labels]
        pictures = [
            it.resize((sizes[place % len(sizes)], SIDE)) if len(sizes) > 1 else it
            for place, it in enumerate(pictures)
        ]
        table = Dataset.from_dict({columns[0]: pictures, columns[1]: labels}, features=features)
        table.to_parquet(str(folder / f"{split}.parquet"))
    return folder

"""MNIST from local directories: idx files and parquet as on the hub, whole and damaged."""

import gzip
import struct

import numpy as np
import pytest

import mergescope as ms
from mergescope.errors import DataError

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
RNG = np.random.default_rng(0)
DIGITS = {
    part: (RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10)
    for part, count in (("train", 200), ("test", 30))
}


def idx(array):
    header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return header + array.tobytes()


def write_idx(folder, zipped=False):
    for part, names in NAMES.items():
        for name, array in zip(names, DIGITS[part], strict=True):
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return folder


def write_parquet(folder, columns=("image", "label"), parts=("train", "test")):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({
        columns[0]: datasets.Image(),
        columns[1]: datasets.ClassLabel(num_classes=10),
    })
    (folder / "mnist").mkdir()
    for part in parts:
        images, labels = DIGITS[part]
        data = {columns[0]: list(images), columns[1]: labels.tolist()}
        path = folder / "mnist" / f"{part}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(data, features=features).to_parquet(path)
    return folder


def check(task):
    assert (len(task.train), len(task.validation), len(task.test)) == (180, 20, 30)
    images, labels = DIGITS["test"]
    np.testing.assert_array_equal(task.test.inputs.numpy()[:, 0], images.astype(np.float32) / 255)
    np.testing.assert_array_equal(task.test.labels.numpy(), labels)
    images, labels = DIGITS["train"]
    for split in (task.train, task.validation):
        np.testing.assert_array_equal(
            split.inputs.numpy()[:, 0], images[split.units].astype(np.float32) / 255
        )
        np.testing.assert_array_equal(split.labels.numpy(), labels[split.units])
    units = np.concatenate([task.train.units, task.validation.units, task.test.units])
    assert len(set(units.tolist())) == 230  # one name a digit, in all splits


@pytest.mark.parametrize("zipped", [False, True])
def test_a_directory_of_idx_files(tmp_path, zipped):
    check(ms.digits(write_idx(tmp_path, zipped)))


def test_a_directory_of_parquet_files_as_on_the_hub(tmp_path):
    check(ms.digits(str(write_parquet(tmp_path))))


@pytest.mark.parametrize("missing", [name for names in NAMES.values() for name in names])
def test_a_missing_idx_file_is_named(tmp_path, missing):
    write_idx(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=rf"has no {missing}\[\.gz\]"):
        ms.digits(tmp_path)


DAMAGE = {
    "truncated": lambda raw: raw[:-7],
    "too long": lambda raw: raw + b"more",
    "header only in part": lambda raw: raw[:6],
    "empty": lambda raw: b"",
    "wrong magic": lambda raw: b"\0\0\x09\x03" + raw[4:],
}


@pytest.mark.parametrize("name", NAMES["train"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_idx_file_is_named(tmp_path, name, damage):
    write_idx(tmp_path)
    path = tmp_path / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(DataError, match=f"{name} is not a complete idx file"):
        ms.digits(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "no gzip", "bits flipped"])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    write_idx(tmp_path, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    raw = bytearray(path.read_bytes())
    if damage == "bits flipped":
        raw[10:40] = b"\xff" * 30  # the compressed stream itself
    path.write_bytes({"truncated": raw[: len(raw) // 2], "no gzip": b"hello", "bits flipped": raw}[damage])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is not a complete idx file"):
        ms.digits(tmp_path)


def test_images_and_labels_must_be_as_many(tmp_path):
    write_idx(tmp_path)
    (tmp_path / NAMES["test"][1]).write_bytes(idx(DIGITS["test"][1][:-1]))
    with pytest.raises(DataError, match=r"\(test\): expected as many labels .*\[30, 28, 28\] and 29 labels"):
        ms.digits(tmp_path)


def test_parquet_with_other_columns_or_splits_is_refused_naming_them(tmp_path):
    for name, columns, parts, message in (
        (
            "columns",
            ("img", "label"),
            ("train", "test"),
            "needs the columns image and label in its 'train' split; it has .'img', 'label'",
        ),
        ("splits", ("image", "label"), ("train",), "no split 'test'"),
    ):
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match=message):
            ms.digits(write_parquet(tmp_path / name, columns, parts))


def test_a_truncated_parquet_file_is_a_data_error(tmp_path):
    write_parquet(tmp_path)
    path = tmp_path / "mnist" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=f"{path} can't be read as parquet.*the file is complete"):
        ms.digits(tmp_path)


def test_an_empty_directory_and_a_missing_one_are_named(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path.name} holds no tables .* and no images"):
        ms.digits(tmp_path)
    with pytest.raises(DataError, match=r"There is no directory '.*/nothing'"):
        ms.digits(tmp_path / "nothing")


def test_a_hub_id_offline_is_a_data_error():
    with pytest.raises(
        DataError, match="no file or directory 'org/absent', and datasets can't load it from the hub"
    ):
        ms.digits("org/absent")

"""Images as batches: channels, depth, sizes, a model's own preprocessing, and what can't be read."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import save_config

import mergescope as ms
from mergescope.data import encode, load_processor
from mergescope.data.heads import OWN_NETS
from mergescope.data.pictures import pixels
from mergescope.errors import DataError
from mergescope.models import net_config
from mergescope.models.nets import NETS

RNG = np.random.default_rng(0)


def table(images, labels=None):
    columns = {"image": images} | ({} if labels is None else {"label": labels})
    types = {"image": datasets.Image()} | ({} if labels is None else {"label": datasets.Value("int64")})
    return datasets.Dataset.from_dict(columns, datasets.Features(types))


def random_image(mode="L", size=(8, 8)):
    shape = size[::-1] + {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))


def saved_net(folder, net):
    return load_processor(save_config(folder, **net_config(net)), "plain")


def vit_directory(folder, channels=3, size=8, **settings):
    save_config(folder, model_type="vit", num_channels=channels, architectures=["ViTForImageClassification"])
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size, "width": size},
        "image_mean": [0.5] * channels,
        "image_std": [0.25] * channels,
    } | settings
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_pixels_for_our_own_networks_are_in_0_to_1_and_nothing_else(tmp_path):
    processor = saved_net(tmp_path, ms.ViT(image=8, patch=4, width=16, depth=1, heads=2, classes=3))
    images = [random_image() for _ in range(5)]
    data = encode(table(images, [0, 1, 2, 0, 1]), processor, batch_size=2)
    assert [tuple(batch["x"].shape) for batch in data] == [(2, 1, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8)]
    got = torch.cat([batch["x"] for batch in data])
    want = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])[:, None]
    np.testing.assert_array_equal(got.numpy(), want)
    assert data.labels.tolist() == [0, 1, 2, 0, 1] and got.dtype == torch.float32


@pytest.mark.parametrize("name", NETS)
def test_every_network_of_ours_has_a_processor(tmp_path, name):
    net = NETS[name]()
    assert name.startswith(OWN_NETS)
    processor = saved_net(tmp_path, net)
    (batch,) = encode(table([random_image("RGB", (40, 20))], [0]), processor)
    assert net.eval()(batch["x"]).shape == (1, processor.head.classes)


@pytest.mark.parametrize(("inputs", "shape"), [(16, (1, 4, 4)), (48, (3, 4, 4))])
def test_an_mlp_s_inputs_say_size_and_channels(tmp_path, inputs, shape):
    processor = saved_net(tmp_path, ms.MLP((inputs, 4, 2)))
    (batch,) = encode(table([random_image("RGB", (4, 4))], [0]), processor)
    assert tuple(batch["x"].shape[1:]) == shape


def test_an_mlp_on_something_else_than_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="takes 10 numbers, which is no square image"):
        saved_net(tmp_path, ms.MLP((10, 4, 2)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_mode_become_grey_or_rgb(tmp_path, mode, channels):
    processor = load_processor(vit_directory(tmp_path, channels), "image")
    assert processor.channels == channels
    image = random_image(mode)
    (batch,) = encode(table([image]), processor)
    plain = np.asarray(image.convert("L" if channels == 1 else "RGB"), dtype=np.float64)
    want = ((plain / 255 - 0.5) / 0.25).reshape(8, 8, channels).transpose(2, 0, 1)
    torch.testing.assert_close(batch["pixel_values"][0].double(), torch.from_numpy(want), rtol=0, atol=1e-5)


def test_sixteen_bit_images_keep_their_contrast():
    values = np.array([[0, 257], [49151, 65535]], dtype=np.uint16)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        grey = pixels(image, 1)[..., 0]
        assert grey.tolist() == [[0, 1], [191, 255]]
        assert pixels(image, 3).shape == (2, 2, 3)
    with pytest.raises(DataError, match="floating-point pixels"):
        pixels(Image.fromarray(values.astype(np.float32)), 1)


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3), (3, 3), (30, 5)])
def test_the_layout_of_tiny_images_is_not_guessed(tmp_path, size):
    processor = load_processor(vit_directory(tmp_path), "image")
    (batch,) = encode(table([Image.new("RGB", size, (255, 0, 0))]), processor)
    assert batch["pixel_values"].shape == (1, 3, 8, 8)
    means = batch["pixel_values"][0].mean((1, 2))
    torch.testing.assert_close(means, torch.tensor([2.0, -2.0, -2.0]))


def test_passes_are_the_same_whatever_is_kept_and_images_are_decoded_lazily(tmp_path, monkeypatch):
    processor = load_processor(vit_directory(tmp_path), "image")
    data = table([random_image("RGB", (9, 7)) for _ in range(5)], [0, 1, 0, 1, 0])
    kept = encode(data, processor, batch_size=2)
    again = encode(data, processor, batch_size=2, budget=0)
    decoded = []
    plain = datasets.Image.decode_example
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *a: decoded.append(1) or plain(*a))
    batches = iter(again)
    assert torch.equal(next(batches)["pixel_values"], next(iter(kept))["pixel_values"]) and len(decoded) == 2
    for one, two in zip(kept, again, strict=True):
        assert torch.equal(one["pixel_values"], two["pixel_values"]) and torch.equal(
            one["labels"], two["labels"]
        )
    assert kept.fingerprint == again.fingerprint == encode(data, processor, batch_size=5).fingerprint
    assert kept.fingerprint != encode(data.select([1, 0, 2, 3, 4]), processor).fingerprint


def test_a_file_that_changes_between_passes_is_noticed(tmp_path):
    processor = load_processor(vit_directory(tmp_path / "m"), "image")
    random_image("RGB").save(tmp_path / "1.png")
    data = encode(table([str(tmp_path / "1.png")]), processor, budget=0)
    assert len(list(data)) == 1
    random_image("RGB").save(tmp_path / "1.png")
    with pytest.raises(DataError, match="rows 0 to 0 of the data differ"):
        list(data)


def test_rows_without_an_image_are_left_out_and_told(tmp_path):
    processor = load_processor(vit_directory(tmp_path), "image")
    data = encode(table([random_image(), None, random_image()], [0, 1, 1]), processor, batch_size=2)
    assert data.rows.tolist() == [0, 2] and data.labels.tolist() == [0, 1]
    assert "left out 1 of 3 rows: no image (1)" in data.notes


def test_a_broken_image_is_named_by_its_row(tmp_path):
    processor = load_processor(vit_directory(tmp_path / "m"), "image")
    (tmp_path / "2.png").write_bytes(b"no image")
    random_image().save(tmp_path / "1.png")
    names = [str(tmp_path / name) for name in ("1.png", "1.png", "2.png")]
    with pytest.raises(
        DataError, match=r"The image in row 2 \(.*2\.png\) can't be read: UnidentifiedImageError"
    ):
        encode(table(names), processor, batch_size=2)


def test_images_of_a_plain_parquet_file_are_found_by_their_layout(tmp_path):
    processor = load_processor(vit_directory(tmp_path), "image")
    image, file = random_image("RGB"), io.BytesIO()
    image.save(file, "PNG")
    plain = datasets.Dataset.from_dict({"picture": [{"bytes": file.getvalue(), "path": None}]})
    assert torch.equal(
        next(iter(encode(plain, processor)))["pixel_values"],
        next(iter(encode(table([image]), processor)))["pixel_values"],
    )


def test_a_missing_preprocessor_is_refused_and_another_directory_will_do(tmp_path):
    model = save_config(tmp_path / "model", model_type="vit")
    with pytest.raises(DataError, match=r"model has no preprocessor_config\.json.*fine-tuned from"):
        load_processor(model, "image")
    other = vit_directory(tmp_path / "other")
    assert load_processor(model, "image", files=other).directory == other


def test_a_broken_preprocessor_is_refused(tmp_path):
    folder = vit_directory(tmp_path)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(DataError, match=r"The image preprocessor in .* can't be loaded"):
        load_processor(folder, "image")


def test_settings_that_do_not_fit_the_images_are_a_data_error(tmp_path):
    processor = load_processor(
        vit_directory(tmp_path / "a", image_mean=[0.5] * 4, image_std=[0.5] * 4), "image"
    )
    with pytest.raises(DataError, match=r"The preprocessor of .* fails on 1 image\(s\), the first of 8x8"):
        encode(table([random_image()]), processor)
    free = load_processor(vit_directory(tmp_path / "b", do_resize=False), "image")
    with pytest.raises(DataError, match="gives pixel_values of different sizes"):
        encode(table([random_image(size=(8, 8)), random_image(size=(9, 9))]), free)
    with pytest.raises(DataError, match="takes images of 4 channels"):
        load_processor(vit_directory(tmp_path / "c", channels=4), "image")


def test_a_model_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(DataError, match="how it wants its data is not known"):
        load_processor(tmp_path, "plain")


def test_an_image_model_refuses_texts(tmp_path):
    processor = load_processor(vit_directory(tmp_path), "image")
    with pytest.raises(DataError, match=r"No column holds images.*text \(string\)"):
        encode(datasets.Dataset.from_dict({"text": ["a"]}), processor)


def test_a_trace_over_encoded_images(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=3,
    )
    folder = vit_directory(tmp_path / "m")
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    processor = load_processor(folder, "image")
    assert processor.head.classes == 3
    data = encode(table([random_image() for _ in range(5)], [0, 1, 2, 0, 1]), processor, batch_size=2)
    base = ms.Checkpoint(folder)
    test = ms.ctl(base, ms.random_neighbour(base, base * 1.1, seed=0))
    traced = ms.trace(test.points, data, ms.load_model(folder), progress=False)
    assert traced.samples == 5 and traced.reading(ms.Outputs).losses(test.points[0]).shape == (5,)
    tokens = traced.reading(ms.InnerProducts).gram(traced.layers[0], test.points)
    assert tokens.shape == (5, 3, 3)


def test_a_trace_of_our_own_network_over_encoded_images(tmp_path):
    net = ms.ViT(image=8, patch=4, width=16, depth=2, heads=2, classes=3)
    data = encode(table([random_image() for _ in range(4)], [0, 1, 2, 0]), saved_net(tmp_path, net))
    base = ms.Checkpoint(net.state_dict(), name="base")
    test = ms.ctl(base, ms.random_neighbour(base, base * 1.1, seed=0))
    pairs = [(batch["x"], batch["labels"]) for batch in data]
    ours, plain = (
        ms.trace(test.points, batches, net, progress=False).reading(ms.Outputs).losses(test.points[0])
        for batches in (data, pairs)
    )
    np.testing.assert_array_equal(ours, plain)

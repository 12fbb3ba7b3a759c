import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import family, make_net, scalars

import mergescope as ms
from mergescope.errors import CheckpointError, PointError
from mergescope.merging.writer import copy_side_files, links_elsewhere


@pytest.fixture
def inputs(tmp_path):
    """Two model directories on disk, with config and tokenizer files."""
    out = []
    for name, value in (("a", 1.0), ("b", 3.0)):
        folder = tmp_path / "in" / name
        folder.mkdir(parents=True)
        save_file({"w": torch.full((4,), value)}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": name}))
        (folder / "tokenizer.json").write_text(f'"{name}"')
        (folder / "pytorch_model.bin").write_bytes(b"not to be copied")
        out.append(ms.Checkpoint(folder))
    return out


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path):
    state = {
        "f64": torch.randn(3, dtype=torch.float64),
        "f32": torch.randn(2, 3).T,  # not contiguous
        "f16": torch.randn(5).half(),
        "bf16": torch.randn(3).bfloat16(),
        "i64": torch.tensor([[1, -2]]),
        "u8": torch.tensor([1, 255], dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 7),
    }
    out = ms.save(ms.Checkpoint(state, name="m"), tmp_path / "out")
    loaded = load_file(out / "model.safetensors")
    assert set(loaded) == set(state)
    for key, value in state.items():
        assert loaded[key].dtype == value.dtype and loaded[key].shape == value.shape
        assert torch.equal(loaded[key], value)


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_a_saved_combination_reads_back_as_it_was(tmp_path, kind):
    base, a, b, _ = family(make_net(kind))
    point = base + 0.3 * ((a - base) + (b - base))
    back = ms.Checkpoint(ms.save(point, tmp_path / "out"))
    for key in point.spec:
        assert torch.equal(back.tensor(key), point.tensor(key))
    assert (back - back).is_direction and ms.Point.of(back).is_checkpoint


def test_saving_one_file_checkpoint_copies_its_tensors_bit_for_bit(inputs, tmp_path):
    out = ms.save(inputs[0], tmp_path / "out")
    assert ms.Checkpoint(out).digest == inputs[0].digest


def test_side_files_come_from_the_largest_term_and_weights_do_not(inputs, tmp_path):
    a, b = inputs
    out = ms.save(0.25 * a + 0.75 * b, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert json.loads((out / "config.json").read_text()) == {"model_type": "b"}
    assert (out / "tokenizer.json").read_text() == '"b"'
    memory = scalars(m=1)[0]
    out = ms.save(memory, tmp_path / "given", config={"model_type": "mine"})
    assert ms.Checkpoint(out).config == {"model_type": "mine"}


def test_the_header_tells_the_formula_and_the_format(inputs, tmp_path):
    a, b = inputs
    out = ms.save(0.25 * a + 0.75 * b, tmp_path / "out", metadata={"note": "mine"})
    with safe_open(out / "model.safetensors", "pt") as handle:
        assert handle.metadata() == {"format": "pt", "mergescope.point": "0.75*b + 0.25*a", "note": "mine"}
    raw = (out / "model.safetensors").read_bytes()
    assert (8 + int.from_bytes(raw[:8], "little")) % 8 == 0  # data are aligned


@pytest.mark.parametrize("make", [lambda a, b: a - b, lambda a, b: a + b, lambda a, b: 0.5 * a])
def test_what_is_no_model_is_not_saved(inputs, tmp_path, make):
    point = make(*inputs)
    with pytest.raises(PointError, match=rf"{float(point.total):g}, not 1.*Add a task vector"):
        ms.save(point, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_directory_is_kept_unless_overwriting_is_asked_for(inputs, tmp_path):
    a, b = inputs
    ms.save(a, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"out exists\..*overwrite=True"):
        ms.save(b, tmp_path / "out")
    assert ms.Checkpoint(tmp_path / "out").tensor("w")[0] == 1
    ms.save(b, tmp_path / "out", overwrite=True)
    assert ms.Checkpoint(tmp_path / "out").tensor("w")[0] == 3


@pytest.mark.parametrize("place", ["in/a", "in/../in/a", "in", "link"])
def test_an_input_is_never_written_over(inputs, tmp_path, place):
    (tmp_path / "link").symlink_to(tmp_path / "in" / "a")
    with pytest.raises(CheckpointError, match="choose another output directory"):
        ms.save(ms.mean(inputs), tmp_path / place, overwrite=True)
    assert ms.Checkpoint(tmp_path / "in" / "a").tensor("w")[0] == 1


def test_an_input_that_is_a_lone_file_is_never_written_over(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "mine.safetensors")
    theta = ms.Checkpoint(tmp_path / "mine.safetensors")
    with pytest.raises(CheckpointError, match=r"holds the input .*mine\.safetensors"):
        ms.save(theta, tmp_path, overwrite=True)
    assert torch.equal(theta.tensor("w"), torch.ones(2))


def test_a_file_in_the_way_is_named(inputs, tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(CheckpointError, match="out is a file"):
        ms.save(inputs[0], tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_stops_the_save_and_leaves_nothing(tmp_path, value):
    good = ms.Checkpoint({"fine": torch.ones(2), "head": torch.ones(1)}, name="good")
    bad = ms.Checkpoint({"fine": torch.ones(2), "head": torch.tensor([value])}, name="bad")
    with pytest.raises(CheckpointError, match=r"'head' of .*NaN or infinite.*(bad, good|good, bad)"):
        ms.save((good + bad) / 2, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_fails_in_the_middle_leaves_nothing_behind(inputs, tmp_path, monkeypatch, overwrite):
    place = tmp_path / "results"
    if overwrite:
        ms.save(inputs[0], place / "out")
    else:
        place.mkdir()

    class Full(type(inputs[0])):
        def tensor(self, key):
            raise OSError(28, "No space left on device")

    before = sorted(place.rglob("*"))
    inputs[1].__class__ = Full
    with pytest.raises(CheckpointError, match=r"Writing .*out failed, and nothing was left.*No space left"):
        ms.save(ms.mean(inputs), place / "out", overwrite=overwrite)
    assert sorted(place.rglob("*")) == before
    if overwrite:
        assert ms.Checkpoint(place / "out").tensor("w")[0] == 1


def test_a_failing_sync_leaves_nothing_behind(inputs, tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("mergescope.weights.files.os.fsync", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        ms.save(inputs[0], tmp_path / "results" / "out")
    assert list((tmp_path / "results").iterdir()) == []


def test_integer_tables_that_differ_stop_the_save(tmp_path):
    a, b = (ms.Checkpoint({"t": torch.tensor([n])}, name=f"m{n}") for n in (1, 2))
    with pytest.raises(PointError, match="'t'"):
        ms.save((a + b) / 2, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_directory_that_holds_no_model_is_never_replaced(inputs, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match=r"home holds thesis\.tex, and no model"):
        ms.save(inputs[0], tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").is_file()


def test_files_of_rarer_tokenizers_come_along(inputs, tmp_path):
    names = ("spm.model", "source.spm", "qwen.tiktoken", "bpe.codes")
    for name in names:
        (inputs[0].directory / name).write_text("x")
    out = ms.save(inputs[0], tmp_path / "out")
    assert all((out / name).is_file() for name in names)


def test_the_configuration_names_the_dtype_that_is_written(tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    save_file({"w": torch.ones(2).bfloat16(), "n": torch.ones(1).int()}, folder / "model.safetensors")
    said = {"dtype": "bfloat16", "text_config": {"torch_dtype": "bfloat16", "hidden_size": 2}}
    (folder / "config.json").write_text(json.dumps(said))
    out = ms.save(ms.Checkpoint(folder, dtype="float32"), tmp_path / "out")
    changed = {"dtype": "float32", "text_config": {"torch_dtype": "float32", "hidden_size": 2}}
    assert json.loads((out / "config.json").read_text()) == changed
    same = ms.save(ms.Checkpoint(folder), tmp_path / "same")
    assert (same / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def modules(home, *names):
    """What sentence-transformers writes beside a model: its modules, and a directory for each but the first."""
    kinds = [(name, str(name).partition("_")[2]) for name in ("", *names)]
    listed = [{"path": name, "type": f"sentence_transformers.models.{kind}"} for name, kind in kinds]
    (home / "modules.json").write_text(json.dumps(listed))


def test_modules_of_a_sentence_transformer_come_along_but_for_the_transformer(inputs, tmp_path):
    home = inputs[0].directory
    modules(home, "0_Transformer", "1_Pooling", "2_Dense")
    for name in ("0_Transformer", "1_Pooling", "2_Dense", "3_Other"):
        (home / name).mkdir()
        save_file({"linear.weight": torch.ones(2)}, home / name / "model.safetensors")
    (home / "normalizer.json").write_text("{}")
    out = ms.save(inputs[0], tmp_path / "out")
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"1_Pooling", "2_Dense"}
    assert torch.equal(load_file(out / "2_Dense" / "model.safetensors")["linear.weight"], torch.ones(2))
    assert (out / "normalizer.json").is_file() and ms.Checkpoint(out).digest == inputs[0].digest


@pytest.mark.parametrize(
    "name", ["..", "../secret", "1_x/../../secret", "1_link", ".", "/etc", "2_" + "a" * 500, 5, None]
)
def test_modules_can_not_lead_outside_the_model(inputs, tmp_path, name):
    home, secret = inputs[0].directory, tmp_path / "in" / "secret"
    for folder in (secret, home / "1_real"):
        folder.mkdir()
    (secret / "key").write_text("x")
    (home / "1_link").symlink_to(secret)
    (home / "1_real" / "key").symlink_to(secret / "key")
    modules(home, name, "1_real")
    assert not list(ms.save(inputs[0], tmp_path / "out").rglob("key"))
    assert links_elsewhere(home) == ["1_link"] * (name == "1_link") + ["1_real/key"]


def test_modules_in_the_hubs_cache_are_links_to_its_files(tmp_path):
    home = tmp_path / "models--org--a" / "snapshots" / "0123abc"
    (home / "2_Dense").mkdir(parents=True)
    (home.parent.parent / "blobs").mkdir()
    (home.parent.parent / "blobs" / "abc").write_text("{}")
    (home / "2_Dense" / "config.json").symlink_to("../../../blobs/abc")
    modules(home, "2_Dense")
    copy_side_files(home, tmp_path / "out")
    copied = tmp_path / "out" / "2_Dense" / "config.json"
    assert copied.read_text() == "{}" and not copied.is_symlink()

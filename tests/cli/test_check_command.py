"""``mergescope check`` and ``mergescope geometry``, as they are typed."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from entered import entered as run
from safetensors.torch import save_file
from support import counted_threads

import mergescope as ms
from mergescope.weights import chunks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Base, two fine-tunes, a copy of the base, a stranger, one with a NaN, in one directory."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)

    def draw():
        state = {
            f"model.layers.{i}.{name}.weight": torch.randn(16, 16, generator=generator)
            for i in range(3)
            for name in ("self_attn.q_proj", "mlp.up_proj")
        }
        return state | {"model.embed_tokens.weight": torch.randn(20, 16, generator=generator)}

    base, a, b, stranger = (draw() for _ in range(4))
    states = {
        "base": base, "a": {key: base[key] + 0.05 * a[key] for key in base},
        "b": {key: base[key] + 0.05 * (a[key] + b[key]) for key in base}, "copy": base, "stranger": stranger,
    }  # fmt: skip
    states["broken"] = states["a"] | {"model.embed_tokens.weight": torch.full((20, 16), torch.nan)}
    for name, state in states.items():
        (folder / name).mkdir()
        save_file(state, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps({"model_type": "llama", "_name_or_path": name}))
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["a", "b", "--base", "base"], 0, "Can be merged: no errors, 0 warnings."),
        (["a", "copy", "--base", "base"], 0, "1 warning."),
        (["a", "copy", "--base", "base", "--strict"], 3, "its task vector is zero"),
        (["a", "b", "--base", "base", "--strict"], 0, "Can be merged"),
        (["a", "stranger", "--base", "base"], 2, "stranger does not descend from base"),
        (["broken", "--base", "base"], 2, "Can't be merged: 1 error"),
        (["broken", "--base", "base", "--fast"], 0, "not checked: The weights were not read (--fast)"),
        (["a", "absent", "--base", "base"], 2, "can't be opened"),
    ],
)
def test_exit_codes(folder, arguments, code, said):
    done = run("check", *arguments, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr


def test_the_output_fits_80_columns_and_no_name_is_lost(folder):
    done = run("check", "a", "b", "--base", "base", cwd=folder)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(done.stdout.split())
    assert "a / base" in text and "descends" in text and "Task vectors: cosine 0.7" in text
    assert "not how good their merge is" in text and "_name_or_path" in text
    (profile,) = [line.split() for line in lines if line.split()[:2] == ["2", "512"]]
    assert [float(value) for value in profile[2:]] == pytest.approx([0.05, 0.07], abs=0.01)


def test_json_parses_and_names_every_tensor(folder):
    done = run("check", "broken", "a", "--base", "base", "--json", cwd=folder, columns=40)
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert found["mergeable"] is False and found["models"] == ["base", "broken", "a"]
    values = [finding for finding in found["findings"] if finding["topic"] == "values"]
    assert values[0]["items"] == ["model.embed_tokens.weight (320 of 320)"]


def test_a_recipe_is_checked_and_stands_alone(folder, tmp_path):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"merge_method: task_arithmetic\nbase_model: {folder / 'base'}\nmodels:\n"
        f"  - {{model: {folder / 'a'}, parameters: {{weight: 1}}}}\n"
    )
    done = run("check", recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    refused = run("check", recipe, "--base", folder / "base")
    assert refused.returncode == 2 and "give it alone" in refused.stderr
    recipe.write_text("merge_methd: linear\n")
    refused = run("check", recipe)
    assert refused.returncode == 2 and "Did you mean: merge_method" in refused.stderr
    assert run("check", tmp_path / "absent.yml").returncode == 2
    assert run("check", folder / "a").returncode == 2


def test_every_tensor_is_named_on_request(folder, tmp_path):
    state = {key: value[:8] for key, value in ms.Checkpoint(folder / "base").state_dict().items()}
    ms.save(ms.Checkpoint(state), tmp_path / "half")
    short = run("check", tmp_path / "half", folder / "base", "--fast").stdout
    full = run("check", tmp_path / "half", folder / "base", "--fast", "--all").stdout
    assert "model.layers.2.mlp.up_proj.weight" not in short and "layers.*.mlp.up_proj.weight (3)" in short
    assert "model.layers.2.mlp.up_proj.weight is [8, 16]" in full


def test_geometry_prints_tables_and_writes_figures_and_a_tidy_table(folder, tmp_path):
    done = run("geometry", "a", "b", "--base", "base", "--out", tmp_path / "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    assert "Cosine of task vectors" in done.stdout and "attention q" in done.stdout
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    names = ("distances", "similarity", "similarity-by-group")
    assert figures == {f"{name}.{suffix}" for name in names for suffix in ("svg", "png")}
    rows = pq.read_table(tmp_path / "out" / "geometry.parquet").to_pylist()
    (cosine,) = [row for row in rows if (row["scope"], row["measure"]) == ("model", "cos")]
    assert (cosine["model"], cosine["other"]) == ("a", "b") and cosine["value"] == pytest.approx(
        0.7, abs=0.06
    )
    again = run("geometry", "a", "b", "--base", "base", "--json", cwd=folder)
    assert [row["value"] for row in json.loads(again.stdout)] == [row["value"] for row in rows]


@pytest.mark.parametrize("command", ["check", "geometry"])
def test_so_many_chunks_are_worked_on_at_once(folder, command, monkeypatch):
    asked = counted_threads(monkeypatch, chunks)
    words = (command, "a", "b", "--base", "base", "--json")
    one, three = (run(*words, "--threads", count, cwd=folder).stdout for count in (1, 3))
    assert {*asked} == {3} and json.loads(one) == json.loads(three)  # one works alone


def test_geometry_of_one_model_and_of_damaged_ones(folder, tmp_path):
    done = run("geometry", "a", "--base", "base", "--out", tmp_path, cwd=folder)
    assert done.returncode == 0 and "Cosine" not in done.stdout
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"distances"}
    done = run("geometry", "broken", "--base", "base", cwd=folder)
    assert done.returncode == 2 and "model.embed_tokens.weight of broken" in done.stderr

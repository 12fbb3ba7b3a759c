"""``--family`` with published families: tiny ones in local directories, with data of their own."""

import json

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_published import make_base, make_tuned
from typer.testing import CliRunner

from mergescope.cli import app
from mergescope.data import class_words, load_split, task_spec
from mergescope.errors import MergescopeError, StudyError
from mergescope.studies.opened_families import family_models, find_family
from mergescope.studies.published import PublishedFamily


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, two fine-tunes in either layout, and images for both."""
    root = tmp_path_factory.mktemp("published")
    base = make_base(root / "models" / "base")
    make_tuned(root / "models" / "clip-vit-base-patch32_mnist", base, 1, "vision_model.")
    make_tuned(root / "models" / "svhn", base, 2, "")
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    ).save_pretrained(root / "models" / "base")
    for task in ("mnist", "svhn"):
        for split in ("train", "test"):
            rows = {"image": [], "label": []}
            for number in range(20):
                pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
                rows["image"].append(Image.fromarray(pixels))
                rows["label"].append(number % 10)
            kinds = datasets.Features({
                "image": datasets.Image(),
                "label": datasets.ClassLabel(names=list("0123456789")),
            })
            (root / task).mkdir(exist_ok=True)
            datasets.Dataset.from_dict(rows, kinds).to_parquet(root / task / f"{split}.parquet")
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def arguments(folder):
    return [
        "--family",
        f"clip8={folder / 'models'}",
        "--data",
        *(f"{t}={folder / t}" for t in ("mnist", "svhn")),
    ]


def test_a_published_family_is_measured_with_its_heads(folder):
    found = json.loads(run("measure", *arguments(folder), "--limit", 0, "--json").stdout)
    assert found["models"] == ["mnist", "svhn"] and found["base"] is not None
    family = find_family(f"clip8={folder / 'models'}", data={t: str(folder / t) for t in ("mnist", "svhn")})
    table = load_split(family.tasks["mnist"], "test")
    head = family.heads({"mnist": class_words(family.tasks["mnist"], table), "svhn": None})["mnist"]
    network = family.network("mnist", head)
    _, towers = family.towers()
    state = {name: towers["mnist"].tensor(name) for name in towers["mnist"].spec}
    network.load_state_dict(state, strict=False)
    processor = transformers.CLIPImageProcessor.from_pretrained(folder / "models" / "base")
    pixels = processor(list(table["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = network(pixel_values=pixels).logits
    wanted = torch.tensor(table["label"][:])
    (said,) = [each for each in found["losses"] if (each["model"], each["data"]) == ("mnist", "mnist")]
    assert said["loss"]["mean"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, wanted).item(), abs=1e-4
    )
    assert said["accuracy"]["mean"] == pytest.approx((logits.argmax(1) == wanted).double().mean().item())


def test_a_published_family_is_checked_and_compared(folder):
    place = folder / "models"
    assert "Can be merged" in run("check", "--family", place).stdout
    rows = json.loads(run("geometry", "--family", f"clip8={place}", "--json").stdout)
    found = {
        row["model"]: row["value"] for row in rows if (row["scope"], row["measure"]) == ("model", "norm")
    }
    base, models = family_models(str(place))
    for model in models:
        squares = (((model.tensor(k) - base.tensor(k)).double() ** 2).sum() for k in base.spec)
        assert found[model.name] == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_the_towers_of_a_published_family_are_merged(folder, tmp_path, method):
    """Into a vision model of the fine-tunes' class, with the base's processor where there is a base."""
    place, out = folder / "models", tmp_path / "merged"
    weight = 0.3 if method == "task_arithmetic" else 1
    said = run(
        "merge", "--family", place, "--method", method, "--parameter", f"weight={weight}", "--out", out
    )
    assert f"with --family {place} only" in " ".join(said.stdout.split())
    merged, info = transformers.CLIPVisionModel.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    base, models = family_models(str(place))
    entries = {key.rpartition("vision_model.")[2]: value for key, value in merged.state_dict().items()}
    assert len(entries) == len(base.spec)
    for key in base.spec:
        start, tuned = base.tensor(key), [model.tensor(key) for model in models]
        wanted = sum(tuned) / len(tuned)
        if method == "task_arithmetic":
            wanted = start + 0.3 * sum(each - start for each in tuned)
        assert torch.allclose(entries[key.rpartition("vision_model.")[2]], wanted, atol=1e-6), key
    assert "--family" in (out / "README.md").read_text()
    if method == "task_arithmetic":
        assert transformers.CLIPImageProcessor.from_pretrained(out).size


def test_clip8_is_opened_by_name_and_backbone():
    plain, large = find_family("clip8"), find_family("clip8:large-patch14")
    assert isinstance(plain, PublishedFamily) and plain.base == "openai/clip-vit-base-patch32"
    assert large.models["dtd"] == "tanganke/clip-vit-large-patch14_dtd"
    with pytest.raises(StudyError, match="no backbone 'large'"):
        find_family("clip8:large")
    assert task_spec("dtd") == plain.tasks["dtd"]


def test_what_a_published_family_can_not_do_is_told(folder):
    with pytest.raises(MergescopeError, match="measured in float32"):
        run("measure", *arguments(folder), "--dtype", "bfloat16")
    with pytest.raises(StudyError, match="--regime has no meaning"):
        run("check", "--family", folder / "models", "--regime", "full")


def test_studies_of_figures_run_on_the_papers_models_in_the_hub_s_layout(folder, tmp_path):
    """The preset that takes the papers' own models, from a local copy of two of them."""
    from mergescope.studies.rundir import RESULTS, RunDirectory, read_rows

    for study in ("ctl-fig7", "ctl-fig8", "ctl-fig9"):
        out = tmp_path / study
        run(
            "study", "run", study, "--preset", "paper", "--family", f"clip8={folder / 'models'}", "--data-root", folder,
            "--out", out, "--work", tmp_path / "work",
        )  # fmt: skip
        said = RunDirectory(out).read_run()["provenance"]
        assert {row.measure for row in read_rows(out / RESULTS)} <= {"holds", "does not hold", "inconclusive"}
        assert str(folder) not in json.dumps([step["command"] for step in said["steps"]])
        assert "--family clip8=models --data mnist=mnist svhn=svhn" in said["steps"][0]["command"]

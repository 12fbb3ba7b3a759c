"""Heads against slow computations, and backbones with heads under the tracing conventions."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn import functional as F

import mergescope as ms
from mergescope.errors import CheckpointError, DataError, MergescopeError, MismatchError
from mergescope.models.features import kind_of_model
from mergescope.models.heads import FILE, Head, linear_head, load_head, require_classes, save_head
from mergescope.models.with_head import WithHead, split_state
from mergescope.models.zero_shot import zero_shot_head

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PIXELS = {"image_size": 8, "patch_size": 4}
WORDS = ["<pad>", "<s>", "<unk>", "a", "photo", "of", "the", "cat", "dog", "big", "bird", "</s>"]
CLASSES, TEMPLATES = ("cat", "big dog", "bird"), ("a photo of a {}", "the {}")


def tiny_tokenizer(words=WORDS):
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def text_settings(positions=16):
    ids = {"eos_token_id": len(WORDS) - 1, "bos_token_id": 1, "pad_token_id": 0}
    return {
        **SIZES,
        **ids,
        "vocab_size": len(WORDS),
        "max_position_embeddings": positions,
        "projection_dim": 12,
    }


def clip(seed=0, positions=16):
    torch.manual_seed(seed)
    config = transformers.CLIPConfig(
        text_config=text_settings(positions),
        vision_config={**SIZES, **PIXELS, "projection_dim": 12},
        projection_dim=12,
    )
    return transformers.CLIPModel(config).eval()


def text_tower(whole):
    tower = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text_settings()))
    tower.load_state_dict({k: v for k, v in whole.state_dict().items() if k.startswith("text_")})
    return tower.eval()


def make(model, tokenizer=None, classes=CLASSES, templates=TEMPLATES, scale=0.7, **more):
    tokenizer = tokenizer or tiny_tokenizer()
    return zero_shot_head(model, tokenizer, classes, templates, logit_scale=scale, **more)


@torch.no_grad()
def slow_rows(model, classes, templates, scale):
    """One prompt at a time, no padding, sums in float64, from the tower's hidden states."""
    tower = text_tower(model)
    projection = tower.text_projection.weight.double()
    rows = []
    for name in classes:
        total = torch.zeros(12, dtype=torch.float64)
        for template in templates:
            ids = [1, *(WORDS.index(word) for word in template.format(name).split()), len(WORDS) - 1]
            hidden = tower.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1].double()
            embedding = projection @ hidden
            total += embedding / embedding.norm()
        mean = total / len(templates)
        rows.append(mean / mean.norm() * torch.tensor(scale, dtype=torch.float64).exp())
    return torch.stack(rows)


def test_a_zero_shot_head_is_what_the_formula_says():
    model = clip()
    head = make(model)
    torch.testing.assert_close(
        head.weight.double(), slow_rows(model, CLASSES, TEMPLATES, 0.7), rtol=1e-5, atol=1e-6
    )
    assert (head.policy, head.classes, head.bias, head.normalise) == ("zero-shot", CLASSES, None, True)
    assert not head.weight.requires_grad
    one = make(model, templates=TEMPLATES[:1])
    torch.testing.assert_close(
        one.weight.double(), slow_rows(model, CLASSES, TEMPLATES[:1], 0.7), rtol=1e-5, atol=1e-6
    )


def test_zero_shot_logits_are_clips_own():
    model, tokenizer = clip(), tiny_tokenizer()
    pixels = torch.randn(4, 3, 8, 8)
    scale = float(model.logit_scale.detach())
    vision = transformers.CLIPVisionModelWithProjection(model.config.vision_config)
    vision.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith("vi")})
    network = WithHead(vision, make(model, tokenizer, templates=("{}",), scale=scale)).eval()
    inputs = tokenizer(list(CLASSES), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], pixel_values=pixels
        )
        torch.testing.assert_close(
            network(pixel_values=pixels).logits, expected.logits_per_image, rtol=1e-4, atol=1e-5
        )


def test_permuted_classes_permute_rows_and_batches_change_nothing(monkeypatch):
    model = clip()
    head, turned = make(model), make(model, classes=CLASSES[::-1])
    torch.testing.assert_close(turned.weight, head.weight.flip(0), rtol=1e-6, atol=1e-7)
    assert turned.classes == CLASSES[::-1] and turned.digest != head.digest
    monkeypatch.setattr("mergescope.models.zero_shot.BATCH", 1)
    torch.testing.assert_close(make(model).weight, head.weight, rtol=1e-5, atol=1e-6)


def test_the_key_is_the_content():
    model = clip()
    digest = make(model).digest
    assert len(digest) == 64 and make(clip()).digest == digest
    assert make(text_tower(model)).digest == digest, "only the text tower counts"
    tokenizer = tiny_tokenizer()
    tokenizer(["cat", "the big dog"], padding=True, truncation=True, max_length=8)
    assert make(model, tokenizer).digest == digest, "what a tokenizer was asked before does not count"
    seeing = clip()
    seeing.visual_projection.weight.data += 1
    assert make(seeing).digest == digest
    reading = clip()
    reading.text_projection.weight.data[0, 0] += 1e-3
    changed = {
        "template": make(model, templates=("a photo of a {}", "a {}")).digest,
        "class": make(model, classes=("cat", "big dog", "the bird")).digest,
        "scale": make(model, scale=0.8).digest,
        "weights": make(reading).digest,
        "tokenizer": make(model, tiny_tokenizer([*WORDS[:3], "photo", "a", *WORDS[5:]])).digest,
    }
    settings = {"hidden_act": "gelu", "num_attention_heads": 4, "layer_norm_eps": 1e-6, "eos_token_id": 2}
    for name, value in settings.items():  # the weights do not tell them
        other = clip()
        setattr(other.config.text_config, name, value)
        changed[name] = make(other).digest
    assert len({digest, *changed.values()}) == 1 + len(changed)


def test_a_cached_head_is_used_and_a_changed_template_makes_another(tmp_path, monkeypatch):
    model = clip()
    head = make(model, cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    mtime = (folder / FILE).stat().st_mtime_ns

    def refuse(*args, **kwargs):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr("mergescope.models.zero_shot._embed", refuse)
        again = make(model, cache=tmp_path)
    assert torch.equal(again.weight, head.weight) and again.digest == head.digest
    assert (folder / FILE).stat().st_mtime_ns == mtime
    make(model, templates=("the {}",), cache=tmp_path)
    other = next(path for path in tmp_path.iterdir() if path != folder)
    (folder / FILE).write_bytes((other / FILE).read_bytes())
    with pytest.raises(CheckpointError, match="another head than its name says"):
        make(model, cache=tmp_path)
    (folder / FILE).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="can't be read as a head"):
        make(model, cache=tmp_path)


def test_prompts_that_make_no_head_are_refused():
    model = clip()
    with pytest.raises(DataError, match="got 0 names"):
        make(model, classes=())
    with pytest.raises(DataError, match="'a photo' must have one {}"):
        make(model, templates=("a photo",))
    with pytest.raises(MismatchError, match="class 2 is called 'cat', as class 0 is"):
        make(model, classes=("cat", "dog", "cat"))
    with pytest.raises(
        DataError, match=r"'the big big big big big bird' has 9 tokens, but the text tower takes 8"
    ):
        make(clip(positions=8), classes=("cat", "big big big big big bird"), templates=("the {}",))
    with pytest.raises(DataError, match="same tokens of the classes 'fish' and 'frog'"):
        make(model, classes=("cat", "fish", "frog"))
    with pytest.raises(DataError, match="tokens up to 12, but the text tower knows 12"):
        make(model, tiny_tokenizer([*WORDS[:-1], "fish", "</s>"]))
    plain = transformers.CLIPTextModel(transformers.CLIPTextConfig(**text_settings()))
    with pytest.raises(MergescopeError, match="CLIPTextModel gives no text embeddings"):
        make(plain)


def test_the_text_tower_is_left_in_its_mode():
    model = clip().train()
    model.vision_model.eval()
    make(model)
    assert model.training and not model.vision_model.training


def test_linear_heads_depend_on_the_seed_only():
    one, same, other = (linear_head(8, CLASSES, seed) for seed in (1, 1, 2))
    assert torch.equal(one.weight, same.weight) and one.digest == same.digest != other.digest
    assert not torch.equal(one.weight, other.weight) and not one.bias.any()
    assert 0.5 < float(linear_head(1000, ["a", "b"], 0).weight.norm(dim=1).mean()) < 1.5
    with pytest.raises(MergescopeError, match="can't be 'zero-shot'"):
        linear_head(8, CLASSES, 0, "zero-shot")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ("a", "b")}, r"weight: \[3, 12\], expected \[2, dim\]"),
        ({"classes": ("a", "b", " ")}, "class 2 has an empty name"),
        ({"classes": ("a", "b", "a")}, "class 2 is called 'a'"),
        ({"bias": torch.zeros(2)}, r"bias: \[2\], expected \[3\]"),
        ({"weight": torch.full((3, 12), float("nan"))}, "weight: NaN"),
    ],
)
def test_heads_that_are_none_are_refused(change, message):
    given = {"policy": "given", "weight": torch.zeros(3, 12), "classes": ("a", "b", "c"), **change}
    with pytest.raises(MismatchError, match=message):
        Head(**given)
    with pytest.raises(MergescopeError, match=r"no head policy 'zeroshot'\. Did you mean: zero-shot"):
        Head("zeroshot", torch.zeros(1, 1), ("a",))


def test_classes_of_head_and_data_must_agree():
    head = linear_head(4, CLASSES, 0)
    require_classes(head, list(CLASSES), "the data")
    with pytest.raises(MismatchError, match="3 classes in the head, 2 in pets"):
        require_classes(head, CLASSES[:2], "pets")
    with pytest.raises(MismatchError, match="label 1: 'big dog' in the head, 'dog' in pets"):
        require_classes(head, ("cat", "dog", "bird"), "pets")
    many = linear_head(4, [f"x{n}" for n in range(20)], 0)
    with pytest.raises(MismatchError, match="and 15 more"):
        require_classes(many, [f"y{n}" for n in range(20)], "pets")


@pytest.mark.parametrize("policy", ["trained", "frozen-random", "zero-shot"])
def test_a_head_survives_the_disk(tmp_path, policy):
    head = make(clip()) if policy == "zero-shot" else linear_head(12, CLASSES, 3, policy)
    assert save_head(tmp_path / "new", head) == tmp_path / "new" / FILE
    loaded = load_head(tmp_path / "new")
    for field in dataclasses.fields(Head):
        one, other = getattr(head, field.name), getattr(loaded, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_files_that_hold_no_head_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="has no head"):
        load_head(tmp_path)
    save_file({"weight": torch.zeros(2, 3)}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="can't be read as a head: KeyError"):
        load_head(tmp_path)
    path = save_head(tmp_path, linear_head(3, ["a", "b"], 0))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"head\.safetensors can't be read as a head"):
        load_head(tmp_path)


def _bert():
    return transformers.BertModel(transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **SIZES))


def _vit():
    return transformers.ViTModel(transformers.ViTConfig(num_channels=3, **SIZES, **PIXELS))


def _vision():
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES, **PIXELS))


def _llama():
    config = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, pad_token_id=0, **SIZES)
    return transformers.LlamaModel(config)


def _resnet():
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    return transformers.ResNetModel(config)


def texts():
    ids = torch.randint(3, 50, (3, 6), generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask}


def images():
    return {"pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(4))}


def masked_mean(output, mask):
    return torch.stack([
        row[: int(n)].mean(0) for row, n in zip(output.last_hidden_state, mask.sum(1), strict=True)
    ])


def last_token(output, mask):
    return torch.stack([
        row[int(n) - 1] for row, n in zip(output.last_hidden_state, mask.sum(1), strict=True)
    ])


BACKBONES = {
    "bert": (_bert, texts, masked_mean),
    "llama": (_llama, texts, last_token),
    "vit": (_vit, images, lambda output, mask: output.last_hidden_state[:, 0]),
    "clip vision": (_vision, images, lambda output, mask: output.pooler_output),
    "resnet": (_resnet, images, lambda output, mask: output.last_hidden_state.mean((2, 3))),
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_each_family_is_pooled_by_its_convention(kind):
    build, batch, pooled = BACKBONES[kind]
    backbone, inputs = build().eval(), batch()
    head = linear_head(16, CLASSES, 0)
    with torch.no_grad():
        output = backbone(**inputs)
        expected = pooled(output, inputs.get("attention_mask"))
        found = WithHead(backbone, head).eval()(**inputs)
    torch.testing.assert_close(found.embedding, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.logits, expected @ head.weight.T + head.bias, rtol=1e-5, atol=1e-6)


def test_the_embedding_is_that_of_a_forward_pass_wherever_a_prompt_ends():
    model, inputs = WithHead(_bert(), linear_head(16, CLASSES, 0)).eval(), texts()
    ends = inputs["attention_mask"].clone()
    ends[:, 0] = 0
    with torch.no_grad():
        assert torch.equal(model.embedding({**inputs, "token_mask": ends}), model(**inputs).embedding)


def test_a_normalising_head_sees_directions_only():
    head = Head("given", torch.randn(3, 4), CLASSES, normalise=True)
    model = WithHead(nn.Identity(), head)
    x = torch.randn(5, 4)
    torch.testing.assert_close(model(x).logits, model(7 * x).logits)
    torch.testing.assert_close(model(x).logits, F.normalize(x, dim=1) @ head.weight.T)


@pytest.mark.parametrize("kind", ["bert", "vit", "clip vision"])
def test_points_of_backbones_are_traced_through_one_fixed_head(kind, tmp_path):
    build, batch, _ = BACKBONES[kind]
    batch = batch()
    checkpoints = []
    for seed in range(2):
        torch.manual_seed(seed)
        build().save_pretrained(tmp_path / str(seed))
        checkpoints.append(ms.Checkpoint(tmp_path / str(seed)))
    model = WithHead(ms.load_model(tmp_path / "0"), linear_head(16, CLASSES, 0, "frozen-random")).eval()
    a, b = (model.view(checkpoint) for checkpoint in checkpoints)
    middle = ms.lerp(a, b, 0.5)
    labelled = batch | {"labels": torch.tensor([0, 1, 2])}
    readings = [ms.InnerProducts(), ms.Outputs()]
    traced = ms.trace([a, b, middle], [labelled], model, fixed=model.head_entries, readings=readings)
    assert traced.layers[-1] == "output" and len(traced.layers) == 3
    assert all(layer.startswith("backbone.") for layer in traced.layers[:-1])
    assert traced.features.kind == kind_of_model(model) == kind_of_model(model.backbone)
    out = ms.save(middle, tmp_path / "middle")
    assert set(ms.Checkpoint(out).spec) == set(a.spec)
    ms.load_weights(model.backbone, ms.lerp(*checkpoints, 0.5))
    with torch.no_grad():
        expected = model(**batch).logits.double()
    gram = traced.reading(ms.InnerProducts).gram("output", [middle])[:, 0, 0]
    torch.testing.assert_close(torch.from_numpy(gram), (expected**2).sum(1), rtol=1e-5, atol=1e-9)


def test_a_heads_policy_decides_what_trains():
    batch = texts()
    for policy in ("trained", "frozen-random", "given"):
        given = Head(policy, torch.randn(3, 16), CLASSES, torch.zeros(3))
        model = WithHead(_bert(), given)
        assert model.head_entries == {"head.weight", "head.bias"}
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        body = model.backbone.embeddings.word_embeddings.weight.detach().clone()
        F.cross_entropy(model(**batch).logits, torch.tensor([0, 1, 2])).backward()
        optimizer.step()
        now, moved = model.current_head, policy == "trained"
        assert now.policy == policy and (now.digest != given.digest) == moved
        assert torch.equal(now.weight, given.weight) != moved
        assert not torch.equal(model.backbone.embeddings.word_embeddings.weight, body)


@pytest.mark.parametrize(
    "name", ["full", "attention-1", "linearized", pytest.param("lora", marks=pytest.mark.peft)]
)
@pytest.mark.parametrize("policy", ["trained", "frozen-random"])
def test_every_regime_trains_a_backbone_with_a_head(name, policy):
    from mergescope.training.regimes import regime

    if name == "lora":
        pytest.importorskip("peft")
    model = WithHead(_vision(), linear_head(16, CLASSES, 0, policy))
    start = {key: value.clone() for key, value in model.state_dict().items()}
    limits = {"also": ("head",)} if policy == "trained" else {"frozen": ("head",)}
    chosen = regime(name, **limits)
    trained = chosen.prepare(model)
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(trained(**images()).logits, torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    state = chosen.state(trained)
    assert set(state) == set(start)
    moved = {key for key in start if not torch.equal(start[key], state[key].detach())}
    assert (
        {"head.weight", "head.bias"} <= moved
        if policy == "trained"
        else not moved & {"head.weight", "head.bias"}
    )
    assert any(key.startswith("backbone.") and "self_attn" in key for key in moved)
    body, head = split_state(model, state=state)
    assert len(body) == len(start) - 2 and head.policy == policy


def test_a_frozen_head_that_changed_is_noticed():
    model = WithHead(_bert(), linear_head(16, CLASSES, 0, "frozen-random"))
    assert split_state(model.to(torch.bfloat16))[1] is model.task_head, "rounding is no change"
    with torch.no_grad():
        model.head.bias += 1
    with pytest.raises(MergescopeError, match="frozen-random head was changed: head.bias"):
        split_state(model)


def test_a_state_dict_from_elsewhere_is_taken_apart_too():
    model = WithHead(_bert(), linear_head(16, CLASSES, 0))
    state = {name: value + 1 for name, value in model.state_dict().items()}
    body, head = split_state(model, state=state)
    torch.testing.assert_close(body["pooler.dense.bias"], model.backbone.pooler.dense.bias + 1)
    torch.testing.assert_close(head.bias, torch.ones(3))


def test_a_network_is_taken_apart_under_the_names_of_its_base(tmp_path):
    _vision().save_pretrained(tmp_path)
    base = ms.Checkpoint(tmp_path)
    model = WithHead(ms.load_model(tmp_path), linear_head(16, CLASSES, 0))
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter += 1
    state, head = split_state(model, model.view(base).names)
    assert set(state) == set(base.spec) and head.classes == CLASSES
    for key, value in state.items():
        torch.testing.assert_close(value, base.tensor(key) + 1)
    key = next(iter(state))
    state[key].zero_()
    assert split_state(model, model.view(base).names)[0][key].any(), "the state is a copy"


def test_another_tasks_head_is_left_out_of_the_view_and_other_tensors_are_not():
    backbone = _bert()
    state = {f"bert.{key}": value for key, value in backbone.state_dict().items()}
    model = WithHead(_bert(), linear_head(16, CLASSES, 0))
    whole = ms.Checkpoint(state | {"classifier.weight": torch.zeros(2, 16)}, name="whole")
    view = model.view(whole)
    assert set(view.spec) == {name for name in model.state_dict() if name not in model.head_entries}
    with pytest.raises(MismatchError, match="adapter.up: not in the network"):
        model.view(ms.Checkpoint(state | {"adapter.up": torch.zeros(2)}, name="odd"))
    del state["bert.encoder.layer.1.output.dense.bias"]
    with pytest.raises(MismatchError, match="encoder.layer.1.output.dense.bias: missing"):
        model.view(ms.Checkpoint(state, name="short"))


def test_heads_for_other_backbones_are_refused():
    with pytest.raises(MismatchError, match="takes embeddings of length 8, the backbone gives 16"):
        WithHead(_bert(), linear_head(8, CLASSES, 0))(**texts())
    t5 = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(MergescopeError, match="T5Model writes its answers"):
        WithHead(transformers.T5Model(t5), linear_head(8, CLASSES, 0))


def test_the_same_head_is_the_same_bytes(tmp_path):
    head = linear_head(4, ("a", "b"), seed=0)
    one, two = (save_head(tmp_path / name, head).read_bytes() for name in ("one", "two"))
    assert one == two and load_head(tmp_path / "one").digest == head.digest

"""Published families of language models: miniature copies of T5-base and Llama-2-13B with their fine-tunes."""

import json
import pickle
import shutil

import given_models
import pytest
import torch
import transformers
from miniature_hub import ROWS, hub
from torch.nn import functional as F
from typer.testing import CliRunner

import mergescope as ms
from mergescope.cli import app
from mergescope.data.registry import FAMILIES
from mergescope.errors import DataError, MergescopeError, MismatchError, StudyError
from mergescope.studies.base_rows import BaseRows, with_base_rows
from mergescope.studies.opened_families import family_models, find_family
from mergescope.studies.published import DECLARED, copies_in, open_family

VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return hub(tmp_path_factory.mktemp("hub"))


def run(*arguments):
    """In this process; errors of ours come through."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    if isinstance(result.exception, MergescopeError):
        raise result.exception
    return result


def loaded(root, name, kind="AutoModelForCausalLM"):
    return getattr(transformers, kind).from_pretrained(root / "models" / name, dtype=torch.float32).eval()


# -- what they are ---------------------------------------------------------------------------------


def test_families_name_their_models_as_the_hub_does():
    six, llama = open_family("t5-six"), open_family("llama2-13b")
    assert six.base == "google-t5/t5-base" and tuple(six.models) == tuple(six.tasks) == FAMILIES["t5-six"]
    assert six.models["squad"] == "mrm8488/t5-base-finetuned-squadv2" and six.executor == "auto"
    assert llama.base == "meta-llama/Llama-2-13b-hf" and llama.executor == "streamed" and not llama.tasks
    assert llama.models["wizardlm"] == "WizardLMTeam/WizardLM-13B-V1.2" and llama.data == ("wikitext",)
    pinned = open_family("t5-six", revisions={"base": "v1", "race": "abc"})
    assert pinned.base.endswith("@v1") and pinned.models["race"].endswith("@abc")


@pytest.mark.parametrize("name", DECLARED)
def test_directories_may_be_called_by_tasks_or_as_on_the_hub(tmp_path, name):
    declared = DECLARED[name]
    first, second, *_ = declared.models
    named = declared.named(declared.backbones[0])
    by_task, as_on_hub = tmp_path / "tasks", tmp_path / "hub"
    (by_task / "base").mkdir(parents=True)
    (by_task / first).mkdir()
    (by_task / named[second].rpartition("/")[2]).mkdir()
    found = open_family(name, directory=by_task)
    assert set(found.models) == {first, second} and found.base == str(by_task / "base")
    assert not copies_in(by_task, name)
    for what in ("base", second):
        (as_on_hub / named[what].rpartition("/")[2]).mkdir(parents=True)
        assert copies_in(as_on_hub, name) is (what == second)
    (as_on_hub / "another-model").mkdir()
    found = find_family(f"{name}={as_on_hub}")
    assert list(found.models) == [second] and found.base.startswith(str(as_on_hub))


def test_what_is_not_there_is_told(tmp_path, root):
    with pytest.raises(StudyError, match=r"no family 't5-sixx'\. Did you mean: t5-six"):
        find_family("t5-sixx")
    with pytest.raises(StudyError, match=r"t5-six has no backbone 'large'\. It is of one network"):
        find_family("t5-six:large")
    with pytest.raises(StudyError, match="no directory 'nowhere' with the models of llama2-13b"):
        find_family("llama2-13b=nowhere")
    with pytest.raises(StudyError, match=r"holds no family: expected a directory base .*\(or t5-base\)"):
        find_family(f"t5-six={tmp_path}")
    with pytest.raises(StudyError, match=r"data names 'imbd', .* Did you mean: imdb"):
        find_family("t5-six", data={"imbd": "x"})
    with pytest.raises(DataError, match="no directory 'nowhere' with the data of the task wikitext"):
        find_family("llama2-13b", data={"wikitext": "nowhere"})
    with pytest.raises(StudyError, match=r"task mnist is image-classification, and .* text-to-text or text-"):
        (tmp_path / "base").mkdir()
        (tmp_path / "mnist").mkdir()
        find_family(f"t5-six={tmp_path}")
    with pytest.raises(StudyError, match="--regime has no meaning"):
        run("check", "--family", f"t5-six={root / 'models'}", "--regime", "full")


# -- T5 --------------------------------------------------------------------------------------------


def t5_arguments(root):
    return [
        "--family",
        f"t5-six={root / 'models'}",
        "--data",
        f"imdb={root / 'imdb'}",
        f"squad={root / 'squad'}",
    ]


def test_t5_is_compared_at_the_mean_of_the_encoder_and_the_first_token_of_the_decoder(root):
    found = json.loads(run("equations", *t5_arguments(root), "--tests", "eq3", "--json").stdout)
    (test,) = [each for each in found["tests"] if each["data"] == ["imdb"]]
    names = ("t5-base", "t5-base-finetuned-imdb-sentiment")
    base, tuned = (loaded(root, name, "T5ForConditionalGeneration") for name in names)
    tokenizer = transformers.AutoTokenizer.from_pretrained(root / "models" / "t5-base")
    ends = []
    for sign in (1, -1):
        network = transformers.T5ForConditionalGeneration(base.config).eval()
        with torch.no_grad():
            for entry, start, end in zip(
                network.parameters(), base.parameters(), tuned.parameters(), strict=True
            ):
                entry.copy_(start + sign * 0.4 * (end - start))
        ends.append(network)
    cosines = {"encoder.block.0": [], "decoder.block.0": []}
    for line in given_models.texts(20):
        ids = torch.tensor([tokenizer(f"sentiment: {line}")["input_ids"]])

        def features(network, ids=ids):
            with torch.no_grad():
                said = network(
                    input_ids=ids, decoder_input_ids=torch.zeros(1, 1).long(), output_hidden_states=True
                )
            encoder = said.encoder_hidden_states[1].mean(1)[0]
            return {"encoder.block.0": encoder, "decoder.block.0": said.decoder_hidden_states[1][0, 0]}

        middle, plus, minus = map(features, (base, *ends))
        for layer, values in cosines.items():
            mixed = (plus[layer] + minus[layer]) / 2
            values.append(F.cosine_similarity(middle[layer], mixed, dim=0).item())
    for layer, values in cosines.items():
        (entry,) = [each for each in test["layers"] if each["layer"] == layer]
        assert entry["cos"]["mean"] == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_models_that_were_saved_by_other_versions_run_through_one_network(root):
    found = json.loads(run("measure", *t5_arguments(root), "--limit", 4, "--json").stdout)
    assert found["models"] == ["imdb", "squad"] and found["base"] is not None
    (note,) = [note for note in found["notes"] if "not part of the body" in note]
    assert "relative_attention_bias" in note and note.endswith("of squad")


def test_families_of_texts_are_checked_and_compared(root):
    place = f"t5-six={root / 'models'}"
    assert "Can be merged" in run("check", "--family", place).stdout
    base, models = family_models(place)
    assert [model.name for model in models] == ["imdb", "squad"]
    assert {tuple(model.spec) for model in models} == {tuple(base.spec)} and base.config["model_type"] == "t5"
    rows = json.loads(run("geometry", "--family", place, "--json").stdout)
    (norm,) = [
        row["value"] for row in rows
        if (row["scope"], row["measure"], row["model"]) == ("model", "norm", "squad")
    ]  # fmt: skip
    start, tuned = (
        loaded(root, name, "T5ForConditionalGeneration") for name in ("t5-base", "t5-base-finetuned-squadv2")
    )
    with torch.no_grad():
        pairs = zip(start.parameters(), tuned.parameters(), strict=True)
        length = float(sum((a - b).double().square().sum() for a, b in pairs)) ** 0.5
    assert norm == pytest.approx(length, rel=1e-5)


def test_families_of_texts_are_merged_however_they_were_saved(root, tmp_path):
    run("merge", "--family", f"t5-six={root / 'models'}", "--method", "linear", "--out", tmp_path / "m")
    names = ("t5-base-finetuned-imdb-sentiment", "t5-base-finetuned-squadv2")
    one, other = (loaded(root, name, "T5ForConditionalGeneration").state_dict() for name in names)
    merged = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "m")
    assert merged.config.tie_word_embeddings is not False  # its outputs are scaled if they are tied
    for name, value in merged.state_dict().items():
        assert torch.allclose(value, (one[name] + other[name]) / 2, atol=1e-6), name


# -- Llama -----------------------------------------------------------------------------------------


def llama_arguments(root):
    texts = given_models.save_rows(root / "texts.csv", given_models.texts(12, longest=9))
    return ["--family", f"llama2-13b={root / 'models'}", "--data", texts, "--no-local"]


def test_llama_is_streamed_and_compared_on_the_rows_of_its_base(root, tmp_path):
    arguments = llama_arguments(root)
    found = json.loads(run("measure", *arguments, "--json").stdout)
    assert f"wizardmath has {ROWS + 1} rows for tokens" in " ".join(found["notes"])
    losses = {said["model"]: said["loss"]["mean"] for said in found["losses"]}
    cut = loaded(root, "WizardMath-13B-V1.0")
    cut.resize_token_embeddings(ROWS)
    lines = given_models.texts(12, longest=9)
    for name, network in (("wizardmath", cut), ("wizardlm", loaded(root, "WizardLM-13B-V1.2"))):
        with torch.no_grad():
            slow = [
                network(given_models.encoded(line), labels=given_models.encoded(line)).loss for line in lines
            ]
        assert losses[name] == pytest.approx(float(sum(slow)) / len(slow), abs=1e-4)
    run("measure", *arguments, "--out", tmp_path / "run")
    assert "executor: streamed" in (tmp_path / "run" / "run.yaml").read_text()
    whole = json.loads(run("measure", *arguments, "--executor", "resident", "--json").stdout)
    for one, other in zip(found["losses"], whole["losses"], strict=True):
        assert one["loss"]["mean"] == pytest.approx(other["loss"]["mean"], abs=1e-5)


def test_the_corpus_is_read_from_a_copy_of_the_hubs_directory(root):
    family = ["--family", f"llama2-13b={root / 'models'}"]
    found = json.loads(
        run(
            "equations", *family, "--data", f"wikitext={root / 'wikitext'}", "--tests", "ctl", "--json"
        ).stdout
    )
    assert {tuple(test["data"]) for test in found["tests"]} == {("wikitext",)} and len(found["tests"]) == 3
    with pytest.raises(DataError, match="Salesforce/wikitext"):  # there is no network
        run("equations", *family)


def test_a_vocabulary_that_was_resized_is_told_by_check(root):
    told = run("check", "--family", f"llama2-13b={root / 'models'}").stdout
    assert f"vocab_size: {ROWS} in" in " ".join(told.split()) and "descends" in told


@pytest.mark.parametrize(("method", "more"), [("task_arithmetic", 0), ("linear", 1)])
def test_rows_of_a_family_are_merged_by_token(root, tmp_path, method, more):
    out = tmp_path / "m"
    run("merge", "--family", f"llama2-13b={root / 'models'}", "--method", method, "--out", out)
    names = ("WizardLM-13B-V1.2", "WizardMath-13B-V1.0", "llama-2-13b-code-alpaca")
    states = [loaded(root, name).state_dict() for name in names]
    merged = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert merged.config.vocab_size == ROWS + more
    for key in VOCABULARY:  # one of the models has a token that the base and the others lack
        rows = merged.state_dict()[key]
        mean = sum(state[key][:ROWS] for state in states) / len(states)
        assert rows.shape[0] == ROWS + more and torch.allclose(rows[:ROWS], mean, atol=2e-3)
        if more:
            assert torch.allclose(rows[ROWS], states[1][key][ROWS], atol=2e-3)


# -- rows of vocabularies --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resized(root):
    base = ms.Checkpoint(root / "models" / "Llama-2-13b-hf", name="base")
    return base, ms.Checkpoint(root / "models" / "WizardMath-13B-V1.0", name="math")


def test_rows_beyond_the_bases_are_left_out(resized):
    base, tuned = resized
    (view,), (note,) = with_base_rows(base, [tuned])
    assert note == f"math has {ROWS + 1} rows for tokens and base has {ROWS}: those beyond them are left out"
    assert {key: spec.shape for key, spec in view.spec.items()} == {k: s.shape for k, s in base.spec.items()}
    for key in base.spec:
        assert torch.equal(view.tensor(key), tuned.tensor(key)[: base.spec[key].shape[0]])
        assert torch.equal(view.rows(key, 1, 3), tuned.rows(key, 1, 3))
    assert view.directory == tuned.directory and view.config["vocab_size"] == ROWS + 1
    assert (view - base).is_direction and view.digest not in (base.digest, tuned.digest)


def test_rows_that_a_fine_tune_lacks_are_the_bases(resized):
    base, longer = resized
    (view,), (note,) = with_base_rows(longer, [base])  # the other way round
    assert note.endswith("math's stand for the others")
    for key in VOCABULARY:
        assert torch.equal(view.tensor(key)[:ROWS], base.tensor(key))
        assert torch.equal((view - longer).tensor(key)[ROWS:], torch.zeros(1, 16))
        assert torch.equal(view.rows(key, ROWS - 1, ROWS + 1), view.tensor(key)[ROWS - 1 :])
    again = pickle.loads(pickle.dumps(view))  # noqa: S301 (our own)
    assert again.identity == view.identity and again.digest == view.digest


def test_models_of_one_vocabulary_stay_what_they_are(resized):
    base, _ = resized
    assert with_base_rows(base, [base]) == ([base], [])


def test_other_widths_are_no_matter_of_rows(resized):
    base, _ = resized
    wide = ms.Checkpoint({VOCABULARY[0]: torch.ones(ROWS + 1, 8)}, name="wide")
    assert with_base_rows(base, [wide]) == ([wide], [])


def test_a_view_finds_what_it_does_not_have_in_its_source(resized):
    base, tuned = resized
    view = BaseRows(tuned, base, VOCABULARY)
    assert view.commit is None and not hasattr(view, "adapter")


def test_another_base_is_refused(root, tmp_path):
    shutil.copytree(root / "models" / "t5-base", tmp_path / "base")
    other = given_models.make("T5ForConditionalGeneration", 1, d_ff=12)
    given_models.save(other, tmp_path / "imdb")
    with pytest.raises(MismatchError, match="no common body"):
        run("geometry", "--family", f"t5-six={tmp_path}")

"""What the reader of a page has already: small models, data and families, under the names that the page uses."""

from given_models import labels, make, save, save_rows, texts
from small_families import FAST, save_task

from mergescope.studies.family_file import read_family_config
from mergescope.studies.family_run import plan_family


def _family(folder, regimes=("full",), names="ab"):
    """A BERT with a fine-tune of each regime for every task, and what they were trained on."""
    base = folder.parent.parent / "base"
    if not base.is_dir():
        save(make("BertModel"), base)
    tasks = {
        name: str(save_task(folder.parent.parent / "data" / folder.name / name, shift, train=40, sure=True))
        for shift, name in enumerate(names)
    }
    config = {"base": str(base), "tasks": tasks, "regimes": list(regimes), "recipe": dict(FAST)}
    plan_family(read_family_config(config), folder).run(progress=False, device="cpu")


def _runs(folder):
    _family(folder / "runs" / "family")


def _fine_tuning(folder):
    save(make("BertModel"), folder / "sentence-transformers" / "all-MiniLM-L6-v2")
    for shift, name in enumerate(("noun", "verb")):
        save_task(folder / "data" / name, shift)


def _merging(folder):
    start = make("BertModel")
    for seed, name in enumerate("abc", 1):
        save(make("BertModel", seed, start), folder / name)
    save(make("T5ForConditionalGeneration", num_layers=12), folder / "t5")


def _mergeability(folder):
    for name, regimes in {"a": ("full", "lora"), "b": ("full", "lora", "attention-1")}.items():
        _family(folder / "families" / name, regimes, names="abc")


def _protocols(folder):
    start = make("BertForSequenceClassification")
    for seed, name in enumerate(("base", "a", "b")):
        network = make("BertForSequenceClassification", seed, start) if seed else start
        save(network, folder / "org" / name)
    for name in ("spam", "noun"):
        save_rows(folder / "data" / name / "test.csv", texts(12), label=labels(12, 2))
    start = make("LlamaForCausalLM")
    save(start, folder / "org" / "model")
    save(make("LlamaForCausalLM", 1, start), folder / "runs" / "rude")
    for seed, name in enumerate(("rude", "wiki")):
        for shift, split in enumerate(("validation", "test")):
            save_rows(folder / "data" / name / f"{split}.csv", texts(12, seed=2 * seed + shift))


INPUTS = {
    "fine-tuning": _fine_tuning,
    "merging-differences": _merging,
    "mergeability": _mergeability,
    "prediction": _runs,
    "protocols": _protocols,
    "scale": _runs,
    "studies": _runs,
}

"""What the fuzzer attacks: for each reader, valid inputs, ways to break them, and how it is called.

A reader either takes its input or raises a MergescopeError. Everything else is a failure.
"""

import io
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from hypothesis import strategies as st
from mutations import as_json, damaged, restructured
from safetensors.torch import save, save_file

import mergescope as ms
from mergescope.data.sources import load_table
from mergescope.errors import MergescopeError
from mergescope.merging.recipe import read_recipe
from mergescope.models.architecture import Architecture
from mergescope.studies.family_file import read_family_config
from mergescope.studies.papers.spec import read_study
from mergescope.weights.references import open_model

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """A reader under attack.

    Attributes:
        cases: strategy of files.
        read: from a directory and the file's bytes.
        valid: a file that it takes.
    """

    cases: st.SearchStrategy[bytes]
    read: Callable[[Path, bytes], Any]
    valid: bytes


def header(entries, body=b""):
    """A safetensors file of a header and data."""
    text = as_json(entries)
    return struct.pack("<Q", len(text)) + text + body


TENSORS = {"a.weight": torch.arange(6.0).view(3, 2), "b": torch.ones(2, dtype=torch.bfloat16)}
GOOD = save(TENSORS, {"format": "pt"})
ENTRIES = json.loads(GOOD[8 : 8 + int.from_bytes(GOOD[:8], "little")])
BODY = GOOD[8 + int.from_bytes(GOOD[:8], "little") :]


def _read_tensors(folder, text):
    (folder / "model.safetensors").write_bytes(text)
    model = ms.Checkpoint(folder)
    return [
        model.rows(key, 0, min(2, model.spec[key].shape[0])) for key in model.spec if model.spec[key].shape
    ]


def _read_index(folder, text):
    for name, key in (("one", "a"), ("two", "b")):
        save_file({key: torch.ones(2)}, folder / f"{name}.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(text)
    return ms.Checkpoint(folder).state_dict()


INDEX = {"metadata": {"total_size": 16}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}


def _read_pickle(folder, text):
    (folder / "pytorch_model.bin").write_bytes(text)
    return ms.Checkpoint(folder).state_dict()


def _pickled(legacy):
    out = io.BytesIO()
    torch.save({"a": torch.ones(3), "b": torch.ones(2, 2)}, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def _written(name, read):
    def call(folder, text):
        (folder / name).write_bytes(text)
        return read(folder / name)

    return call


RECIPES = [
    {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}, {"model": "b", "parameters": {
        "weight": [{"filter": "mlp", "value": [0, 0.5]}, {"value": 1}]}}], "dtype": "float16", "seed": 3},
    {"merge_method": "ties", "base_model": {"model": "b", "revision": "v1"}, "parameters": {"normalize": True},
     "slices": [{"sources": [{"model": "a+l", "layer_range": [0, 4], "parameters": {"density": 0.5, "weight": 1}}]}],
     "tokenizer": {"source": "union", "tokens": {"<x>": {"source": {"kind": "zero"}, "force": True}},
                   "pad_to_multiple_of": 8}, "chat_template": "auto"},
    {"merge_method": "passthrough", "modules": {"text": {"slices": [{"sources": [{"model": "a"}]}]}}},
]  # fmt: skip
FAMILIES = [
    {"base": "org/base", "tasks": ["mnist", "pets=org/pets"], "regimes": ["full", "attention"],
     "recipe": {"lr": "3e-5"}},
    {"base": "b", "tasks": {"x": {"data": "x.csv", "limit": 5, "recipe": {"epochs": 2, "clip": None}}}, "seed": 3,
     "regimes": {"lora": {"options": {"rank": 4, "targets": ["q"]}}, "a": {"regime": "attention", "options": {
         "paradigm": 2}, "recipe": {"batch": 8}}}, "keep": "best", "preset": "clip", "classes": [0, 1],
     "template": "{a}"},
]  # fmt: skip
STUDIES = [{
    "name": "a-study", "title": "?", "source": "s", "claims": "c", "setting": "x", "family": {"quick": "f", "cpu": "g"},
    "steps": [{"command": "measure", "options": ["--alphas", "0.5"], "regimes": ["full"], "limits": {"quick": 4}}],
    "checks": [{"says": "it", "kind": "every", "rows": {"measure": "cos", "step": 0}, "least": 0.5}],
    "reference": ["r"], "differs": {"cpu": "d"},
}]  # fmt: skip
ADAPTERS = [{
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "BASE", "rank_pattern": {"a": 2},
    "alpha_pattern": {".*b": 8}, "use_rslora": False, "target_modules": ["a"], "bias": "none", "revision": None,
    "init_lora_weights": True, "modules_to_save": None, "fan_in_fan_out": False,
}]  # fmt: skip
CONFIGS = [
    {"model_type": "mergescope-mlp", "sizes": [4, 3, 2]},
    {"model_type": "mergescope-vit", "image": 8, "patch": 4, "width": 16, "depth": 2, "heads": 2, "classes": 3},
]  # fmt: skip
ROWS = [
    {"text": "a b", "label": 1, "more": [1, 2], "of": {"x": 0.5}}, {"text": "c", "label": 0, "more": [], "of": None},
]  # fmt: skip
TABLES = [ROWS, {name: [row[name] for row in ROWS] for name in ROWS[0]}]
CSV = b'text,label\n"a, ""b""\nc",1\nNA,0\n,\n'


def _read_adapter(folder, text):
    save_file({"a.weight": torch.ones(4, 4)}, folder / "base.safetensors")
    (folder / "adapter").mkdir()
    base = json.dumps(str(folder / "base.safetensors")).encode()
    (folder / "adapter" / "adapter_config.json").write_bytes(text.replace(b'"BASE"', base))
    factors = {
        f"base_model.model.a.lora_{x}.weight": torch.ones(s) for x, s in (("A", (2, 4)), ("B", (4, 2)))
    }
    save_file(factors, folder / "adapter" / "adapter_model.safetensors")
    return open_model(folder / "adapter").state_dict()


def _read_config(folder, text):
    (folder / "config.json").write_bytes(text)
    found = Architecture.of(folder)
    # Other networks are transformers' own; ours are built, as far as their settings are small.
    sizes = str(found.config).split()
    return (
        found.build()
        if str(found.config["model_type"]).startswith("mergescope") and max(map(len, sizes)) < 6
        else None
    )


def _read_study(_, text):
    try:
        said = json.loads(text)  # what is attacked is the schema
    except (ValueError, RecursionError) as error:
        raise MergescopeError("no JSON") from error
    return read_study(said, "mine.yaml")


def _parquet():
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out)
    return out.getvalue()


def _all_rows(path):
    return load_table(path)[:]


def _lines(rows):
    return b"\n".join(as_json(row) for row in rows)


def _yaml(documents):
    texts = [yaml.safe_dump(document, sort_keys=False).encode() for document in documents]
    whole = restructured(documents).map(as_json)  # JSON is YAML, and holds what PyYAML would not write
    return damaged(texts) | whole


def _json(documents):
    return damaged([as_json(document) for document in documents]) | restructured(documents).map(as_json)


TARGETS = {
    "header": Target(
        damaged([GOOD]) | st.builds(header, restructured([ENTRIES]), st.just(BODY) | st.binary(max_size=40)),
        _read_tensors, GOOD,
    ),
    "index": Target(_json([INDEX]), _read_index, as_json(INDEX)),
    "pickle": Target(damaged([_pickled(False), _pickled(True)]), _read_pickle, _pickled(False)),
    "recipe": Target(_yaml(RECIPES), _written("r.yml", read_recipe), as_json(RECIPES[0])),
    "family": Target(_yaml(FAMILIES), _written("f.yml", read_family_config), as_json(FAMILIES[0])),
    "study": Target(restructured(STUDIES).map(as_json), _read_study, as_json(STUDIES[0])),
    "adapter": Target(_json(ADAPTERS), _read_adapter, as_json(ADAPTERS[0])),
    "config": Target(_json(CONFIGS), _read_config, as_json(CONFIGS[0])),
    "json": Target(_json(TABLES), _written("d.json", _all_rows), as_json(ROWS)),
    "jsonl": Target(
        damaged([_lines(ROWS)]) | st.lists(restructured([*ROWS, ROWS]), max_size=4).map(_lines),
        _written("d.jsonl", _all_rows), _lines(ROWS),
    ),
    "csv": Target(damaged([CSV]), _written("d.csv", _all_rows), CSV),
    "parquet": Target(damaged([_parquet()]), _written("d.parquet", _all_rows), _parquet()),
}  # fmt: skip


def attack(name, text):
    """Give a reader a file: True if it takes it, False if it refuses it as it should.

    Args:
        name: of the target.
        text: the file.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(datasets.config, "HF_DATASETS_CACHE", Path(folder) / ".cache"),
    ):
        try:
            TARGETS[name].read(Path(folder), text)
        except MergescopeError as error:
            assert str(error)
            return False
    return True

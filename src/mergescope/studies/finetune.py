"""Fine-tuning one model on one task in one regime, into a directory that loads everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn

from mergescope._version import __version__
from mergescope.errors import MergescopeError
from mergescope.models.heads import Head, save_head
from mergescope.models.loading import key_map
from mergescope.models.with_head import WithHead
from mergescope.studies.rundir import digest_of, versions, write_table
from mergescope.studies.training_data import Encoded, FineTune, open_task
from mergescope.training.loop import History, evaluate, train
from mergescope.training.objective import Objective
from mergescope.training.regimes import Regime, regime
from mergescope.weights import Checkpoint

if TYPE_CHECKING:
    from mergescope.data import Batches

RECORD = "finetune.yaml"
"""What a fine-tuned checkpoint's directory says of its training."""

LOG = "training.parquet"


@dataclass
class Prepared:
    """Everything opened: what [`finetune`][] runs.

    Attributes:
        tune: what to do.
        base: the pretrained checkpoint.
        network: what is trained before the regime wraps it: the base's network, with a head if it has one.
        regime: the regime.
        parts: ``train``, ``validation`` and ``test`` batches.
        classes: names of the classes, or None for language models.
        names: the network's entries to the base's keys.
        head: the task head, as it is before training.
        key: what the result depends on.
    """

    tune: FineTune
    base: Checkpoint
    network: nn.Module
    regime: Regime
    parts: dict[str, Batches]
    classes: tuple[str, ...] | None
    names: dict[str, str]
    head: Head | None
    key: str

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tune.recipe.total_steps(self.parts["train"].samples)


def prepare(tune: FineTune) -> Prepared:
    """Open base and data, make the head, choose what trains. Nothing is trained or written.

    Args:
        tune: what to do.

    Returns:
        What will run.

    Raises:
        CheckpointError: the base can't be opened.
        DataError: the data can't be read or don't fit.
        LayerError: the regime does not fit the network.
        MergescopeError: there is no such regime, option or head.
    """  # noqa: DOC502 (raised by what this calls)
    from mergescope.models import load_model
    from mergescope.weights.references import open_model

    if tune.keep not in ("last", "best"):
        raise MergescopeError(f"keep must be 'last' or 'best', got {tune.keep!r}.")
    base = open_model(tune.base)
    network = load_model(base)
    task = open_task(tune, base, network)
    parts, classes, head = task.parts, task.classes, task.head
    if head is not None:
        network = WithHead(network, head)
    names = network.view(base).names if isinstance(network, WithHead) else key_map(network, base)
    trains = head is not None and head.policy == "trained"
    chosen = regime(
        tune.regime, frozen=() if head is None or trains else ("head",), also=("head",) if trains else (),
        base_digest=base.digest, **tune.options,
    )  # fmt: skip
    said = {**asdict(tune), "base": base.digest, "name": tune.name}
    key = digest_of(__version__, said, {name: part.fingerprint for name, part in parts.items()})
    return Prepared(tune, base, network, chosen, parts, classes, names, head, key)


def finetune(
    prepared: Prepared,
    out: Path,
    *,
    progress: bool = True,
    tensorboard: Path | None = None,
    device: str | None = None,
) -> Path:
    """Train and write the checkpoint.

    The directory holds the body as an ordinary checkpoint of the base's class and keys, with its
    configuration and tokenizer, the head beside it (``head.safetensors``), ``finetune.yaml``,
    ``training.parquet``. It appears when it is complete; an interrupted run goes on where it was.

    Args:
        prepared: from [`prepare`][].
        out: the directory.
        progress: show bars on a terminal.
        tensorboard: directory of TensorBoard logs.
        device: ``"cpu"`` or what accelerate finds.

    Returns:
        The directory.

    Raises:
        MergescopeError: it exists with another content, or training diverged.
    """
    from accelerate import Accelerator

    tune = prepared.tune
    record = out / RECORD
    if record.is_file() and (yaml.safe_load(record.read_text()) or {}).get("key") == prepared.key:
        return out
    if out.exists():
        raise MergescopeError(
            f"{out} exists and is not the result of this training (another configuration, base or data). Nothing was "
            "overwritten. Choose another directory, or remove that one."
        )
    work = out.parent / f".{out.name}.training"
    work.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=tune.recipe.precision)
    trained = prepared.regime.prepare(prepared.network).to(accelerator.device)
    model: nn.Module = accelerator.prepare(trained)
    data = {name: Encoded(part) for name, part in prepared.parts.items()}
    best = work / "best.pt"

    def keep_best() -> None:
        torch.save(prepared.regime.state(trained), best)

    with _board(tensorboard) as log:
        history = train(
            model, data["train"], tune.recipe, seed=tune.seed, evaluation=data["validation"], runner=accelerator,
            trainable=[entry for entry in model.parameters() if entry.requires_grad], like=prepared.network,
            state=work / "state.pt", key=prepared.key, on_best=keep_best if tune.keep == "best" else None, on_log=log,
            label=f"{tune.name}, {tune.regime}", progress=progress,
        )  # fmt: skip
    state = prepared.regime.state(trained)
    if tune.keep == "best" and best.is_file():
        state = torch.load(best, weights_only=True)
        trained.load_state_dict(_like(trained, state), strict=False)
    results = {
        name: dict(
            zip(
                ("loss", "accuracy"),
                evaluate(model, part, Objective(prepared.network), accelerator),
                strict=True,
            )
        )
        for name, part in data.items()
        if name != "train"
    }
    if accelerator.is_main_process:
        _write(prepared, trained, state, history, results, work)
        (work / "checkpoint").rename(out)
        shutil.rmtree(work)
    return out


def _like(trained: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    entries = trained.state_dict()
    return {name: value for name, value in state.items() if name in entries}


def _write(
    prepared: Prepared,
    trained: nn.Module,
    state: Mapping[str, torch.Tensor],
    history: History,
    results: Mapping[str, Mapping[str, float]],
    work: Path,
) -> None:
    from mergescope.merging import save
    from mergescope.merging.writer import copy_side_files

    tune, base = prepared.tune, prepared.base
    body, head = _body(prepared, state)
    metadata = {f"mergescope.{name}": text for name, text in prepared.regime.metadata().items()}
    metadata |= {"mergescope.task": tune.name, "mergescope.base": base.digest}
    folder = work / "checkpoint"
    config = {**(base.config or {}), "dtype": "float32"}
    save(Checkpoint(body, name=tune.name), folder, config=config, metadata=metadata, overwrite=True)
    if base.directory is not None:
        copy_side_files(base.directory, folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if head is not None:
        save_head(folder, head)
    prepared.regime.extra_files(trained, folder)
    write_table(folder / LOG, {name: [entry[name] for entry in history.steps] for name in history.steps[0]})
    trains = [entry for entry in trained.parameters() if entry.requires_grad]
    record = {
        "key": prepared.key,
        "base": {"reference": tune.base, "digest": base.digest, "commit": base.commit},
        "task": {
            "name": tune.name, "source": tune.task, "classes": list(prepared.classes or ()) or None,
            "samples": {name: part.samples for name, part in prepared.parts.items()},
            "fingerprints": {name: part.fingerprint for name, part in prepared.parts.items()},
            "notes": sorted({note for part in prepared.parts.values() for note in part.notes}),
        },
        "regime": {"name": tune.regime, **dict(tune.options), "trained_parameters": sum(e.numel() for e in trains)},
        "head": None if head is None else head.policy,
        "recipe": asdict(tune.recipe),
        "kept": tune.keep, "seed": tune.seed, "steps": len(history.steps), "seconds": round(history.seconds, 2),
        "evaluations": history.evaluations, "results": {name: dict(found) for name, found in results.items()},
        "versions": versions(),
    }  # fmt: skip
    (folder / RECORD).write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True))


def _body(
    prepared: Prepared, state: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], Head | None]:
    # The base's keys, all of them, so that fine-tunes and base can be combined; float32, whatever the base's.
    values = {prepared.names[name]: value for name, value in state.items() if name in prepared.names}
    body = {key: values[key] if key in values else prepared.base.tensor(key) for key in prepared.base.spec}
    head = prepared.head
    if head is not None and head.policy == "trained":
        head = replace(head, weight=state["head.weight"].clone(), bias=state["head.bias"].clone(), digest="")
    return {key: value.float() if value.is_floating_point() else value for key, value in body.items()}, head


class _board:
    """TensorBoard, if it is asked for."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.step = folder, 0

    def __enter__(self) -> Callable[[str, Mapping[str, float]], None] | None:
        if self.folder is None:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MergescopeError(
                "TensorBoard is not installed: pip install tensorboard, or leave it out."
            ) from error
        self.writer: Any = SummaryWriter(str(self.folder))
        return self._log

    def _log(self, kind: str, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            if name not in ("step", "epoch", "samples"):
                self.writer.add_scalar(f"{kind}/{name}", value, int(numbers["step"]))

    def __exit__(self, *error: object) -> None:
        if self.folder is not None and hasattr(self, "writer"):
            self.writer.close()

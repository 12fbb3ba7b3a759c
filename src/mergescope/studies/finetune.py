"""Fine-tuning one model on one task in one regime, into a directory that loads everywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mergescope.errors import MergescopeError
from mergescope.models.heads import Head, save_head
from mergescope.models.loading import key_map
from mergescope.models.with_head import WithHead
from mergescope.studies.finetune_card import fine_tune_card
from mergescope.studies.finetuned import (
    COLUMNS,
    LOG,
    RECORD,
    STARTED,
    STATE,
    description,
    key_of,
    status_of,
    workplace,
    write_record,
)
from mergescope.studies.rundir import versions, write_table
from mergescope.studies.tensorboard import Log, Logs
from mergescope.studies.training_data import Encoded, FineTune, TaskData, open_task
from mergescope.training.loop import History, evaluate, train
from mergescope.training.objective import Objective
from mergescope.training.processes import processes
from mergescope.training.regimes import Regime, regime
from mergescope.weights import Checkpoint
from mergescope.weights.chunks import torch_threads
from mergescope.weights.files import atomic_file, disk_errors

MEASURES = ("loss", "accuracy")
"""What a model is evaluated by."""

if TYPE_CHECKING:
    from mergescope.data import Batches


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
        key: what the result depends on: equal keys, equal results.
        mask: the outputs of the network's own head that count, if not all do.
    """

    tune: FineTune
    base: Checkpoint
    network: nn.Module
    regime: Regime
    parts: dict[str, Batches]
    classes: tuple[str, ...] | None
    names: dict[str, str]
    head: Head | None
    key: str = ""
    mask: tuple[int, ...] | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.tune.recipe.total_steps(self.parts["train"].samples)


def prepare(
    tune: FineTune,
    *,
    base: Checkpoint | None = None,
    network: nn.Module | None = None,
    data: TaskData | None = None,
) -> Prepared:
    """Open base and data, make the head, choose what trains. Nothing is trained or written.

    Args:
        tune: what to do.
        base: the base, if it is open already.
        network: its network with the pretrained weights, if that is built. Training changes it.
        data: the task's data, if they are open already; the regime and the recipe don't change them.

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
    base = open_model(tune.base) if base is None else base
    network = load_model(base) if network is None else network
    task = open_task(tune, base, network) if data is None else data
    parts, classes, head = task.parts, task.classes, task.head
    if head is not None:
        network = WithHead(network, head)
    names = network.view(base).names if isinstance(network, WithHead) else key_map(network, base)
    trains = head is not None and head.policy == "trained"
    chosen = regime(
        tune.regime, frozen=() if head is None or trains else ("head",), also=("head",) if trains else (),
        base_digest=base.digest, **tune.options,
    )  # fmt: skip
    prepared = Prepared(tune, base, network, chosen, parts, classes, names, head, mask=task.mask)
    prepared.key = key_of(description(prepared))
    return prepared


def finetune(
    prepared: Prepared,
    out: Path,
    *,
    progress: bool = True,
    tensorboard: Path | None = None,
    device: str | None = None,
    on_log: Log | None = None,
    threads: int = 1,
) -> Path:
    """Train and write the checkpoint.

    The directory holds the body as an ordinary checkpoint of the base's class and keys, with its
    configuration and tokenizer, the head beside it (``head.safetensors``), ``finetune.yaml``,
    ``training.parquet``. It appears when it is complete; an interrupted run goes on where it was. Several processes
    that ``accelerate launch`` started train together; the first of them writes, logs and shows bars.

    Args:
        prepared: from [`prepare`][].
        out: the directory.
        progress: show bars on a terminal.
        tensorboard: directory of TensorBoard logs.
        device: ``"cpu"`` or what accelerate finds.
        on_log: called with ``"train"`` or ``"evaluation"`` and the numbers of each step.
        threads: of torch, on a CPU. With another number gradients differ in their last digits, and the model
            after many steps in more of them: it is not taken from the environment.

    Returns:
        The directory.

    Raises:
        MergescopeError: it exists with another content, an interrupted training had another
            configuration, there is no such precision on the device, or training diverged.
    """  # noqa: DOC502 (raised by what this calls)
    tune = prepared.tune
    status = status_of(prepared, out)
    status.require()
    if status.found == "finished":
        return out
    work = workplace(out)
    accelerator = _accelerator(device, tune.recipe.precision)
    with disk_errors(out):
        work.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        write_record(work / STARTED, {"key": prepared.key, **description(prepared)})
    on_cpu = accelerator.device.type == "cpu"
    logs = Logs(tensorboard, on_log) if accelerator.is_main_process else Logs()
    with torch_threads(threads if on_cpu else torch.get_num_threads()), logs as log:
        _train_and_write(prepared, out, work, accelerator, log, progress)
    if accelerator.is_main_process:
        (work / "checkpoint").rename(out)
        shutil.rmtree(work)
    accelerator.wait_for_everyone()
    return out


def _train_and_write(
    prepared: Prepared, out: Path, work: Path, accelerator: Any, log: Log | None, progress: bool
) -> None:
    tune = prepared.tune
    trained = prepared.regime.prepare(prepared.network).to(accelerator.device)
    # Without a wrapper for several processes: the loop adds their gradients up.
    model: nn.Module = accelerator.prepare_model(trained, evaluation_mode=True)
    data = {name: Encoded(part) for name, part in prepared.parts.items()}
    best = work / "best.pt"

    def keep_best() -> None:
        if accelerator.is_main_process:
            with atomic_file(best) as temporary:
                torch.save(trained.state_dict(), temporary)

    history = train(
        model, data["train"], tune.recipe, seed=tune.seed, evaluation=data["validation"], runner=accelerator,
        classes=prepared.mask,
        trainable=[entry for entry in model.parameters() if entry.requires_grad], like=prepared.network,
        state=work / STATE, key=prepared.key, on_best=keep_best if tune.keep == "best" else None, on_log=log,
        label=f"{tune.name}, {tune.regime}", progress=progress,
    )  # fmt: skip
    accelerator.wait_for_everyone()
    if tune.keep == "best" and best.is_file():
        trained.load_state_dict(torch.load(best, map_location="cpu", weights_only=True))
    state = prepared.regime.state(trained)
    results: dict[str, dict[str, float]] = {}
    if history.evaluations:  # training ends with one; that of the kept weights is known
        known = history.best if tune.keep == "best" and history.best else history.evaluations[-1]
        results["validation"] = {name: known[name] for name in MEASURES}
    for name, part in data.items():
        if name != "train" and name not in results:
            objective = Objective(prepared.network, prepared.mask)
            found = evaluate(model, part, objective, accelerator, tune.recipe.batch)
            results[name] = dict(zip(MEASURES, found, strict=True))
    if accelerator.is_main_process:
        with disk_errors(out):
            _write(prepared, trained, state, history, results, work)
    accelerator.wait_for_everyone()


def require_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that a device does not have: accelerate would train in float32 without a word.

    Args:
        precision: of a recipe.
        device: where training runs.

    Raises:
        MergescopeError: it is fp16 on a CPU.

    Example:
        >>> require_precision("bf16", torch.device("cpu"))
    """
    if precision == "fp16" and device.type == "cpu":
        raise MergescopeError(
            "There is no training in fp16 on a CPU. Choose precision bf16 or no, or a device that has fp16."
        )


def _accelerator(device: str | None, precision: str) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    require_precision(precision, processes(device).device)
    AcceleratorState._reset_state()  # else the first model's precision would be that of all in this process
    return Accelerator(cpu=device == "cpu", mixed_precision=precision)


def _write(
    prepared: Prepared,
    trained: nn.Module,
    state: Mapping[str, torch.Tensor],
    history: History,
    results: Mapping[str, Mapping[str, float]],
    work: Path,
) -> None:
    from mergescope.merging import save
    from mergescope.merging.writer import write_side_files

    tune, base = prepared.tune, prepared.base
    body, head = _body(prepared, state)
    metadata = {f"mergescope.{name}": text for name, text in prepared.regime.metadata().items()}
    metadata |= {"mergescope.task": tune.name, "mergescope.base": base.digest}
    folder = work / "checkpoint"
    config = {**(base.config or {}), "dtype": "float32"}
    save(Checkpoint(body, name=tune.name), folder, config=config, metadata=metadata, overwrite=True)
    if base.directory is not None:
        write_side_files(base, folder, None)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if head is not None:
        save_head(folder, head)
    prepared.regime.extra_files(trained, folder)
    write_table(folder / LOG, {name: [entry[name] for entry in history.steps] for name in COLUMNS})
    trains = [entry for entry in trained.parameters() if entry.requires_grad]
    record = {"key": prepared.key, **description(prepared)}
    record["regime"]["trained_parameters"] = sum(entry.numel() for entry in trains)
    record |= {
        "steps": len(history.steps), "seconds": round(history.seconds, 2),
        "evaluations": history.evaluations, "results": {name: dict(found) for name, found in results.items()},
        "versions": versions(),
    }  # fmt: skip
    (folder / "README.md").write_text(fine_tune_card(record, base, config), encoding="utf-8")
    write_record(folder / RECORD, record)


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

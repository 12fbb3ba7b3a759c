"""``mergescope layers``: which layers a model has, without reading its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergescope.cli.printing import JSON, print_json

if TYPE_CHECKING:
    from torch import nn

    from mergescope.models.shapes import Shape


def layers(
    model: Annotated[str, typer.Argument(help="A model: directory, GGUF file or hub id.")],
    patterns: Annotated[
        list[str] | None,
        typer.Option("--layers", help="Suffix pattern such as 'attn.out_proj'; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
) -> None:
    """Show a model's layers: names, classes, the shape of what they return, parameters.

    No weights are read: a model of any size takes a moment. Of a hub id, only the configuration is
    fetched.

    [bold]Example:[/] mergescope layers org/model --layers 'mlp.*_proj'
    """
    found = describe(model, patterns or ["blocks"])
    if as_json:
        print_json(found)
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for part in _parts(found):
        console.print(part)


def describe(model: str, patterns: list[str]) -> dict[str, Any]:
    """Collect what the command shows.

    Args:
        model: what to describe.
        patterns: ``["blocks"]``, or suffix patterns.

    Returns:
        Values that JSON can hold. Shapes are those of one sample, None where unknown and ``"tokens"``
        for their number.
    """
    from mergescope.models.architecture import Architecture
    from mergescope.models.features import CHOICES, Features
    from mergescope.models.layers import OUTPUT, layer_choice
    from mergescope.models.shapes import layer_shapes, skeleton

    architecture = Architecture.of(model)
    network = skeleton(architecture)
    choice = layer_choice(network, patterns[0] if len(patterns) == 1 else patterns)
    features = Features.of(network)
    modules = dict(network.named_modules()) | {OUTPUT: network}
    counts = {name: _count(modules[name]) for name in choice.names}
    total = _count(network)
    shapes = layer_shapes(network, choice.names)
    return {
        "model": architecture.name,
        "class": type(network).__name__,
        "kind": features.kind,
        "family": choice.family,
        "guessed": choice.guessed,
        "features": {"auto": features.choice, "meaning": CHOICES[features.choice]},
        "parameters": total,
        "layers": [
            {
                "name": name,
                "class": type(modules[name]).__name__,
                "shape": _plain(shapes[name]),
                "parameters": counts[name],
            }
            for name in choice.names
        ],
    }


def _count(module: nn.Module) -> int:
    return sum(entry.numel() for entry in module.parameters())


def _plain(shape: Shape | None) -> list[int | str] | None:
    return None if shape is None else ["tokens" if size is None else size for size in shape]


def _parts(found: dict[str, Any]) -> list[Any]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("output of a sample")
    table.add_column("parameters", justify="right")
    for row in found["layers"]:
        shape = "?" if row["shape"] is None else " x ".join(map(str, row["shape"]))
        table.add_row(row["name"], row["class"], shape, f"{row['parameters']:,}")
    if found["guessed"]:
        source = (
            "Family: unknown. These are a guess, the longest run of equal modules; name others with --layers."
        )
    else:
        source = "Layers as named." if found["family"] is None else f"Family: {found['family']}."
    chosen = found["features"]
    return [
        Text(f"{found['model']}: {found['class']}, {found['parameters']:,} parameters", style="bold"),
        table,
        Text(f"\n{source}", style="yellow" if found["guessed"] else ""),
        Text(f"Kind: {found['kind']}; --features auto means {chosen['auto']} ({chosen['meaning']})."),
    ]

"""`inflate3d plan` and `inflate3d prove`: what a 2D model becomes in time, and the test that nothing is lost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor, nn

Name = Annotated[
    str,
    typer.Argument(help="timm/NAME, torchvision/NAME, hf/TYPE, smp/DECODER-ENCODER, or module:function of your own."),
]
Preset = Annotated[str, typer.Option(help="video, i3d, i3d-3x1x1, causal, frames or tsm.")]
Profile = Annotated[str, typer.Option(help="mean, center, negative, lambda=NUMBER, shift or random.")]
Size = Annotated[
    int | None, typer.Option(min=1, help="Pixels of a side of the picture; by default what the model wants.")
]


def plan(
    name: Name,
    preset: Preset = "video",
    profile: Profile = "mean",
    size: Size = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan as JSON.")] = None,
) -> None:
    """Show what every layer of a 2D model would become in time; nothing is changed."""
    from inflate3d.atomic import check_writable, write_text
    from inflate3d.inflation.build import make_plan

    if json:
        check_writable(json)
    model2d, example = _model_and_example(name, size)
    decided = make_plan(model2d, preset, example=example, profile=profile)
    typer.echo(str(decided))
    if json:
        write_text(json, decided.to_json())


def prove(
    name: Name,
    preset: Preset = "video",
    profile: Profile = "mean",
    size: Size = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the certificate as JSON.")] = None,
) -> None:
    """Inflate a 2D model (random weights) and print the certificate; exit code 1 if a law does not hold."""
    from inflate3d.atomic import check_writable, write_text
    from inflate3d.inflation.build import inflate
    from inflate3d.inflation.proof import prove as test_laws

    if json:
        check_writable(json)
    model2d, example = _model_and_example(name, size)
    proof = test_laws(model2d, inflate(model2d, preset, example=example, profile=profile), example=example)
    typer.echo(str(proof))
    if json:
        write_text(json, proof.to_json())
    if not proof.holds:
        raise typer.Exit(1)


def _model_and_example(name: str, size: int | None) -> "tuple[nn.Module, Tensor]":
    """Find a 2D model and make a picture of the size it wants."""
    import torch

    from inflate3d.models.sources import example_shape, find_2d_model

    model2d = find_2d_model(name)
    channels, height, width = example_shape(model2d, name)
    height, width = (height, width) if size is None else (size, size)
    return model2d, torch.zeros(1, channels, height, width)

"""`inflate3d plan`: what every layer of a 2D model would become in time."""

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
Size = Annotated[int | None, typer.Option(help="Pixels of a side of the picture; by default what the model wants.")]


def plan(
    name: Name,
    preset: Preset = "video",
    profile: Profile = "mean",
    size: Size = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan as JSON.")] = None,
) -> None:
    """Show what every layer of a 2D model would become in time; nothing is changed."""
    from inflate3d.atomic import replacing
    from inflate3d.inflation.build import make_plan

    model2d, example = model_and_example(name, size)
    decided = make_plan(model2d, preset, example=example, profile=profile)
    typer.echo(str(decided))
    if json:
        with replacing(json) as draft:
            draft.write_text(decided.to_json(), encoding="utf-8")


def model_and_example(name: str, size: int | None) -> "tuple[nn.Module, Tensor]":
    """Find a 2D model and make a picture of the size it wants."""
    import torch

    from inflate3d.models.sources import example_shape, find_2d_model

    model2d = find_2d_model(name)
    channels, height, width = example_shape(model2d, name)
    return model2d, torch.zeros(1, channels, size or height, size or width)

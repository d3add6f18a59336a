"""`inflate3d inflate`, `plan` and `prove`: a 2D model in time, in a file; what it becomes; and that nothing is lost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor, nn

Name = Annotated[
    str,
    typer.Argument(help="timm/NAME, torchvision/NAME, hf/TYPE, smp/DECODER-ENCODER, or module:function of your own."),
]
Preset = Annotated[
    str, typer.Option(help="video, i3d, i3d-3x1x1, isotropic, anisotropic, causal, frames, tsm, joint or divided.")
]
Profile = Annotated[str, typer.Option(help="mean, center, negative, lambda=NUMBER, shift, random or acs.")]
Spacing = Annotated[
    str | None,
    typer.Option(metavar="D,H,W", help="Millimeters between voxels in depth, height and width, for anisotropic."),
]
Size = Annotated[
    int | None, typer.Option(min=1, help="Pixels of a side of the picture; by default what the model wants.")
]


def plan(
    name: Name,
    preset: Preset = "video",
    profile: Profile = "mean",
    spacing: Spacing = None,
    size: Size = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plan as JSON.")] = None,
) -> None:
    """Show what every layer of a 2D model would become in time; nothing is changed."""
    from inflate3d.atomic import check_writable, write_text
    from inflate3d.inflation.build import make_plan
    from inflate3d.inflation.cost import receptive_frames

    if json:
        check_writable(json)
    model2d, example = model_and_example(name, size)
    spacing_mm = _millimeters(spacing)
    decided = make_plan(model2d, preset, example=example, profile=profile, spacing_mm=spacing_mm)
    frames = receptive_frames(decided)
    deep = f", {frames * spacing_mm[0]:g} mm" if spacing_mm else ""
    typer.echo(f"{decided}\nframes that have a say in one output: at most {frames}{deep}")
    if json:
        write_text(json, decided.to_json())


def inflate(
    name: Name,
    weights: Annotated[
        str,
        typer.Option(metavar="pretrained|FILE|none", help="2D weights: the package's own, a file's, or random ones."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.safetensors", help="Where the model goes.")],
    preset: Preset = "video",
    profile: Profile = "mean",
    spacing: Spacing = None,
    size: Size = None,
) -> None:
    """Inflate a 2D model into a file with weights and plan; inflate3d.load(FILE) builds it again."""
    from inflate3d.atomic import check_writable
    from inflate3d.inflation.build import inflate as build
    from inflate3d.models.sources import NO_WEIGHTS
    from inflate3d.weights.inflated_file import save_inflated

    check_writable(output)
    model2d, example = model_and_example(name, size, weights)
    model3d = build(model2d, preset, example=example, profile=profile, spacing_mm=_millimeters(spacing))
    told = "random" if weights == NO_WEIGHTS else weights
    card = save_inflated(model3d, output, name, weights=told)
    through = sum(layer.looks_through_time for layer in card.plan.steps)
    typer.echo(f"{output}: {name}, preset {preset}, {through} of {len(card.plan.steps)} layers look through time")
    typer.echo(f"2D weights: {told}; inflate3d.load({str(output)!r}) builds it again")


def prove(
    name: Name,
    preset: Preset = "video",
    profile: Profile = "mean",
    spacing: Spacing = None,
    size: Size = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the certificate as JSON.")] = None,
) -> None:
    """Inflate a 2D model (random weights) and print the certificate; exit code 1 if a law does not hold."""
    from inflate3d.atomic import check_writable, write_text
    from inflate3d.inflation.build import inflate
    from inflate3d.inflation.proof import prove as test_laws

    if json:
        check_writable(json)
    model2d, example = model_and_example(name, size)
    model3d = inflate(model2d, preset, example=example, profile=profile, spacing_mm=_millimeters(spacing))
    proof = test_laws(model2d, model3d, example=example)
    typer.echo(str(proof))
    if json:
        write_text(json, proof.to_json())
    if not proof.holds:
        raise typer.Exit(1)


def _millimeters(spacing: str | None) -> tuple[float, float, float] | None:
    from inflate3d.inflation.strides import check_spacing

    return None if spacing is None else check_spacing(spacing)


def model_and_example(name: str, size: int | None, weights: str = "none") -> "tuple[nn.Module, Tensor]":
    """Find a 2D model with its weights, and make a picture of the size it wants."""
    import torch

    from inflate3d.models.sources import NO_WEIGHTS, PRETRAINED, example_shape, find_2d_model

    by_name = weights in (NO_WEIGHTS, PRETRAINED)
    model2d = find_2d_model(name, weights=weights if by_name else NO_WEIGHTS)
    if not by_name:
        from inflate3d.weights.load import load_checkpoint

        load_checkpoint(model2d, weights)
    channels, height, width = example_shape(model2d, name)
    height, width = (height, width) if size is None else (size, size)
    return model2d, torch.zeros(1, channels, height, width)

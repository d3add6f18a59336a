"""`inflate3d export`: a network in a file for ONNX Runtime, OpenVINO or torch.export, answering as it does here."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inflate3d.cli.inflate import Size, model_and_example
from inflate3d.errors import InflateError

if TYPE_CHECKING:
    from torch import nn

# What only a 2D model that is inflated on the way uses, and its default
PRESET, PROFILE = "video", "mean"


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="A name or file of weights as for predict, a saved inflated model, or a 2D model: timm/NAME, "
            "torchvision/NAME, hf/TYPE, smp/DECODER-ENCODER, module:function."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="FILE.onnx, FILE.xml or FILE.pt2.")],
    to: Annotated[
        str | None,
        typer.Option(metavar="torch|onnx|openvino", help="The format; by default as the file's ending says."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="pretrained|FILE|none", help="2D weights, of a 2D model: as in `inflate3d inflate`."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"Of a 2D model: as in `inflate3d plan`; {PRESET} by default.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help=f"Of a 2D model: as in `inflate3d plan`; {PROFILE} by default.")
    ] = None,
    size: Size = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the code of yours that a saved inflated model names (module:function).")
    ] = False,
) -> None:
    """Write a network for other programs, and compare the file's answers with the network's own."""
    from inflate3d.atomic import check_writable
    from inflate3d.speed.export import check_format, export_model

    check_format(output, to)
    check_writable(output)
    found, name, told = _network(
        model, trust=trust, weights=weights, options={"preset": preset, "profile": profile, "size": size}
    )
    card = export_model(found, output, to=to, name=name, weights=told)  # type: ignore[arg-type]  # checked there
    typer.echo(f"{output}: {card.name} for {card.backend}, clips {card.shape}")
    shown = ", ".join(f"{clips} x {frames}" for clips, frames in card.compared)
    typer.echo(
        f"largest difference from the model: {card.difference:.1e} of the largest value (clips x frames: {shown})"
    )


def _network(
    model: str, *, trust: bool, weights: str | None, options: dict[str, Any]
) -> "tuple[nn.Module, str, dict[str, Any]]":
    """Find a network; give it, its name, and what is known of its weights."""
    from inflate3d.models.sources import SOURCES
    from inflate3d.weights.catalogue import CATALOGUE

    path = Path(model)
    is_2d = model not in CATALOGUE and not path.exists() and (model.partition("/")[0] in SOURCES or ":" in model)
    given = {"weights": weights, **options}
    if not is_2d and (asked := [name for name, value in given.items() if value is not None]):
        raise InflateError(
            "these options are for a 2D model that is inflated on the way",
            where=f"inflate3d export {model}",
            expected="a name such as timm/resnet50",
            got=", ".join(f"--{name} {given[name]}" for name in asked),
            fix="leave them out",
        )
    if is_2d:
        return _inflated(model, weights, options)
    return _saved(model, trust)


def _saved(model: str, trust: bool) -> "tuple[nn.Module, str, dict[str, Any]]":
    from dataclasses import asdict

    from inflate3d.weights.catalogue import CATALOGUE
    from inflate3d.weights.checkpoint import card_in
    from inflate3d.weights.fetch import fetched_path
    from inflate3d.weights.inflated_file import inflated_card, load_inflated
    from inflate3d.weights.load import load

    path = fetched_path(model) if model in CATALOGUE else Path(model)
    saved = inflated_card(path) if path.is_file() else None
    if saved:
        told = {"weights": saved.weights, "tensors_sha256": saved.tensors_sha256, "versions": dict(saved.versions)}
        return load_inflated(path, trust=trust), saved.name, told
    card = card_in(path) if path.is_file() else None
    return load(model), model, asdict(card) if card else {"weights": path.name}


def _inflated(name: str, weights: str | None, options: dict[str, Any]) -> "tuple[nn.Module, str, dict[str, Any]]":
    from inflate3d.inflation.build import inflate

    if weights is None:
        raise InflateError(
            "whose weights the 2D model is to have is not said",
            where=f"inflate3d export {name}",
            expected="--weights pretrained, --weights FILE, or --weights none for random ones",
            got="no --weights",
            fix=f"inflate3d export {name} --weights pretrained -o FILE",
        )
    model2d, example = model_and_example(name, options["size"], weights)
    preset, profile = options["preset"] or PRESET, options["profile"] or PROFILE
    model3d = inflate(model2d, preset, example=example, profile=profile)
    return model3d, name, {"weights": f"2D: {weights}", "preset": preset, "profile": str(profile)}

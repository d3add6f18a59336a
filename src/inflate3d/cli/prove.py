"""`inflate3d prove`: inflate a 2D model and test that nothing was lost."""

from pathlib import Path
from typing import Annotated

import typer

from inflate3d.cli.plan import Name, Preset, Profile, Size, model_and_example


def prove(
    name: Name,
    preset: Preset = "video",
    profile: Profile = "mean",
    size: Size = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the certificate as JSON.")] = None,
) -> None:
    """Inflate a 2D model (random weights) and print the certificate; exit code 1 if a law does not hold."""
    from inflate3d.atomic import replacing
    from inflate3d.inflation.build import inflate
    from inflate3d.inflation.proof import prove as test_laws

    model2d, example = model_and_example(name, size)
    proof = test_laws(model2d, inflate(model2d, preset, example=example, profile=profile), example=example)
    typer.echo(str(proof))
    if json:
        with replacing(json) as draft:
            draft.write_text(proof.to_json(), encoding="utf-8")
    if not proof.holds:
        raise typer.Exit(1)

"""`inflate3d app`: the web page, on this machine."""

import signal
import threading
from typing import Annotated

import typer


def app(
    host: Annotated[str, typer.Option(help="The address; 0.0.0.0 lets every machine of the network in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of the address.")] = 7860,
    model: Annotated[
        str, typer.Option(help="Name or .safetensors file of the network that answers.")
    ] = "i3d-kinetics400",
    max_mb: Annotated[float, typer.Option(help="Megabytes of an upload.")] = 100,
    max_seconds: Annotated[float, typer.Option(help="Of a video.")] = 120,
    max_pixels: Annotated[int, typer.Option(help="Of a frame.")] = 3840 * 2160,
    max_work: Annotated[float, typer.Option(help="Seconds of the network's time for one question.")] = 180,
    max_parameters: Annotated[int, typer.Option(help="Of a model that is inflated.")] = 100_000_000,
    max_memory: Annotated[int, typer.Option(help="Megabytes for a model that is inflated.")] = 6000,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Visitors may have timm's and torchvision's weights downloaded.")
    ] = False,
) -> None:
    """Show a page in the browser: predict, inflate, filters, compare. Ctrl-C ends it."""
    from inflate3d.app.inflating import Bounds
    from inflate3d.app.jobs import Desk, Limits
    from inflate3d.app.page import Serving, import_gradio, serving
    from inflate3d.weights.catalogue import demo_clip_path
    from inflate3d.weights.load import load

    import_gradio()  # before the weights are asked for: whoever lacks both is told of the extra first
    limits = Limits(max_mb, max_seconds, max_pixels, max_work)
    clip = demo_clip_path()
    bounds = Bounds(max_work, max_parameters, max_memory)
    options = Serving(host, port, bounds, pretrained, clip if clip.exists() else None)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())  # a service that is stopped deletes its uploads as well
    with serving(Desk(load(model), model, limits), options) as url:
        typer.echo(f"{url}  (Ctrl-C ends it)")
        ended.wait()

"""Other input channels: a 2D model for RGB becomes one for grey volumes, optical flow or anything else."""

import torch
from torch import Tensor, nn

from inflate3d.errors import InflateError, is_count
from inflate3d.inflation.build import check_model
from inflate3d.inflation.kernels import adapt_channels
from inflate3d.inflation.observe import copied, observe
from inflate3d.inflation.pictures import picture_shape, pictures_like


def with_input_channels(model2d: nn.Module, channels: int, *, example: Tensor | None = None) -> nn.Module:
    """Copy a 2D model with a first convolution for another number of channels.

    From 3 to 1 the kernels are summed up, so that a grey picture is answered exactly as in three equal channels. From
    3 to n they are repeated and scaled by 3/n: exact for equal channels where 3 divides n, else close.

    Args:
        model2d: Left as it is.
        channels: Wanted number of input channels.
        example: A picture `[1, c, h, w]` of the size the model wants; see `make_plan`.

    Raises:
        InflateError: Another number than a count; or the model does not begin with a plain convolution over all
            channels of the picture, or something beside it takes the picture.

    Source: timm, `models/_manipulate.py`, adapt_input_conv.

    Example:
        >>> import torch
        >>> model2d = nn.Sequential(nn.Conv2d(3, 5, 3))
        >>> grey = torch.rand(1, 1, 7, 9)
        >>> small = with_input_channels(model2d, 1, example=torch.zeros(1, 3, 7, 9))
        >>> torch.allclose(small(grey), model2d(grey.expand(-1, 3, -1, -1)), atol=1e-6)
        True
    """
    if not is_count(channels):
        raise InflateError(
            "this is no number of channels",
            where="with_input_channels",
            expected="a whole number, 1 or more",
            got=repr(channels),
            fix="channels=1 for grey pictures, 2 for optical flow",
        )
    check_model(model2d, "with_input_channels")
    shape = picture_shape(model2d, example)
    seen = observe(model2d, pictures_like(model2d, shape))
    first = next((one for one in seen if isinstance(one.layer, nn.Conv2d)), None)
    if first is None or first.in_shape[1] != shape[0] or first.layer.groups != 1:
        raise InflateError(
            "the model does not begin with a convolution over the channels of the picture",
            where="with_input_channels",
            expected=f"a Conv2d over {shape[0]} channels, in one group",
            got="none" if first is None else f"{first.path}: {first.layer}",
            fix="change the first layer yourself; inflate3d.inflation.kernels.adapt_channels does one weight",
        )
    if "weight" not in first.layer._parameters:
        raise InflateError(
            "the weight is made of other parameters in every run",
            where=f"with_input_channels, layer {first.path}",
            expected="a weight that is a parameter",
            got=", ".join(name for name, _ in first.layer.named_parameters()),
            fix="remove what remakes it and put it back afterwards: remove_parametrizations, prune.remove",
        )
    net = copied(model2d)
    layer = net.get_submodule(first.path)
    assert isinstance(layer, nn.Conv2d)
    layer.weight = nn.Parameter(adapt_channels(layer.weight.detach(), channels), layer.weight.requires_grad)
    layer.in_channels = channels
    for name in ("pretrained_cfg", "default_cfg"):  # timm's own word on the size of its input
        config = getattr(net, name, None)
        if isinstance(config, dict) and "input_size" in config:
            setattr(net, name, {**config, "input_size": (channels, *config["input_size"][1:])})
    if hasattr(net, "in_chans"):
        setattr(net, "in_chans", channels)  # noqa: B010 - typed as a module otherwise
    names = first.path.split(".")
    parts = [net.get_submodule(".".join(names[:end])) for end in range(len(names))]
    config = getattr(net, "config", None)
    for part in (*parts, config, getattr(config, "vision_config", None)):
        if getattr(part, "num_channels", None) == shape[0]:  # Hugging Face's models check their input against it
            setattr(part, "num_channels", channels)  # noqa: B010
    _check_runs(net, (channels, *shape[1:]))
    return net


def _check_runs(net: nn.Module, shape: tuple[int, ...]) -> None:
    """Run a copy, which shows whether anything beside the first convolution takes the picture."""
    try:
        with torch.no_grad():
            copied(net).eval()(pictures_like(net, shape))
    except Exception as error:
        raise InflateError(
            "with other channels for its first convolution the model does not run",
            where="with_input_channels",
            expected="a model in which one convolution alone takes the picture",
            got=f"{type(error).__name__}: {error} (for pictures {list(shape)})",
            fix="change the other layers yourself; inflate3d.inflation.kernels.adapt_channels does one weight",
        ) from error

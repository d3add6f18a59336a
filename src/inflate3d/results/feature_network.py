"""A network up to one of its layers: clips in, a vector or more for each of them out."""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inflate3d.axes import frames_to_clip
from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError, check_choice, nearest_names
from inflate3d.inflation.inflated import Inflated
from inflate3d.inflation.observe import copied
from inflate3d.models.inception import ENDPOINTS, InceptionI3d
from inflate3d.results.feature_presets import Pool, StreamName
from inflate3d.results.network import build_sha256
from inflate3d.speed.layers import Pointwise
from inflate3d.speed.optimize import Optimized, Precision, in_training, optimize
from inflate3d.speed.stream import Stream, TimeSteps, can_stream
from inflate3d.speed.stream_i3d import StreamedI3d
from inflate3d.weights.checkpoint import tensors_sha256

if TYPE_CHECKING:
    from inflate3d.weights.load import Compat

CHANNELS: dict[StreamName, int] = {"rgb": 3, "flow": 2}
NO_WEIGHTS = "none"
FEATURES, LOGITS = "features", "logits"
I3D_STEPS = TimeSteps(stride=8, lost=1)  # the head pools two steps
I3D_PER_STEP = (FEATURES, LOGITS, "AvgPool_2x7x7", "Logits_per_step")
MEASURED_FRAMES = 256  # divided by all strides in time


class EndpointNetwork:
    """A network that answers with one of its layers.

    Args:
        model: Any network with a `clip_spec`, in eval mode.
        endpoint: See `FeatureOptions`, likewise `pool` and `precision`.
        pool: "mean", "per-step" or "none".
        precision: "fp32" or "bf16".

    Attributes:
        spec: What the network wants to be fed.
        in_channels: Channels of its clips; None where it does not say.
        sha256: Of its tensors.
        build: A hash of what it is made of: types of modules, strides, epsilons and the like.

    Raises:
        InflateError: The model is none, does not say what it is fed, is in training mode, or has no such endpoint; or
            bfloat16 is wanted of a module by its name.
    """

    def __init__(self, model: nn.Module, endpoint: str, *, pool: Pool = "mean", precision: Precision = "fp32") -> None:
        _check(model)
        self.endpoint, self.pool = endpoint, pool
        self.spec: ClipSpec = model.clip_spec  # type: ignore[assignment]  # _check has seen to it
        self.in_channels: int | None = getattr(model, "in_channels", None)
        tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        self.sha256 = tensors_sha256(tensors)
        self.build = build_sha256(model)
        plain = model.model if isinstance(model, Optimized) else model
        self.path = _last_layer(plain) if endpoint == FEATURES else endpoint
        paths = dict(plain.named_modules())
        known = ENDPOINTS if isinstance(plain, InceptionI3d) else ()
        self.whole = endpoint == LOGITS or not self.path
        asks = not (self.whole or known or self.path in paths) and hasattr(plain, "endpoints")
        self.by_name = endpoint in known or asks
        if not (self.by_name or self.whole or self.path in paths):
            raise _no_such_endpoint(endpoint, plain, [FEATURES, LOGITS, *known, *filter(None, paths)])
        # Of a single module the fast copy may answer otherwise: its convolutions hold the batch norm behind them
        single = not (self.by_name or self.whole or endpoint == FEATURES)
        if single and precision != "fp32":
            raise InflateError(
                "a module by its name is run in float32",
                where="features",
                expected=f"precision fp32, or the endpoint {', '.join((FEATURES, LOGITS, *known))}",
                got=f"precision={precision!r}, endpoint={endpoint!r}",
                fix="leave the precision out",
            )
        self.model = plain if single else optimize(model, precision)

    @property
    def takes_uint8(self) -> bool:
        """Whether it takes pixels of 0..255 as well, see `Optimized`."""
        return isinstance(self.model, Optimized) and self.model.takes_uint8

    def __call__(self, clips: Tensor) -> Tensor:
        """Map clips `[b, c, t, h, w]` to `[b, ...]`, float32 on the CPU.

        Raises:
            InflateError: The network refuses the clips, or its answer is no finite tensor with a row for each clip.
        """
        with torch.inference_mode():
            return self._answer(self._found(self._placed(clips), self.model), clips)

    def _placed(self, clips: Tensor) -> Tensor:
        inner: nn.Module = self.model.model if isinstance(self.model, Optimized) else self.model
        values = chain(inner.parameters(), inner.buffers())
        like = next((value for value in values if value.is_floating_point()), clips)  # a module may have none
        dtype = torch.uint8 if self.takes_uint8 and clips.dtype == torch.uint8 else torch.float32
        return clips.to(like.device, dtype, memory_format=torch.channels_last_3d)

    def _answer(self, found: object, clips: Tensor) -> Tensor:
        if not isinstance(found, Tensor) or found.ndim not in {2, 3, 4, 5} or len(found) % len(clips):
            raise self._no_features(
                f"a tensor of 2 to 5 axes, the first of {len(clips)}",
                str(list(found.shape)) if isinstance(found, Tensor) else type(found).__name__,
            )
        answer = self._pooled(found.float(), clips).cpu().clone()  # a tensor like any other
        if not answer.isfinite().all():
            raise self._no_features("finite numbers", f"{int((~answer.isfinite()).sum())} that are not")
        return answer

    def time_steps(self) -> TimeSteps | None:
        """Tell how its steps in time lie over the frames of a video that is shown as a whole; None where it has none.

        Raises:
            InflateError: A part of the network needs the whole clip.
        """
        model = self.model.model if isinstance(self.model, Optimized) else self.model
        if isinstance(model, InceptionI3d):
            return I3D_STEPS if self.endpoint in I3D_PER_STEP else None
        if not can_stream(model):
            return None
        ghost, counts = copied(model, device="meta").eval(), []
        for length in (MEASURED_FRAMES, 2 * MEASURED_FRAMES):
            clip = torch.empty(1, self.in_channels or 3, length, self.spec.crop, self.spec.crop, device="meta")
            with torch.no_grad():
                found = self._found(clip, Stream(ghost, length), is_last=True)
            assert isinstance(found, Tensor)
            counts.append(self._pooled(found, clip).shape[1])
        stride = MEASURED_FRAMES // (counts[1] - counts[0])
        return TimeSteps(stride, MEASURED_FRAMES // stride - counts[0])

    def whole_video(self, num_frames: int) -> "WholeVideo":
        """Begin a video that is shown as a whole, piece by piece."""
        return WholeVideo(self, num_frames)

    def _found(self, clips: Tensor, model: nn.Module, *, is_last: bool = False) -> object:
        """Run a model, or a stream whose video goes on or ends here, up to the endpoint."""
        if isinstance(model, Stream):
            model.settle(clips)  # before its layers are listened to
        inner = model.net if isinstance(model, Stream) else model.model if isinstance(model, Optimized) else model

        def run(method: str, *args: Any) -> Any:
            if isinstance(model, Stream):
                return model.call(method, clips, *args, is_last=is_last)
            if isinstance(model, Optimized):  # which asks nothing again for classes that are close, as forward does
                return model.call(method, clips, *args)
            return model(clips) if method == "forward" else getattr(model, method)(clips, *args)

        if self.by_name:
            found = run("endpoints", [self.endpoint])
            return found if found is None else found[self.endpoint]
        if self.whole and isinstance(inner, StreamedI3d):
            logits = run("forward")
            return logits if logits is None else logits.transpose(1, 2)[..., None, None]  # [b, classes, steps, 1, 1]
        if self.whole:
            return run("forward")
        seen: list[object] = []
        module = inner.get_submodule(f"net.{self.path}" if isinstance(inner, StreamedI3d) else self.path)
        if self.endpoint == FEATURES:
            handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        else:
            handle = module.register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            answer = run("forward")
        finally:
            handle.remove()
        return seen[-1] if seen and answer is not None else None

    def _pooled(self, found: Tensor, clips: Tensor) -> Tensor:
        """Bring what was found into clip form, and pool it."""
        if found.ndim == 5:
            steps = found.mean((3, 4)).transpose(1, 2)
        elif found.ndim == 3 and self.by_name:  # [b, c, t], as I3D's logits of each step
            steps = found.transpose(1, 2)
        else:  # frame form, [b * t, ...], of a 2D network's own layers
            if found.ndim == 4 and _channels_last(found, clips):
                found = found.permute(0, 3, 1, 2)
            if self.pool == "none":
                return frames_to_clip(found, len(clips)) if found.ndim == 4 else found.unflatten(0, (len(clips), -1))
            flat = found.mean((2, 3)) if found.ndim == 4 else found.mean(1) if found.ndim == 3 else found
            steps = flat.unflatten(0, (len(clips), -1))
        if self.pool == "none":
            return found
        return steps.mean(1) if self.pool == "mean" else steps

    def _no_features(self, expected: str, got: str) -> InflateError:
        return InflateError(
            "the network does not answer with features",
            where=f"features, {self.endpoint}",
            expected=expected,
            got=got,
            fix="name another endpoint, or look for NaN in the weights (inflate3d weights verify)",
        )


class WholeVideo:
    """An endpoint of a network over one video that comes in pieces.

    Args:
        network: The endpoint.
        num_frames: Of the video.
    """

    def __init__(self, network: EndpointNetwork, num_frames: int) -> None:
        self.network, self.num_frames = network, num_frames
        self.stream: Stream | None = None

    def __call__(self, clips: Tensor, *, is_last: bool) -> Tensor | None:
        """Map the next frames `[b, c, t, h, w]` to the next steps `[b, steps, ...]`; None where there is none yet.

        Raises:
            InflateError: See `EndpointNetwork`.
        """
        with torch.inference_mode():
            clips, model = self.network._placed(clips), self.network.model
            if self.stream is None:
                self.stream = Stream(model, self.num_frames)
            found = self.network._found(clips, self.stream, is_last=is_last)
            return None if found is None else self.network._answer(found, clips)


def network_named(
    name: str | Path, *, weights: str | None = None, stream: StreamName = "rgb", compat: "Compat | None" = None
) -> nn.Module:
    """Find a network by the name that users type, with weights.

    Args:
        name: What `inflate3d.load` takes; or with `weights` a network of the zoo, such as `3d-resnet50`, or a 2D model
            to be inflated, such as `timm/resnet50`.
        weights: A file of any dialect that `inflate3d.weights.load.load_checkpoint` reads, 2D or 3D; "none" for random
            ones, the same each time.
        stream: "flow" for a network with two input channels.
        compat: See `inflate3d.load`; I3D alone is changed by it.

    Raises:
        InflateError: There is no such network, or a network of the zoo comes without `weights`.

    Example:
        >>> type(network_named("torchvision/resnet18", weights="none", stream="flow")).__name__
        'InflatedClassifier'
    """
    from inflate3d.models.zoo import INFLATED, MODELS, build_network  # noqa: PLC0415 - they need torchvision
    from inflate3d.weights.load import COMPAT, load, load_checkpoint  # noqa: PLC0415

    name = str(name)
    source = f"{INFLATED}{name}" if name.partition("/")[0] in {"timm", "torchvision"} else name
    if not (source.startswith(INFLATED) or name in MODELS):
        if weights is not None:
            raise _no_weights(name, weights, "no weights, since the name or the file brings its own", "leave them out")
        return load(name, compat=compat)
    if weights is None:
        raise _no_weights(name, "none given", "a FILE of weights, or none (random ones)", "--weights FILE")
    torch.manual_seed(0)
    if compat is not None:
        check_choice(compat, COMPAT, what="compat", where="features")
    if name == "i3d" and compat:
        model: nn.Module = InceptionI3d(in_channels=CHANNELS[stream], **COMPAT[compat])
    else:
        model = build_network(source, in_channels=None if stream == "rgb" else CHANNELS[stream])
    if weights != NO_WEIGHTS:
        load_checkpoint(model, weights)
    return model.eval()


def _no_weights(name: str, got: str, expected: str, fix: str) -> InflateError:
    return InflateError("network and weights do not go together", where=name, expected=expected, got=got, fix=fix)


def _check(model: object) -> None:
    fault = None
    if not isinstance(model, nn.Module):
        fault = (type(model).__name__, "pass inflate3d.load(NAME)")
    elif not isinstance(getattr(model, "clip_spec", None), ClipSpec):
        fault = (f"{type(model).__name__} without one", "set model.clip_spec = inflate3d.ClipSpec(...)")
    elif in_training(model):
        fault = (in_training(model), "model.eval()")
    if fault:
        raise InflateError(
            "no features can be had of this model",
            where="features",
            expected="a torch.nn.Module in eval mode, with an attribute clip_spec that tells what it is fed",
            got=fault[0],
            fix=fault[1],
        )


def _last_layer(model: nn.Module) -> str:
    """Find the classifier: the last matrix, or convolution of one pixel; empty where there is none."""
    inflated = next(((f"{path}." * bool(path), part) for path, part in model.named_modules() if _has_net(part)), None)
    start, root = (f"{inflated[0]}net.", inflated[1].net) if inflated else ("", model)
    assert isinstance(root, nn.Module)
    paths = [path for path, layer in root.named_modules() if path and _mixes_channels(layer)]
    return start + paths[-1] if paths else ""


def _has_net(part: nn.Module) -> bool:
    return isinstance(part, Inflated)


def _mixes_channels(layer: nn.Module) -> bool:
    if isinstance(layer, nn.modules.conv._ConvNd):
        return all(side == 1 for side in layer.kernel_size)
    return isinstance(layer, nn.Linear | Pointwise)


def _channels_last(found: Tensor, clips: Tensor) -> bool:
    """Tell `[n, h, w, c]` from `[n, c, h, w]` by the shape of the frames."""
    _, a, b, c = found.shape
    ratio = clips.shape[3] / clips.shape[4]
    first, last = abs(b - c * ratio) <= 1, abs(a - b * ratio) <= 1
    return last and not first


def _no_such_endpoint(endpoint: str, model: nn.Module, names: list[str]) -> InflateError:
    return InflateError(
        "the network has no such layer",
        where=f"features of {type(model).__name__}",
        expected="features, logits, an endpoint's name or that of a module",
        got=repr(endpoint),
        fix=f"did you mean {nearest_names(endpoint, names)}?",
    )

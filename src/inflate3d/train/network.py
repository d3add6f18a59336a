"""The network of a recipe: built, started from weights, frozen in part, and cut behind what is frozen."""

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from lightning.pytorch.plugins import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from inflate3d.clips.clip import ClipSpec
from inflate3d.errors import InflateError, nearest_names
from inflate3d.inflation.inflated import Inflated
from inflate3d.models.inception import ENDPOINTS, InceptionI3d
from inflate3d.models.zoo import build_network
from inflate3d.speed.optimize import optimize, to_channels_last
from inflate3d.train.recipe import HEAD, STREAM_CHANNELS, Recipe, Training
from inflate3d.weights.catalogue import CATALOGUE
from inflate3d.weights.fetch import fetched_path
from inflate3d.weights.load import TORCHVISION, load, load_checkpoint

NO_INIT = "none"


def build_for(recipe: Recipe, class_names: tuple[str, ...], *, start: bool = True) -> nn.Module:
    """Build the network of a recipe, with a last layer for these classes.

    Args:
        recipe: Its `network`, `init`, `stream` and clips are used.
        class_names: One for each class.
        start: Fill it with the weights that it starts from; no, where those of a checkpoint follow.

    Raises:
        InflateError: There is no such network, or its weights cannot be had.
    """
    torch.manual_seed(recipe.seed)
    channels = STREAM_CHANNELS[recipe.stream]
    if start and recipe.init.startswith(TORCHVISION):
        stream = "rgb" if recipe.stream == "both" else recipe.stream
        model = load(recipe.network, init=recipe.init, stream=stream, num_classes=len(class_names))
    else:
        model = build_network(recipe.network, len(class_names), in_channels=channels if channels != 3 else None)
        if start and recipe.init != NO_INIT:
            path = fetched_path(recipe.init) if recipe.init in CATALOGUE else Path(recipe.init)
            load_checkpoint(model, path)
    model.class_names = class_names  # type: ignore[assignment]  # nn.Module knows no others
    return describe(model, recipe)


def describe(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Tell the network what it is fed from now on, so that `predict` shows it the same."""
    spec = getattr(model, "clip_spec", None)
    least = spec.min_frames if isinstance(spec, ClipSpec) else 1
    fps = 25.0 if isinstance(recipe.fps, str) else float(recipe.fps)
    frames = max(recipe.num_frames, least)
    model.clip_spec = ClipSpec(  # type: ignore[assignment]  # nn.Module knows no others
        fps / recipe.frame_step, frames, min(least, frames), recipe.short_side, recipe.crop, (-1.0, 1.0)
    )
    return model


def head_of(model: nn.Module, num_classes: int) -> tuple[str, nn.Linear | nn.Conv3d]:
    """Find the last layer, the one with an output for each class.

    Raises:
        InflateError: The network has none.
    """
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == num_classes)
        or (isinstance(layer, nn.Conv3d) and layer.out_channels == num_classes and set(layer.kernel_size) == {1})
    ]
    if not layers:
        raise InflateError(
            "the network has no last layer for these classes",
            where=type(model).__name__,
            expected=f"a Linear or a 1x1x1 convolution with {num_classes} outputs",
            got="none",
            fix="build it with num_classes= of your data",
        )
    return layers[-1]


def freeze(model: nn.Module, recipe: Recipe, num_classes: int) -> None:
    """Freeze what the recipe says, in place.

    Raises:
        InflateError: There is no layer of that name.

    Example:
        >>> model = nn.Sequential(nn.Conv3d(3, 5, 1), nn.BatchNorm3d(5), nn.Flatten(), nn.Linear(5, 2))
        >>> freeze(model, Recipe("mine", freeze="0", freeze_norm=True), 2)
        >>> [name for name, value in model.named_parameters() if value.requires_grad]
        ['3.weight', '3.bias']
    """
    if recipe.freeze == HEAD:
        head = {id(value) for value in head_of(model, num_classes)[1].parameters()}
        for value in model.parameters():
            value.requires_grad_(id(value) in head)
    elif recipe.freeze:
        names = [name for name, _ in model.named_modules() if name]
        fits = [name for name in names if name == recipe.freeze or name.endswith(f".{recipe.freeze}")]
        if not fits:
            raise InflateError(
                "there is no layer of that name to freeze up to",
                where=f"recipe {recipe.name}, freeze",
                expected=f"{HEAD}, or a layer of {type(model).__name__}",
                got=recipe.freeze,
                fix=f"did you mean {nearest_names(recipe.freeze, names)}?",
            )
        last = max(index for index, name in enumerate(names) if f"{name}.".startswith(f"{fits[0]}."))
        for name in names[: last + 1]:
            for value in model.get_submodule(name).parameters(recurse=False):
                value.requires_grad_(False)
    if recipe.freeze_norm:
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                layer.requires_grad_(False)


def keep_frozen_in_eval(model: nn.Module, recipe: Training) -> None:
    """Put batch norms and dropouts of what is frozen into eval mode: their statistics are not to move."""
    for layer in model.modules():
        values = list(layer.parameters(recurse=False))
        if isinstance(layer, _BatchNorm) and (recipe.freeze_norm or (values and not values[0].requires_grad)):
            layer.eval()


def prepare(model: nn.Module, recipe: Recipe, num_classes: int) -> nn.Module:
    """Freeze, set dropout, checkpoint activations and lay memory out, in place."""
    freeze(model, recipe, num_classes)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout) and recipe.dropout is not None:
            layer.p = recipe.dropout
        if not isinstance(layer, _BatchNorm) or type(layer).forward is not _BatchNorm.forward:  # timm's do more
            continue
        if layer.affine and layer.track_running_stats:
            layer.forward = partial(_scaled, layer)  # type: ignore[method-assign]
    if recipe.checkpointing:
        for block in _blocks(model):
            _recompute(block)
    return to_channels_last(model)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Name the parts whose inner activations are worth computing twice: those with several convolutions."""
    inflated = next((part for part in model.modules() if isinstance(part, Inflated)), None)
    parts = (inflated.net if inflated else model).children()
    return [
        part
        for part in parts
        if sum(value.ndim > 3 for value in part.parameters()) > 1
        and any(value.requires_grad for value in part.parameters())
    ]


def _recompute(block: nn.Module) -> None:
    # partial, and no lambda: a copy of the network then has a block of its own
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _scaled(layer: _BatchNorm, x: Tensor) -> Tensor:
    """Do what a batch norm with frozen statistics does, in one pass forwards and one backwards."""
    assert layer.running_var is not None and layer.running_mean is not None
    if layer.training or layer.weight.requires_grad:
        return type(layer).forward(layer, x)
    scale = layer.weight * (layer.running_var + layer.eps).rsqrt()
    shift = layer.bias - layer.running_mean * scale
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return torch.addcmul(shift.to(x.dtype).view(shape), x, scale.to(x.dtype).view(shape))


def frozen_digest(model: nn.Module) -> str:
    """Hash what is not trained: weights and statistics."""
    found = sha256()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    for name, value in model.state_dict().items():
        if name not in trained:
            found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


class SyncedNorms(LayerSync):
    """Batch norms that count all devices: those of timm keep their activations, which Lightning's way would drop."""

    def __init__(self) -> None:
        self.own: list[tuple[nn.Module, str, _BatchNorm]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Exchange batch norms, in place."""
        from timm.layers import convert_sync_batchnorm  # noqa: PLC0415 - seconds

        for part in model.modules():
            self.own += [(part, name, norm) for name, norm in part.named_children() if isinstance(norm, _BatchNorm)]
        found: nn.Module = convert_sync_batchnorm(model)
        return found

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the model's own ones back, with what was learned."""
        for part, name, norm in self.own:
            synced = part.get_submodule(name)
            for key, value in (*synced.named_parameters(recurse=False), *synced.named_buffers(recurse=False)):
                setattr(norm, key, value)
            part.add_module(name, norm.train(synced.training))
        self.own = []
        return model


class I3dTail(nn.Module):
    """I3D from behind an endpoint on: maps what that gave to logits."""

    def __init__(self, model: InceptionI3d, after: str) -> None:
        super().__init__()
        self.model = model
        self.steps = ENDPOINTS[ENDPOINTS.index(after) + 1 : ENDPOINTS.index("Logits") + 1]

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, c, t, h, w]` to logits `[b, classes]`."""
        for name in self.steps:
            x = self.model.step(name, x)
        return x


class Head(nn.Module):
    """The last layer alone, on the features that it is given, averaged over time and place."""

    def __init__(self, layer: nn.Linear | nn.Conv3d, dropout: float) -> None:
        super().__init__()
        self.layer, self.dropout = layer, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[b, features]` to logits `[b, classes]`."""
        x = self.dropout(x)
        wide = isinstance(self.layer, nn.Conv3d)
        logits: Tensor = self.layer(x[:, :, None, None, None] if wide else x)
        return logits.flatten(1)


def split(model: nn.Module, recipe: Recipe, num_classes: int) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """Cut a network behind what is frozen: what maps clips to what the rest is trained on, and that rest.

    The rest shares its layers with the network.

    Raises:
        InflateError: The network cannot be cut there.
    """
    fast = optimize(model.eval(), recipe.precision)
    if isinstance(model, InceptionI3d) and recipe.freeze in ENDPOINTS:
        return lambda clip: fast.endpoints(clip, recipe.freeze)[recipe.freeze], I3dTail(model, recipe.freeze)
    if recipe.freeze != HEAD:
        raise InflateError(
            "what is frozen cannot be kept",
            where=f"recipe {recipe.name}, cached_views",
            expected=f"freeze={HEAD} for any network; for I3D also {', '.join(ENDPOINTS[:-3])}",
            got=f"{type(model).__name__}, freeze={recipe.freeze}",
            fix="cached_views=0 runs the frozen part every time",
        )
    layer = head_of(model, num_classes)[1]
    if isinstance(model, InceptionI3d):
        pooled = ENDPOINTS[-4]
        return lambda clip: fast.endpoints(clip, pooled)[pooled].mean((2, 3, 4)), Head(layer, recipe.dropout or 0.0)
    path = head_of(fast.model, num_classes)[0]
    return lambda clip: _seen_by(fast, path, clip), Head(layer, recipe.dropout or 0.0)


def _seen_by(fast: nn.Module, path: str, clip: Tensor) -> Tensor:
    """Run a network and take what its last layer sees, averaged over time and place: `[b, features]`.

    Raises:
        InflateError: It sees something else, such as the steps of an LSTM, of which the last one counts.
    """
    seen: list[Tensor] = []
    layer = fast.get_submodule("model").get_submodule(path)
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().float()))
    try:
        fast(clip)
    finally:
        hook.remove()
    x = seen[-1]
    if isinstance(layer, nn.Linear) and x.ndim != 2:
        raise InflateError(
            "what is frozen cannot be kept",
            where=f"cached_views of {type(fast.get_submodule('model')).__name__}",
            expected="a last layer that is given one vector for each clip or frame",
            got=f"{path}, which is given {list(x.shape)}",
            fix="cached_views=0 runs the frozen part every time",
        )
    return x.unflatten(0, (clip.shape[0], -1)).mean(1) if x.ndim == 2 else x.flatten(2).mean(2)

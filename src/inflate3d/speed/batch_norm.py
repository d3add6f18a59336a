"""Fold batch norms into the convolutions in front of them."""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

FOLD_TOLERANCE = 1e-4  # of one layer's output, relative to its largest value; float32 rounds by 1e-6


class _Folded(NamedTuple):
    """What makes a convolution do the work of the batch norm behind it as well, and what else that norm did."""

    weight: nn.Parameter
    bias: nn.Parameter
    rest: nn.Module


def fold_batch_norms(model: nn.Module, run: Callable[[], Any]) -> list[str]:
    """Fold each batch norm that is given the output of a convolution into this, in place.

    Which follows which is seen in a run, where each pair is compared with its folded form on what flows through it;
    pairs that differ (standardized weights) or run more than once stay as they are.

    Args:
        model: In eval mode.
        run: Runs the model once, without gradients.

    Returns:
        Names of the folded batch norms, in the order in which they ran.
    """
    found: list[tuple[_ConvNd, _BatchNorm]] = []  # without what they fold to: that is a second copy of the weights
    runs: Counter[nn.Module] = Counter()
    made: dict[int, tuple[_ConvNd, Tensor, Any]] = {}  # by the id of the output, as long as that lives

    def after_convolution(layer: _ConvNd, given: tuple[Tensor, ...], output: Tensor) -> None:
        runs[layer] += 1
        key = id(output)
        made[key] = layer, given[0], weakref.ref(output, lambda _: made.pop(key, None))

    def after_norm(layer: _BatchNorm, given: tuple[Tensor, ...], output: Tensor) -> None:
        runs[layer] += 1
        if id(given[0]) in made:
            convolution, sample, _ = made.pop(id(given[0]))
            folded = _fold(convolution, layer)
            if folded and _same(convolution, folded, sample, output):
                found.append((convolution, layer))

    hooks = [
        module.register_forward_hook(after_convolution if isinstance(module, _ConvNd) else after_norm)
        for module in model.modules()
        if isinstance(module, _ConvNd | _BatchNorm)
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    names = {module: name for name, module in model.named_modules()}
    once = [(convolution, norm) for convolution, norm in found if runs[convolution] == runs[norm] == 1]
    for convolution, norm in once:
        folded = _fold(convolution, norm)
        assert folded is not None  # it was one before
        convolution.weight, convolution.bias = folded.weight, folded.bias
        owner, _, attribute = names[norm].rpartition(".")
        setattr(model.get_submodule(owner), attribute, folded.rest)
    return [names[norm] for _, norm in once]


def _fold(convolution: _ConvNd, norm: _BatchNorm) -> _Folded | None:
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None or "weight" not in convolution._parameters:
        return None  # statistics of the batch at hand, or a weight that is made anew at each call
    scale = (var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.double()
    shift = (convolution.bias.double() if convolution.bias is not None else 0.0) - mean.double()
    bias = shift * scale + (norm.bias.double() if norm.affine else 0.0)
    if isinstance(convolution, _ConvTransposeNd):  # [in, out / groups, ...], the groups one after the other
        grouped = convolution.weight.double().unflatten(0, (convolution.groups, -1))
        per_output = scale.view(convolution.groups, 1, -1, *[1] * (grouped.ndim - 3))
        weight = (grouped * per_output).flatten(0, 1)
    else:
        weight = convolution.weight.double() * scale.view(-1, *[1] * (convolution.weight.ndim - 1))
    like = convolution.weight
    parts = [part for name in ("drop", "act") if (part := getattr(norm, name, None)) is not None]  # timm's norms
    rest = nn.Sequential(*parts) if len(parts) > 1 else parts[0] if parts else nn.Identity()
    return _Folded(nn.Parameter(weight.to(like)), nn.Parameter(bias.to(like)), rest)


def _same(convolution: _ConvNd, folded: _Folded, sample: Tensor, wanted: Tensor) -> bool:
    """Run a convolution with its folded weight, past its hooks, and put the old one back."""
    kept = convolution.weight, convolution.bias
    convolution.weight, convolution.bias = folded.weight, folded.bias
    try:
        found: Tensor = folded.rest(convolution.forward(sample))
    finally:
        convolution.weight, convolution.bias = kept
    return _largest(found.sub_(wanted)) <= FOLD_TOLERANCE * _largest(wanted)


def _largest(values: Tensor) -> float:
    """Largest absolute value, without a copy of them."""
    return max(abs(float(side)) for side in values.detach().aminmax())

"""Pools that a model calls as functions inside forward(): seen while planning, and given time while running.

The k-th pool that runs while a module's forward() runs is `path#k`, pools of its parts counted as well. Only modules
whose own forward() makes such a call run under a `TorchFunctionMode`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inflate3d.inflation.adapters import PooledInTime
from inflate3d.inflation.fold import Fold
from inflate3d.inflation.plan import LayerPlan

# The functions of torch and whether they take a maximum
POOLS: dict[Any, bool] = {F.max_pool2d: True, torch.max_pool2d: True, F.avg_pool2d: False}


class CalledPool(PooledInTime):
    """A pool that is a call: in space it has been done when this one goes over the frames.

    Attributes:
        kernel_size: Height and width, as the call gave them.
        stride: Down and to the right.
        takes_maximum: Or else the mean.
    """

    def __init__(self, kernel_size: Any, stride: Any, *, takes_maximum: bool) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride or kernel_size
        self.takes_maximum = takes_maximum  # type: ignore[misc]  # of this one call, not of the class

    def pool_space(self, frames: Tensor) -> Tensor:
        """Leave them as they are."""
        return frames


class ListensForPools(TorchFunctionMode):
    """Tells of every call of a pool: the function's arguments and what it gave."""

    def __init__(self, heard: Callable[[CalledPool, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.heard = heard

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in POOLS or not isinstance(result, Tensor):
            return result
        names = ("input", "kernel_size", "stride")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        pool = CalledPool(given["kernel_size"], given.get("stride"), takes_maximum=POOLS[func])
        return self.heard(pool, given["input"], result)


class BeginsCalls:
    """A hook before a module's forward(): puts it under a mode that gives time to the calls with a plan."""

    def __init__(self, plans: Mapping[int, LayerPlan], fold: Fold) -> None:
        self.fold = fold
        self.pools: dict[int, CalledPool] = {}
        self.plans = dict(plans)

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Open the mode; it counts the calls from here on."""
        count = 0

        def heard(pool: CalledPool, x: Tensor, result: Tensor) -> Tensor:
            nonlocal count
            number, count = count, count + 1
            if number not in self.plans:
                return result
            known = self.pools.setdefault(number, pool)
            known.fold, known.plan = self.fold, self.plans[number]
            known.runs = getattr(known, "runs", {})
            timed: Tensor = known(result)
            return timed

        mode = ListensForPools(heard)
        self.fold.modes.append(mode)
        mode.__enter__()  # type: ignore[no-untyped-call]


class EndsCalls:
    """A hook behind a module's forward(), also if it fails."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Close the mode that was opened last."""
        self.fold.modes.pop().__exit__(None, None, None)


def time_calls(owner: nn.Module, plans: Mapping[int, LayerPlan], fold: Fold) -> None:
    """Give time to calls of pools in a module's forward(), by their numbers."""
    owner.register_forward_pre_hook(BeginsCalls(plans, fold))
    owner.register_forward_hook(EndsCalls(fold), always_call=True)


def forget_calls(owner: nn.Module) -> None:
    """Undo `time_calls`."""
    for hooks in (owner._forward_pre_hooks, owner._forward_hooks):
        for number, hook in list(hooks.items()):
            if isinstance(hook, BeginsCalls | EndsCalls):
                del hooks[number]
                owner._forward_hooks_always_called.pop(number, None)

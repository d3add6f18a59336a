"""A 2D model by name inflated for a stranger: in a process of its own, with bounds on time, memory and parameters."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context, set_forkserver_preload
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from time import monotonic
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from inflate3d.errors import InflateError, check_choice, nearest_names
from inflate3d.inflation.build import build, make_plan
from inflate3d.inflation.cost import Cost, estimate_cost
from inflate3d.inflation.plan import Plan
from inflate3d.inflation.presets import PRESETS
from inflate3d.inflation.proof import Proof, prove
from inflate3d.models.sources import NO_WEIGHTS, PRETRAINED, example_shape, find_2d_model, model_names

Weights = Literal["none", "pretrained"]
Step = Plan | Cost | Proof

COST_FRAMES = 16
PROOF_SIDES = (64, 96, 128)  # pixels; the smallest that the model takes, for a proof in float64 takes long
MEGABYTE = 10**6
NICENESS = 5  # videos, which people wait for, go before


@dataclass(frozen=True)
class Bounds:
    """What one model may take.

    Attributes:
        seconds: From the start of its process to the end of the proof.
        parameters: Numbers in the 2D model.
        megabytes: Of memory, where the system can hold a process to it (Linux).
    """

    seconds: float = 180.0
    parameters: int = 100_000_000
    megabytes: int = 6000


@dataclass(frozen=True)
class Wish:
    """Which model is to be inflated, and how.

    Attributes:
        name: `timm/NAME` or `torchvision/NAME`.
        preset: A key of `PRESETS` that needs to know nothing else.
        weights: "none" for random ones; "pretrained" is a download.
        proof: Whether it is proved, which takes longest.

    Raises:
        InflateError: There is no such model, preset or kind of weights.

    Example:
        >>> Wish("timm/test_resnet").preset
        'video'
    """

    name: str
    preset: str = "video"
    weights: Weights = "none"
    proof: bool = True

    def __post_init__(self) -> None:
        if self.name not in (known := model_names()):
            raise InflateError(
                "there is no such model here",
                where="inflate",
                expected="a name of timm or torchvision: timm/NAME, torchvision/NAME; code and files are not taken",
                got=repr(self.name)[:80],
                fix=f"did you mean {nearest_names(self.name[:80], known)}?",
            )
        check_choice(self.preset, PAGE_PRESETS, what="preset", where="inflate")
        check_choice(self.weights, (NO_WEIGHTS, PRETRAINED), what="kind of weights", where="inflate")


PAGE_PRESETS = tuple(name for name in PRESETS if name != "anisotropic")  # which has to be told the spacing of voxels


class _TooLargeError(Exception):
    """A model has more parameters than it may have; no error that anybody takes for one of the model's own."""


def inflate_within(wish: Wish, bounds: Bounds) -> Iterator[Step]:
    """Inflate a model in a process of its own, which ends with this iterator.

    Args:
        wish: Which one, and how.
        bounds: What it may take.

    Returns:
        Its plan, its cost, and the proof if it is wanted, each as soon as it is there.

    Raises:
        InflateError: It takes too long, or too much memory; it has too many parameters; or it cannot be inflated so.
    """
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(wish, bounds, theirs), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    end = monotonic() + bounds.seconds
    try:
        while True:
            if not ours.poll(max(end - monotonic(), 0)):
                raise _out_of_bounds("takes too long", f"at most {bounds.seconds:g} seconds", wish)
            try:
                step = ours.recv()
            except EOFError:  # it was ended, by the system or by an allocator that gave up
                raise _too_much_memory(wish, bounds) from None
            if step is None:
                return
            if isinstance(step, InflateError):
                raise step
            yield step
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def _context() -> BaseContext:
    """Start processes from one that has imported all and done nothing: a fork of ours, which has threads, may hang."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    set_forkserver_preload([__name__, "timm"])
    return get_context("forkserver")


def _work(wish: Wish, bounds: Bounds, found: Connection) -> None:
    """What the process does: send what it finds, and at last nothing or what went wrong."""
    _hold_to(bounds.megabytes)
    try:
        for step in _steps(wish, bounds):
            found.send(step)
    except _TooLargeError:
        most = f"at most {bounds.parameters / 1e6:g} million parameters"
        found.send(_out_of_bounds("is too large", most, wish))
    except InflateError as error:
        found.send(_too_much_memory(wish, bounds) if "allocate memory" in error.got else error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        found.send(_too_much_memory(wish, bounds))
    else:
        found.send(None)


def _hold_to(megabytes: int) -> None:
    """Bound the memory of this process, and let others go before it."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    if sys.platform == "linux":
        import resource  # noqa: PLC0415 - not on Windows

        resource.setrlimit(resource.RLIMIT_DATA, (megabytes * MEGABYTE, megabytes * MEGABYTE))


def _steps(wish: Wish, bounds: Bounds) -> Iterator[Step]:
    model2d = _found_within(wish, bounds.parameters)
    channels, height, width = example_shape(model2d, wish.name)
    plan = make_plan(model2d, wish.preset, example=torch.zeros(1, channels, height, width))
    yield plan
    model3d = build(plan, model2d)
    yield estimate_cost(model3d, (channels, COST_FRAMES, height, width))
    if wish.proof:
        yield prove(model2d, model3d, example=_small_picture(model2d, (channels, height, width)))


def _found_within(wish: Wish, most: int) -> nn.Module:
    """Build a model, and stop as soon as it has too many parameters."""
    count = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += parameter.numel() if parameter is not None else 0
        if count > most:
            raise _TooLargeError

    torch.manual_seed(0)  # the same random weights each time
    handle = register_module_parameter_registration_hook(add)
    try:
        return find_2d_model(wish.name, weights=wish.weights)
    finally:
        handle.remove()


def _small_picture(model2d: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    """Make a picture of the smallest size that the model takes; many take one size only."""
    channels, height, width = shape
    for side in PROOF_SIDES:
        picture = torch.zeros(1, channels, side, side)
        try:
            with torch.no_grad():
                model2d(picture)
        except Exception:  # asserts, shapes, indices: whatever says that this size will not do
            continue
        return picture
    return torch.zeros(1, channels, height, width)


def _out_of_bounds(problem: str, expected: str, wish: Wish) -> InflateError:
    return InflateError(
        f"this model {problem} for this page",
        where=wish.name,
        expected=expected,
        got=f"{wish.name}, preset {wish.preset}",
        fix=f"a smaller model, or on your own machine: inflate3d prove {wish.name} --preset {wish.preset}",
    )


def _too_much_memory(wish: Wish, bounds: Bounds) -> InflateError:
    return _out_of_bounds("takes too much memory", f"at most {bounds.megabytes} MB", wish)

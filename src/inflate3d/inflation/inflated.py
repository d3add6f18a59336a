"""The Inflated: a 2D model that runs on clips, by its own code on every frame and layers that look through time."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from inflate3d.axes import clip_to_frames, frames_to_clip
from inflate3d.errors import InflateError, check_choice, nearest_names
from inflate3d.inflation.fold import Fold, Folded, Runs, in_backward
from inflate3d.inflation.intercept import beside
from inflate3d.inflation.observe import copied
from inflate3d.inflation.outputs import Outputs, TimePool, look_at_outputs
from inflate3d.inflation.padding import pad_time
from inflate3d.inflation.pictures import pictures_like
from inflate3d.inflation.plan import Plan

MAX_OUTPUTS = 64  # that an Inflated remembers the forms of


class Inflated(nn.Module):
    """A 2D model that runs on clips: its own code on every frame, and layers that look through time.

    Attributes:
        net: The 2D model's copy: same class, same code, same names of parameters.
        plan: What each of its layers became.
        inserts: What the 2D model has not, in a tree with the names of its modules; None if there is nothing.
        time_pool: How vectors (logits, features) of the frames become one: "mean", "max" or "none" (one per step).

    Example:
        >>> from inflate3d.inflation.build import inflate
        >>> model3d = inflate(nn.Sequential(nn.Conv2d(3, 5, 3)), example=torch.zeros(1, 3, 11, 13))
        >>> [tuple(value.shape) for value in model3d.net.state_dict().values()]
        [(5, 3, 3, 3, 3), (5,)]
    """

    def __init__(self, net: nn.Module, plan: Plan, fold: Fold, *, time_pool: TimePool = "mean") -> None:
        super().__init__()
        check_choice(time_pool, get_args(TimePool), what="pooling over time", where="Inflated")
        self.net, self.plan, self.fold, self.time_pool = net, plan, fold, time_pool
        self.inserts: nn.Module | None = None
        self.outer: Fold | None = None  # of the Inflated that this one is a layer of
        self.runs: Runs = {}  # as such a layer; see `Folded`
        self._outputs: dict[str, Outputs] = {}  # by method and arguments

    def forward(self, clip: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Run the model on a clip `[b, c, t, h, w]`; pictures `[b, c, h, w]` are answered as by the 2D model.

        The clip may come by the name of the 2D model's own first argument, `model3d(pixel_values=clip)`.

        Raises:
            InflateError: See `call`.
        """
        return self.call("forward", clip, *args, **kwargs)

    def call(self, method: str, clip: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Run any method of the 2D model, such as timm's `forward_features`, on a clip `[b, c, t, h, w]`.

        Where layers make time longer again, as decoders do, the last frame is repeated up to a multiple of the plan's
        `clip_multiple`, and what comes out is cut: a step stays if it begins before the clip ends, so that maps of the
        size of the picture have as many frames as the clip.

        Vectors `[n, d]` come out as `[b, d]` (see `time_pool`), maps as `[b, c, t, h, w]` or `[b, t, h, w, c]`, tokens
        as `[b, t, l, d]`, in whatever tuple, list, dict or dataclass the method returns.

        Args:
            method: Its name.
            clip: Passed as the first argument, in frame form; it may come by the name of that argument.
            *args: Passed on as they are.
            **kwargs: Passed on as they are.

        Raises:
            InflateError: There is no such method, or the clip is missing or has other axes.
        """
        self._check_method(method)
        if clip is None:
            clip, kwargs = self._clip_by_name(method, kwargs)
        self._check_clip(clip, method)
        pictures = clip.ndim == 4
        num_clips, outer = clip.shape[0], self.outer if pictures else None
        if outer and (outer.num_clips is not None or in_backward()):  # a checkpoint may run it anew
            num_clips = outer.num_clips_in(clip, self.runs, "an Inflated inside another one")
        num_frames = clip.shape[0] // num_clips if pictures else clip.shape[2]
        multiple = self.plan.clip_multiple
        added = -num_frames % multiple if multiple > 1 else 0
        outputs = None if pictures and not added else self.outputs_of(method, *args, **kwargs)
        if added:
            clip = pad_time(frames_to_clip(clip, num_clips) if pictures else clip, 0, added)
        self.fold.push(num_clips, num_frames + added)
        try:
            # forward() through the module itself, so that its hooks run
            run = self.net if method == "forward" else getattr(self.net, method)
            output = run(clip_to_frames(clip) if clip.ndim == 5 else clip, *args, **kwargs)
        finally:
            self.fold.pop()
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            for leaf in pytree.tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf.grad_fn is not None:
                    self.fold.begins_backward(num_clips, leaf)
        if outputs and not outputs.fit(output):  # some models give more, or something else, in training
            outputs = self._remembered(method, args, kwargs, training=self.net.training)
        if outputs and added:
            output = outputs.cut(output, num_clips, num_frames=num_frames, ran=num_frames + added)
        return output if pictures or not outputs else outputs.unfold(output, num_clips, self.time_pool)

    def outputs_of(self, method: str, *args: Any, **kwargs: Any) -> Outputs:
        """Look up what comes out of a method, leaf by leaf; the first time it is run on single pictures for that."""
        return self._remembered(method, args, kwargs)

    def _remembered(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool = False
    ) -> Outputs:
        key = output_key(method, args, kwargs, training=training)
        if key not in self._outputs:
            while len(self._outputs) >= MAX_OUTPUTS:
                del self._outputs[next(iter(self._outputs))]
            self._outputs[key] = self._look_at(method, args, kwargs, training=training)
        return self._outputs[key]

    def _clip_by_name(self, method: str, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Find the clip under the name of the method's first argument, such as Hugging Face's `pixel_values`."""
        name = next(iter(inspect.signature(getattr(self.net, method)).parameters), "")
        if not isinstance(kwargs.get(name), Tensor):
            raise InflateError(
                "no clip was given",
                where="Inflated",
                expected=f"[b, c, t, h, w] as the first argument, or as {name}=",
                got=", ".join(f"{key}=" for key in kwargs) or "nothing",
                fix=f"model3d(clip) or model3d({name}=clip)",
            )
        return kwargs[name], {key: value for key, value in kwargs.items() if key != name}

    def _check_method(self, method: str) -> None:
        if not callable(getattr(self.net, method, None)):
            names = [name for name in dir(self.net) if not name.startswith("_")]
            raise InflateError(
                f"the 2D model has no method {method}",
                where="Inflated.call",
                expected="a method of " + type(self.net).__name__,
                got=repr(method),
                fix=f"did you mean {nearest_names(method, names)}?",
            )
        own_calls = [layer.path for layer in self.plan if layer.path.startswith("#") and layer.action != "frame"]
        if method != "forward" and own_calls:
            raise InflateError(
                "functions that the model calls in its own forward() have time there only",
                where="Inflated.call",
                expected="forward, in a model whose plan gives time to " + ", ".join(own_calls),
                got=repr(method),
                fix="give these calls no time: rules={'#*': Rule(time_kernel=1, time_stride=1)}",
            )

    def _check_clip(self, clip: Tensor, method: str) -> None:
        channels, lost = self.plan.input_shape[0], self.plan.frames_lost
        fits = isinstance(clip, Tensor) and clip.ndim in (4, 5) and 0 not in clip.shape
        own = method == "forward"  # other methods may take what layers give
        shape = f"[b, {channels if own else 'c'}, t, h, w]" + f" with t > {lost}" * (lost > 0)
        if fits and (not own or clip.shape[1] == channels) and (clip.ndim == 4 or clip.shape[2] > lost):
            return
        raise InflateError(
            "the input is no clip",
            where="Inflated",
            expected=f"{shape}, or pictures, without t",
            got=f"{list(clip.shape)}" if isinstance(clip, Tensor) else type(clip).__name__,
            fix="channels stand before time: clip.transpose(1, 2) changes them over; clip[None] makes one clip a batch",
        )

    def _look_at(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> Outputs:
        """Run the method of a copy on single pictures, so that no statistics and no masks of this one change."""
        trial = copied(self).train(training)
        for part in [*trial.modules(), *beside(trial.net)]:
            if isinstance(part, Folded):  # one frame stays one: forms do not depend on it
                part.plan = replace(part.plan, time_scale=1)
        pictures = pictures_like(trial, self.plan.input_shape)

        def run(frames: Tensor) -> Any:
            trial.fold.push(frames.shape[0])
            try:
                return getattr(trial.net, method)(frames, *args, **kwargs)
            finally:
                trial.fold.pop()

        with torch.no_grad():
            return look_at_outputs(run, pictures)

    def load_2d_state_dict(self, state2d: Mapping[str, Tensor]) -> None:
        """Load a checkpoint of the 2D model: kernels are inflated as the plan says, inserts stay as they are.

        Raises:
            InflateError: Names or shapes are not those of the 2D model.
        """
        from inflate3d.inflation.build import build, deflate  # noqa: PLC0415 - they make an Inflated

        flat = deflate(self)
        try:
            flat.load_state_dict(state2d)
        except RuntimeError as error:
            raise InflateError(
                "the checkpoint does not fit the 2D model",
                where="Inflated.load_2d_state_dict",
                expected=f"the state dict of {type(flat).__name__}",
                got=str(error),
                fix="strip prefixes, or take the checkpoint of this very model",
            ) from None
        self.net.load_state_dict(build(self.plan, flat).net.state_dict())

    def extra_repr(self) -> str:
        """Show the plan's first line."""
        return str(self.plan).splitlines()[0]


def output_key(method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool = False) -> str:
    """Name what the form of an output depends on: shapes, flags, words, whole numbers; of other things their types."""
    plain = [
        list(value.shape)
        if isinstance(value, Tensor)
        else value
        if isinstance(value, bool | int | str | None)
        else type(value).__name__
        for value in pytree.tree_leaves((args, kwargs))
    ]
    return f"{method} {sorted(kwargs)} {plain} {training}"


def check_inflated(model3d: object, where: str) -> None:
    """Refuse what `inflate` has not made.

    Raises:
        InflateError: It is no Inflated.
    """
    if not isinstance(model3d, Inflated):
        raise InflateError(
            "this is no inflated model",
            where=where,
            expected="an Inflated, as inflate(model2d) gives",
            got=type(model3d).__name__,
            fix="pass the Inflated itself, not its .net and not a module around it",
        )

"""A plan and a 2D model make an Inflated, a 3D model; `deflate` goes back."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from inflate3d.axes import clip_to_frames
from inflate3d.errors import InflateError, nearest_names
from inflate3d.inflation.adapters import Adapted, adapter_for
from inflate3d.inflation.fold import Fold, Runs, in_backward
from inflate3d.inflation.inserts import forget_inserts, insert_into, maps_behind, place
from inflate3d.inflation.intercept import forget_calls, time_calls
from inflate3d.inflation.observe import copied, observe
from inflate3d.inflation.outputs import Outputs, TimePool, look_at_outputs
from inflate3d.inflation.pictures import input_shape_of, pictures_like
from inflate3d.inflation.plan import Insert, LayerPlan, Plan, Rule
from inflate3d.inflation.presets import PRESETS, decide, kernel_of
from inflate3d.inflation.profiles import Profile


class Inflated(nn.Module):
    """A 2D model that runs on clips: its own code on every frame, and layers that look through time.

    Attributes:
        net: The 2D model's copy: same class, same code, same names of parameters.
        plan: What each of its layers became.
        inserts: What the 2D model has not, in a tree with the names of its modules; None if there is nothing.
        time_pool: How vectors (logits, features) of the frames become one: "mean", "max" or "none" (one per step).
    """

    def __init__(self, net: nn.Module, plan: Plan, fold: Fold, *, time_pool: TimePool = "mean") -> None:
        super().__init__()
        if time_pool not in get_args(TimePool):
            raise InflateError(
                "there is no such pooling over time",
                where="Inflated",
                expected=", ".join(get_args(TimePool)),
                got=repr(time_pool),
                fix='time_pool="mean"',
            )
        self.net, self.plan, self.fold, self.time_pool = net, plan, fold, time_pool
        self.inserts: nn.Module | None = None
        self.outer: Fold | None = None  # of the Inflated that this one is a layer of
        self.runs: Runs = {}  # as such a layer; see `Folded`
        self._outputs: dict[Any, Outputs] = {}

    def forward(self, clip: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Run the model on a clip `[b, c, t, h, w]`; pictures `[b, c, h, w]` are answered as by the 2D model.

        The clip may come by the name of the 2D model's own first argument, `model3d(pixel_values=clip)`.
        """
        return self.call("forward", clip, *args, **kwargs)

    def call(self, method: str, clip: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Run any method of the 2D model, such as timm's `forward_features`, on a clip `[b, c, t, h, w]`.

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
        self._check_clip(clip)
        pictures = clip.ndim == 4
        num_clips, outer = clip.shape[0], self.outer if pictures else None
        if outer and (outer.num_clips is not None or in_backward()):  # a checkpoint may run it anew
            num_clips = outer.num_clips_in(clip, self.runs, "an Inflated inside another one")
        outputs = None if pictures else self.outputs_of(method, *args, **kwargs)
        num_frames = clip.shape[0] // num_clips if pictures else clip.shape[2]
        self.fold.push(num_clips, num_frames)
        try:
            # forward() through the module itself, so that its hooks run
            run = self.net if method == "forward" else getattr(self.net, method)
            output = run(clip if pictures else clip_to_frames(clip), *args, **kwargs)
        finally:
            self.fold.pop()
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            for leaf in pytree.tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf.grad_fn is not None:
                    self.fold.begins_backward(num_clips, leaf)
        return outputs.unfold(output, num_clips, self.time_pool) if outputs else output

    def outputs_of(self, method: str, *args: Any, **kwargs: Any) -> Outputs:
        """Look up what comes out of a method, leaf by leaf; the first time it is run on single pictures for that."""
        given = [value.shape if isinstance(value, Tensor) else value for value in pytree.tree_leaves((args, kwargs))]
        key = f"{method} {sorted(kwargs)} {given}"
        if key not in self._outputs:
            self._outputs[key] = self._look_at(method, args, kwargs)
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

    def _check_clip(self, clip: Tensor) -> None:
        if clip.ndim not in (4, 5):
            raise InflateError(
                "the input is no clip",
                where="Inflated",
                expected="[b, c, t, h, w], or pictures [b, c, h, w]",
                got=f"{list(clip.shape)}",
                fix="add the axes that are missing: clip[None] for one clip",
            )

    def _look_at(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outputs:
        """Run the method of a copy on single pictures, so that no statistics and no masks of this one change."""
        trial = copied(self).eval()
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


def make_plan(
    model2d: nn.Module,
    preset: str = "video",
    *,
    example: Tensor | None = None,
    profile: Profile = "mean",
    rules: Mapping[str, Rule] | None = None,
    inserts: Sequence[Insert] = (),
) -> Plan:
    """Decide what every layer of a 2D model becomes in time; nothing is changed.

    Args:
        model2d: Maps pictures `[n, c, h, w]`; left as it is.
        preset: A key of `PRESETS`.
        example: A picture `[1, c, h, w]` of the size the model wants; else its own configuration tells, else 3x224x224.
        profile: How 2D kernels are laid out in time.
        rules: From patterns of layer names to what is wanted there instead of the preset's choice.
        inserts: What is to be added to the model's own layers.

    Raises:
        InflateError: An unknown preset, a model that cannot be run or mixes the pictures of a batch, a rule that
            matches no layer, or an insert that has no place.

    Example:
        >>> model2d = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 7, 1))
        >>> print(make_plan(model2d, example=torch.zeros(1, 3, 11, 13)))
        Sequential, preset video: 1 of 2 layers look through time
        layer  is      becomes  kernel t x h x w  stride t  profile  padding
        0      Conv2d  inflate  3x3x3             1         mean     replicate
        2      Conv2d  frame    1x1x1
    """
    if preset not in PRESETS:
        raise InflateError(
            "there is no such preset",
            where="make_plan",
            expected="; ".join(f"{name} ({each.meaning})" for name, each in PRESETS.items()),
            got=repr(preset),
            fix=f"did you mean {nearest_names(preset, PRESETS)}?",
        )
    channels, height, width = example.shape[1:] if example is not None else input_shape_of(model2d)
    seen = observe(model2d, pictures_like(model2d, (channels, height, width)))
    layers = decide(seen, PRESETS[preset], profile)
    plan = Plan(type(model2d).__name__, preset, (channels, height, width), layers)
    plan = plan.with_rules(rules) if rules else plan
    return place(plan, inserts, model2d, padding=PRESETS[preset].padding) if inserts else plan


class Planning(TypedDict, total=False):
    """What `inflate` hands on to `make_plan`."""

    example: Tensor | None
    profile: Profile
    rules: Mapping[str, Rule] | None
    inserts: Sequence[Insert]


def build(plan: Plan, model2d: nn.Module, *, time_pool: TimePool = "mean") -> Inflated:
    """Carry out a plan on a copy of a 2D model; the model itself stays as it was and shares no memory.

    Raises:
        InflateError: The plan is for another model.
    """
    strides = None if plan.frames_lost else frozenset(layer.time_stride for layer in plan.steps)
    net, fold = copied(model2d), Fold(strides)
    _check_plan_fits(plan, net)
    outputs, maps = _forms_of_forward(net, plan), maps_behind(plan, net)
    tied = _tied_weights(plan, net)
    for layer in plan:
        if layer.action != "frame" and "#" not in layer.path:
            module = net.get_submodule(layer.path)
            adapter = adapter_for(module)
            assert adapter is not None
            adapter.take_over(module, layer, fold)
    for path, first in tied.items():
        module = net.get_submodule(path)
        assert isinstance(module, nn.Module)
        module.weight = net.get_submodule(first).get_parameter("weight")
    for module in net.modules():
        if isinstance(module, Inflated):
            module.outer = fold
    model3d = Inflated(net, plan, fold, time_pool=time_pool)
    model3d.inserts = insert_into(net, plan, maps, fold=fold)
    if model3d.inserts:
        model3d.inserts.train(model2d.training)
    time_calls(net, [layer for layer in plan if layer.action != "frame" and "#" in layer.path], fold)
    model3d.training = model2d.training  # the parts keep their own modes: frozen batch norms stay frozen
    model3d._outputs["forward [] []"] = outputs
    if plan.frames_lost or any(layer.time_stride > 1 for layer in plan.steps):
        _check_branches_meet(model3d)
    return model3d


def inflate(
    model2d: nn.Module,
    plan: str | Plan = "video",
    *,
    time_pool: TimePool = "mean",
    **planning: Unpack[Planning],
) -> Inflated:
    """Turn a 2D image model into a 3D one that answers a still clip as the 2D model answers the picture.

    Args:
        model2d: torchvision's, timm's, or your own; left as it is.
        plan: A preset, or a plan of your own (`make_plan`).
        time_pool: "mean" or "max" over the frames' logits, or "none" for logits per step `[b, t, classes]`.
        **planning: `example`, `profile`, `rules` and `inserts`, as in `make_plan`.

    Raises:
        InflateError: See `make_plan`; or nothing in the plan looks through time, and its preset is not "frames".

    Example:
        >>> model2d = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
        >>> model3d = inflate(model2d, example=torch.zeros(1, 3, 11, 13))
        >>> picture = torch.rand(2, 3, 11, 13).double()
        >>> clip = picture.unsqueeze(2).repeat(1, 1, 7, 1, 1)
        >>> torch.allclose(model3d(clip), model2d(picture))
        True
    """
    if isinstance(plan, str):
        plan = make_plan(model2d, plan, **planning)
    else:
        plan = plan.with_rules(planning.get("rules") or {})
        if inserts := planning.get("inserts"):
            plan = place(plan, inserts, model2d, padding=PRESETS[plan.preset].padding)
    if not plan.looks_through_time and plan.preset != "frames":
        raise InflateError(
            "nothing in the model would look through time",
            where="inflate",
            expected="at least one convolution whose kernel is larger than its stride",
            got=f"{plan.model} with preset {plan.preset}: "
            + (", ".join({layer.layer for layer in plan}) or "no layers"),
            fix='take preset "frames" if frames alone are what you want, or give a layer time by a Rule or an Insert',
        )
    return build(plan, model2d, time_pool=time_pool)


def deflate(model3d: Inflated) -> nn.Module:
    """Give the 2D model back: kernels summed over time, no inserts, everything else as it is now; shares no memory.

    Raises:
        InflateError: A kernel was initialized at random, so that no 2D kernel stands behind it.
    """
    for layer in model3d.plan:
        if layer.action == "inflate" and layer.profile == "random":
            raise InflateError(
                "a random kernel has no 2D kernel behind it",
                where=f"deflate, layer {layer.path}",
                expected="profiles that lay a 2D kernel out in time",
                got="profile random",
                fix="inflate with another profile",
            )
    twin = copied(model3d)
    net, fold = twin.net, twin.fold
    flat: dict[nn.Parameter, nn.Parameter] = {}  # of weights that layers share, so that they go on sharing
    for module in net.modules():
        if isinstance(module, Adapted) and module.fold is fold:
            deep = getattr(module, "weight", None)
            module.deflate_()
            if deep is not None:
                module.weight = flat.setdefault(deep, module.get_parameter("weight"))
        forget_calls(module, fold)
        forget_inserts(module, fold)
    return net


def _check_branches_meet(model3d: Inflated) -> None:
    """Run a short clip through a plan that shortens time, so that branches of unequal length show now."""
    trial = copy.deepcopy(model3d).eval()
    # 17 frames leave two on a level that is 16 times shorter: one would go together with any number
    length = 17 + trial.plan.frames_lost
    clip = pictures_like(trial, trial.plan.input_shape)[:1].unsqueeze(2).repeat(1, 1, length, 1, 1)
    try:
        with torch.no_grad():
            trial(clip)
    except RuntimeError as error:
        raise InflateError(
            "with these strides and paddings in time, branches of the model that meet have different lengths",
            where="build",
            expected="one length of time on each level of the network",
            got=f"{trial.plan.model}: {error}",
            fix='take preset "video", which has no strides in time, or set time_stride=1 or another padding by rules',
        ) from error


def _forms_of_forward(net: nn.Module, plan: Plan) -> Outputs:
    trial = copy.deepcopy(net).eval()
    with torch.no_grad():
        return look_at_outputs(trial, pictures_like(trial, plan.input_shape))


def _tied_weights(plan: Plan, net: nn.Module) -> dict[str, str]:
    """Find layers that share their weight with an earlier one, which has to hold after inflating too.

    Raises:
        InflateError: Layers that share a weight are to become different.
    """
    first: dict[int, LayerPlan] = {}
    tied = {}
    for layer in plan:
        weight = None if "#" in layer.path else getattr(net.get_submodule(layer.path), "weight", None)
        if not isinstance(weight, nn.Parameter):
            continue
        twin = first.setdefault(id(weight), layer)
        if twin is layer:
            continue
        alike = ("action", "time_kernel", "profile", "padding", "kind")
        if any(getattr(twin, name) != getattr(layer, name) for name in alike):
            raise InflateError(
                "two layers share one weight and are to become different",
                where="build",
                expected=f"the same kernel in time for {twin.path} and {layer.path}",
                got=f"{twin.time_kernel} frames, {twin.profile}, against {layer.time_kernel} frames, {layer.profile}",
                fix="give both the same rule, or give each a weight of its own",
            )
        if layer.action == "inflate":
            tied[layer.path] = twin.path
    return tied


def _check_plan_fits(plan: Plan, net: nn.Module) -> None:
    """Compare the plan's layers with the model's: names, types, kernels, and that none is missing."""
    modules = dict(net.named_modules())
    faults = []
    for layer in plan:
        path = layer.path.partition("#")[0]
        module = modules.get(path)
        if module is None:
            faults.append(f"{path} is not there")
        elif "#" not in layer.path and (type(module).__name__, kernel_of(module)) != (layer.layer, layer.kernel):
            faults.append(f"{path} is {type(module).__name__} {kernel_of(module)}, not {layer.layer} {layer.kernel}")
    if faults:
        raise InflateError(
            "the plan is for another model",
            where="build",
            expected=f"the {len(plan.layers)} layers of the plan for {plan.model}",
            got="; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else ""),
            fix="make the plan from this very model: make_plan(model2d, preset)",
        )

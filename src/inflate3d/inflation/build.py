"""A plan and a 2D model make a 3D model; `deflate` goes back."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from inflate3d.errors import InflateError, check_choice, list_faults
from inflate3d.inflation.acs import AcsConv2d, has_acs
from inflate3d.inflation.adapters import Adapted, adapter_for
from inflate3d.inflation.attention import attention_inserts
from inflate3d.inflation.fold import Fold
from inflate3d.inflation.inflated import Inflated, check_inflated, output_key
from inflate3d.inflation.inserts import forget_inserts, insert_into, place, sites_in
from inflate3d.inflation.intercept import forget_calls, time_calls
from inflate3d.inflation.observe import copied, observe
from inflate3d.inflation.outputs import Outputs, TimePool, look_at_outputs
from inflate3d.inflation.pictures import picture_shape, pictures_like
from inflate3d.inflation.plan import Insert, LayerPlan, Plan, Rule
from inflate3d.inflation.presets import PRESETS, decide, follow_strides, with_spacing
from inflate3d.inflation.profiles import Profile, is_random
from inflate3d.inflation.strides import check_spacing, kernel_of


class Additions(TypedDict, total=False):
    """What some plans alone have; `make_plan` explains it."""

    inserts: Sequence[Insert]
    spacing_mm: tuple[float, float, float] | None


class Planning(Additions, total=False):
    """What `inflate` hands on to `make_plan`."""

    example: Tensor | None
    profile: Profile
    rules: Mapping[str, Rule] | None


def make_plan(
    model2d: nn.Module,
    preset: str = "video",
    *,
    example: Tensor | None = None,
    profile: Profile = "mean",
    rules: Mapping[str, Rule] | None = None,
    **additions: Unpack[Additions],
) -> Plan:
    """Decide what every layer of a 2D model becomes in time; nothing is changed.

    Args:
        model2d: Maps pictures `[n, c, h, w]`; left as it is.
        preset: A key of `PRESETS`.
        example: A picture `[1, c, h, w]` of the size the model wants; else its own configuration tells, else 3x224x224.
        profile: How 2D kernels are laid out in time.
        rules: From patterns of layer names to what is wanted there instead of the preset's choice.
        **additions: `inserts`, what is to be added to the model's own layers; `spacing_mm` for the preset
            "anisotropic", how large voxels are along depth (which is time), height and width.

    Raises:
        InflateError: An unknown preset or keyword, a model that cannot be run or mixes the pictures of a batch, a rule
            that matches no layer, an insert that has no place, or a spacing that is missing or idle.

    Example:
        >>> model2d = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 7, 1))
        >>> print(make_plan(model2d, example=torch.zeros(1, 3, 11, 13)))
        Sequential, preset video: 1 of 2 layers look through time
        layer  is      becomes  kernel t x h x w  stride t  profile  padding
        0      Conv2d  inflate  3x3x3             1         mean     replicate
        2      Conv2d  frame    1x1x1
    """
    _check_asked({"rules": rules, **additions}, Planning.__optional_keys__, "make_plan")
    meanings = "; ".join(f"{name} ({each.meaning})" for name, each in PRESETS.items())
    check_choice(preset, PRESETS, what="preset", where="make_plan", expected=meanings)
    check_model(model2d, "make_plan")
    chosen, spacing, shape = PRESETS[preset], additions.get("spacing_mm"), picture_shape(model2d, example)
    if spacing is not None:
        chosen, spacing = with_spacing(chosen, spacing), check_spacing(spacing)
    pictures = pictures_like(model2d, shape, example)
    seen = observe(model2d, pictures)
    plan = Plan(type(model2d).__name__, preset, shape, decide(seen, chosen, profile), spacing_mm=spacing)
    plan = plan.with_rules(rules) if rules else plan
    plan = follow_strides(plan, seen, profile)
    inserts = additions.get("inserts", ())
    if how := chosen.attention:
        inserts = [*attention_inserts(how, model2d, pictures, seen=seen, layers=plan.layers), *inserts]
    return place(plan, inserts, model2d, padding=chosen.padding) if inserts else plan


def build(plan: Plan, model2d: nn.Module, *, time_pool: TimePool = "mean") -> Inflated:
    """Carry out a plan on a copy of a 2D model; the model itself stays as it was and shares no memory.

    Args:
        plan: Of this model: `make_plan`, `Plan.from_json`.
        model2d: Left as it is.
        time_pool: What becomes of the frames' logits; see `inflate`.

    Raises:
        InflateError: The plan is for another model.

    Example:
        >>> model2d = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
        >>> plan = make_plan(model2d, example=torch.zeros(1, 3, 11, 13))
        >>> build(plan, model2d)(torch.rand(2, 3, 7, 11, 13)).shape
        torch.Size([2, 5, 7, 11, 13])
    """
    _check_plan(plan, "build", expected="a Plan")
    check_model(model2d, "build")
    strides = None if plan.frames_lost else frozenset(layer.time_stride for layer in plan.steps)
    net, fold = copied(model2d), Fold(strides, frozenset(layer.time_scale for layer in plan.steps))
    outputs = _look_at_forward(net, plan)
    sites = sites_in(plan, net)
    tied = _tied_weights(plan, net)
    for layer in plan:
        if layer.action != "frame" and "#" not in layer.path:
            module = net.get_submodule(layer.path)
            adapter = AcsConv2d if has_acs([layer]) else adapter_for(module)
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
    model3d.inserts = insert_into(net, plan, sites, fold=fold)
    if model3d.inserts:
        model3d.inserts.train(model2d.training)
    time_calls(net, [layer for layer in plan if layer.action != "frame" and "#" in layer.path], fold)
    model3d.training = model2d.training  # the parts keep their own modes: frozen batch norms stay frozen
    model3d._outputs[output_key("forward", (), {})] = outputs
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
        **planning: `example`, `profile`, `rules`, `inserts` and `spacing_mm`, as in `make_plan`.

    Raises:
        InflateError: See `make_plan`; or nothing in the plan looks through time, and its preset is not "frames"; or a
            finished plan comes with what only planning can heed.

    Example:
        >>> model2d = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
        >>> model3d = inflate(model2d, example=torch.zeros(1, 3, 11, 13))
        >>> picture = torch.rand(2, 3, 11, 13).double()
        >>> clip = picture.unsqueeze(2).repeat(1, 1, 7, 1, 1)
        >>> torch.allclose(model3d(clip), model2d(picture))
        True
    """
    _check_asked(planning, Planning.__optional_keys__ | {"time_pool"}, "inflate")
    if isinstance(plan, str):
        plan = make_plan(model2d, plan, **planning)
    else:
        _check_settings_of(plan, set(planning) - {"rules", "inserts"})
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


def _check_plan(plan: object, where: str, expected: str) -> None:
    if not isinstance(plan, Plan):
        raise InflateError(
            "this is no plan",
            where=where,
            expected=expected,
            got=repr(plan)[:80],
            fix='make one: make_plan(model2d, "video")',
        )


def _check_asked(asked: Mapping[str, object], known: Collection[str], where: str) -> None:
    """Refuse names that nothing heeds, and rules and inserts that are none."""
    for name in asked:
        check_choice(name, sorted(known), what="keyword", where=where)
    rules, inserts = asked.get("rules") or {}, asked.get("inserts") or ()
    ruled = isinstance(rules, Mapping) and all(
        isinstance(name, str) and isinstance(rule, Rule) for name, rule in rules.items()
    )
    listed = isinstance(inserts, Sequence) and all(isinstance(insert, Insert) for insert in inserts)
    for fine, name, expected, example in (
        (ruled, "rules", "Rules by patterns of layer names", "rules={'layer4.*': Rule(time_kernel=3)}"),
        (listed, "inserts", "a list of Inserts", "inserts=[Insert('layer1', 'time_pool')]"),
    ):
        if not fine:
            raise InflateError(
                f"these are no {name}", where=where, expected=expected, got=f"{name}={asked[name]!r:.80}", fix=example
            )


def _check_settings_of(plan: Plan, idle: set[str]) -> None:
    _check_plan(plan, "inflate", expected=f"a preset ({', '.join(PRESETS)}) or a Plan")
    check_choice(plan.preset, PRESETS, what="preset", where="inflate, the plan")
    if idle:
        raise InflateError(
            "a finished plan has its own settings",
            where="inflate",
            expected="rules= and inserts= alone beside a Plan",
            got=", ".join(sorted(idle)),
            fix=f"make_plan(model2d, {plan.preset!r}, {', '.join(f'{name}=...' for name in sorted(idle))})",
        )


def deflate(model3d: Inflated) -> nn.Module:
    """Give the 2D model back: kernels summed over time, no inserts, everything else as it is now; shares no memory.

    Raises:
        InflateError: A kernel was initialized at random, so that no 2D kernel stands behind it; or the model is none
            that `inflate` made.

    Example:
        >>> model2d = nn.Sequential(nn.Conv2d(3, 5, 3))
        >>> back = deflate(inflate(model2d, example=torch.zeros(1, 3, 11, 13)))
        >>> torch.allclose(back[0].weight, model2d[0].weight)
        True
    """
    check_inflated(model3d, "deflate")
    for layer in model3d.plan:
        if layer.action == "inflate" and is_random(layer.profile):
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
    # two steps at least on every level: one would go together with any number
    length = max(17, model3d.plan.time_shrink + 1) + model3d.plan.frames_lost
    clip = pictures_like(model3d, model3d.plan.input_shape)[:1].unsqueeze(2).repeat(1, 1, length, 1, 1)
    if _runs_on_shapes(model3d, clip):
        return
    trial = copied(model3d).eval()
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


def _runs_on_shapes(model3d: Inflated, clip: Tensor) -> bool:
    """Whether a model runs without values, which takes no time; some cannot, and some fail for good reason."""
    ghost = copied(model3d, device="meta").eval()
    try:
        with torch.no_grad():
            ghost(clip.to("meta"))
    except Exception:  # whatever it is, the run with values tells
        return False
    return True


def _look_at_forward(net: nn.Module, plan: Plan) -> Outputs:
    """Find the forms of what the 2D model gives, and whether the plan knows all that runs."""
    _check_plan_fits(plan, net)
    trial = copied(net).eval()
    planned, ran = {layer.path for layer in plan}, dict[str, None]()

    def note(path: str) -> Callable[..., None]:
        return lambda *_: ran.setdefault(path)

    for path, module in trial.named_modules():
        adapter = adapter_for(module)
        # attention is in plans of the preset "joint" alone
        if path not in planned and adapter and adapter.kind != "attention":
            module.register_forward_hook(note(path))
    with torch.no_grad():
        outputs = look_at_outputs(trial, pictures_like(trial, plan.input_shape))
    inner = [path + "." for path, module in net.named_modules() if path and isinstance(module, Inflated)]
    strangers = [path for path in ran if not path.startswith(tuple(inner))]
    if strangers:
        raise _of_another_model(plan, [f"{path or 'the model itself'} runs and is not in it" for path in strangers])
    return outputs


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
    """Look up the plan's layers in the model: names, types, kernels."""
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
        raise _of_another_model(plan, faults)


def _of_another_model(plan: Plan, faults: Sequence[str]) -> InflateError:
    return InflateError(
        "the plan is for another model",
        where="build",
        expected=f"the {len(plan.layers)} layers of the plan for {plan.model}",
        got=list_faults(faults, shown=5),
        fix="make the plan from this very model: make_plan(model2d, preset)",
    )


def check_model(model2d: object, where: str) -> None:
    """Refuse what is no model, or one without values.

    Raises:
        InflateError: It is no module, or its parameters are on the device "meta".
    """
    values = list(model2d.parameters()) if isinstance(model2d, nn.Module) else []
    if not isinstance(model2d, nn.Module) or any(value.is_meta for value in values):
        raise InflateError(
            "there is no 2D model to look at",
            where=where,
            expected="a torch.nn.Module with values",
            got="parameters on the device meta" if values else f"{type(model2d).__name__} {model2d!r}"[:80],
            fix="build it first: torchvision.models.resnet18(), timm.create_model(NAME), or "
            "inflate3d.models.sources.find_2d_model(NAME)",
        )

"""The Plan: what every layer of a 2D network becomes in time; it prints, compares, and goes to JSON and back."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from math import gcd
from typing import Any, Literal, get_args

from inflate3d.errors import InflateError, in_a_line, is_count, is_number, nearest_names
from inflate3d.inflation.padding import TimePadding, present_tap
from inflate3d.inflation.plan_table import table
from inflate3d.inflation.profiles import ACS, Profile, write_profile

VERSION = 1
MAX_MULTIPLE = 2**12  # frames to which a clip is lengthened: a file from a stranger must not fill the memory

Action = Literal["inflate", "shift", "pool", "resize", "clip", "attend", "drop", "frame"]
Kind = Literal["", "conv", "transposed", "pool", "resize", "gate", "drop", "attention",
    "time_pool", "temporal_conv", "nonlocal", "temporal_attention", "time_position"]  # fmt: skip
What = Literal["time_pool", "temporal_conv", "nonlocal", "temporal_attention", "time_position"]
Attention = Literal["softmax", "embedded_gaussian", "gaussian", "dot_product"]
SubSample = Literal["before", "after", "none"]

ACTIONS: dict[Action, str] = {
    "inflate": "a kernel over several frames",
    "shift": "some channels come from the frame before, some from the one after",
    "pool": "pools over several frames",
    "resize": "makes time longer or shorter, as it does pictures",
    "clip": "sees the whole clip at once",
    "attend": "sees several frames at once",
    "drop": "drops whole clips, not frames",
    "frame": "works on each frame alone",
}

# What can be inserted, and the paddings in time that it can have
INSERTS: dict[What, tuple[TimePadding, ...]] = {
    "time_pool": ("replicate", "causal", "valid"),  # what is repeated, or left out, changes no maximum; a zero would
    "temporal_conv": ("replicate", "zeros", "causal"),  # it is added to its input, which keeps its length
    **dict.fromkeys(("nonlocal", "temporal_attention", "time_position"), ("replicate",)),  # later frames count too
}
SEES = {"nonlocal": "attention {}", "temporal_attention": "each place, all frames", "time_position": "added to frames"}


@dataclass(frozen=True)
class LayerPlan:
    """What one layer becomes.

    Attributes:
        path: Its name in the 2D model; empty for the model itself.
        layer: The name of its class.
        action: A key of `ACTIONS`.
        kernel: Height and width of its 2D kernel, in pixels; None for layers without one.
        time_kernel: Frames that the kernel spans.
        time_stride: Frames from one output to the next; T frames give ceil(T / time_stride).
        time_scale: Frames put out for each one that comes in: what brings time back after strides.
        profile: How the 2D kernel is laid out in time: a name, or the taps.
        padding: What stands before the first and behind the last frame.
        batch_factor: Rows of the batch for each frame, where the 2D code merges something else into the batch.
        rows_inside: Whether these rows stand beside each other (frame by frame), or image by image.
        kind: What the engine knows it as: "conv", "transposed", "pool", "resize", "gate", "drop", an insert, or
            nothing.
        reason: Why the layer stays per frame, where that is not plain.
        clip_tokens: In attention, tokens at the front that stand for the clip and not for a frame.
    """

    path: str
    layer: str
    action: Action = "frame"
    kernel: tuple[int, int] | None = None
    time_kernel: int = 1
    time_stride: int = 1
    profile: str | tuple[float, ...] = "mean"
    padding: TimePadding = "replicate"
    batch_factor: int = 1
    rows_inside: bool = True
    kind: Kind = ""
    reason: str = ""
    clip_tokens: int = 0
    time_scale: int = 1

    def __post_init__(self) -> None:
        texts = {"path": self.path, "layer": self.layer, "reason": self.reason}
        _refuse(
            "a layer's plan is impossible",
            f"plan of {self.path or 'the model'}",
            *((name, text, "text", isinstance(text, str)) for name, text in texts.items()),
            ("kernel", self.kernel, "None, or height and width", self.kernel is None or _are_counts(self.kernel, 2)),
            ("profile", self.profile, "a name, or numbers", isinstance(self.profile, str) or _are_taps(self.profile)),
            ("rows_inside", self.rows_inside, "True, False", isinstance(self.rows_inside, bool)),
            ("action", self.action, ", ".join(ACTIONS), self.action in ACTIONS),
            ("kind", self.kind, ", ".join(get_args(Kind)), self.kind in get_args(Kind)),
            ("padding", self.padding, ", ".join(get_args(TimePadding)), self.padding in get_args(TimePadding)),
            ("time_kernel", self.time_kernel, "1 or more", is_count(self.time_kernel)),
            ("time_stride", self.time_stride, "1 or more", is_count(self.time_stride)),
            ("time_scale", self.time_scale, "1 or more", is_count(self.time_scale)),
            ("batch_factor", self.batch_factor, "1 or more", is_count(self.batch_factor)),
            ("clip_tokens", self.clip_tokens, "0 or more", self.clip_tokens == 0 or is_count(self.clip_tokens)),
        )

    @property
    def looks_through_time(self) -> bool:
        """Whether it mixes frames; a gate that sees the whole clip does not tell one from the other."""
        sees_all = self.action == "clip" and self.kind in ("attention", "nonlocal", "temporal_attention")
        return self.action == "shift" or self.time_kernel > 1 or sees_all


@dataclass(frozen=True)
class Rule:
    """What a user wants for the layers whose name matches a pattern; None leaves the preset's choice.

    Attributes:
        time_kernel: Frames that the kernel spans; 1 leaves the layer per frame.
        time_stride: Frames from one output to the next.
        profile: How the 2D kernel is laid out in time.
        padding: What stands before the first and behind the last frame.

    Raises:
        InflateError: A kernel or stride that is no count, or an unknown padding.

    Example:
        >>> Rule(time_kernel=5, profile="center").time_kernel
        5
    """

    time_kernel: int | None = None
    time_stride: int | None = None
    profile: Profile | None = None
    padding: TimePadding | None = None

    def __post_init__(self) -> None:
        kernel, stride, paddings = self.time_kernel, self.time_stride, get_args(TimePadding)
        _refuse(
            "this rule is impossible",
            "Rule",
            ("time_kernel", kernel, "1 or more", kernel is None or is_count(kernel)),
            ("time_stride", stride, "1 or more", stride is None or is_count(stride)),
            ("padding", self.padding, ", ".join(paddings), self.padding in (None, *paddings)),
        )


@dataclass(frozen=True)
class Insert:
    """What the 2D model has not: something run on the map `[n, c, h, w]` that one of its modules gives.

    A still clip is answered as before: a maximum over equal frames is the frame, and what learns starts at zero.

    Attributes:
        after: The module's name; `make_plan` also takes a pattern, for several modules.
        what: "time_pool": a maximum over frames; "temporal_conv": a convolution over frames, added to its input;
            "nonlocal": a non-local block over all positions of the clip, added to its input; "temporal_attention": the
            same over all frames of each place; "time_position": a learned vector for each frame. Both take tokens too.
        time_kernel: Frames that a pool or convolution spans; 2 and 3 where not given.
        time_stride: Frames from one output of a pool to the next; its kernel where not given.
        padding: What stands before the first and behind the last frame; the preset's where not given.
        attention: How a non-local block weighs positions: "embedded_gaussian" takes the softmax of the products of
            theta and phi, "softmax" of these products over the root of their channels, "gaussian" of the products of
            the map itself; "dot_product" divides the products by their number.
        sub_sample: Where a non-local block takes the maximum over 2x2 pixels: "before" phi and g (the authors' code,
            PySlowFast), "after" them (the paper, MMAction2), or nowhere ("none", GluonCV).
        position: How many of the plan's layers run before it; planning counts them.
        before: It runs on what the module is given.

    Source: Wang et al. 2018, Non-local Neural Networks, section 3 (blocks) and table 1 (pool after res2).

    Example:
        >>> Insert("layer1", "time_pool").layer.time_stride
        2
    """

    after: str
    what: What
    time_kernel: int | None = None
    time_stride: int | None = None
    padding: TimePadding | None = None
    attention: Attention = "softmax"
    sub_sample: SubSample = "before"
    position: int | None = None
    before: bool = False

    def __post_init__(self) -> None:
        what, kernel, stride, place = self.what, self.time_kernel, self.time_stride, self.position
        paddings = INSERTS.get(what, get_args(TimePadding))
        no_kernel, no_stride = what not in ("time_pool", "temporal_conv"), what != "time_pool"
        _refuse(
            "this cannot be inserted",
            f"Insert({self.after!r}, {what!r})",
            ("after", self.after, "the name of a module", bool(isinstance(self.after, str) and self.after)),
            ("what", what, ", ".join(INSERTS), what in INSERTS),
            ("time_kernel", kernel, _counts(no_kernel), kernel is None or (is_count(kernel) and not no_kernel)),
            ("time_stride", stride, _counts(no_stride), stride is None or (is_count(stride) and not no_stride)),
            ("padding", self.padding, ", ".join(paddings), self.padding in (None, *paddings)),
            ("attention", self.attention, ", ".join(get_args(Attention)), self.attention in get_args(Attention)),
            ("sub_sample", self.sub_sample, ", ".join(get_args(SubSample)), self.sub_sample in get_args(SubSample)),
            ("position", place, "0 or more", place is None or place == 0 or is_count(place)),
            ("before", self.before, "True, False", isinstance(self.before, bool)),
        )

    @property
    def layer(self) -> LayerPlan:
        """The layer that it becomes; its path is the name of its parameters in the state dict."""
        name = "non_local" if self.what == "nonlocal" else self.what  # no word of Python: code is made from names
        path, padding = f"inserts.{self.after}.{name}", self.padding or "replicate"
        if self.what not in ("time_pool", "temporal_conv"):
            return LayerPlan(path, "inserted", "clip", kind=self.what, reason=SEES[self.what].format(self.attention))
        pool = self.what == "time_pool"
        kernel = self.time_kernel or (2 if pool else 3)
        stride = (self.time_stride or kernel) if pool else 1
        return LayerPlan(
            path, "inserted", "pool" if pool else "inflate", (1, 1), kernel, stride, "zero", padding, kind=self.what
        )


@dataclass(frozen=True)
class Plan:
    """What every layer of a 2D model becomes, in the order in which they run.

    Attributes:
        model: The class of the 2D model.
        preset: The preset it began with.
        input_shape: `(c, h, w)` of the picture it was planned with.
        layers: All layers that could look through time, those that stay per frame included.
        version: Of the JSON form.
        inserts: What is added to them, in the order in which it runs.
        time_shrink: Frames of the clip that one frame stands for where strides have made time shortest, inserts apart;
            where branches differ, a number that all of theirs divide.
        spacing_mm: Of voxels along depth (time), height and width, where the preset went by it.

    Raises:
        InflateError: The shape is none, or a name is no text.

    Example:
        >>> plan = Plan("Net", "video", (3, 9, 9), (LayerPlan("a", "Conv2d", "inflate", (7, 7), 7),))
        >>> Plan.from_json(plan.to_json()) == plan, plan.looks_through_time
        (True, True)
    """

    model: str
    preset: str
    input_shape: tuple[int, int, int]
    layers: tuple[LayerPlan, ...] = field(repr=False)
    version: int = VERSION
    inserts: tuple[Insert, ...] = ()
    time_shrink: int = 1
    spacing_mm: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        shape, mm = self.input_shape, self.spacing_mm
        multiple = self.clip_multiple if is_count(self.time_shrink) else 1
        _refuse(
            "this is no plan",
            f"plan of {self.model}",
            ("model", self.model, "text", isinstance(self.model, str)),
            ("preset", self.preset, "text", isinstance(self.preset, str)),
            ("input_shape", shape, "(c, h, w)", _are_counts(shape, 3)),
            ("time_shrink", self.time_shrink, "1 or more", is_count(self.time_shrink)),
            ("clip_multiple", multiple, f"at most {MAX_MULTIPLE}", multiple <= MAX_MULTIPLE),
            ("spacing_mm", mm, "three numbers above 0", mm is None or (_are_taps(mm) and len(mm) == 3 and min(mm) > 0)),
        )

    def __iter__(self) -> Iterator[LayerPlan]:
        return iter(self.layers)

    @property
    def steps(self) -> tuple[LayerPlan, ...]:
        """Layers and inserts in the order in which they run, each insert as the layer that it becomes."""
        end = len(self.layers)
        places: dict[int, list[LayerPlan]] = {}
        for insert in self.inserts:
            place = end if insert.position is None else min(insert.position, end)
            places.setdefault(place, []).append(insert.layer)
        return tuple(step for i in range(end + 1) for step in (*places.get(i, ()), *self.layers[i : i + 1]))

    @property
    def looks_through_time(self) -> bool:
        """Whether any layer does."""
        return any(layer.looks_through_time for layer in self.steps)

    @property
    def clip_multiple(self) -> int:
        """Frames by whose multiples a clip is lengthened, so that what resizes time comes back to its length."""
        if all(layer.time_scale == 1 for layer in self.layers):
            return 1
        multiple = self.time_shrink
        for insert in self.inserts:
            if multiple > MAX_MULTIPLE:  # which no plan has: the product of a stranger's many could be endless
                break
            multiple *= insert.layer.time_stride
        return multiple

    @property
    def frames_lost(self) -> int:
        """Frames of a clip that `valid` padding takes away, at most: as if all layers stood one after the other."""
        lost, step = 0, 1
        for layer in self.steps:
            lost += (layer.time_kernel - 1) * step if layer.padding == "valid" else 0
            step *= layer.time_stride
        return lost

    def __str__(self) -> str:
        through = sum(layer.looks_through_time for layer in self.steps)
        spacing = f" (spacing {' x '.join(f'{mm:g}' for mm in self.spacing_mm)} mm)" if self.spacing_mm else ""
        head = f"{self.model}, preset {self.preset}{spacing}: {through} of {len(self.steps)} layers look through time"
        acs = any(layer.action == "inflate" and layer.profile == ACS for layer in self.layers)
        notes = ["acs: two thirds of such kernels see pictures from the side; a still clip is not answered as in 2D"]
        return "\n".join([head, *table(self.steps), *notes * acs])

    def differences(self, other: "Plan") -> dict[str, tuple[LayerPlan | Insert | None, LayerPlan | Insert | None]]:
        """Name the layers and inserts in which two plans differ, with what each says of them."""
        mine, theirs = self._by_name(), other._by_name()
        names = [*mine, *(name for name in theirs if name not in mine)]
        none = (0, None)
        pairs = {name: (mine.get(name, none), theirs.get(name, none)) for name in names}
        return {name: (a[1], b[1]) for name, (a, b) in pairs.items() if a != b}

    def _by_name(self) -> dict[str, tuple[int, LayerPlan | Insert]]:
        """Layers and inserts by name; an insert with its number among those after one module: their order matters."""
        named: dict[str, tuple[int, LayerPlan | Insert]] = {layer.path: (0, layer) for layer in self.layers}
        counts: Counter[str] = Counter()
        for insert in self.inserts:
            counts[insert.after] += 1
            named[insert.layer.path] = (counts[insert.after], insert)
        return named

    def with_rules(self, rules: Mapping[str, Rule]) -> "Plan":
        """Change the layers that a pattern matches (`layer4.*`); the first pattern that matches a layer wins.

        Raises:
            InflateError: A pattern matches no layer, or asks a layer for what it cannot do.
        """
        used: set[str] = set()
        layers, shrink = [], self.time_shrink
        for layer in self.layers:
            pattern = next((pattern for pattern in rules if fnmatchcase(layer.path, pattern)), None)
            if pattern is None:
                layers.append(layer)
                continue
            used.add(pattern)
            layers.append(_changed(layer, rules[pattern]))
            shrink *= layers[-1].time_stride // gcd(layers[-1].time_stride, layer.time_stride)
        for pattern in rules:
            if pattern not in used:
                paths = [layer.path for layer in self.layers]
                raise InflateError(
                    "a rule matches no layer that no rule before it matches",
                    where="rules",
                    expected="a pattern of layer names, as print(plan) shows them",
                    got=repr(pattern),
                    fix=f"did you mean {nearest_names(pattern, paths)}?",
                )
        return replace(self, layers=tuple(layers), time_shrink=shrink)

    def to_json(self) -> str:
        """Write the plan as JSON."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Read a plan back.

        Raises:
            InflateError: The text is no plan, or of another version.
        """
        try:
            found = json.loads(text)
            if found["version"] != VERSION:
                raise ValueError(f"version {found['version']}")
            layers = tuple(LayerPlan(**_tuples(layer)) for layer in found["layers"])
            inserts = tuple(Insert(**insert) for insert in found.get("inserts", ()))
            return Plan(**_tuples({**found, "layers": layers, "inserts": inserts}))
        except InflateError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise InflateError(
                "this is no plan",
                where="Plan.from_json",
                expected=f"JSON as Plan.to_json writes it, version {VERSION}",
                got=in_a_line(error),
                fix="make it anew with make_plan(model2d, preset)",
            ) from error


def _refuse(problem: str, where: str, *checks: tuple[str, object, str, bool]) -> None:
    """Tell all faults at once, from name, value, what is allowed, and whether it is."""
    faults = [(name, value, allowed) for name, value, allowed, fine in checks if not fine]
    if faults:
        names = ", ".join(f"{name}=" for name, _, _ in faults)
        raise InflateError(
            problem,
            where=where,
            expected="; ".join(f"{name}: {allowed}" for name, _, allowed in faults),
            got="; ".join(f"{name}={value!r:.200}" for name, value, _ in faults),
            fix=f"give {names} such a value, or leave it out where it has a default",
        )


def _are_counts(value: object, length: int) -> bool:
    return isinstance(value, tuple) and len(value) == length and all(map(is_count, value))


def _are_taps(value: object) -> bool:
    return isinstance(value, tuple) and all(map(is_number, value))


def _counts(none: bool) -> str:
    return "None, for it has none" if none else "1 or more"


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _changed(layer: LayerPlan, rule: Rule) -> LayerPlan:
    if layer.kind == "attention":
        from inflate3d.inflation.attention import changed_attention  # noqa: PLC0415 - it needs plans

        return changed_attention(layer, rule)
    wanted = {name: value for name in ("time_kernel", "time_stride", "padding") if (value := getattr(rule, name))}
    changed = replace(layer, **wanted)
    if rule.profile is not None and (isinstance(rule.profile, str) or changed.time_kernel > 1):
        present = present_tap(changed.time_kernel, changed.padding)
        written = write_profile(rule.profile, changed.time_kernel, center=present, scale=changed.time_scale)
        changed = replace(changed, profile=written)
    timed = max(changed.time_kernel, changed.time_stride, changed.time_scale) > 1
    fault = ""
    if layer.kind not in ("conv", "transposed", "pool") or (layer.reason and timed):
        fault = layer.reason or "the engine has no kernel in time for it"
    elif layer.action == "shift" and timed:
        fault = "a layer whose channels are shifted has no kernel in time; take another preset"
    elif layer.kind == "transposed" and changed.time_stride > 1:
        fault = "a transposed convolution does not shorten time"
    elif changed.time_kernel < changed.time_scale:
        fault = f"it puts out {changed.time_scale} frames for each one, and its kernel has to span as many"
    elif changed.time_scale > 1 and changed.padding in ("causal", "valid"):
        fault = "where time becomes longer, it looks at later frames and loses none"
    elif timed and layer.kind != "pool" and not changed.profile:
        fault = "the plan has a profile of your own; say in the rule how this kernel is laid out"
    if fault:
        raise InflateError(
            "a rule asks for what a layer cannot do",
            where="rules",
            expected="kernels in time for convolutions and pools that the engine knows",
            got=f"{layer.path}: {layer.layer} ({fault})",
            fix="make the pattern narrower, or teach the engine the layer with @adapts",
        )
    if layer.action == "shift":
        return changed
    return replace(changed, action="frame" if not timed else "pool" if layer.kind == "pool" else "inflate")

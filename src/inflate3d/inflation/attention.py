"""Attention over time: tokens of all frames see each other, or each place attends to itself in the other frames.

The first is "joint": the layer's own code runs on the tokens of several frames at once. The second is "divided": a
layer of its own, which stands in `inserted.py`; here is where it goes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.errors import InflateError, list_faults
from inflate3d.inflation.adapters import Adapted, adapter_for, adapts
from inflate3d.inflation.fold import Fold
from inflate3d.inflation.observe import Seen, copied, first_tensor
from inflate3d.inflation.plan import Action, Insert, LayerPlan, Rule

Attend = Callable[[Tensor, Tensor | None], Tensor]  # of tokens [n, l, c] and what is added for each key [l]

MAX_TOKENS = 2**16  # in one attention: 334 frames of 196 tokens; products grow with its square
MAX_TOKENS_KEPT = 2**13  # where all products stand in memory at once: 1.6 GB for 6 heads in float32
ATTENTION_BY_NAME = re.compile(r"att(entio)?n", re.IGNORECASE)
NORM_BY_NAME = re.compile(r"norm", re.IGNORECASE)
# What makes a map into tokens, or one vector of many, is no attention over places
NO_ATTENTION = re.compile(r"pool|channel|drop", re.IGNORECASE)


def key_bias(num_frames: int, clip_tokens: int, patches: int, *, like: Tensor) -> Tensor:
    """Weigh the keys of tokens that stand for the whole clip as if they were there once for each frame: `[keys]`.

    A still clip repeats the key of every patch T times, and that of the class token is there once: log T is added to
    its products, which multiplies it by T in the softmax.

    Args:
        num_frames: T.
        clip_tokens: Tokens that stand for the clip; first among the keys.
        patches: Keys behind them.
        like: Tells type and device.

    Example:
        >>> key_bias(4, 1, 2, like=torch.zeros(1)).exp().tolist()
        [4.0, 1.0, 1.0]
    """
    # a sum of ones and not math.log: the number of frames may be a symbol while a model is being exported
    once = torch.ones(num_frames, dtype=torch.float64, device=like.device).sum().log().to(like.dtype)
    return torch.cat([once.expand(clip_tokens), like.new_zeros(patches)])


class JointAttention(Adapted):
    """Attention among the tokens of several frames, by the layer's own code.

    Attributes:
        time_window: Frames that see each other where the user does not say; None: all frames of the clip.
        tells_frames_apart: Whether something in it that is learned can tell one frame from another.
    """

    kind = "attention"
    time_window: ClassVar[int | None] = None
    tells_frames_apart: ClassVar[bool] = False

    @classmethod
    def why_not(cls, layer: nn.Module) -> str:
        """Say why a layer of this type has to stay per frame; nothing if it need not."""
        return ""

    @classmethod
    def clip_tokens_of(cls, layer: nn.Module, found: int) -> int:
        """Tell how many tokens at the front stand for the clip, where so many were found to be the same."""
        return found

    def keeps_products(self) -> bool:
        """Whether the layer's own code holds the products of all tokens with all others in memory at once."""
        return not getattr(self, "fused_attn", True)

    def attend(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """Run the layer on tokens `[n, l, c]`, with `bias` `[l]` added to the products with each key."""
        mask = None if bias is None else bias.view(1, 1, 1, -1)
        answer: Tensor = self.type2d.forward(self, tokens, attn_mask=mask)
        return answer

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Run on the tokens `[b*t, l, c]` of frames.

        Raises:
            InflateError: The model brings a mask of its own.
        """
        if attn_mask is not None or is_causal:
            raise self.refuses("the model brings a mask of its own", "attention of all tokens to all", "a mask")
        return self.over_time(x, self.attend_to_frames)

    def over_time(self, x: Tensor, attend: Callable[[Tensor], Tensor], *, shifted: bool = False) -> Tensor:
        """Run on tokens `[b*t, l, c]` a function of those of some frames, `[b, frames, l, c]`."""
        clip = self.unfold(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).permute(0, 2, 3, 1)
        parts = [attend(part) for part in clip.split(self.lengths(clip.shape[1], shifted), dim=1)]
        clip = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return self.refold(clip.permute(0, 3, 1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)

    def lengths(self, num_frames: int, shifted: bool) -> list[int]:
        """Cut a clip into windows in time; those at its ends may be shorter, so that nothing is padded."""
        if self.plan.action == "clip":
            return [num_frames]
        window = self.plan.time_kernel
        first = window // 2 if shifted and num_frames > window > 1 else window
        edges = [0, *range(first, num_frames, window), num_frames]
        return [end - start for start, end in pairwise(edges)]

    def attend_to_frames(self, frames: Tensor, attend: Attend | None = None) -> Tensor:
        """Let all tokens of `[b, frames, l, c]` see each other; those that stand for the clip are there once."""
        num_frames, once = frames.shape[1], self.plan.clip_tokens
        attend = attend or self.attend
        self.check_tokens(num_frames * frames.shape[2])
        if not once:
            each: Tensor = attend(frames.flatten(1, 2), None).unflatten(1, (num_frames, -1))
            return each
        patches = frames[:, :, once:].flatten(1, 2)
        # they are alike in all frames but for dropout
        tokens = torch.cat([frames[:, :, :once].mean(1), patches], dim=1)
        answer = attend(tokens, key_bias(num_frames, once, patches.shape[1], like=tokens))
        alike = answer[:, None, :once].expand(-1, num_frames, -1, -1)
        return torch.cat([alike, answer[:, once:].unflatten(1, (num_frames, -1))], dim=2)

    def check_tokens(self, tokens: int) -> None:
        """Refuse more tokens than one attention can hold.

        Raises:
            InflateError: There are more.
        """
        if torch.compiler.is_compiling():  # the number may be a symbol
            return
        kept = self.keeps_products()
        limit = MAX_TOKENS_KEPT if kept else MAX_TOKENS
        if tokens > limit:
            raise InflateError(
                "too many tokens would see each other",
                where=f"layer {self.plan.path}",
                expected=f"at most {limit}" + " where all products are kept in memory" * kept,
                got=f"{tokens} tokens",
                fix=f"let windows in time see each other, rules={{{self.plan.path!r}: Rule(time_kernel=8)}}, or take "
                'preset "divided"' + "; set fused_attn on the layer" * kept,
            )

    def refuses(self, problem: str, expected: str, got: str) -> InflateError:
        """Make the error for a layer that runs otherwise than attention over time can."""
        return InflateError(
            problem,
            where=f"layer {self.plan.path}",
            expected=expected,
            got=got,
            fix=f"leave the layer per frame: rules={{{self.plan.path!r}: Rule(time_kernel=1)}}",
        )


@adapts(nn.MultiheadAttention)
class JointMultihead(JointAttention, nn.MultiheadAttention):
    """torch's attention, of a tensor to itself."""

    @classmethod
    def take_over(cls, layer: nn.Module, plan: LayerPlan, fold: Fold) -> None:
        """Turn the layer into one of this class, and see to it that it is called.

        Without gradients nn.TransformerEncoderLayer hands its weights to one fused function and calls no layer, unless
        one has hooks.
        """
        super().take_over(layer, plan, fold)
        layer.register_forward_pre_hook(_is_to_be_called)

    def deflate_(self) -> None:
        """Become the 2D layer again, in place."""
        for number, hook in list(self._forward_pre_hooks.items()):
            if hook is _is_to_be_called:
                del self._forward_pre_hooks[number]
        super().deflate_()

    @classmethod
    def why_not(cls, layer: nn.Module) -> str:
        """It needs one weight for queries, keys and values, and no keys beside the tokens."""
        assert isinstance(layer, nn.MultiheadAttention)
        plain = layer._qkv_same_embed_dim and layer.bias_k is None and not layer.add_zero_attn
        return "" if plain else "its keys are others than its tokens"

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, *more: Any, **named: Any
    ) -> tuple[Tensor, None]:
        """Run on the tokens of frames; weights are not given.

        Raises:
            InflateError: Keys are others than queries, or a mask is given.
        """
        named |= dict(zip(("key_padding_mask", "need_weights", "attn_mask"), more, strict=False))
        given = [name for name, mask in named.items() if isinstance(mask, Tensor) or (mask and name == "is_causal")]
        if key is not query or value is not query or given:
            got = ", ".join(given) or "keys and values of another tensor"
            raise self.refuses("this is no plain self-attention", "attention of all tokens to all", got)
        x = query if self.batch_first else query.transpose(0, 1)
        answer = self.over_time(x, self.attend_to_frames)
        return (answer if self.batch_first else answer.transpose(0, 1)), None

    def attend(self, tokens: Tensor, bias: Tensor | None) -> Tensor:
        """Run on tokens `[n, l, c]`."""
        qkv = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        query, key, value = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mask, drop = None if bias is None else bias.view(1, 1, 1, -1), self.dropout if self.training else 0.0
        answer = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=drop)
        return F.linear(answer.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)


def _is_to_be_called(layer: nn.Module, args: tuple[Any, ...]) -> None:
    """Do nothing, as a hook; a function of the module, so that it can be pickled."""


def joint_plans(plans: Sequence[LayerPlan], seen: Sequence[Seen]) -> tuple[LayerPlan, ...]:
    """Let attention see several frames, in the plans of all layers that ran.

    The first tokens of the first attention that are the same for all pictures (class token, registers, distillation
    token) stand for the whole clip. Where a later attention has another number of tokens it cannot be told which they
    are, and they stay there for each frame, which comes to the same: T times the key is log T more.
    """
    ran = {one.path: one for one in seen}
    joint: list[LayerPlan] = []
    first: Seen | None = None
    for plan in plans:
        if plan.kind != "attention":
            joint.append(plan)
            continue
        one = ran[plan.path]
        adapter = one.adapter
        assert adapter is not None
        assert issubclass(adapter, JointAttention)
        reason = plan.reason or adapter.why_not(one.layer)
        if reason:
            joint.append(replace(plan, reason=reason))
            continue
        first = first or one
        found = first.fixed_tokens if one.in_shape[1] == first.in_shape[1] else 0
        once = adapter.clip_tokens_of(one.layer, found)
        if adapter.time_window is None:
            joint.append(_seeing(replace(plan, action="clip", clip_tokens=once)))
        else:
            joint.append(_seeing(replace(plan, action="attend", time_kernel=adapter.time_window)))
    return tuple(joint)


def changed_attention(layer: LayerPlan, rule: Rule) -> LayerPlan:
    """Follow a rule for attention: so many frames see each other, or each sees itself alone.

    Raises:
        InflateError: The rule asks for more, or the layer has to stay per frame.
    """
    wanted = [name for name in ("time_stride", "profile", "padding") if getattr(rule, name) is not None]
    why_not = layer.reason if layer.action == "frame" else ""
    if wanted or why_not:
        raise InflateError(
            "a rule asks for what attention cannot do",
            where="rules",
            expected="Rule(time_kernel=...) alone, for attention that the engine knows",
            got=f"{layer.path}: {layer.layer} ({why_not or ', '.join(wanted)})",
            fix="make the pattern narrower",
        )
    if rule.time_kernel is None:
        return layer
    action: Action = "frame" if rule.time_kernel == 1 else "attend"
    return _seeing(replace(layer, action=action, time_kernel=rule.time_kernel))


def _seeing(plan: LayerPlan) -> LayerPlan:
    """Say what sees what."""
    frames = {"clip": "tokens of all frames", "attend": f"tokens of {plan.time_kernel} frames"}.get(plan.action, "")
    once = f"; {plan.clip_tokens} of them once" if frames and plan.clip_tokens else ""
    return replace(plan, reason=frames + once)


def _no_attention(preset: str, model2d: nn.Module) -> InflateError:
    names = {type(part).__name__: None for part in model2d.modules() if ATTENTION_BY_NAME.search(type(part).__name__)}
    return InflateError(
        "the model has no attention that could look through time",
        where=f"preset {preset}",
        expected="attention of timm's vision transformers and Swin, or torch.nn.MultiheadAttention"
        if preset == "joint"
        else "attention inside a block with a norm, whose output is as large as its input",
        got=f"{type(model2d).__name__} with {list_faults(names) or 'no attention'}",
        fix='take preset "divided" or "video", or Insert(NAME, "temporal_attention")'
        if preset == "joint"
        else 'take preset "video", or say where: Insert(NAME, "temporal_attention")',
    )


def attention_inserts(
    how: str, model2d: nn.Module, pictures: Tensor, *, seen: Sequence[Seen], layers: Sequence[LayerPlan]
) -> list[Insert]:
    """Tell what "joint" and "divided" attention add to a model.

    "divided": attention over time ahead of each block. "joint": a position in time ahead of the first one, without
    which the order of frames would be nothing to the model, unless all of its attention has a table for it.

    Args:
        how: "joint" or "divided".
        model2d: Left as it is.
        pictures: `[n, c, h, w]`.
        seen: What ran on them.
        layers: Of its plan.

    Raises:
        InflateError: There is no attention that can, or no block around it.
    """
    if how == "joint":
        if not any(layer.kind == "attention" for layer in layers):
            raise _no_attention("joint", model2d)
        joined = {layer.path for layer in layers if layer.kind == "attention" and layer.action != "frame"}
        adapters = [one.adapter for one in seen if one.path in joined]
        if all(issubclass(each, JointAttention) and each.tells_frames_apart for each in adapters if each):
            return []
        return [Insert(block, "time_position", before=True) for block in blocks_of(model2d, pictures)[:1]]
    blocks = blocks_of(model2d, pictures)
    if not blocks:
        raise _no_attention("divided", model2d)
    return [Insert(block, "temporal_attention", before=True) for block in blocks]


def blocks_of(model2d: nn.Module, pictures: Tensor) -> list[str]:
    """Name the blocks that hold attention, in the order in which they run.

    A block is the smallest module around an attention (known by its name) that holds a norm beside it, runs once, and
    gives a tensor of the shape that it takes.

    Args:
        model2d: Left as it is.
        pictures: `[n, c, h, w]`.
    """
    net = copied(model2d).eval()
    runs: dict[str, list[tuple[Any, Any]]] = {}

    def listen(path: str) -> Callable[..., None]:
        def heard(module: nn.Module, *passed: Any) -> None:
            args, kwargs, output = passed
            _, x = first_tensor(args, kwargs)
            first = output[0] if isinstance(output, tuple) and output else output
            given = first.shape if isinstance(first, Tensor) else None
            runs.setdefault(path, []).append((None if x is None else x.shape, given))

        return heard

    modules = {path: module for path, module in net.named_modules() if path}
    for path, module in modules.items():
        module.register_forward_hook(listen(path), with_kwargs=True)
    with torch.no_grad():
        net(pictures)
    blocks = dict.fromkeys(
        _block_around(path, runs, modules, len(pictures)) for path in runs if _attends(modules[path])
    )
    return [block for block in blocks if block and not any(other.startswith(f"{block}.") for other in blocks)]


def _attends(module: nn.Module) -> bool:
    name, adapter = type(module).__name__, adapter_for(module)
    by_name = ATTENTION_BY_NAME.search(name) and not NO_ATTENTION.search(name)
    return bool(by_name) or (adapter is not None and adapter.kind == "attention")


def _block_around(path: str, runs: dict[str, list[Any]], modules: dict[str, nn.Module], pictures: int) -> str:
    """Find the block around an attention, or the attention itself where it calls itself a block; "" if none is."""
    outer = path if "block" in type(modules[path]).__name__.lower() else path.rpartition(".")[0]
    while outer:
        beside = [name for name in runs if name.startswith(f"{outer}.")]
        beside = [name for name in beside if outer == path or not f"{name}.".startswith(f"{path}.")]
        has_norm = any(NORM_BY_NAME.search(type(modules[name]).__name__) for name in beside)
        shapes = runs.get(outer, [])
        if len(shapes) == 1 and has_norm:
            taken, given = shapes[0]
            if taken is not None and taken == given and len(taken) in (3, 4) and taken[0] == pictures:
                return outer
        outer = outer.rpartition(".")[0]
    return ""

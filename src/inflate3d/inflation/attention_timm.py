"""Attention of timm's vision transformers and Swin among the tokens of several frames."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, DiffAttention
from timm.models import beit, swin_transformer, swin_transformer_v2
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn

from inflate3d.errors import InflateError
from inflate3d.inflation.adapters import adapts
from inflate3d.inflation.attention import JointAttention
from inflate3d.inflation.fold import Fold
from inflate3d.inflation.plan import LayerPlan

WINDOW = 8  # frames that see each other; Source: Liu et al. 2022, Video Swin Transformer, section 4.1: P = 8
SHARPEST = math.log(100)  # Source: Liu et al. 2022, Swin Transformer V2, section 3.2: tau is at least 0.01

for attention in (Attention, DiffAttention, ParallelScalingBlock, DiffParallelScalingBlock):
    adapts(attention)(JointAttention)


class JointRotary(JointAttention):
    """Attention whose queries and keys are rotated by where in the picture they stand: alike in all frames."""

    @classmethod
    def clip_tokens_of(cls, layer: nn.Module, found: int) -> int:
        """The layer says itself which tokens stand nowhere in the picture."""
        return int(layer.num_prefix_tokens)  # type: ignore[arg-type]

    def forward(  # type: ignore[override]
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, *, is_causal: bool = False
    ) -> Tensor:
        """Run on the tokens `[b*t, l, c]` of frames; `rope` `[..., patches, 2c]` is that of one frame.

        Raises:
            InflateError: The model brings a mask of its own, or rotates each picture in its own way.
        """
        each = rope is not None and rope.ndim == 4 and rope.shape[0] > 1
        if attn_mask is not None or is_causal or each:
            got = "positions for each picture" if each else "a mask"
            raise self.refuses(
                "the model brings a mask or positions of its own", "all tokens, in all pictures alike", got
            )

        def attend_to(frames: Tensor) -> Tensor:
            turned = None if rope is None else torch.cat([rope] * frames.shape[1], dim=-2)

            def attend(tokens: Tensor, bias: Tensor | None) -> Tensor:
                mask = None if bias is None else bias.view(1, 1, 1, -1)
                answer: Tensor = self.type2d.forward(self, tokens, rope=turned, attn_mask=mask)
                return answer

            return self.attend_to_frames(frames, attend)

        return self.over_time(x, attend_to)


for rotary in (AttentionRope, EvaAttention):
    adapts(rotary)(JointRotary)


class WindowedAttention(JointAttention):
    """Attention within windows in space and time, whatever the layer adds to the products of two places.

    What it adds depends on where the two places are in the window, and is repeated for all pairs of frames.
    """

    time_window: ClassVar[int | None] = WINDOW
    # of timm's two layers
    num_heads: int
    window_size: tuple[int, int]
    scale: float
    qkv: nn.Linear
    relative_position_index: Tensor
    relative_position_bias_table: nn.Parameter
    relative_coords_table: Tensor
    cpb_mlp: nn.Module
    logit_scale: Tensor
    qkv_bias_separate: bool
    q_bias: Tensor | None
    k_bias: Tensor
    v_bias: Tensor

    def projected(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries, keys and values `[n, heads, l, c]` of tokens `[n, l, c]`; queries come scaled."""
        raise NotImplementedError

    def bias_of(self, num_frames: int) -> Tensor:
        """Give what is added to the products of all pairs of tokens: `[heads, l, l]`, frame by frame."""
        raise NotImplementedError

    def keeps_products(self) -> bool:
        """What is added to the products of all pairs stands in memory."""
        return True

    def biased(self, tokens: Tensor) -> Tensor:
        """Project tokens to queries, keys and values as layers do whose keys have no bias of their own."""
        bias = None if self.q_bias is None else torch.cat((self.q_bias, self.k_bias, self.v_bias))
        if self.qkv_bias_separate or bias is None:
            qkv: Tensor = self.qkv(tokens) if bias is None else self.qkv(tokens) + bias
            return qkv
        return F.linear(tokens, self.qkv.weight, bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Run on the windows `[b*t*windows, l, c]` of frames; `mask` `[windows, l, l]` is that of one frame.

        Where windows are shifted in space, and so have a mask, they are shifted in time by half their length as well.
        """
        return self.over_time(x, lambda frames: self.attend_in_windows(frames, mask), shifted=mask is not None)

    def attend_in_windows(self, frames: Tensor, mask: Tensor | None, inside: Tensor | None = None) -> Tensor:
        """Let all tokens of `[b*windows, frames, l, c]` see each other; `inside` are biases of one frame to repeat."""
        rows, num_frames = frames.shape[:2]
        self.check_tokens(num_frames * frames.shape[2])
        query, key, value = self.projected(frames.flatten(1, 2))
        bias = self.bias_of(num_frames)[None] if inside is None else inside.repeat(1, 1, num_frames, num_frames)
        if mask is not None:  # windows go with the heads, so that their masks need not be repeated for each clip
            windows = mask.shape[0]
            bias = (bias + mask.repeat(1, num_frames, num_frames)[:, None]).flatten(0, 1)[None]
            query, key, value = (
                each.unflatten(0, (rows // windows, windows)).flatten(1, 2) for each in (query, key, value)
            )
        drop = self.get_submodule("attn_drop")
        assert isinstance(drop, nn.Dropout)
        chance = drop.p if self.training else 0.0
        answer = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias.to(query.dtype), dropout_p=chance, scale=1.0
        )
        answer = answer.reshape(rows, -1, *answer.shape[2:]).transpose(1, 2).flatten(2)
        answer = self.get_submodule("proj_drop")(self.get_submodule("proj")(answer))
        each: Tensor = answer.unflatten(1, (num_frames, -1))
        return each


@adapts(swin_transformer.WindowAttention)
class JointSwin(WindowedAttention, swin_transformer.WindowAttention):  # type: ignore[misc]
    """Swin's, with its table of relative positions `[(2t-1)*(2h-1)*(2w-1), heads]`.

    At the start the table of one frame is repeated. Source: Liu et al. 2022, Video Swin Transformer, section 3.3.
    """

    tells_frames_apart: ClassVar[bool] = True

    @classmethod
    def take_over(cls, layer: nn.Module, plan: LayerPlan, fold: Fold) -> None:
        """Repeat the table for all distances in time."""
        super().take_over(layer, plan, fold)
        assert isinstance(layer, JointSwin)
        layer.set_table(layer.relative_position_bias_table.detach().repeat(2 * plan.time_kernel - 1, 1))

    def set_table(self, table: Tensor) -> None:
        """Take another table."""
        old = self.relative_position_bias_table
        self.relative_position_bias_table = nn.Parameter(table, requires_grad=old.requires_grad)

    def deflate_(self) -> None:
        """Average the table over distances in time: what was repeated comes back."""
        table = self.relative_position_bias_table.detach()
        # in float64, so that equal ones come back to the last bit
        self.set_table(table.double().unflatten(0, (2 * self.plan.time_kernel - 1, -1)).mean(0).to(table.dtype))
        super().deflate_()

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Refuse: the table would have to be resized in space.

        Raises:
            InflateError: The size is another.
        """
        if tuple(window_size) != tuple(self.window_size):
            raise InflateError(
                "the table of an inflated Swin has the size that it was planned with",
                where=f"layer {self.plan.path}",
                expected=f"windows {tuple(self.window_size)}",
                got=f"{tuple(window_size)}",
                fix="set the size of the 2D model, and inflate it then",
            )

    def projected(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries, keys and values of tokens."""
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return query * self.scale, key, value

    def bias_of(self, num_frames: int) -> Tensor:
        """Look the biases up by distance in time and in space."""
        frames = torch.arange(num_frames, device=self.relative_position_index.device)
        apart = frames[:, None] - frames + self.plan.time_kernel - 1
        inside = self.relative_position_bias_table.shape[0] // (2 * self.plan.time_kernel - 1)
        rows = apart[:, None, :, None] * inside + self.relative_position_index[None, :, None, :]
        tokens = num_frames * self.relative_position_index.shape[0]
        return self.relative_position_bias_table[rows.reshape(-1)].view(tokens, tokens, -1).permute(2, 0, 1)


@adapts(swin_transformer_v2.WindowAttention)
class JointSwinV2(WindowedAttention, swin_transformer_v2.WindowAttention):  # type: ignore[misc]
    """Swin V2's: cosines, and biases that a small network makes of distances in space, for all pairs of frames."""

    def projected(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries and keys of length one, and values; queries scaled by what is learned for each head."""
        query, key, value = self.biased(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        sharpness = torch.clamp(self.logit_scale, max=SHARPEST).exp()
        return F.normalize(query, dim=-1) * sharpness, F.normalize(key, dim=-1), value

    def bias_of(self, num_frames: int) -> Tensor:
        """Make the biases of one frame, and repeat them.

        Source: Swin Transformer V2's code, WindowAttention: 16 times a sigmoid.
        """
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        inside = self.relative_position_index.shape[0]
        bias = table[self.relative_position_index.view(-1)].view(inside, inside, -1).permute(2, 0, 1)
        return (16 * torch.sigmoid(bias)).repeat(1, num_frames, num_frames)


class PositionedAttention(WindowedAttention):
    """Attention among all tokens, with biases by their distance in the picture.

    Class tokens, to which the biases have rows of their own, are there for each frame: T keys weigh as log T does.
    """

    time_window = None

    @classmethod
    def clip_tokens_of(cls, layer: nn.Module, found: int) -> int:
        """None: all tokens stay for each frame."""
        return 0

    def forward(self, x: Tensor, shared: Tensor | None = None, **named: Tensor | None) -> Tensor:  # type: ignore[override]
        """Run on the tokens of frames; `shared` `[1, heads, l, l]`, under any name, are biases for all layers."""
        inside = self.bias_in_picture(next(iter(named.values()), shared))
        return self.over_time(x, lambda frames: self.attend_in_windows(frames, None, inside))

    def bias_in_picture(self, shared: Tensor | None) -> Tensor | None:
        """Give the biases `[1, heads, l, l]` of one frame, if there are any."""
        raise NotImplementedError

    def bias_of(self, num_frames: int) -> Tensor:
        """Add nothing where there are none."""
        return self.qkv.weight.new_zeros(1, 1, 1)


@adapts(RelPosAttention)
class JointRelPos(PositionedAttention, RelPosAttention):  # type: ignore[misc]
    """timm's ViT with relative positions."""

    def projected(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries, keys and values of tokens."""
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(query) * self.scale, self.k_norm(key), value  # type: ignore[operator]

    def bias_in_picture(self, shared: Tensor | None) -> Tensor | None:
        """Ask its own table or network, or take those of the model."""
        own: Tensor | None = None if self.rel_pos is None else self.rel_pos.get_bias()  # type: ignore[operator,union-attr]
        return shared if own is None else own


@adapts(beit.Attention)
class JointBeit(PositionedAttention, beit.Attention):  # type: ignore[misc]
    """BEiT's."""

    def projected(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries, keys and values of tokens."""
        query, key, value = self.biased(tokens).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return query * self.scale, key, value

    def bias_in_picture(self, shared: Tensor | None) -> Tensor | None:
        """Add its own table and those of the model."""
        own = None if self.relative_position_bias_table is None else self._get_rel_pos_bias()  # type: ignore[operator]
        return shared if own is None else own if shared is None else own + shared

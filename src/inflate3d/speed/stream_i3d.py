"""I3D over a video that comes in pieces: its layers one after the other, each with the borders it keeps."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from inflate3d.inflation.padding import TimePadding
from inflate3d.models.blocks import Padding, SameConv3d, SameMaxPool3d, run_endpoints, same_padding, static_padding
from inflate3d.models.inception import ENDPOINTS, InceptionI3d, Unit3d
from inflate3d.speed.borders import Borders
from inflate3d.speed.layers import PairedConv3d, SeparableMaxPool3d

HALVINGS = 8  # frames for each step: three halvings of time
PER_STEP = ENDPOINTS[: ENDPOINTS.index("Logits_per_step") + 1]


class StreamedI3d(nn.Module):
    """I3D, given one piece of a video after the other.

    Args:
        net: May have the faster layers of `optimize`.
        borders: What its layers keep.
        num_frames: Of the whole video, on which TensorFlow's padding depends.
    """

    def __init__(self, net: InceptionI3d, borders: Borders, num_frames: int) -> None:
        super().__init__()
        self.net, self.borders, self.num_frames = net, borders, num_frames
        self.frames = num_frames  # of the video where the run has come to
        self.rule = replace(net.clip_rule, spec=replace(net.clip_spec, min_frames=1), takes_uint8=False)

    def forward(self, piece: Tensor) -> Tensor:
        """Answer the next frames `[b, c, t, h, w]` with the logits of the next steps, `[b, steps, classes]`."""
        return self.endpoints(piece, "Logits_per_step")["Logits_per_step"].transpose(1, 2)

    def endpoints(self, piece: Tensor, names: str | Iterable[str]) -> dict[str, Tensor]:
        """Run the next frames `[b, c, t, h, w]` up to the named endpoints; each gives its next steps in time.

        Raises:
            InflateError: An unknown name, one that has no steps, or a piece of another shape or range.
            TooFewFrames: An endpoint has no whole step yet.
        """
        self.frames = self.num_frames
        return run_endpoints(self._step, piece, names, known=PER_STEP, rule=self.rule, training=False)

    def _step(self, name: str, x: Tensor) -> Tensor:
        if name == "AvgPool_2x7x7":
            x = self.borders.slide(x, 2, 1, ends=lambda _: (0, 0), padding="valid")
        if name in ("AvgPool_2x7x7", "Logits_per_step"):
            return self.net.step(name, x)
        return self._layer(self.net.get_submodule(name), x)

    def _layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        if isinstance(layer, nn.ModuleDict):  # branches
            return self._joined([self._layer(branch, x) for branch in layer.values()])
        if isinstance(layer, Unit3d):
            convolution, *values = layer
            x = self._convolve(convolution, x)
            for value in values:
                x = value(x)
            return x
        if isinstance(layer, nn.Sequential):
            for part in layer:
                x = self._layer(part, x)
            return x
        return self._pool(layer, x)

    def _joined(self, branches: Sequence[Tensor]) -> Tensor:
        aligned = self.borders.align([branch.transpose(1, 2) for branch in branches])
        return torch.cat([branch.transpose(1, 2) for branch in aligned], 1)

    def _convolve(self, layer: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(layer, SameConv3d | PairedConv3d) or layer.kernel_size[0] == layer.stride[0] == 1:
            answer: Tensor = layer(x)
            return answer
        x = self._slide(x, layer.kernel_size[0], layer.stride[0], layer.rule, padding="zeros")
        pads = [
            same_padding(size, kernel, stride) if layer.rule == "same" else static_padding(kernel, stride)
            for size, kernel, stride in zip(x.shape[3:], layer.kernel_size[1:], layer.stride[1:], strict=True)
        ]
        return layer.padded(x, [(0, 0), *pads])

    def _pool(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Pool in space, then in time, with the border frame repeated: it lies in the window already."""
        pool = layer
        while not isinstance(pool, SameMaxPool3d):
            pool = pool.get_submodule("pool")
        kernel, stride = pool.kernel_size[0], pool.stride[0]
        if kernel == stride == 1:
            answer: Tensor = layer(x)
            return answer
        if isinstance(layer, SeparableMaxPool3d):
            x = layer.within_frames(x)
        else:
            flat = SameMaxPool3d((1, *pool.kernel_size[1:]), stride=(1, *pool.stride[1:]))
            flat.rule = pool.rule
            x = flat(x)
        x = self._slide(x, kernel, stride, pool.rule, padding="replicate", rounds_up=True)
        steps = (x.shape[2] - kernel) // stride + 1
        found = x[:, :, : (steps - 1) * stride + 1 : stride]
        for tap in range(1, kernel):
            found = torch.maximum(found, x[:, :, tap : tap + (steps - 1) * stride + 1 : stride])
        return found

    def _slide(
        self, x: Tensor, kernel: int, stride: int, rule: Padding, *, padding: TimePadding, rounds_up: bool = False
    ) -> Tensor:
        front, back = same_padding(self.frames, kernel, stride) if rule == "same" else static_padding(kernel, stride)
        if rounds_up:  # SAME has done so already
            back += -(self.frames + front + back - kernel) % stride
        if stride > 1:  # the branches of a block stride all alike: not at all
            self.frames = (self.frames + front + back - kernel) // stride + 1
        return self.borders.slide(x, kernel, stride, ends=lambda _: (front, back), padding=padding)

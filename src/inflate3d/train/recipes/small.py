"""Recipes for a few hundred clips and a processor without a graphics card."""

from dataclasses import replace

from inflate3d.train.recipe import HEAD, Recipe


def finetune_small() -> Recipe:
    """Fine-tune the last two blocks of Kinetics-400's I3D on a few hundred clips.

    What is below them runs once on a few views of each clip; the rest is trained on what came out. Batch norms keep
    their statistics, which a few clips would spoil.
    """
    return Recipe(
        "finetune-small",
        init="i3d-kinetics400",
        num_frames=32,
        short_side=256,
        crop=224,
        optimizer="adamw",
        lr=1e-4,
        head_lr=10.0,
        weight_decay=0.01,
        schedule="cosine",
        warmup_steps=20,
        epochs=15,
        label_smoothing=0.1,
        dropout=0.5,
        freeze="MaxPool3d_5a_2x2",
        freeze_norm=True,
        cached_views=3,
        clip_norm=5.0,
    )


def linear_probe() -> Recipe:
    """Train a linear layer on Kinetics-400's I3D, which stays as it is."""
    return replace(
        finetune_small(),
        name="linear-probe",
        num_frames=64,
        freeze=HEAD,
        cached_views=1,
        flip=False,
        lr=0.003,
        head_lr=1.0,
        epochs=200,
        batch_size=64,
        label_smoothing=0.0,
        dropout=0.0,
        clip_norm=0.0,
    )

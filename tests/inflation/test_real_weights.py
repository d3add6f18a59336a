"""Real ImageNet weights: a picture, the same picture repeated, and real videos are recognized.

The figures are those that the weights' own 2D networks give; no number here comes from an inflated one alone.
"""

import io
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from bvlc_googlenet import MEAN_BGR, read_bvlc_googlenet
from PIL import Image

from inflate3d.clips.clip import ClipSpec
from inflate3d.clips.transforms import frames_to_input
from inflate3d.clips.video import read_clip
from inflate3d.inflation.build import deflate, inflate
from inflate3d.weights.catalogue import EFFICIENTNET_LITE0
from inflate3d.weights.fetch import read_package_file

DOGS = range(151, 269)  # Chihuahua to Mexican hairless, in the order of ImageNet-1k

# file, class, its probability by GoogLeNet
ANSWERS = {
    "google-coral__bird.bmp": ("chickadee", 0.97),
    "google-coral__parrot.jpg": ("macaw", 1.00),
    "google-coral__hot_dog.jpg": ("hotdog", 0.99),
    "google-coral__dragonfly.bmp": ("dragonfly", 0.97),
    "imageio__images__coffee.png": ("espresso", 0.90),
    "tensorflow__react-native__image-classification__expo__basketball.jpg": ("basketball", 0.99),
    "tensorflow__visualize-convnet__elephants.jpg": ("tusker", 0.60),
    "tensorflow__visualize-convnet__dog.jpg": ("Walker hound", 0.37),
}


def spec(short_side, value_range):
    return ClipSpec(fps=25, num_frames=1, min_frames=1, short_side=short_side, crop=224, value_range=value_range)


def bgr(frames):
    """Frames [h, w, 3] to what Caffe's networks want, [1, 3, t, 224, 224]."""
    rgb = frames_to_input(frames, spec(256, (0.0, 255.0)))
    return rgb.flip(1) - torch.tensor(MEAN_BGR).view(3, 1, 1, 1)


def read_picture(path, resample=Image.Resampling.BILINEAR):
    """Short side 256, the other one rounded: what the figures above were made with."""
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    return np.array(image.resize([round(side * scale) for side in image.size], resample))


def repeated(pictures, frames):
    return pictures.unsqueeze(2).repeat(1, 1, frames, 1, 1)


def assert_same_logits(found, expected):
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@cache
def classes(shared: Path) -> list[str]:
    lines = (shared / "data/weights/synset_words.txt").read_text().splitlines()
    return [line.partition(" ")[2] for line in lines]


@cache
def googlenet(shared: Path):
    return read_bvlc_googlenet(shared / "data/weights/googlenet_bvlc.npz")


@cache
def googlenet3d(shared: Path, preset: str, profile: str = "mean"):
    return inflate(googlenet(shared), preset, profile=profile, example=torch.zeros(1, 3, 224, 224))


@cache
def answers_of_googlenet(shared: Path):
    """The pictures [8, 3, 224, 224] and their logits."""
    pictures = torch.cat([bgr([read_picture(shared / "data/pictures" / name)])[:, :, 0] for name in ANSWERS])
    with torch.inference_mode():
        return pictures, googlenet(shared)(pictures)


@pytest.mark.shared
def test_googlenet_answers_pictures_as_its_makers_network_does(shared):
    _, logits = answers_of_googlenet(shared)
    for (name, probability), found in zip(ANSWERS.values(), logits.softmax(1), strict=True):
        best = int(found.argmax())
        assert name in classes(shared)[best]
        assert abs(float(found[best]) - probability) < 0.01, name


@pytest.mark.shared
@pytest.mark.parametrize(("preset", "frames"), [("video", 2), ("i3d", 5)])
def test_inflated_googlenet_answers_a_repeated_picture_as_the_picture(shared, preset, frames):
    pictures, logits = answers_of_googlenet(shared)
    model3d = googlenet3d(shared, preset)
    with torch.inference_mode():
        for picture, expected in zip(pictures.split(2), logits.split(2), strict=True):
            assert_same_logits(model3d(repeated(picture, frames)), expected)


@pytest.mark.shared
def test_deflated_googlenet_has_its_weights_back(shared):
    wanted = googlenet(shared).state_dict()
    for name, value in deflate(googlenet3d(shared, "i3d")).state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-6 * float(wanted[name].abs().max()))


VIDEOS = (
    "clean_and_jerk",
    "walking_the_dog",
    "k400_cleaning_pool",
    "ucf101_ApplyEyeMakeup",
    "ucf101_BabyCrawling",
    "ucf101_Basketball",
)


@cache
def first_frames(shared: Path, video: str):
    """The first 64 frames at their own rate, [1, 3, 64, 224, 224]."""
    (file,) = (shared / "data/videos/singles" / video).iterdir()
    return bgr(list(read_clip(file, fps="native", num_frames=64).data.permute(1, 2, 3, 0)))


def best_five(shared, model3d, clip, title):
    with torch.inference_mode():
        found = model3d(clip).softmax(1)[0].topk(5)
    names = [classes(shared)[i].partition(",")[0] for i in found.indices]
    print(title, [f"{name} {p:.2f}" for name, p in zip(names, found.values.tolist(), strict=True)])
    return names, [int(i) for i in found.indices]


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore:.*timestamps do not rise")
@pytest.mark.parametrize("video", VIDEOS)
def test_googlenet_inflated_with_the_center_recognizes_what_a_video_shows(shared, video):
    """No training on videos. The center alone is not zero, so frames may be left out: every fourth saves time."""
    model3d = googlenet3d(shared, "video", "center")
    names, indices = best_five(shared, model3d, first_frames(shared, video)[:, :, ::4], f"{video}, center")
    if video == "clean_and_jerk":
        assert names[0] == "barbell"
    elif video == "walking_the_dog":
        assert any(i in DOGS for i in indices), names


@pytest.mark.shared
@pytest.mark.parametrize(
    "video",
    [
        "clean_and_jerk",
        pytest.param(
            "walking_the_dog",
            marks=pytest.mark.xfail(
                strict=True, raises=AssertionError, reason="the camera moves, and a mean over frames blurs the dog away"
            ),
        ),
    ],
)
def test_googlenet_inflated_with_the_mean_recognizes_what_moves_little(shared, video):
    """Frames side by side, as they were filmed: leaving some out would make all motion faster for the kernels.

    The mean blurs: of what the 2D network sees in the dog's video, .68 are dogs, and .10 where it is shown the mean of
    7 frames instead of each one.
    """
    names, indices = best_five(shared, googlenet3d(shared, "i3d"), first_frames(shared, video), f"{video}, mean")
    assert names[0] == "barbell" if video == "clean_and_jerk" else any(i in DOGS for i in indices), names


# --- EfficientNet-Lite0, from the package registry -------------------------------------------------------------------

ROOT_NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# the parts of a block in their order; the very first one has no expansion
PARTS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
FIRST_PARTS = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
DEPTHS = (1, 2, 2, 3, 3, 4, 1)
PLACES = [(stage, block) for stage, depth in enumerate(DEPTHS) for block in range(depth)]


def timm_name(name):
    """`_blocks.1._bn0.bias` to `blocks.1.0.bn1.bias`."""
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if not inside:
        layer, kind = name.split(".")
        return f"{ROOT_NAMES[layer]}.{kind}"
    number, part, kind = inside.groups()
    stage, block = PLACES[int(number)]
    parts = FIRST_PARTS if number == "0" else PARTS
    return f"blocks.{stage}.{block}.{parts[part]}.{kind}"


@pytest.fixture(scope="session")
def lite0():
    """timm's network, filled from the file that the user's pip fetched; the package's own code is not run."""
    state = torch.load(io.BytesIO(read_package_file(EFFICIENTNET_LITE0)), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict({timm_name(name): value for name, value in state.items()})
    return model.eval()


def lite_input(path):
    """RGB (x - 127) / 128, bicubic; [1, 3, 224, 224]."""
    picture = read_picture(path, Image.Resampling.BICUBIC)
    return (frames_to_input([picture], spec(256, (0.0, 255.0)))[:, :, 0] - 127) / 128


# what it sees where it differs from GoogLeNet
LITE_ANSWERS = {"tensorflow__visualize-convnet__elephants.jpg": "African elephant"}


@pytest.mark.shared
@pytest.mark.weights
def test_efficientnet_lite_answers_pictures_and_their_repetition_alike(shared, lite0):
    pictures = torch.cat([lite_input(shared / "data/pictures" / name) for name in ANSWERS])
    model3d = inflate(lite0)
    with torch.inference_mode():
        logits = lite0(pictures)
        for picture, expected in zip(pictures.split(2), logits.split(2), strict=True):
            assert_same_logits(model3d(repeated(picture, 3)), expected)
    found = logits.softmax(1).max(1)
    names = [classes(shared)[i] for i in found.indices]
    print([f"{name.partition(',')[0]} {p:.2f}" for name, p in zip(names, found.values.tolist(), strict=True)])
    for (file, (wanted, _)), name in zip(ANSWERS.items(), names, strict=True):
        assert LITE_ANSWERS.get(file, wanted) in name


@pytest.mark.weights
def test_deflated_efficientnet_lite_has_its_weights_back(lite0):
    model3d = inflate(lite0, "i3d", example=torch.zeros(1, 3, 96, 96))
    assert any(parameter.ndim == 5 for parameter in model3d.parameters())
    wanted = lite0.state_dict()
    for name, value in deflate(model3d).state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-6 * float(wanted[name].abs().max()))

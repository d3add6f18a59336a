"""Pixels that go to an optimized I3D as they are give the features of floats, and do not outlive their clip."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from feature_stand_ins import Witness, numbered_flow, numbers_of, numbers_of_flow, picture
from torch import nn

from inflate3d import InceptionI3d
from inflate3d.results import feature_clips
from inflate3d.results.feature_network import EndpointNetwork, network_named
from inflate3d.results.feature_presets import FeatureOptions
from inflate3d.results.features import Extractor
from inflate3d.speed.optimize import Optimized

SMALL = {"short_side": 36, "crop": 31}


class Rule:
    takes_uint8 = True


class Pixels(Witness):
    """Takes bytes as well, and notes what it is shown."""

    clip_rule = Rule()

    def __init__(self, **spec):
        super().__init__(**SMALL, **spec)
        self.kinds = []

    def forward(self, clip):
        self.kinds.append(clip.dtype)
        return super().forward(clip.float() / 127.5 - 1 if clip.dtype == torch.uint8 else clip)


@pytest.fixture(autouse=True)
def _flow_of_numbers(monkeypatch):
    monkeypatch.setattr("inflate3d.results.features.find_method", lambda *_, **__: numbered_flow)


def optimized(model):
    found = Optimized(model, "fp32", [])
    found.clip_spec, found.in_channels = model.clip_spec, model.in_channels
    return found.eval()


def video(count):
    return np.stack([picture(number) for number in range(count)])


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, torch.uint8),
        ({"tail": "pad-last"}, torch.uint8),
        ({"tail": "right-align", "stride": 3}, torch.uint8),
        ({"crops": "ten"}, torch.uint8),
        ({"crops": "five-center-first"}, torch.uint8),
        ({"tail": "pad-zero"}, torch.float32),  # a zero of the network's input is no byte
        ({"value_range": (-1.0, 1.0)}, torch.float32),  # asked for
        ({"crops": "none"}, torch.float32),
    ],
)
def test_bytes_are_sent_where_they_say_the_same(monkeypatch, change, kind):
    options = FeatureOptions(endpoint="logits", window=5, batch_size=3, **change)
    model = Pixels()
    found = Extractor({"rgb": optimized(model)}, options).one(video(17)).features["rgb"]
    assert set(model.kinds) == {kind}
    monkeypatch.setattr(Optimized, "takes_uint8", False)
    plain = Pixels()
    wanted = Extractor({"rgb": optimized(plain)}, options).one(video(17)).features["rgb"]
    assert set(plain.kinds) == {torch.float32}
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)


def test_of_two_streams_each_gets_what_it_takes():
    """Flow comes as floats; the pictures are there until the last of them has its clip."""
    colors, motion = Pixels(), Witness(2, **SMALL)
    options = FeatureOptions("both", endpoint="logits", window=4, stride=4, quantizer="none")
    found = Extractor({"rgb": optimized(colors), "flow": motion.eval()}, options).one(video(21)).features
    assert set(colors.kinds) == {torch.uint8}
    middles = [1.5 + 4 * row for row in range(5)]
    assert numbers_of(found["rgb"][:, 0]) == pytest.approx(middles, abs=0.02)
    assert numbers_of_flow(found["flow"][:, 0]) == pytest.approx(middles, abs=0.02)


def test_i3d_gives_the_same_bits(monkeypatch):
    torch.manual_seed(3)
    model = InceptionI3d(5).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    frames = np.random.default_rng(0).integers(0, 256, (9, 193, 201, 3), np.uint8)
    kinds, run = [], EndpointNetwork.__call__

    def noted(network, clips):
        kinds.append(clips.dtype)
        return run(network, clips)

    monkeypatch.setattr(EndpointNetwork, "__call__", noted)
    model.clip_spec = replace(model.clip_spec, crop=193)
    extractor = Extractor({"rgb": model}, FeatureOptions(window=9, resize=193))
    found = [extractor.one(frames).features["rgb"]]
    monkeypatch.setattr(Optimized, "takes_uint8", False)
    found.append(extractor.one(frames).features["rgb"])
    assert kinds == [torch.uint8, torch.float32]
    assert torch.equal(*found) and found[0].abs().max() > 0


@pytest.mark.parametrize("takes", [True, False])
def test_pictures_are_dropped_once_their_clip_is_made(monkeypatch, takes):
    """While the network works on a window its pictures are gone; of the video only what is read ahead is there."""
    monkeypatch.setattr(Optimized, "takes_uint8", takes)
    drawn, resize, alive = [], feature_clips.resize, []

    def noted(shown, *how):
        found = resize(shown, *how).clone()
        drawn.append(weakref.ref(found))
        return found

    class Watching(Pixels):
        def forward(self, clip):
            here = {number for number, one in enumerate(drawn) if one() is not None}
            alive.append((len(alive), here))
            return super().forward(clip)

    monkeypatch.setattr(feature_clips, "resize", noted)
    length, count = 4, 25
    options = FeatureOptions(endpoint="logits", window=length, fps="native", workers=1)
    found = Extractor({"rgb": optimized(Watching())}, options).one(video(length * count))
    assert len(found.features["rgb"]) == len(alive) == count
    for number, here in alive:
        last = (number + 1) * length - 1  # which the reader may hold until it has drawn the next one
        assert here & set(range(last + 1)) <= {last}, number
    ahead = 2 + 1  # windows that wait, and the one that is being put together
    assert max(len(here) for _, here in alive) <= (ahead + 1) * length


@pytest.mark.parametrize(
    ("change", "stream"),
    [
        ({"window": 5, "stride": 3}, "rgb"),
        ({"window": 5, "tail": "pad-last", "align": "center"}, "rgb"),
        ({"window": 4, "streams": "flow", "quantizer": "none"}, "flow"),
    ],
)
def test_of_a_limited_video_the_rest_has_no_say(change, stream):
    """The features are those of a video that ends there, times included."""
    options = FeatureOptions(**{"endpoint": "logits", "fps": "native", **change})
    model = {stream: Witness(2 if stream == "flow" else 3, **SMALL).eval()}
    frames = video(40)
    found = Extractor(model, options, most_frames=17).one(frames)
    wanted = Extractor(model, options).one(frames[:17])
    torch.testing.assert_close(found.features[stream], wanted.features[stream])
    torch.testing.assert_close(found.times_seconds, wanted.times_seconds)
    assert found.num_frames == wanted.num_frames and torch.equal(found.start_frames, wanted.start_frames)


def test_of_a_video_that_is_shown_whole_as_well():
    model, frames = network_named("timm/test_resnet", weights="none"), video(90)
    options = FeatureOptions(window="whole", endpoint="logits", fps="native", resize=36, crop=36)
    found = Extractor({"rgb": model}, options, most_frames=37).one(frames)
    wanted = Extractor({"rgb": model}, options).one(frames[:37])
    assert found.num_frames == 37
    torch.testing.assert_close(found.features["rgb"], wanted.features["rgb"])

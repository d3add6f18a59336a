"""A video in pieces is answered as in one pass: I3D, inflated models, whatever the length and the pieces."""

import gc

import pytest
import timm
import torch
import torchvision
from torch import nn

from inflate3d import InceptionI3d, inflate
from inflate3d.errors import InflateError, InflateWarning
from inflate3d.inflation.plan import Insert, Rule
from inflate3d.models.inflated import inflated_classifier, resnet_i3d
from inflate3d.speed.borders import Borders, TooFewFrames
from inflate3d.speed.optimize import optimize
from inflate3d.speed.stream import Stream, in_pieces

SIDE = 193  # the least that I3D takes


def lively(model):
    """Give batch norms something to do."""
    generator = torch.Generator().manual_seed(5)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def i3d():
    torch.manual_seed(0)
    return lively(InceptionI3d(7))


def steps_of(model, video, size, num_frames=None):
    stream = Stream(model, num_frames)
    with torch.inference_mode():
        parts = [stream(video[:, :, places], is_last=last) for places, last in in_pieces(range(video.shape[2]), size)]
    return torch.cat([part for part in parts if part is not None], 1)


def assert_alike(found, wanted, tolerance=1e-4):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("num_frames", range(17, 25))  # every residue modulo 8
def test_i3d_in_pieces_is_one_pass_over_the_whole(i3d, num_frames):
    video = torch.rand(1, 3, num_frames, SIDE, SIDE, generator=torch.Generator().manual_seed(num_frames)) * 2 - 1
    with torch.inference_mode():
        wanted = i3d.endpoints(video, "Logits_per_step")["Logits_per_step"].transpose(1, 2)
    assert_alike(steps_of(i3d, video, 8, num_frames), wanted)
    if num_frames == 21:  # a video without an end goes on with its last frame until eight divide the number
        longer = torch.cat([video, *[video[:, :, -1:]] * 3], 2)
        with torch.inference_mode():
            wanted = i3d.endpoints(longer, "Logits_per_step")["Logits_per_step"].transpose(1, 2)
        assert_alike(steps_of(i3d, video, 8), wanted)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_optimized_i3d_streams_as_it_answers(i3d, precision):
    video = torch.rand(2, 3, 27, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    fast = optimize(i3d, precision)
    fast.settle(video)
    with torch.inference_mode():
        wanted = fast.endpoints(video, "Logits_per_step")["Logits_per_step"].transpose(1, 2)
    assert_alike(steps_of(fast, video, 16, 27), wanted, 1e-4 if precision == "fp32" else 2e-2)


def test_a_stream_in_bfloat16_is_guarded_as_the_model_is(monkeypatch):
    """Nobody has to have asked the model before: the first piece is compared, and float32 stays where it differs."""
    monkeypatch.setattr("inflate3d.speed.optimize.BF16_COSINE", 2.0)
    torch.manual_seed(0)
    model = lively(inflated_classifier("timm/test_resnet", 7))
    video, fast = torch.rand(1, 3, 40, 48, 40) * 2 - 1, optimize(model, "bf16")
    with pytest.warns(InflateWarning, match="too coarse"):
        found = steps_of(fast, video, 32)
    assert fast.precision == "fp32" and fast.exact is None
    assert_alike(found, steps_of(optimize(model, "fp32"), video, 32), 1e-6)


def test_endpoints_and_static_padding(i3d):
    torch.manual_seed(0)
    static = lively(InceptionI3d(7, padding="static"))
    video = torch.rand(1, 3, 29, 197, 194) * 2 - 1
    for model, name in ((i3d, "Mixed_4c"), (static, "Mixed_4c"), (static, "AvgPool_2x7x7")):
        stream = Stream(model, 29)
        with torch.inference_mode():
            wanted = model.endpoints(video, name)[name]
            pieces = in_pieces(range(29), 16)
            parts = [stream.call("endpoints", video[:, :, places], [name], is_last=last) for places, last in pieces]
        assert_alike(torch.cat([part[name] for part in parts if part], 2), wanted)


MODELS = {
    "resnet18, video": lambda: inflate(torchvision.models.resnet18(), "video", example=torch.zeros(1, 3, 64, 64)),
    "resnet18, i3d": lambda: inflate(torchvision.models.resnet18(), "i3d", example=torch.zeros(1, 3, 64, 64)),
    "resnet18, tsm": lambda: inflate(torchvision.models.resnet18(), "tsm", example=torch.zeros(1, 3, 64, 64)),
    "densenet121, i3d": lambda: inflate(torchvision.models.densenet121(), "i3d", example=torch.zeros(1, 3, 64, 64)),
    "googlenet, zeros": lambda: inflate(
        torchvision.models.googlenet(aux_logits=False, init_weights=False),
        "i3d",
        example=torch.zeros(1, 3, 64, 64),
        rules={"*.conv": Rule(padding="zeros")},
    ),
    "efficientnet, causal": lambda: inflate(timm.create_model("tf_efficientnet_b0"), "causal"),  # gates by frame
    "convnext, video": lambda: inflate(timm.create_model("convnext_atto"), "video"),
    "mobilenet, center": lambda: inflate(timm.create_model("mobilenetv2_050"), "i3d", profile="center"),
    "resnet18, inserts": lambda: inflate(
        torchvision.models.resnet18(),
        "frames",
        example=torch.zeros(1, 3, 64, 64),
        rules={"conv1": Rule(time_kernel=5, time_stride=3, padding="causal")},
        inserts=[Insert("layer1", "time_pool"), Insert("layer2", "temporal_conv")],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_inflated_models_in_pieces_are_one_pass_over_the_whole(name):
    torch.manual_seed(0)
    model = lively(MODELS[name]())
    model.time_pool = "none"
    for insert in (model.inserts or nn.Module()).modules():
        if isinstance(insert, nn.Conv3d):
            nn.init.normal_(insert.weight, std=0.05)
    for num_frames, size in ((43, 16), (5, 32)):
        video = torch.randn(2, 3, num_frames, 64, 64)
        with torch.inference_mode():
            wanted = model(video)
        assert_alike(steps_of(model, video, size), wanted)


def test_classifiers_are_streamed_with_their_normalization():
    torch.manual_seed(0)
    model = lively(inflated_classifier("timm/test_resnet", 7))
    video = torch.rand(1, 3, 70, 48, 40) * 2 - 1
    with torch.inference_mode():
        wanted = model(video)
        assert_alike(steps_of(model, video, 32).mean(1), wanted)
        assert_alike(steps_of(optimize(model, "fp32"), video, 32).mean(1), wanted)


def test_pieces_too_short_for_a_step_wait():
    """Pieces of any length: nothing is lost where a layer has no whole step of them."""
    torch.manual_seed(0)
    model = lively(MODELS["resnet18, i3d"]())
    model.time_pool = "none"
    video, stream, found, start = torch.randn(1, 3, 53, 64, 64), Stream(model), [], 0
    with torch.inference_mode():
        for length in (1, 2, 3, 5, 1, 7, 11, 13, 10):
            found.append(stream(video[:, :, start : start + length], is_last=start + length == 53))
            start += length
        wanted = model(video)
    assert start == 53 and found[0] is None
    assert_alike(torch.cat([part for part in found if part is not None], 1), wanted)


def test_the_model_stays_as_it_was(i3d):
    video = torch.rand(1, 3, 17, SIDE, SIDE) * 2 - 1
    resnet = lively(MODELS["resnet18, video"]())
    small = torch.randn(1, 3, 9, 64, 64)
    with torch.inference_mode():
        before = i3d(video), resnet(small)
        steps_of(i3d, video, 16, 17)
        steps_of(resnet, small, 8)
        after = i3d(video), resnet(small)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_borders_are_copies_and_do_not_keep_pieces():
    """What is kept after 12 pieces is what was kept after 4."""
    model = lively(MODELS["resnet18, video"]())
    stream, sizes = Stream(model), []
    with torch.inference_mode():
        for _ in range(12):
            stream(torch.randn(1, 3, 8, 32, 32))
            gc.collect()
            kept = stream.borders._kept.values()
            tensors = [one for value in kept for one in (value if isinstance(value, list) else [value.clip])]
            sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
    assert sizes[4] == sizes[-1] > 0


class Gated(nn.Module):
    """Multiplies in place, by a map whose frames come later, and looks at the old tensor again."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        y = x * 2
        y.mul_(self.conv(x))
        return y.mean((2, 3))


class Writes(Gated):
    def forward(self, x):
        y = x.clone()
        y[:, :2] = self.conv(x)[:, :2]
        return y.mean((2, 3))


@pytest.mark.parametrize("kind", [Gated, Writes])
def test_code_that_changes_tensors_in_place_is_refused(kind):
    model = inflate(kind(), example=torch.zeros(1, 3, 9, 11)).eval()
    with pytest.raises(InflateError, match="in a way that cannot wait"), torch.inference_mode():
        Stream(model)(torch.randn(1, 3, 8, 9, 11))


class ReadsTheBatch(nn.Module):
    """Asks how many pictures there are before a convolution gives its frames, some of them later."""

    def __init__(self):
        super().__init__()
        self.conv, self.token = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Parameter(torch.rand(1, 1, 8))

    def forward(self, x):
        return self.conv(x).reshape(x.shape[0], 8, -1).mean(-1)


class Views(ReadsTheBatch):
    def forward(self, x):
        return self.conv(x).view(x.shape[0], 8, -1).mean(-1)


class AddsATokenToEach(ReadsTheBatch):
    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1).mean(1)


@pytest.mark.parametrize("kind", [ReadsTheBatch, Views, AddsATokenToEach])
@pytest.mark.parametrize(("num_clips", "num_frames"), [(1, 64), (2, 4), (2, 2), (1, 2)])
def test_code_that_reads_the_batch_ahead_of_a_convolution_is_refused(kind, num_clips, num_frames):
    """Pieces of two frames have one after the convolution, and two rows could be two for each frame."""
    model = inflate(kind(), example=torch.zeros(1, 3, 16, 16)).eval()
    video = torch.randn(num_clips, 3, num_frames, 16, 16)
    with torch.inference_mode():
        assert_alike(steps_of(model, video, num_frames).mean(1), model(video))  # the whole at once is right
        with pytest.raises(InflateError, match="in a way that cannot wait"):
            Stream(model)(video)


class ReadsTheBatchInTime(ReadsTheBatch):
    """Merges and parts rows, all of them of the map they are made of."""

    def forward(self, x):
        y = self.conv(x)
        y = y.reshape(1, y.shape[0] * 8, *y.shape[2:]).view(y.shape[0] * 2, 4, -1)
        return y.view(-1, 8, y.shape[-1]).mean(-1)


def test_rows_that_are_merged_and_parted_are_streamed():
    model = inflate(ReadsTheBatchInTime(), example=torch.zeros(1, 3, 16, 16), time_pool="none").eval()
    video = torch.randn(2, 3, 7, 16, 16)
    for size in (1, 2, 3):
        with torch.inference_mode():
            assert_alike(steps_of(model, video, size), model(video))


REFUSED = {
    "sees the whole clip": lambda: inflate(timm.create_model("tf_efficientnet_b0"), "video"),
    "non_local": lambda: resnet_i3d(num_classes=7, non_local=True),
    "makes time longer": lambda: inflate(
        nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ConvTranspose2d(5, 2, 2, 2)),
        "isotropic",
        example=torch.zeros(1, 3, 16, 16),
    ),
    "sides of a volume": lambda: inflate(torchvision.models.resnet18(), "video", profile="acs"),
    "MaxPool2d": lambda: nn.MaxPool2d(2),
    "training mode": lambda: InceptionI3d(5).train(),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_go_on_is_refused_with_the_reason(reason):
    model = REFUSED[reason]()
    with pytest.raises(InflateError, match="in pieces") as caught:
        Stream(model if reason == "training mode" else model.eval())
    assert reason in caught.value.got


def test_a_video_too_short_for_a_step_is_refused(i3d):
    stream = Stream(i3d, 8)
    with pytest.raises(InflateError, match="too short for the network"), torch.inference_mode():
        stream(torch.zeros(1, 3, 8, SIDE, SIDE), is_last=True)


def test_a_run_that_waits_changes_no_borders():
    borders, numbers = Borders(), torch.arange(9.0).view(1, 1, 9, 1, 1)
    given = []
    for start, stop in ((0, 3), (3, 5), (3, 9)):
        borders.begin(is_last=stop == 9)
        clip = borders.slide(numbers[:, :, start:stop], 3, 2, ends=lambda _: (1, 1), padding="zeros")
        try:
            if stop == 5:
                raise TooFewFrames
        except TooFewFrames:
            continue
        borders.commit()
        given.append(clip.flatten().tolist())
    assert given == [[0, 0, 1], [1, 2, 3, 4, 5, 6, 7, 8, 0]]

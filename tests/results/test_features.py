"""What a row is made from: which frames, padding, endpoints of any network, batches, each frame read once."""

import copy
import warnings
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from feature_stand_ins import Witness, numbered_flow, numbers_of, numbers_of_flow, picture, write_numbered
from torch import nn

from inflate3d import ClipSpec, InceptionI3d
from inflate3d.clips.transforms import frames_to_input
from inflate3d.errors import InflateError
from inflate3d.inflation.build import inflate
from inflate3d.results.feature_clips import cut, resize
from inflate3d.results.feature_network import EndpointNetwork, network_named
from inflate3d.results.feature_presets import FeatureOptions
from inflate3d.results.features import Extractor, extract
from inflate3d.results.prediction import Failure
from inflate3d.speed.optimize import optimize
from videos import cut_off, write_video

SMALL = {"short_side": 36, "crop": 31}


@pytest.fixture(scope="module")
def resnet():
    """The smallest ResNet of timm, inflated."""
    return network_named("timm/test_resnet", weights="none")


@pytest.fixture(autouse=True)
def _flow_of_numbers(monkeypatch):
    monkeypatch.setattr("inflate3d.results.features.find_method", lambda *_, **__: numbered_flow)


def numbered(count):
    return np.stack([picture(i) for i in range(count)])


def windows_by_hand(count, length, stride, tail, align):
    """Indices of frames by the rules as they are written down, None for zeros."""
    if align == "center":
        starts = [k * stride - length // 2 for k in range(-(-count // stride))]
    else:
        full = max((count - length) // stride + 1, 0)
        starts = [k * stride for k in range(full)]
        end = starts[-1] + length if starts else 0
        if end < count and tail != "drop" and full * stride < count:
            starts.append(max(count - length, 0) if tail == "right-align" else full * stride)
    found = []
    for start in starts:
        places = range(start, start + length)
        inside = [0 <= i < count for i in places]
        if tail == "drop" and not all(inside):
            continue
        filled = None if tail == "pad-zero" else 0
        found.append(
            [
                i if fits else (None if filled is None else min(max(i, 0), count - 1))
                for i, fits in zip(places, inside, strict=True)
            ]
        )
    return found


@pytest.mark.parametrize("align", ["start", "center"])
@pytest.mark.parametrize("tail", ["drop", "pad-last", "pad-zero", "right-align"])
def test_windows_are_those_of_the_rules(tail, align):
    if (tail, align) == ("right-align", "center"):
        return
    for count in range(1, 24):
        for length, stride in [(1, 1), (5, 1), (5, 3), (4, 4), (3, 7), (21, 2)]:
            pieces = list(cut(range(count), length, stride, tail=tail, align=align))
            assert [piece.frames for piece in pieces] == windows_by_hand(count, length, stride, tail, align)
            shown = [next(i for i, frame in enumerate(piece.frames) if frame is not None) for piece in pieces]
            for piece, first in zip(pieces, shown, strict=True):
                assert piece.frames[first] in {piece.start + first, 0}


def test_a_whole_video_has_the_steps_of_one_pass(tmp_path):
    torch.manual_seed(3)
    model = InceptionI3d(5).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm3d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    path = write_numbered(tmp_path / "a.mp4", 43, height=193, width=193)
    options = FeatureOptions(window="whole", fps="native", resize=193, crop=193)
    found = extract(model, path, options)
    clip = frames_to_input(numbers(43, 193), replace(model.clip_spec, short_side=193, crop=193))
    with torch.inference_mode():
        wanted = model.endpoints(clip, "AvgPool_2x7x7")["AvgPool_2x7x7"].mean((3, 4))[0].T
    assert found.features["rgb"].shape == (5, 1, 1024) and found.start_frames.tolist() == [0, 8, 16, 24, 32]
    assert (found.features["rgb"][:, 0] - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def numbers(count, side):
    return [torch.from_numpy(picture(i, side, side)) for i in range(count)]


def test_inflated_models_have_steps_too(tmp_path):
    """The smallest ResNet of timm strides by 16 in time; logits of each step, from both crops at once."""
    model = network_named("timm/test_resnet", weights="none")
    options = FeatureOptions(window="whole", endpoint="logits", fps="native", crops="three", resize=36, crop=36)
    found = extract(model, write_numbered(tmp_path / "a.mp4", 75, height=36, width=52), options)
    steps = found.features["rgb"]
    assert steps.shape[1:] == (3, 1000) and len(steps) == -(-75 // int(found.start_frames[1]))
    clip = frames_to_input([torch.from_numpy(picture(i, 36, 52)) for i in range(75)],
                           replace(model.clip_spec, short_side=36, crop=36), "three")  # fmt: skip
    with torch.inference_mode():
        wanted = model(clip)
    assert (steps.mean(0) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("endpoint", ["Mixed_5c", "Predictions"])
def test_endpoints_without_steps_are_refused(endpoint):
    with pytest.raises(InflateError, match="no steps in time over a whole video"):
        Extractor({"rgb": InceptionI3d(5).eval()}, FeatureOptions(window="whole", endpoint=endpoint))


@pytest.mark.parametrize(("stamp", "at"), [("start", 0), ("center", 3.5), ("middle-frame", 3), ("end", 7)])
def test_times_of_rows(stamp, at):
    options = FeatureOptions(window=7, stride=4, fps=20, tail="pad-last", stamp=stamp)
    found = extract(Witness(**SMALL).eval(), numbered(17), options)
    assert found.start_frames.tolist() == [0, 4, 8, 12]
    torch.testing.assert_close(found.times_seconds, (found.start_frames.double() + at) / 20)
    assert (found.num_frames, found.fps, found.window) == (17, 20.0, 7)


def test_times_follow_a_video_of_changing_rate(tmp_path):
    """Native frames come with their own times; beyond the last one time goes on at its rate."""
    ticks = [0, 1, 2, 5, 9, 10, 12]
    path = write_video(
        tmp_path / "vfr.mp4",
        [picture(i) for i in range(7)],
        codec="libx264rgb",
        pix_fmt="rgb24",
        fps=10,
        ticks=ticks,
        qp="0",
    )
    options = FeatureOptions(window=4, stride=2, fps="native", tail="pad-last", stamp="start")
    found = extract(Witness(**SMALL).eval(), path, options)
    assert found.start_frames.tolist() == [0, 2, 4]
    torch.testing.assert_close(found.times_seconds, torch.tensor([0.0, 0.2, 0.9], dtype=torch.float64))
    ends = extract(Witness(**SMALL).eval(), path, replace(options, stamp="end")).times_seconds
    assert ends[0] == pytest.approx(0.9) and ends[1] == pytest.approx(1.2, abs=0.3)


def test_resampling_and_both_streams_keep_pairs_together(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 60)
    models = {"rgb": Witness(**SMALL).eval(), "flow": Witness(2, **SMALL).eval()}
    found = extract(models, path, FeatureOptions("both", window=5, stride=3, fps=10.0, quantizer="none"))
    rgb, flow = (found.features[name][:, 0] for name in ("rgb", "flow"))
    wanted = [3 * np.mean(range(start, start + 5)) for start in found.start_frames.tolist()]
    np.testing.assert_allclose(numbers_of(rgb), wanted, atol=1e-3)
    np.testing.assert_allclose(numbers_of_flow(flow), wanted, atol=1e-3)
    assert torch.allclose(flow[:, 1], torch.tensor(1.0))  # down 30 pixels, cut off at 20: each flow spans three frames
    assert found.start_frames[-1] + 5 <= 20 - 1  # the last frame has no flow


def test_each_frame_is_decoded_resized_and_flowed_once(tmp_path, monkeypatch):
    path = write_numbered(tmp_path / "a.mp4", 40)
    calls = {"draw": 0, "resize": 0, "flow": 0}

    def counting(name, function, count):
        def run(*args, **kwargs):
            calls[name] += count(*args)
            return function(*args, **kwargs)

        return run

    import inflate3d.results.feature_clips as clips
    from inflate3d.clips import video

    monkeypatch.setattr(video.Drawer, "__call__", counting("draw", video.Drawer.__call__, lambda *_: 1))
    monkeypatch.setattr(clips, "resize", counting("resize", clips.resize, lambda *_: 1))
    flow = counting("flow", numbered_flow, lambda first, _: len(first))
    monkeypatch.setattr("inflate3d.results.features.find_method", lambda *_, **__: flow)
    models = {"rgb": Witness(**SMALL).eval(), "flow": Witness(2, **SMALL).eval()}
    options = FeatureOptions("both", window=16, stride=1, fps="native", crops="ten")
    found = extract(models, path, options)
    assert found.features["rgb"].shape == (24, 10, 1024)
    assert calls == {"draw": 40, "resize": 40, "flow": 39}


class Seen(Witness):
    """Remembers the sizes of its batches, and the frames in them."""

    batches: ClassVar = []

    def forward(self, clip):
        Seen.batches.append(numbers_of(clip.mean((3, 4)).transpose(1, 2)).round().astype(int))
        return super().forward(clip)


def test_windows_of_several_videos_share_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(Seen, "batches", [])
    paths = [write_numbered(tmp_path / f"{i}.mp4", count) for i, count in enumerate((13, 9, 21, 4))]
    options = FeatureOptions(window=4, stride=4, fps="native", batch_size=5)
    extractor = Extractor({"rgb": Seen(**SMALL).eval()}, options)
    found = dict(extractor.many(paths))
    assert [batch.shape for batch in Seen.batches] == [(5, 4), (5, 4), (5, 4)]  # 3 + 2 + 5 + 1 rows, the rest filled up
    assert [batch[:, 0].tolist() for batch in Seen.batches[:2]] == [[0, 4, 8, 0, 4], [0, 4, 8, 12, 16]]
    assert [len(found[i].features["rgb"]) for i in range(4)] == [3, 2, 5, 1]
    for i in range(4):
        alone = extractor.one(paths[i])
        assert torch.equal(alone.features["rgb"], found[i].features["rgb"])


def test_what_stands_beside_a_window_in_its_batch_does_not_change_its_row(resnet):
    """The same bytes, whatever the batch: else a run that was stopped could not go on with the same ones."""
    torch.manual_seed(0)
    network = EndpointNetwork(resnet, "features")
    clips = torch.rand(5, 3, 5, 64, 64) * 2 - 1
    alone = network(clips[:1].expand(4, -1, -1, -1, -1).contiguous())[0]
    for order in ([0, 1, 2, 3], [4, 3, 0, 1], [2, 2, 2, 0]):
        assert torch.equal(network(clips[order])[order.index(0)], alone)


@pytest.mark.parametrize(("crops", "at_a_time"), [("center", 3), ("none", 1)])
def test_memory_is_measured_on_a_clip_that_bfloat16_is_not_judged_by(monkeypatch, crops, at_a_time):
    """As on a GPU: a blank clip tells nothing about bfloat16, and clips of several sizes go through alone."""
    runs = []

    def three(device, run_one):
        runs.append(run_one())
        return 3

    monkeypatch.setattr("inflate3d.results.features.clips_at_a_time", three)
    options = FeatureOptions(window=4, fps="native", precision="bf16", crops=crops)
    extractor = Extractor({"rgb": Witness(**SMALL).eval()}, options)
    assert (extractor.at_a_time, len(runs)) == (at_a_time, int(crops == "center"))
    assert extractor.networks["rgb"].model.unsettled


def test_one_bad_video_does_not_cost_the_others(tmp_path):
    good = [write_numbered(tmp_path / f"{i}.mp4", 12) for i in range(2)]
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    short = write_numbered(tmp_path / "short.mp4", 3)
    extractor = Extractor({"rgb": Witness(**SMALL).eval()}, FeatureOptions(window=4, batch_size=3, fps="native"))
    found = dict(extractor.many([good[0], tmp_path / "bad.mp4", short, good[1]]))
    assert [isinstance(found[i], Failure) for i in range(4)] == [False, True, True, False]
    assert "FFmpeg" in found[1].reason and "too short for a row" in found[2].reason
    with pytest.raises(InflateError, match="no features"):
        extractor.one(short)


def test_damage_costs_what_is_damaged_only(tmp_path):
    """Features up to the damage, and a warning."""
    whole = write_video(tmp_path / "whole.avi", [picture(i) for i in range(60)], codec="ffv1", pix_fmt="bgr0", fps=25)
    cut_short = cut_off(whole, 0.6)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found = extract(Witness(**SMALL).eval(), cut_short, FeatureOptions(window=4, fps="native"))
    assert 5 <= len(found.features["rgb"]) < 15
    wanted = [4 * i + 1.5 for i in range(len(found.features["rgb"]))]
    np.testing.assert_allclose(numbers_of(found.features["rgb"][:, 0]), wanted, atol=1e-3)


def test_flow_that_was_computed_before(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 20)
    frames = torch.from_numpy(numbered(20))
    flow = numbered_flow(frames[:-1], frames[1:])
    (tmp_path / "flow").mkdir()
    np.savez(tmp_path / "flow" / "a.npz", flow=flow.numpy())
    options = FeatureOptions("flow", window=4, fps="native", flow_from=tmp_path / "flow", quantizer="none")
    found = extract({"flow": Witness(2, **SMALL).eval()}, path, options)
    np.testing.assert_allclose(numbers_of_flow(found.features["flow"][:, 0]), [1.5, 5.5, 9.5, 13.5], atol=1e-3)


def test_frames_smaller_than_the_crop_are_told():
    with pytest.raises(InflateError, match="do not go together") as caught:
        Extractor({"rgb": Witness().eval()}, FeatureOptions(resize=(200, 300), window=4))
    assert "crop 224" in caught.value.got


def test_resizing():
    frame = picture(7, 90, 160)
    assert resize(frame, 45, "bicubic").shape == (45, 80, 3)
    assert resize(frame, (30, 20), "bilinear").shape == (20, 30, 3)
    same = resize(frame, (160, 90), "bilinear-aliased")
    assert torch.equal(same, torch.from_numpy(frame))
    cv2 = pytest.importorskip("cv2")
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    theirs = cv2.resize(noise, (61, 47), interpolation=cv2.INTER_LINEAR).astype(int)
    assert np.abs(resize(noise, (61, 47), "bilinear-aliased").numpy().astype(int) - theirs).max() <= 1
    pil = pytest.importorskip("PIL.Image")
    for name, kind in (("bilinear", pil.Resampling.BILINEAR), ("bicubic", pil.Resampling.BICUBIC)):
        theirs = np.asarray(pil.fromarray(noise).resize((61, 47), kind)).astype(int)
        assert np.abs(resize(noise, (61, 47), name).numpy().astype(int) - theirs).max() <= 1
    with pytest.raises(InflateError, match="too long and narrow"):
        resize(np.zeros((2, 100, 3), np.uint8), 8, "bicubic")


# ---- endpoints


@pytest.fixture(scope="module")
def i3d():
    torch.manual_seed(0)
    return InceptionI3d(5).eval()


@pytest.fixture(scope="module")
def fast(i3d):
    return optimize(i3d)


@pytest.fixture(scope="module")
def clip_and_endpoints(i3d):
    clip = torch.rand(1, 3, 17, 193, 194, generator=torch.Generator().manual_seed(1)) * 2 - 1
    names = ["AvgPool_2x7x7", "Mixed_5c", "MaxPool3d_4a_3x3", "Logits_per_step", "Logits", "Mixed_4b"]
    with torch.inference_mode():
        return clip, i3d.endpoints(clip, names)


@pytest.mark.parametrize(
    ("endpoint", "pool", "shape"),
    [
        ("features", "mean", (1024,)),
        ("features", "per-step", (2, 1024)),
        ("MaxPool3d_4a_3x3", "per-step", (5, 480)),
        ("Mixed_5c", "none", (1024, 3, 7, 7)),
        ("Logits_per_step", "per-step", (2, 5)),
        ("logits", "mean", (5,)),
        ("Mixed_4b.Branch_0", "mean", (192,)),
    ],
)
def test_endpoints_of_i3d(fast, clip_and_endpoints, endpoint, pool, shape):
    clip, known = clip_and_endpoints
    found = EndpointNetwork(fast, endpoint, pool=pool)(clip)
    assert found.shape == (1, *shape)
    wanted = {
        "features": known["AvgPool_2x7x7"],
        "logits": known["Logits"],
        "Mixed_4b.Branch_0": known["Mixed_4b"][:, :192],
    }.get(endpoint, known.get(endpoint))
    if wanted.ndim == 5 and pool != "none":
        wanted = wanted.mean((3, 4)).transpose(1, 2)
        wanted = wanted.mean(1) if pool == "mean" else wanted
    elif wanted.ndim == 3:
        wanted = wanted.transpose(1, 2)
    torch.testing.assert_close(found, wanted.clone(), rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close(resnet):
    clip = torch.rand(1, 3, 4, 64, 64) * 2 - 1
    exact, half = (EndpointNetwork(resnet, "features", precision=name)(clip) for name in ("fp32", "bf16"))
    assert torch.cosine_similarity(exact, half).item() > 0.999
    with pytest.raises(InflateError, match="run in float32"):
        EndpointNetwork(resnet, "inflated.net.layer2", precision="bf16")


class LastChannels(nn.Module):
    """A 2D network with maps `[n, h, w, c]` and tokens `[n, l, c]` inside."""

    def __init__(self):
        super().__init__()
        self.conv, self.maps, self.tokens, self.head = (
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.Linear(8, 11),
            nn.Linear(11, 13),
            nn.Linear(13, 2),
        )

    def forward(self, x):
        return self.head(self.tokens(self.maps(self.conv(x).permute(0, 2, 3, 1)).flatten(1, 2)).mean(1))


def last_channels():
    model = inflate(LastChannels().eval(), example=torch.zeros(1, 3, 31, 31)).eval()
    model.clip_spec = ClipSpec(25.0, 4, 1, value_range=(-1.0, 1.0), **SMALL)
    return model


@pytest.mark.parametrize(
    ("make", "endpoint", "width"),
    [
        (None, "features", None),
        (None, "inflated.net.layer2", None),
        (lambda: network_named("timm/test_vit", weights="none"), "inflated.net.blocks.0", None),  # tokens
        (last_channels, "net.maps", 11),
        (last_channels, "net.tokens", 13),
        (last_channels, "features", 13),
    ],
)
def test_any_network_and_any_layer(resnet, make, endpoint, width):
    model = copy.deepcopy(resnet) if make is None else make()
    side = model.clip_spec.crop
    clip = torch.rand(2, 3, 3, side, side) * 2 - 1
    seen = []
    inner = getattr(model, "inflated", model)
    if endpoint == "features":
        layer = [part for part in inner.net.modules() if isinstance(part, nn.Linear)][-1]
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    else:
        model.get_submodule(endpoint).register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.inference_mode():
        model(clip)
    raw = seen[0].clone().unflatten(0, (2, -1))  # [b, t, ...]
    channels_last = raw.ndim == 4 or endpoint == "net.maps"
    steps = raw if raw.ndim == 3 else raw.flatten(2, -2).mean(2) if channels_last else raw.flatten(3).mean(3)
    assert width in {None, steps.shape[2]}
    found = EndpointNetwork(model, endpoint, pool="per-step")(clip)
    torch.testing.assert_close(found, steps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(EndpointNetwork(model, endpoint)(clip), steps.mean(1), rtol=1e-4, atol=1e-5)


class Named(Witness):
    def endpoints(self, clip, names):
        return {name: clip.mean((3, 4)) for name in names}


def test_endpoints_by_name():
    clip = torch.rand(2, 3, 5, 31, 31)
    found = EndpointNetwork(Named(**SMALL).eval(), "LSTM", pool="per-step")(clip)
    torch.testing.assert_close(found, clip.mean((3, 4)).transpose(1, 2))


def test_a_bare_inflated_model_works():
    model = inflate(
        nn.Sequential(nn.Conv2d(3, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 2)),
        example=torch.zeros(1, 3, 31, 31),
    ).eval()
    model.clip_spec = ClipSpec(25.0, 4, 1, value_range=(-1.0, 1.0), **SMALL)
    found = extract(model, numbered(9), FeatureOptions(window=4))
    assert found.features["rgb"].shape == (2, 1, 7)


# ---- refusals


def test_unknown_layers_come_with_the_nearest_ones(i3d):
    with pytest.raises(InflateError, match="no such layer") as caught:
        EndpointNetwork(i3d, "Mixed_5d")
    assert "Mixed_5c" in caught.value.fix


@pytest.mark.parametrize("model", [7, nn.Linear(2, 2).eval(), InceptionI3d(2)])
def test_what_is_no_network_for_features_is_refused(model):
    with pytest.raises(InflateError, match="no features can be had"):
        EndpointNetwork(model, "features")


class Broken(Witness):
    def forward(self, clip):
        return super().forward(clip) * float("nan") if clip.shape[1] == 3 else None


@pytest.mark.parametrize(("channels", "got"), [(3, "that are not"), (2, "NoneType")])
def test_answers_that_are_no_features_are_refused(channels, got):
    with pytest.raises(InflateError, match="does not answer with features") as caught:
        EndpointNetwork(Broken(channels, **SMALL).eval(), "features")(torch.zeros(1, channels, 4, 31, 31))
    assert got in caught.value.got


def test_networks_that_do_not_go_together_are_refused():
    with pytest.raises(InflateError, match="the flow stream has no network") as caught:
        Extractor({"rgb": Witness(**SMALL).eval()}, FeatureOptions("both"))
    assert "flow_imagenet.pt" in caught.value.fix
    models = {"rgb": Witness(2, **SMALL).eval(), "flow": Witness(2, min_frames=9).eval()}
    with pytest.raises(InflateError, match="do not go together") as caught:
        Extractor(models, FeatureOptions("both", window=4))
    for word in ("2 input channels for rgb", "crop 31 and 224", "window 4"):
        assert word in caught.value.got
    with pytest.raises(InflateError, match="no steps in time") as caught:
        Extractor({"rgb": Witness(**SMALL).eval()}, FeatureOptions(window="whole", endpoint="logits"))
    assert "endpoint 'logits'" in caught.value.got


def test_network_and_weights_that_do_not_go_together_are_refused():
    for name, weights in (("3d-resnet50", None), ("timm/resnet18", None), ("i3d-kinetics400", "none")):
        with pytest.raises(InflateError, match="network and weights do not go together"):
            network_named(name, weights=weights)


def test_random_weights_are_the_same_each_time(resnet):
    again = network_named("timm/test_resnet", weights="none")
    first, second = (EndpointNetwork(model, "inflated.net.layer1") for model in (resnet, again))
    assert first.sha256 == second.sha256 and first.build == second.build


def test_networks_that_differ_in_a_constant_alone_are_told_apart():
    plain, compat = InceptionI3d(2).eval(), InceptionI3d(2, bn_eps=1e-5).eval()
    compat.load_state_dict(plain.state_dict())
    one, other = EndpointNetwork(plain, "Mixed_5c.Branch_0"), EndpointNetwork(compat, "Mixed_5c.Branch_0")
    assert one.sha256 == other.sha256 and one.build != other.build

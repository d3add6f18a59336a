"""Maps of where a network looks: by hand on networks that can be computed so, against captum, and on real videos."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from inflate3d import ClipSpec, InceptionI3d, InflateError, PredictOptions, inflate, predict
from inflate3d.clips.transforms import frames_to_input
from inflate3d.show.saliency import (
    Saliency,
    SaliencyOptions,
    captioned,
    find_saliency,
    overlay_saliency,
    still_saliency,
    write_saliency,
)
from inflate3d.speed.optimize import optimize

SPEC = ClipSpec(fps=25.0, num_frames=7, min_frames=1, short_side=33, crop=30, value_range=(-1.0, 1.0))
DOCS = Path(__file__).parents[2] / "docs"


class Pooled(nn.Module):
    """A trunk in 3D, the mean over all places, a matrix."""

    class_names = ("run", "jump", "swim", "fly")
    clip_spec = SPEC

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv3d(3, 5, 3, stride=(2, 3, 3), padding=1), nn.ReLU(inplace=True), nn.Conv3d(5, 6, 1), nn.ReLU()
        )
        self.head = nn.Linear(6, 4)
        self.head.weight.data = torch.linspace(2, -1, 24).view(4, 6).T.reshape(4, 6)  # of both signs in each row

    def forward(self, clip):
        return self.head(self.trunk(clip).mean((2, 3, 4)))


class RedAtLast(nn.Module):
    """How red the clip is, place by place; says 'red' or nothing."""

    clip_spec, class_names = SPEC, ("nothing", "red")

    def __init__(self):
        super().__init__()
        self.redness = nn.Conv3d(3, 1, 1, bias=False)
        self.redness.weight.data = torch.tensor([1.0, -0.5, -0.5]).view(1, 3, 1, 1, 1)
        self.relu = nn.ReLU()

    def forward(self, clip):
        red = self.relu(self.redness(clip)).mean((2, 3, 4))
        return torch.cat([0 * red, red], 1)


@pytest.fixture
def pooled():
    return Pooled().eval()


def video(num_frames=7, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (num_frames, 33, 41, 3), np.uint8)


def shown(frames):
    return frames_to_input(frames, SPEC)


def test_of_a_mean_and_a_matrix_grad_cam_is_the_class_activation_map(pooled):
    found = find_saliency(pooled, video(), SaliencyOptions(label="swim"))
    with torch.no_grad():
        maps = pooled.trunk(shown(video()))
        by_hand = torch.einsum("c,cthw->thw", pooled.head.weight[2], maps[0]).relu()
        logits = pooled(shown(video()))[0]
    by_hand = F.interpolate(by_hand[None, None], (7, 30, 30), mode="trilinear")[0, 0]
    torch.testing.assert_close(found.maps, by_hand / by_hand.max(), rtol=1e-4, atol=1e-5)
    assert (found.maps.dtype, float(found.maps.max()), found.layer) == (torch.float32, 1.0, "trunk")
    assert found.score.probability == pytest.approx(float(logits.softmax(0)[2]), rel=1e-5)
    assert torch.equal(found.frames, torch.from_numpy(video()[:, 1:31, 5:35]))


@pytest.mark.parametrize("layer", ["trunk.0", "trunk.1", "trunk.2"])  # trunk.1 works in place
def test_inner_layers_agree_with_captum(pooled, layer):
    captum = pytest.importorskip("captum.attr")
    pooled.trunk.append(nn.Tanh()).eval()  # so that gradients differ from place to place
    found = find_saliency(pooled, video(), SaliencyOptions(label=1, layer=layer))
    plain = Pooled()
    plain.trunk.append(nn.Tanh())
    plain.eval()
    plain.load_state_dict(pooled.state_dict())
    plain.trunk[1].inplace = False
    theirs = captum.LayerGradCam(plain, plain.get_submodule(layer)).attribute(
        shown(video()), target=1, relu_attributions=True
    )
    theirs = F.interpolate(theirs.detach(), (7, 30, 30), mode="trilinear")[0, 0]
    torch.testing.assert_close(found.maps, theirs / theirs.max(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["grad-cam", "integrated-gradients"])
def test_what_is_planted_is_found_in_space_and_time(method):
    frames = np.full((23, 33, 41, 3), 90, np.uint8)
    frames[16:19, 20:26, 12:18] = (255, 30, 30)  # in the crop 7 to 13 from the left, 19 to 25 from the top
    found = find_saliency(RedAtLast().eval(), frames, SaliencyOptions(method, label="red"))
    assert found.maps.shape == (23, 30, 30)
    time, down, right = (int(place) for place in np.unravel_index(int(found.maps.argmax()), found.maps.shape))
    assert (16 <= time < 19, 19 <= down < 25, 7 <= right < 13) == (True, True, True)
    assert found.maps[16:19, 17:27, 5:15].sum() > 0.95 * found.maps.sum()


def test_integrated_gradients_of_a_linear_network_are_its_products():
    net = RedAtLast().eval()
    net.relu = nn.Identity().eval()
    found = find_saliency(net, video(), SaliencyOptions("integrated-gradients", label="red", steps=3))
    products = (net.redness.weight * shown(video())).detach().abs().sum(1)[0]
    assert torch.corrcoef(torch.stack([found.maps.flatten(), products.flatten()]))[0, 1] > 0.8  # it is blurred
    assert found.maps.sum((1, 2)) / found.maps.sum() == pytest.approx(products.sum((1, 2)) / products.sum(), abs=0.002)
    assert found.layer == "input"


@pytest.mark.parametrize("num_frames", [3, 7, 18])  # looped; one window; the last one reaches back
def test_every_frame_has_one_map_and_the_answer_is_that_of_predict(pooled, num_frames):
    told = []
    found = find_saliency(pooled, video(num_frames), progress=lambda done, total: told.append((done, total)))
    answer = predict(pooled, video(num_frames), PredictOptions())
    best = answer.top(1)[0]
    assert (found.score.label, found.score.probability) == (best.label, pytest.approx(best.probability, rel=1e-4))
    assert torch.equal(found.frames, torch.from_numpy(video(num_frames)[:, 1:31, 5:35]))
    assert len(found.maps) == len(found.times_seconds) == num_frames
    assert found.times_seconds == pytest.approx([i / 25 for i in range(num_frames)])
    assert told == [(done, len(answer.windows)) for done in range(len(answer.windows) + 1)]


def test_the_model_stays_as_it_is_and_threads_do_not_mix(pooled):
    state = {name: value.clone() for name, value in pooled.state_dict().items()}
    alone = [find_saliency(pooled, video(seed=seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: find_saliency(pooled, video(seed=seed)), range(4)))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.maps, other.maps)
    assert all(torch.equal(state[name], value) for name, value in pooled.state_dict().items())
    assert all(value.requires_grad and value.grad is None for value in pooled.parameters())
    assert not any(module._forward_hooks for module in pooled.modules())


def test_where_nothing_speaks_for_a_class_the_map_is_empty(pooled):
    pooled.head.weight.data[3] = -1
    found = find_saliency(pooled, video(), SaliencyOptions(label="fly"))
    assert not found.maps.any()
    assert found.score.label == "fly"


class Inflated2d(nn.Module):
    """An inflated network in frame form, as users wrap it; its map has the channels first or last."""

    clip_spec, class_names = SPEC, None

    def __init__(self, *, last):
        super().__init__()
        net = nn.Sequential(nn.Conv2d(3, 5, 5, stride=3, padding=1), nn.ReLU(), _Turn() if last else nn.Identity())
        net.append(_Mean(last)).append(nn.Linear(5, 4))
        torch.manual_seed(1)
        for value in net.parameters():
            nn.init.normal_(value, std=0.3)
        self.inflated = inflate(net, "video", example=torch.zeros(1, 3, 30, 30))

    def forward(self, clip):
        return self.inflated(clip)


class _Turn(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class _Mean(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.axes = (1, 2) if last else (2, 3)

    def forward(self, x):
        return x.mean(self.axes)


def test_frames_and_channels_last_are_maps_too():
    first, last = (find_saliency(Inflated2d(last=order).eval(), video()) for order in (False, True))
    assert (first.layer, last.layer) == ("inflated.net.2", "inflated.net.2")
    torch.testing.assert_close(first.maps, last.maps)
    assert 0 < float(first.maps.mean()) < 1


class Tokens(nn.Module):
    """Patches as tokens behind one that stands for all."""

    clip_spec, class_names = SPEC, None

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 5, 6, 6)
        self.norm = nn.LayerNorm(5)
        self.head = nn.Linear(5, 4)

    def forward(self, clip):
        tokens = self.patches(clip[0].transpose(0, 1)).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
        return self.head(tokens[:, 1:].square().mean((0, 1))[None])


def test_tokens_are_a_map_without_those_in_front():
    found = find_saliency(Tokens().eval(), video(), SaliencyOptions(layer="norm"))
    assert found.maps.shape == (7, 30, 30)
    assert float(found.maps.max()) == 1


class NoMap(nn.Module):
    """Nothing in it has places."""

    clip_spec, class_names = SPEC, None

    def __init__(self, axes=(3, 4)):
        super().__init__()
        self.axes, self.head = axes, nn.Linear(3, 4)

    def forward(self, clip):
        return self.head(clip.mean(self.axes).transpose(1, 2)).mean(1) if len(self.axes) == 2 else clip.mean(self.axes)


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        (Pooled(), {"label": "runn"}, "no such class"),
        (Pooled(), {"label": 4}, "no such class"),
        (Pooled(), {"layer": "trunc"}, "no map at this layer"),
        (Pooled(), {"layer": "head"}, "no map at this layer"),
        (NoMap(), {}, "no map of places"),
        (NoMap(axes=(2,)), {"method": "integrated-gradients"}, "does not answer with logits"),
        (Pooled().train(), {}, "training mode"),
        (nn.Identity(), {}, "does not say what it wants"),
    ],
)
def test_what_cannot_be_asked_is_told(model, options, told):
    model = model if told == "training mode" else model.eval()
    with pytest.raises(InflateError, match=told):
        find_saliency(model, video(), SaliencyOptions(**options))


def test_options_and_optimized_models_are_checked(pooled, tmp_path):
    with pytest.raises(InflateError, match="an optimized model has no gradients"):
        find_saliency(optimize(pooled), video())
    with pytest.raises(InflateError, match="method, layer, steps, window"):
        SaliencyOptions("gradcam", layer="a", steps=0, window=0)
    with pytest.raises(InflateError, match="ending of the file"):
        write_saliency(tmp_path / "a.avi", find_saliency(pooled, video()))


def test_the_overlay_shows_frames_where_nothing_is_and_colors_where_most_is():
    frames = torch.full((2, 3, 5, 3), 120, dtype=torch.uint8)
    maps = torch.zeros(2, 3, 5)
    maps[1, 2, 4] = 1
    score = find_saliency(Pooled().eval(), video()).score
    drawn = overlay_saliency(Saliency(maps, frames, (0.0, 0.1), score, "grad-cam", "a"))
    changed = (drawn != 120).any(-1)
    assert changed.nonzero().tolist() == [[1, 2, 4]]
    assert drawn[1, 2, 4].float().mean() > 150  # the brightest color


def test_files_hold_all_frames(pooled, tmp_path):
    found = find_saliency(pooled, video(18))
    for name, count in (("a.gif", 18), ("a.webp", 18), ("a.png", 1)):
        write_saliency(tmp_path / name, found, fps=12.5)
        assert getattr(Image.open(tmp_path / name), "n_frames", 1) == count
    write_saliency(tmp_path / "a.mp4", found, fps=12.5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert float(container.streams.video[0].average_rate) == 12.5
    expected = list(captioned(found))
    assert len(pictures) == 18
    assert np.abs(pictures[5].astype(float) - expected[5].numpy()[:56, :30]).mean() < 25
    assert still_saliency(found).shape == (26 + 2 * 30, 6 * 30, 3)


@pytest.fixture(scope="module")
def report():
    """The script that makes the table of docs/show.md."""
    spec = spec_from_file_location("saliency_report", DOCS / "saliency.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_boxes_move_evenly_and_shares_are_counted(report):
    masks = report.box_masks({"2": [0, 0, 2, 4], "4": [4, 2, 6, 6]}, 6, 8)
    assert [int(mask.sum()) for mask in masks] == [8] * 6
    assert masks[3].nonzero()[[0, -1]].tolist() == [[1, 2], [4, 3]]
    assert torch.equal(masks[0], masks[2]) and torch.equal(masks[4], masks[5])
    assert report.share_inside(torch.ones(6, 8, 8), masks) == pytest.approx(8 / 64)
    blob = report.blob(1, 224)[0]
    assert float(blob[112 - 56 : 112 + 56].sum() / blob.sum()) == pytest.approx(0.715, abs=0.01)  # erf within the edges


def test_the_published_table_is_that_of_the_numbers(report):
    rows = json.loads((DOCS / "saliency.json").read_text())
    assert report.table(rows) in (DOCS / "show.md").read_text()
    assert list(rows) == list(json.loads((DOCS / "saliency_boxes.json").read_text())["clips"])
    shares = [row["shares"] for row in rows.values()]
    assert sum(share["Grad-CAM, Mixed_5c"] > share[report.BLOB] for share in shares) >= 4


@pytest.mark.weights
@pytest.mark.shared
def test_the_real_network_looks_at_the_baby(report, kinetics_i3d, shared):
    clip = json.loads((DOCS / "saliency_boxes.json").read_text())["clips"]["ucf101_BabyCrawling"]
    path = next((shared / "data/videos/singles/ucf101_BabyCrawling").iterdir())
    options = replace(report.WAYS["Grad-CAM, Mixed_5c"], label=clip["label"], num_frames=32, window=32)
    with pytest.warns(UserWarning, match="timestamps"):
        found = find_saliency(kinetics_i3d, path, options)
    assert isinstance(kinetics_i3d, InceptionI3d) and found.layer == "Mixed_5c"
    masks = report.box_masks(clip["boxes"], *found.maps.shape[:2])
    assert report.share_inside(found.maps, masks) > report.share_inside(report.blob(32, 224), masks)

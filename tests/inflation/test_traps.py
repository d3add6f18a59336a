"""Each known way of inflating wrongly that shows in convolutions and strides, as a law that it would break."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from laws import check_still, frames_seen, head, repeat_ends, scramble
from small_models import MergedRows, Residual, randomize
from timm import layers
from timm.models import byobnet, mvitv2
from timm.utils import reparameterize_model
from torch import nn

from inflate3d.errors import InflateError
from inflate3d.inflation.build import deflate, inflate
from inflate3d.inflation.plan import Rule
from inflate3d.inflation.proof import prove

pytestmark = pytest.mark.usefixtures("one_thread")

PICTURE = torch.zeros(1, 3, 17, 13)
PROFILES = {
    "mean": "mean",
    "center": "center",
    "negative": "negative",
    "lambda=0.3": "lambda=0.3",
    "shift": "shift",
    "own": lambda taps: [(i + 1) / (taps * (taps + 1) / 2) for i in range(taps)],
}


# --- 1: zeros before the first and behind the last frame -------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "padding", "holds"),
    [
        ("mean", "zeros", False),  # what the paper did
        ("negative", "zeros", False),
        ("center", "zeros", True),
        ("mean", "replicate", True),
        ("mean", "causal", True),
        ("mean", "valid", True),
    ],
)
def test_zeros_in_time_break_every_profile_but_the_center_and_the_proof_says_where(profile, padding, holds):
    model2d = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3), *head(5, 3)
    )
    rules = {"1": Rule(profile=profile, padding=padding)}
    model3d = inflate(model2d.eval(), example=PICTURE, rules=rules)
    proof = prove(model2d, model3d, lengths=(5, 8))
    in_double, in_single = proof.checks[:2]
    assert in_double.holds is in_single.holds is holds, str(proof)
    assert (in_double.where == "first differs at 1") is not holds
    if not holds:
        assert not proof.holds
        assert in_double.error > 0.01


def test_the_center_is_proved_to_see_motion():
    model2d = randomize(Residual())
    proof = prove(model2d, inflate(model2d, example=torch.zeros(1, 3, 37, 45), profile="center"))
    assert proof.holds, str(proof)


# --- 2: weight standardization ---------------------------------------------------------------------------------------


def standardized_net():
    return nn.Sequential(
        layers.StdConv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        layers.StdConv2dSame(8, 16, 5, stride=2, groups=2),
        nn.ReLU(),
        layers.ScaledStdConv2d(16, 8, 3, bias=True),
        nn.ReLU(),
        layers.ScaledStdConv2dSame(8, 7, 2),
    ).double()


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_weight_standardization_takes_the_profile_after_it_standardized(profile):
    model2d = standardized_net().eval()
    model3d = inflate(model2d, example=PICTURE, profile=profile)
    assert [layer.time_kernel for layer in model3d.plan] == [3, 5, 3, 2]
    check_still(model2d, model3d)
    for name, value in deflate(model3d).state_dict().items():
        torch.testing.assert_close(value, model2d.state_dict()[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("profile", ["mean", "center"])
def test_dividing_a_standardized_weight_by_its_frames_would_be_wrong(profile):
    """Why the law above is a trap: standardizing undoes the division, and fills the zeros beside the center."""
    conv2d = layers.StdConv2d(8, 4, 3).double()
    taps = {"mean": [1 / 3, 1 / 3, 1 / 3], "center": [0, 1, 0]}[profile]
    naive = conv2d.weight.unsqueeze(2) * torch.tensor(taps).double().view(3, 1, 1)

    def standardized(weight):
        return F.batch_norm(weight.reshape(1, 4, -1), None, None, training=True, eps=conv2d.eps).reshape_as(weight)

    wanted, found = standardized(conv2d.weight), standardized(naive).sum(2)
    assert (found - wanted).abs().max() > 0.5 * wanted.abs().max()
    ours = inflate(nn.Sequential(conv2d), example=torch.zeros(1, 8, 7, 5), profile=profile).net[0].kernel_in_use()
    torch.testing.assert_close(ours.sum(2), wanted)


def test_a_norm_free_network_is_exact():
    model2d = timm.create_model("test_nfnet", num_classes=3).double().eval()
    model3d = inflate(model2d, example=torch.zeros(1, 3, 64, 48), profile="negative")
    check_still(model2d, model3d, (1, 3, 64, 48), (1, 4))
    assert sum(layer.layer.startswith("ScaledStd") and layer.time_kernel == 3 for layer in model3d.plan) >= 8
    for name, value in deflate(model3d).state_dict().items():
        torch.testing.assert_close(value, model2d.state_dict()[name], rtol=1e-9, atol=1e-12)


# --- 3: rows merged into the batch -----------------------------------------------------------------------------------


def test_attention_that_merges_its_heads_into_the_batch_is_exact():
    config = mvitv2.MultiScaleVitCfg(
        depths=(1, 1), embed_dim=(6, 12), num_heads=(3, 6), stride_q=((1, 1), (2, 2)), stride_kv_adaptive=(2, 2)
    )
    model2d = mvitv2.MultiScaleVit(config, img_size=32, num_classes=5).double().eval()
    model3d = inflate(model2d, example=torch.zeros(1, 3, 32, 32))
    merged = [layer.batch_factor for layer in model3d.plan if layer.looks_through_time]
    assert merged == [1, 3, 3, 3, 6, 6, 6]
    check_still(model2d, model3d, (2, 3, 32, 32))
    model3d.time_pool = "none"
    assert frames_seen(model3d, 8, (1, 3, 17, 32, 32)) == list(range(3, 14))  # 7 patches, then two blocks of 3


class Windowed(nn.Module):
    """Cuts pictures into windows of 8 pixels, which it sets on top of each other in the batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        n, c, h, w = x.shape
        windows = x.view(n, c, h // 8, 8, w // 8, 8).permute(0, 2, 4, 1, 3, 5)
        y = self.conv(windows.reshape(-1, c, 8, 8)).view(windows.shape)
        return y.permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


def test_windows_in_the_batch_find_their_frames():
    model2d = Windowed().double()
    model3d = inflate(model2d, example=torch.zeros(1, 3, 16, 24))
    check_still(model2d, model3d, (2, 3, 16, 24))


class WindowsOfTwoViews(Windowed):
    """Cuts a picture and its mirror image: the rows stand by view, picture and window."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        return super().forward(torch.cat([x, x.flip(-1)])).unflatten(0, (2, -1)).mean(0)


def test_rows_of_an_order_that_nothing_describes_stay_per_frame():
    model2d = WindowsOfTwoViews().double()
    model3d = inflate(model2d, example=torch.zeros(1, 3, 16, 24))
    why = "the rows of its batch stand neither picture by picture nor part by part"
    assert [(layer.time_kernel, layer.reason) for layer in model3d.plan] == [(3, ""), (1, why)]
    check_still(model2d, model3d, (2, 3, 16, 24))


@pytest.mark.parametrize("planned", [8, 16])
def test_pictures_of_another_size_with_more_windows_are_exact_or_refused(planned):
    model2d = Windowed().double()
    model3d = inflate(model2d, example=torch.zeros(1, 3, planned, planned))
    try:
        check_still(model2d, model3d, (1, 3, 24, 32), (3,))
    except InflateError:
        return


def test_rows_merged_behind_a_stride_of_three_find_their_frames():
    model2d = nn.Sequential(nn.Conv2d(3, 6, 5, 3, 2), MergedRows(True)).double()
    check_still(model2d, inflate(model2d, "i3d", example=PICTURE), lengths=(1, 9, 10, 12))


# --- 7: strides in time ----------------------------------------------------------------------------------------------


class Down(nn.Module):
    """A block that halves its maps in two branches: ResNet-D's average pool, or a strided shortcut."""

    def __init__(self, inputs, outputs, kind, shortcut_first):
        super().__init__()
        self.shortcut_first = shortcut_first
        self.convs = nn.Sequential(
            nn.Conv2d(inputs, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Conv2d(4, outputs, 1)
        )
        average = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.shortcut = {
            "average": nn.Sequential(average, nn.Conv2d(inputs, outputs, 1)),
            "strided": nn.Conv2d(inputs, outputs, 1, 2),
            "blurred": nn.Sequential(layers.BlurPool2d(inputs), nn.Conv2d(inputs, outputs, 1)),
            "maximum": nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(inputs, outputs, 1)),
        }[kind]

    def forward(self, x):
        if self.shortcut_first:
            shortcut = self.shortcut(x)
            return torch.relu(self.convs(x) + shortcut)
        return torch.relu(self.convs(x) + self.shortcut(x))


@pytest.mark.parametrize("shortcut_first", [False, True])
@pytest.mark.parametrize("kind", ["average", "strided", "blurred", "maximum"])
def test_strides_in_time_agree_across_branches(kind, shortcut_first):
    """The stem's pool spares time; so does a shortcut's pool that runs first, being the second one that strides."""
    total = 4 if shortcut_first and kind != "strided" else 8
    blocks = [Down(8, 12, kind, shortcut_first), Down(12, 10, kind, shortcut_first)]
    model2d = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.MaxPool2d(3, 2, 1), *blocks, *head(10, 5))
    model2d = randomize(model2d).double()
    model3d = inflate(model2d, "i3d", example=torch.zeros(1, 3, 43, 37), time_pool="none")
    for frames in range(1, 10):
        check_still(model2d, model3d, (1, 3, 43, 37), (frames,))
        assert model3d(torch.randn(2, 3, frames, 43, 37).double()).shape == (2, math.ceil(frames / total), 5)


class BesideAConvolution(nn.Module):
    """A strided convolution, and beside it a pool that is a call, or a slice, which no plan can reach."""

    def __init__(self, stride, other):
        super().__init__()
        self.stride, self.other = stride, other
        self.conv = nn.Conv2d(3, 3, stride + 1, stride, stride // 2)

    def forward(self, x):
        if self.other == "pool":
            other = F.max_pool2d(x, self.stride + 1, self.stride, self.stride // 2)
        else:
            other = x[:, :, :: self.stride, :: self.stride]
        return (self.conv(x) + other).mean((2, 3))


NEVER_MEET = "branches of the model that meet have different lengths(.|\n)*time_stride=1"


@pytest.mark.parametrize("stride", [2, 4])
def test_a_pool_that_is_a_call_meets_a_strided_convolution(stride):
    model2d = BesideAConvolution(stride, "pool").double()
    check_still(model2d, inflate(model2d, "i3d", example=PICTURE), lengths=(1, 3, 4, 9))


def test_branches_that_cannot_meet_in_time_are_refused():
    model2d = BesideAConvolution(2, "slice")
    with pytest.raises(InflateError, match=NEVER_MEET):
        inflate(model2d, "i3d", example=PICTURE)
    model3d = inflate(model2d.double(), "i3d", example=PICTURE, rules={"conv": Rule(time_stride=1)})
    check_still(model2d, model3d)


def test_branches_of_one_frame_and_of_many_are_refused():
    with pytest.raises(InflateError, match=NEVER_MEET):
        inflate(BesideAConvolution(4, "slice"), "i3d", example=PICTURE)


# --- 8: even kernels and patches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conv2d", "sees"),
    [
        (nn.Conv2d(3, 5, 4, 2, 1), [3, 4, 5, 6]),
        (nn.Conv2d(3, 5, 2), [4, 5]),
        (nn.Conv2d(3, 5, 4, padding="same"), [3, 4, 5, 6]),
        (nn.Conv2d(3, 5, (6, 3), padding=(2, 1)), [2, 3, 4, 5, 6, 7]),
        (nn.Conv2d(3, 5, 9, padding=4), [1, 2, 3, 4, 5, 6, 7]),  # at most 7 frames
    ],
    ids=["4x4 stride 2", "2x2", "4x4 same", "6x3", "9x9"],
)
def test_even_kernels_look_one_frame_further_ahead_and_long_ones_at_seven(conv2d, sees):
    model2d = nn.Sequential(conv2d).double()
    model3d = inflate(model2d, example=PICTURE)
    check_still(model2d, model3d)
    assert frames_seen(model3d, 4, (1, 3, 9, 17, 13)) == sees
    strided = inflate(model2d, "i3d", example=PICTURE)
    check_still(model2d, strided, lengths=(1, 2, 3, 8))


def test_even_pools_are_exact_with_strides_in_time():
    pools = [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(4, 2, 1), nn.AvgPool2d(2, 1)]
    model2d = nn.Sequential(nn.Conv2d(3, 11, 3, padding=1), *pools).double()
    model3d = inflate(model2d, "i3d", example=torch.zeros(1, 3, 43, 37))
    assert [(layer.time_kernel, layer.time_stride) for layer in model3d.plan] == [
        (3, 1),
        (1, 1),
        (1, 1),
        (4, 2),
        (2, 1),
    ]
    check_still(model2d, model3d, (1, 3, 43, 37), (1, 2, 3, 8))


def test_patches_stay_per_frame_and_become_tubelets_in_i3d():
    model2d = nn.Sequential(nn.Conv2d(3, 7, 4, 4), nn.GELU(), nn.Conv2d(7, 5, 3, padding=1)).double()
    example = torch.zeros(1, 3, 20, 28)
    assert inflate(model2d, example=example).net[0].weight.shape == (7, 3, 4, 4)
    model3d = inflate(model2d, "i3d", example=example)
    assert model3d.net[0].weight.shape == (7, 3, 2, 4, 4)
    check_still(model2d, model3d, (2, 3, 20, 28), (1, 2, 3, 8))
    scramble(model3d)
    clip = torch.randn(2, 3, 5, 20, 28).double()
    tubelets = nn.Conv3d(3, 7, (2, 4, 4), (2, 4, 4)).double()
    tubelets.load_state_dict(model3d.net[0].state_dict())
    torch.testing.assert_close(model3d.net[0](clip), tubelets(repeat_ends(clip, 0, 1)))


# --- 9: networks that are fused, and averaged copies (test_filters.py has weights that are remade) --------------------


@pytest.mark.parametrize("kind", ["rep", "one"])
def test_re_parameterizable_networks_are_exact_before_and_after_they_are_fused(kind):
    blocks = [byobnet.ByoBlockCfg(kind, d=2, c=6, s=2, gs=gs) for gs in (0, 1)]
    config = byobnet.ByoModelCfg(blocks=tuple(blocks), stem_type=kind, stem_chs=6)
    model2d = randomize(byobnet.ByobNet(config, num_classes=5)).double()
    fused = reparameterize_model(model2d)
    assert len(list(fused.modules())) < len(list(model2d.modules()))
    loose, tight = inflate(model2d, example=PICTURE), inflate(fused, example=PICTURE)
    check_still(model2d, loose)
    check_still(model2d, tight)
    clip = torch.randn(2, 3, 5, 17, 13).double()
    torch.testing.assert_close(tight(clip).shape, loose(clip).shape)
    with pytest.raises((RuntimeError, InflateError)):  # fusing 3D kernels as if they were 2D: loud, never wrong
        reparameterize_model(loose)(clip)


def test_averaged_copies_run_on_their_own():
    model3d = inflate(randomize(Residual()).double(), example=torch.zeros(1, 3, 37, 45))
    average = torch.optim.swa_utils.AveragedModel(model3d, avg_fn=lambda old, new, count: 0.5 * old + 0.5 * new)
    average.update_parameters(model3d)
    before = model3d.net.stem[0].weight.detach().clone()
    scramble(model3d)
    average.update_parameters(model3d)
    wanted = 0.5 * before + 0.5 * model3d.net.stem[0].weight
    torch.testing.assert_close(average.module.net.stem[0].weight, wanted)
    assert average.module.fold is not model3d.fold
    assert average(torch.randn(2, 3, 3, 37, 45).double()).shape == (2, 5)


# --- 10: patches of another size --------------------------------------------------------------------------------------


def test_patches_are_resampled_in_2d_and_inflated_then():
    """timm resizes the kernel of a patch embedding by its pseudo-inverse, which knows kernels with two axes alone."""
    model2d = timm.create_model("test_vit", num_classes=3).double().eval()
    rules = {"patch_embed.proj": Rule(time_kernel=3)}
    loose = inflate(model2d, example=torch.zeros(1, 3, 160, 160), rules=rules)
    with pytest.raises((AssertionError, InflateError, RuntimeError)):  # the other way round: loud, never wrong
        loose.net.set_input_size(img_size=(96, 64), patch_size=(8, 8))
    model2d.set_input_size(img_size=(96, 64), patch_size=(8, 8))
    model3d = inflate(model2d, example=torch.zeros(1, 3, 96, 64), rules=rules)
    assert model3d.net.patch_embed.proj.weight.shape[2:] == (3, 8, 8)
    check_still(model2d, model3d, (1, 3, 96, 64), (1, 4))


# --- 7 again: a whole network -----------------------------------------------------------------------------------------


# Source: Carreira & Zisserman 2017, figure 3; kernel and stride in time. torchvision has 3x3 in the third branch, too.
I3D_STEM = {"conv1.conv": (7, 2), "maxpool1": (1, 1), "conv2.conv": (1, 1), "conv3.conv": (3, 1), "maxpool2": (1, 1)}
I3D_POOLS = {"maxpool3": (3, 2), "maxpool4": (2, 2)}
I3D_MIXED = {
    "branch1.conv": (1, 1),
    "branch2.0.conv": (1, 1),
    "branch2.1.conv": (3, 1),
    "branch3.0.conv": (1, 1),
    "branch3.1.conv": (3, 1),
    "branch4.0": (3, 1),
    "branch4.1.conv": (1, 1),
}
I3D_BLOCKS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")


def test_googlenet_becomes_i3d():
    model2d = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False, num_classes=7).eval()
    model3d = inflate(model2d, "i3d", example=torch.zeros(1, 3, 112, 96))
    found = {layer.path: (layer.time_kernel, layer.time_stride) for layer in model3d.plan}
    mixed = {f"inception{block}.{path}": time for block in I3D_BLOCKS for path, time in I3D_MIXED.items()}
    assert found == I3D_STEM | I3D_POOLS | mixed
    kernels = {name: p.shape[2] for name, p in model3d.net.named_parameters() if p.ndim == 5}
    assert kernels == {f"{path}.weight": k for path, (k, _) in found.items() if k > 1 and "pool" not in path
                       and not path.endswith("branch4.0")}  # fmt: skip
    order = list(found)
    assert order[:5] == list(I3D_STEM)
    assert order.index("inception3b.branch1.conv") < order.index("maxpool3") < order.index("inception4a.branch1.conv")
    assert math.prod(stride for _, stride in found.values()) == 8

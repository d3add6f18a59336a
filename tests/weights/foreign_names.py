"""How other projects name the tensors of I3D and of 3D ResNets, written down apart from the package.

Sources: kinetics-i3d, tensorflow/models research/slim/nets, piergiaj/pytorch-i3d, hassony2/kinetics_i3d_pytorch and
open-mmlab/mmaction for I3D; facebookresearch/SlowFast, video-nonlocal-net and pytorchvideo, open-mmlab/mmaction2 and
dmlc/gluon-cv for ResNets.
"""

import numpy as np
import torch
from i3d_names import units

# DeepMind's branch and convolution, and what stands for them: piergiaj, hassony2, mmaction
BRANCHES = {
    "Branch_0/Conv3d_0a_1x1": ("b0", "branch_0", "1x1"),
    "Branch_1/Conv3d_0a_1x1": ("b1a", "branch_1.0", "branch1_3x3_reduce"),
    "Branch_1/Conv3d_0b_3x3": ("b1b", "branch_1.1", "branch1_3x3"),
    "Branch_2/Conv3d_0a_1x1": ("b2a", "branch_2.0", "branch2_3x3_reduce"),
    "Branch_2/Conv3d_0b_3x3": ("b2b", "branch_2.1", "branch2_3x3"),
    "Branch_3/Conv3d_0b_1x1": ("b3b", "branch_3.1", "pool_proj"),
}
MMACTION_STEM = {
    "Conv3d_1a_7x7": "conv1_7x7_s2",
    "Conv3d_2b_1x1": "conv2_3x3_reduce",
    "Conv3d_2c_3x3": "conv2_3x3",
}
MMACTION_BLOCKS = {"3b": "3a", "3c": "3b", "4b": "4a", "4c": "4b", "4d": "4c", "4e": "4d", "4f": "4e"}
MMACTION_BLOCKS |= {"5b": "5a", "5c": "5b"}


def random_i3d(num_classes=400, in_channels=3, seed=0):
    """Random weights by scope: kernel [o, i, t, h, w], beta, mean, var; and those of the classifier."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return (rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)).astype("<f4")

    net = {}
    for scope, (side, channels_in, channels) in units(in_channels).items():
        kernel = normal(channels, channels_in, side, side, side, scale=(2 / (channels_in * side**3)) ** 0.5)
        var = (0.5 + rng.random(channels, dtype=np.float32)).astype("<f4")
        net[scope] = (kernel, normal(channels, scale=0.2), normal(channels, scale=0.1), var)
    return net, normal(num_classes, 1024, 1, 1, 1, scale=0.03), normal(num_classes)


def ours(net, kernel, bias):
    """The same in the package's names, for the reference network."""
    state = {}
    for scope, (weight, beta, mean, var) in net.items():
        unit = scope.replace("/", ".")
        state[f"{unit}.conv_3d.weight"] = torch.from_numpy(weight)
        state[f"{unit}.batch_norm.weight"] = torch.ones(len(beta))
        for leaf, values in (("bias", beta), ("running_mean", mean), ("running_var", var)):
            state[f"{unit}.batch_norm.{leaf}"] = torch.from_numpy(values)
        state[f"{unit}.batch_norm.num_batches_tracked"] = torch.tensor(0)
    head = "Logits.Conv3d_0c_1x1.conv_3d"
    return state | {f"{head}.weight": torch.from_numpy(kernel), f"{head}.bias": torch.from_numpy(bias)}


def to_tensorflow(weight):
    return np.ascontiguousarray(weight.transpose(2, 3, 4, 1, 0))


def deepmind(net, kernel, bias, *, prefix="RGB/inception_i3d/", wide=False, momentum=False):
    """The variables of DeepMind's checkpoints; those of Kinetics-600 are `wide`, with `momentum` and no prefix."""
    found = {}
    for scope, (weight, *rest) in net.items():
        path = prefix + scope.replace("Mixed_5b/Branch_2/Conv3d_0b_3x3", "Mixed_5b/Branch_2/Conv3d_0a_3x3")
        found[f"{path}/conv_3d/w"] = to_tensorflow(weight)
        for leaf, values in zip(("beta", "moving_mean", "moving_variance"), rest, strict=True):
            found[f"{path}/batch_norm/{leaf}"] = values.reshape(1, 1, 1, 1, -1) if wide else values
    found[f"{prefix}Logits/Conv3d_0c_1x1/conv_3d/w"] = to_tensorflow(kernel)
    found[f"{prefix}Logits/Conv3d_0c_1x1/conv_3d/b"] = bias
    trained = [name for name in found if not name.endswith(("moving_mean", "moving_variance"))]
    return found | {f"{name}/Momentum": np.zeros_like(found[name]) for name in trained if momentum}


def slim(net, kernel, bias, prefix="InceptionV1/"):
    found = {}
    for scope, (weight, *rest) in net.items():
        path = scope.replace("Mixed_5b/Branch_2/Conv3d_0b_3x3", "Mixed_5b/Branch_2/Conv3d_0a_3x3")
        path = prefix + path.replace("Conv3d", "Conv2d")
        found[f"{path}/weights"] = to_tensorflow(weight)
        for leaf, values in zip(("beta", "moving_mean", "moving_variance"), rest, strict=True):
            found[f"{path}/BatchNorm/{leaf}"] = values
    found[f"{prefix}Logits/Conv2d_0c_1x1/weights"] = to_tensorflow(kernel)
    return found | {f"{prefix}Logits/Conv2d_0c_1x1/biases": bias, "global_step": np.array(9, "<i8")}


def flax(net, kernel, bias):
    tree = {"params": {}, "batch_stats": {}}
    for scope, (weight, beta, mean, var) in net.items():
        head, _, rest = scope.partition("/")
        places = []
        for part in ("params", "batch_stats"):
            place = tree[part].setdefault(head, {})
            places.append(place.setdefault(rest, {}) if rest else place)
        places[0] |= {"Conv_0": {"kernel": to_tensorflow(weight)}, "BatchNorm_0": {"bias": beta}}
        places[1] |= {"BatchNorm_0": {"mean": mean.reshape(1, 1, 1, 1, -1), "var": var.reshape(1, 1, 1, 1, -1)}}
    tree["params"]["Logits/Conv3d_0c_1x1"] = {"Conv_0": {"kernel": to_tensorflow(kernel), "bias": bias}}
    return tree


def of_torch(head, net, classifier, *, spell, norm):
    """Tensors as PyTorch ports have them: `spell(scope)` names the convolution, `norm(scope)` its batch norm."""
    found = {}
    for scope, (weight, beta, mean, var) in net.items():
        found[f"{spell(scope)}.weight"] = torch.from_numpy(weight)
        values = {"weight": np.ones_like(beta), "bias": beta, "running_mean": mean, "running_var": var}
        found |= {f"{norm(scope)}.{leaf}": torch.from_numpy(value) for leaf, value in values.items()}
    kernel, bias = (torch.from_numpy(values) for values in classifier)
    return found | {f"{head}.weight": kernel, f"{head}.bias": bias}


def piergiaj(net, kernel, bias):
    def unit(scope):
        block, _, branch = scope.partition("/")
        return f"{block}.{BRANCHES[branch][0]}" if branch else block

    spell, norm = (lambda scope: f"{unit(scope)}.conv3d"), (lambda scope: f"{unit(scope)}.bn")
    return of_torch("logits.conv3d", net, (kernel, bias), spell=spell, norm=norm)


def hassony2(net, kernel, bias):
    def unit(scope):
        block, _, branch = scope.partition("/")
        block = block[0].lower() + block[1:]
        return f"{block}.{BRANCHES[branch][1]}" if branch else block

    spell, norm = (lambda scope: f"{unit(scope)}.conv3d"), (lambda scope: f"{unit(scope)}.batch3d")
    return of_torch("conv3d_0c_1x1.conv3d", net, (kernel, bias), spell=spell, norm=norm)


def mmaction_v0(net, kernel, bias):
    def unit(scope):
        block, _, branch = scope.partition("/")
        if branch:
            return f"backbone.inception_{MMACTION_BLOCKS[block[-2:]]}_{BRANCHES[branch][2]}"
        return f"backbone.{MMACTION_STEM[block]}"

    linear = kernel[:, :, 0, 0, 0], bias
    return of_torch("cls_head.fc_cls", net, linear, spell=unit, norm=lambda scope: f"{unit(scope)}_bn")


# blocks in each stage; channels inside a block and behind it are 64 and 256 times 1, 2, 4, 8
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def resnet(depth=50, num_classes=400, nonlocals=(), counters=True, in_time=True):
    """Every tensor of a ResNet by (stage, block, part, leaf), filled with numbers that tell them apart.

    Parts are conv1 to conv3, bn1 to bn3, downsample, its bn0, and theta, phi, g, out, bn of a non-local block;
    stage 0 is the stem, stage 5 the classifier. Temporal kernels as in I3D-ResNets: 5 in the stem, 3 in the
    first convolution of each block of res2, of every second one of res3 and res4, and of the middle one of res5.
    """
    found, count = {}, 0

    def put(*key, shape):
        nonlocal count
        count += 1
        size = int(np.prod(shape))
        found[key] = torch.linspace(count, count + 0.5, size).reshape(shape) if size > 1 else torch.tensor(float(count))

    def conv(*key, shape, time=1, bias=False):
        o, i, side = shape
        put(*key, "weight", shape=(o, i, time, side, side) if in_time else (o, i, side, side))
        if bias:
            put(*key, "bias", shape=(o,))

    def norm(*key, channels):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            put(*key, leaf, shape=(channels,))
        if counters:
            found[*key, "num_batches_tracked"] = torch.tensor(7)

    conv(0, 0, "conv1", shape=(64, 3, 7), time=5)
    norm(0, 0, "bn1", channels=64)
    channels = 64
    for stage, blocks in enumerate(DEPTHS[depth], start=1):
        inner, outer = 64 * 2 ** (stage - 1), 256 * 2 ** (stage - 1)
        for block in range(blocks):
            at = (stage, block)
            timed = {1: True, 2: block % 2 == 0, 3: block % 2 == 0, 4: block == 1}[stage]
            conv(*at, "conv1", shape=(inner, channels, 1), time=3 if timed else 1)
            conv(*at, "conv2", shape=(inner, inner, 3))
            conv(*at, "conv3", shape=(outer, inner, 1))
            for number, width in ((1, inner), (2, inner), (3, outer)):
                norm(*at, f"bn{number}", channels=width)
            if block == 0:
                conv(*at, "downsample", shape=(outer, channels, 1))
                norm(*at, "bn0", channels=outer)
            channels = outer
            if at in nonlocals:
                for part in ("theta", "phi", "g"):
                    conv(*at, part, shape=(outer // 2, outer, 1), bias=True)
                conv(*at, "out", shape=(outer, outer // 2, 1), bias=True)
                norm(*at, "bn", channels=outer)
    put(5, 0, "fc", "weight", shape=(num_classes, 2048))
    put(5, 0, "fc", "bias", shape=(num_classes,))
    return found


def torchvision(stage, block, part, leaf):
    if stage in (0, 5):
        return f"{part}.{leaf}"
    part = {"downsample": "downsample.0", "bn0": "downsample.1"}.get(part, part)
    return f"layer{stage}.{block}.{part}.{leaf}"


def inflated(stage, block, part, leaf):
    if part in ("theta", "phi", "g", "out", "bn"):
        return f"inserts.layer{stage}.{block}.non_local.{part}.{leaf}"
    return "net." + torchvision(stage, block, part, leaf)


def pyslowfast(stage, block, part, leaf, norm="norm"):
    if stage == 0:
        return f"s1.pathway0_stem.{'conv' if part == 'conv1' else 'bn'}.{leaf}"
    if stage == 5:
        return f"head.projection.{leaf}"
    if part in ("theta", "phi", "g", "out", "bn"):
        part = norm if part == "bn" else f"conv_{part}"
        return f"s{stage + 1}.pathway0_nonlocal{block}.{part}.{leaf}"
    names = {"downsample": "branch1", "bn0": "branch1_bn"}
    for number, letter in ((1, "a"), (2, "b"), (3, "c")):
        names |= {f"conv{number}": f"branch2.{letter}", f"bn{number}": f"branch2.{letter}_bn"}
    return f"s{stage + 1}.pathway0_res{block}.{names[part]}.{leaf}"


def caffe2(stage, block, part, leaf):
    end = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"} if part[:2] == "bn" else {}
    end = end.get(leaf, leaf[0])
    if stage == 0:
        return f"conv1_{end}" if part == "conv1" else f"res_conv1_bn_{end}"
    if stage == 5:
        return f"pred_{end}"
    if part in ("theta", "phi", "g", "out", "bn"):
        return f"nonlocal_conv{stage + 1}_{block}_{part}_{end}"
    names = {"downsample": "branch1", "bn0": "branch1_bn"}
    for number, letter in ((1, "a"), (2, "b"), (3, "c")):
        names |= {f"conv{number}": f"branch2{letter}", f"bn{number}": f"branch2{letter}_bn"}
    return f"res{stage + 1}_{block}_{names[part]}_{end}"


def pytorchvideo(stage, block, part, leaf):
    if stage == 0:
        return f"blocks.0.{'conv' if part == 'conv1' else 'norm'}.{leaf}"
    if stage == 5:
        return f"blocks.6.proj.{leaf}"
    names = {"downsample": "branch1_conv", "bn0": "branch1_norm"}
    for number, letter in ((1, "a"), (2, "b"), (3, "c")):
        names |= {f"conv{number}": f"branch2.conv_{letter}", f"bn{number}": f"branch2.norm_{letter}"}
    return f"blocks.{(1, 3, 4, 5)[stage - 1]}.res_blocks.{block}.{names[part]}.{leaf}"


def mmaction2(stage, block, part, leaf, halved=False):
    if stage == 5:
        return f"cls_head.fc_cls.{leaf}"
    names = {"downsample": "downsample.conv", "bn0": "downsample.bn", "bn": "non_local_block.conv_out.bn"}
    names |= {"out": "non_local_block.conv_out.conv", "theta": "non_local_block.theta.conv"}
    names |= {part: f"non_local_block.{part}.{'0.' if halved else ''}conv" for part in ("g", "phi")}
    for number in (1, 2, 3):
        names |= {f"conv{number}": f"conv{number}.conv", f"bn{number}": f"conv{number}.bn"}
    return f"backbone.{f'layer{stage}.{block}.' if stage else ''}{names[part]}.{leaf}"


def gluoncv(stage, block, part, leaf):
    if stage == 0:
        return f"first_stage.{0 if part == 'conv1' else 1}.{leaf}"
    if stage == 5:
        return f"fc.{leaf}"
    if part in ("theta", "phi", "g", "out", "bn"):
        return f"res_layers.{stage - 1}.{block}.nonlocal_block.{'W' if part == 'out' else part}.{leaf}"
    part = {"downsample": "downsample.0", "bn0": "downsample.1"}.get(part, part)
    return f"res_layers.{stage - 1}.{block}.{part}.{leaf}"


def gluoncv_again(name):
    """The second name under which GluonCV's modules hold the same tensor, if they do."""
    if name.startswith("fc."):
        return f"head.1.{name.removeprefix('fc.')}"
    for part, second in (("W", "W_bn.0"), ("bn", "W_bn.1")):
        if f".nonlocal_block.{part}." in name:
            return name.replace(f".nonlocal_block.{part}.", f".nonlocal_block.{second}.")
    return None

"""The tensors of I3D as DeepMind's layer table lists them, written down apart from the package."""

# Source: kinetics-i3d i3d.py. Input channels, then branch 0; 1 reduced and full; 2 reduced and full; 3.
MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


def units(in_channels=3):
    """Each convolution with batch norm: scope -> (kernel side, channels in, channels out)."""
    found = {
        "Conv3d_1a_7x7": (7, in_channels, 64),
        "Conv3d_2b_1x1": (1, 64, 64),
        "Conv3d_2c_3x3": (3, 64, 192),
    }
    for block, (channels, b0, b1a, b1b, b2a, b2b, b3) in MIXED.items():
        found[f"{block}/Branch_0/Conv3d_0a_1x1"] = (1, channels, b0)
        found[f"{block}/Branch_1/Conv3d_0a_1x1"] = (1, channels, b1a)
        found[f"{block}/Branch_1/Conv3d_0b_3x3"] = (3, b1a, b1b)
        found[f"{block}/Branch_2/Conv3d_0a_1x1"] = (1, channels, b2a)
        found[f"{block}/Branch_2/Conv3d_0b_3x3"] = (3, b2a, b2b)
        found[f"{block}/Branch_3/Conv3d_0b_1x1"] = (1, channels, b3)
    return found


def flax_tree(make, num_classes=400, in_channels=3):
    """Nested dicts as the Flax checkpoint has them; `make(shape)` makes an array."""
    tree = {"params": {}, "batch_stats": {}}
    for scope, (side, channels_in, channels) in units(in_channels).items():
        head, _, rest = scope.partition("/")
        params, stats = tree["params"].setdefault(head, {}), tree["batch_stats"].setdefault(head, {})
        if rest:
            params, stats = params.setdefault(rest, {}), stats.setdefault(rest, {})
        params["Conv_0"] = {"kernel": make((side, side, side, channels_in, channels))}
        params["BatchNorm_0"] = {"bias": make((channels,))}
        stats["BatchNorm_0"] = {"mean": make((1, 1, 1, 1, channels)), "var": make((1, 1, 1, 1, channels))}
    classifier = {"kernel": make((1, 1, 1, 1024, num_classes)), "bias": make((num_classes,))}
    tree["params"]["Logits/Conv3d_0c_1x1"] = {"Conv_0": classifier}
    return tree


def flax_leaf(tree, part, scope, *leaf):
    """One array of `flax_tree`, found by its scope."""
    head, _, rest = scope.partition("/")
    found = tree[part][head][rest] if rest else tree[part][head]
    for key in leaf:
        found = found[key]
    return found

"""torch.compile takes whole inflated networks as one graph, whose answers are those of the eager ones.

The backend is aot_eager: what it runs are torch's own kernels, so that no compiler is needed.
"""

import pytest
import timm
import torch
import torchvision
from small_models import randomize

from inflate3d.inflation.build import inflate
from inflate3d.inflation.plan import Rule

EXAMPLE = torch.zeros(1, 3, 64, 64)
# Swin has patches and attention alone: its patches become tubelets that overlap
NETWORKS = {
    "resnet50": (lambda: torchvision.models.resnet50(num_classes=5), None),
    "convnext_tiny": (lambda: timm.create_model("convnext_tiny", num_classes=5), None),
    "efficientnet_b0": (lambda: timm.create_model("efficientnet_b0", num_classes=5), None),
    "swin_t": (lambda: torchvision.models.swin_t(num_classes=5), {"features.0.0": Rule(time_kernel=3)}),
}


def check(model3d, clip):
    torch._dynamo.reset()
    compiled = torch.compile(model3d, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = model3d(clip)
        torch.testing.assert_close(compiled(clip), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert expected.std() > 0


@pytest.mark.parametrize(("make", "rules"), NETWORKS.values(), ids=NETWORKS)
def test_whole_networks_are_compiled_in_one_graph(make, rules):
    """One clip: its frames lie in memory as those of several do not."""
    model3d = inflate(randomize(make()), example=EXAMPLE, rules=rules)
    assert model3d.plan.looks_through_time
    check(model3d, torch.randn(1, 3, 2, 64, 64))


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("resnet", torch.contiguous_format),
        ("resnet", torch.channels_last_3d),
        ("convnext", torch.contiguous_format),
        ("efficientnet", torch.channels_last_3d),
    ],
)
def test_two_clips_in_either_memory_format(name, memory):
    model3d = inflate(randomize(timm.create_model(f"test_{name}", num_classes=3)), "i3d")
    check(model3d, torch.randn(2, 3, 5, 96, 96).contiguous(memory_format=memory))

"""Measure every network of the zoo and write models.md: `make models`, or `python docs/models.py`.

Each network is built once on shapes alone (or, where it is made from a 2D model, from that one with random weights);
those of the paper also run forward and backward on one training example, each in a process of its own.
"""

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from inflate3d.atomic import replacing
from inflate3d.models.zoo import MODELS, Network

PAGE_FILE = Path(__file__).parent / "models.md"

# Table 1 of the paper: letter, parameters, frames and footprint in training, and in testing
TABLE_1 = {
    "convnet-lstm": ("a", "9M", "25 rgb, 5 s", "50 rgb, 10 s"),
    "3d-convnet": ("b", "79M", "16 rgb, 0.64 s", "240 rgb, 9.6 s"),
    "two-stream": ("c", "12M", "1 rgb, 10 flow, 0.4 s", "25 rgb, 250 flow, 10 s"),
    "3d-fused": ("d", "39M", "5 rgb, 50 flow, 2 s", "25 rgb, 250 flow, 10 s"),
    "two-stream-i3d": ("e", "25M", "64 rgb, 64 flow, 2.56 s", "250 rgb, 250 flow, 10 s"),
}


def main() -> None:
    """Measure, compare with what the zoo says, and write the page; or, with a name, run that network alone."""
    if len(sys.argv) > 1:
        print(peak_gigabytes(MODELS[sys.argv[1]]))
        return
    rows = {}
    for name, network in MODELS.items():
        parameters, gmacs = cost(network)
        if parameters != network.parameters or abs(gmacs - network.gmacs) > 0.005:
            raise SystemExit(f"models/zoo.py is wrong about {name}: {parameters:_} parameters, {gmacs:.2f} GMAC")
        rows[name] = (parameters, gmacs)
        print(f"{name}: {parameters:,} parameters, {gmacs:.2f} GMAC", flush=True)
    with replacing(PAGE_FILE) as draft:
        tables = {"resnets": inflated(rows, "i3d-"), "inflated": inflated(rows, "3d-"), "reported": reported()}
        draft.write_text(PAGE.format(table_1=table_1(rows), **tables))


def cost(network: Network) -> tuple[int, float]:
    """Count parameters, and billions of multiplications with addition for one training example."""
    if network.made_from:
        model = network.build().eval().to("meta")
    else:
        with torch.device("meta"):
            model = network.build().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model(*examples(network, "meta"))
    return sum(parameter.numel() for parameter in model.parameters()), flops.get_total_flops() / 2e9


def peak_gigabytes(network: Network) -> float:
    """Run one example forward and backward; batch norm is frozen, since one value has no deviation."""
    model = network.build().eval()
    loss = nn.functional.cross_entropy(model(*examples(network, "cpu")), torch.tensor([0]))
    loss.backward()
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent had before
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def examples(network: Network, device: str) -> list[Tensor]:
    """Make one training example, in -1..1."""
    return [torch.rand(1, *shape, device=device) * 2 - 1 for shape in network.clips.values()]


def table_1(rows: dict[str, tuple[int, float]]) -> str:
    """Set the paper's table beside what was measured."""
    lines = []
    for name, (letter, millions, training, testing) in TABLE_1.items():
        parameters, gmacs = rows[name]
        peak = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True).stdout
        lines.append(
            f"| ({letter}) `{name}` | {millions} | {parameters / 1e6:.2f}M | {training} | {testing} | {gmacs:.1f} | "
            f"{float(peak):.1f} GB |"
        )
    return "\n".join(lines)


def inflated(rows: dict[str, tuple[int, float]], start: str) -> str:
    """List the networks that the engine makes, those whose names start so."""
    made = [name for name, network in MODELS.items() if network.made_from and name.startswith(start)]
    sizes = {name: " x ".join(map(str, MODELS[name].clips["rgb"][1:])) for name in made}
    return "\n".join(
        f"| `{name}` | {rows[name][0] / 1e6:.1f}M | {sizes[name]} | {rows[name][1]:.1f} |" for name in made
    )


def reported() -> str:
    """List every figure that the zoo repeats."""
    return "\n".join(
        f"| `{name}` | {one.what} | {one.training} | {one.top1:.1f}{f' / {one.top5:.1f}' if one.top5 else ''} | "
        f"{one.protocol} | {one.source} |"
        for name, network in MODELS.items()
        for one in network.reported
    )


PAGE = """# Networks

```bash
inflate3d models
inflate3d models two-stream-i3d
```

The first lists the networks that can be built by name, the second tells all about one. In Python:

```python
import torch
from inflate3d.models.zoo import build_network

model = build_network("two-stream", num_classes=12).eval()
rgb, flow = torch.zeros(1, 3, 1, 224, 224), torch.zeros(1, 2, 10, 224, 224)
with torch.inference_mode():
    print(model(rgb, flow).shape)  # [1, 12]
```

Every network takes clips `[b, c, t, h, w]` in -1..1 and answers with logits `[b, classes]`; those with two streams
take two clips, colors first. `clip_spec` (and `flow_clip_spec`) tell what they were made for, `endpoints(clip,
names)` gives the inner layers of I3D, C3D and ConvNet+LSTM. Longer videos: I3D takes any length; the LSTM reads on;
(c) and (d) take several groups of frames at once and average their logits; C3D takes 16 frames, and
`inflate3d.predict` averages over the windows of a video.

Weights for these networks are another matter: [which there are](weights.md). All others start at random, or [from
ImageNet](#from-imagenet).

## The five architectures of the paper

Carreira & Zisserman, CVPR 2017 (arXiv 1705.07750v3), table 1, beside what `make models` measured: parameters,
billions of multiplications with addition (GMAC, half as many as FLOP) for one training example, and the most memory
that the whole process took for one example forward and backward in float32.

| | paper | here | training input | test input | GMAC | memory |
|---|---|---|---|---|---|---|
{table_1}

All classify 400 classes. Where our numbers differ from the paper's:

- Table 1 is older than the 400 classes. With the 213 of the first version's miniKinetics (a), (b), (c) and (e) have
  8.9, 78.9, 11.7 and 25.0 million parameters, which round to the table.
- (d) has 39.6 million with 213 classes: the table cuts it. Its convolution has to read both streams at once, 2048
  channels to 512, or there would be 26 million; the layer after it sees 512 values, since flattened positions would
  make 41 million and more. The paper does not give strides and padding: ours keep the 5 x 7 x 7 positions, pool them
  to 3 x 4 x 4, and average.
- Batch norm has scales here (7,280 in a trunk), which TensorFlow's has not.
- (b): fc6 reads 8192 values, 512 x 1 x 4 x 4. So pools round up: 7 x 7 become 4 x 4.
- (c): ten flow maps of two channels are 20 input channels.
- (a): batch norm is inside the LSTM, as in Cooijmans et al. 2017, whom the paper follows, with statistics for each of
  25 steps. `model(clip)` is the answer after the last frame; for the loss at every step take the endpoint
  `Logits_per_step`.
- The 2D Inception-v1 in (a), (c) and (d) is torchvision's GoogLeNet, which pads its first convolution alike on both
  sides where TensorFlow's SAME has one pixel less in front.
- (e): logits are added up, as DeepMind's script does; `two_stream_i3d(fusion="probabilities")` averages
  probabilities, as the paper says. (c) does the latter.

`c3d` is the original C3D of Tran et al., ICCV 2015: no batch norm, a first pool that leaves time alone, 487 classes
of Sports-1M. Pools round up as Caffe's do; PyTorch ports of its weights pad pool5 on both sides instead, which is
another grid.

## From ImageNet

The paper inflates an ImageNet Inception-v1 and trains that. torchvision's GoogLeNet is a port of the same network:

```python
import torchvision
from inflate3d.models.googlenet import i3d_from_googlenet, start_from_googlenet

googlenet = torchvision.models.googlenet(init_weights=False)  # weights="DEFAULT" downloads those of ImageNet
model = i3d_from_googlenet(googlenet, stream="flow", num_classes=101)
start_from_googlenet(build_network("convnet-lstm", 101), googlenet)  # the trunks of (a), (c), (d) and (e) as well
```

`inflate3d.load("i3d", init="torchvision/googlenet", stream="flow", num_classes=101)` does the same with what
torchvision has downloaded before, or with a file: `init="googlenet.pth"`. Every network here but (b) and `c3d` can
start so, inflated ones from the weights of their 2D model.

A clip of one repeated picture is answered as by the 2D network with SAME padding: in every frame whose kernels see no
zeros beyond the ends of the clip, and with `profile="center"` in every frame. torchvision's own padding is another by
one pixel, so that its logits are close but not equal; `inflate3d.inflate(googlenet, "i3d")` keeps the 2D padding and
is exact to the last digit. A GoogLeNet whose third branch is a true 5x5, as BVLC's, is refused: I3D's is 3x3x3, from
TensorFlow-slim. Its kernels have to want pixels in -1..1; torchvision's do, behind `transform_input`.

For flow the kernels of red and green are taken, times 3/2. How DeepMind began theirs is not documented.

## ResNet-I3D

What the literature calls I3D after 2017 is a ResNet inflated in five different ways. Each is a plan for torchvision's
ResNet with a pool over time behind the first stage, and non-local blocks where `nl` stands in the name:

| | parameters | frames, height, width | GMAC |
|---|---|---|---|
{resnets}

`8x8` is the layout of PySlowFast and PyTorchVideo, who report 28.04M and 37.5 GMAC for 256 x 256 pixels; `nonlocal-8f`
and `nonlocal-32f` are Wang et al.'s own. All look at 3 frames in the first convolution of every second block:

```python
from inflate3d.models.inflated import resnet_i3d

model2d = torchvision.models.resnet50(num_classes=7)  # weights="DEFAULT" downloads those of ImageNet
model = resnet_i3d("pyslowfast-8x8", 7, non_local=True, model2d=model2d).eval()
```

`inflate3d.load("I3D_8x8_R50.pyth")` builds the network that a file of these projects holds; see [weights](weights.md).

## 2D networks, inflated

The [engine](inflate.md) makes the rest of the family: kernels through time as long as they are wide, strides in time
as in space but for the first two pools (preset `i3d`).

| | parameters | frames, height, width | GMAC |
|---|---|---|---|
{inflated}

`inflated/SOURCE` is any other 2D classifier with a linear last layer, by a name that [`inflate3d plan`](inflate.md)
knows:

```python
model = build_network("inflated/torchvision/resnet18", num_classes=7).eval()
with torch.inference_mode():
    print(model(torch.zeros(1, 3, 16, 112, 112)).shape)  # [1, 7]
```

`inflate3d.load("inflated/torchvision/resnet18", init="resnet18.pth", num_classes=7)` starts from a 2D checkpoint, in
any form that [weights](weights.md) may have. Pixels in -1..1 are normalized inside as the 2D model was trained. Nobody
has published accuracies for these networks.

## What is reported

By others; none of these figures is ours. Top-1, and top-5 where it is told, in percent.

| | streams | trained on | top-1 / top-5 | measured on | printed in |
|---|---|---|---|---|---|
{reported}

**61.1, 71.1, 74.2.** These are often printed side by side, and two data sets are mixed in them. 61.1 is C3D, as Tran
et al. measured it: on Sports-1M, 487 sports, top-1 of a video by the mean over ten random clips, after pre-training
on I380K. 71.1 and 74.2 are I3D on colors, and on colors and flow, as DeepMind's README has it: on the Kinetics-400
test set, whole videos, ImageNet before Kinetics. The figure that belongs beside those two is 56.1: the paper's own
variant of C3D, trained on Kinetics alone, on the same test set. On one clip of 79 frames in the middle of each
validation video, I3D on colors has 66.0 (OpenVINO): a shorter input, another split, and five points less.

### Table 2: trained on each data set, top-1

UCF-101 and HMDB-51 on split 1, Kinetics-400 on its test set; all but (b) begin with ImageNet.

| | UCF RGB | flow | both | HMDB RGB | flow | both | Kinetics RGB | flow | both |
|---|---|---|---|---|---|---|---|---|---|
| (a) ConvNet+LSTM | 81.0 | | | 36.0 | | | 63.3 | | |
| (b) 3D-ConvNet | 51.6 | | | 24.3 | | | 56.1 | | |
| (c) Two-Stream | 83.6 | 85.6 | 91.2 | 43.2 | 56.3 | 58.3 | 62.2 | 52.4 | 65.6 |
| (d) 3D-Fused | 83.2 | 85.8 | 89.3 | 49.2 | 55.5 | 56.8 | | | 67.2 |
| (e) Two-Stream I3D | 84.5 | 90.6 | 93.4 | 49.8 | 61.9 | 66.4 | 71.1 | 63.4 | 74.2 |

### Table 3: Kinetics-400 test, without and with ImageNet, top-1 (top-5)

| | RGB | flow | both | RGB, ImageNet | flow, ImageNet | both, ImageNet |
|---|---|---|---|---|---|---|
| (a) ConvNet+LSTM | 53.9 | | | 63.3 | | |
| (b) 3D-ConvNet | 56.1 | | | | | |
| (c) Two-Stream | 57.9 | 49.6 | 62.8 | 62.2 | 52.4 | 65.6 |
| (d) 3D-Fused | | | 62.7 | | | 67.2 |
| (e) Two-Stream I3D | 68.4 (88.0) | 61.5 (83.4) | 71.6 (90.0) | 71.1 (89.3) | 63.4 (84.9) | 74.2 (91.3) |

### Table 4: from Kinetics to UCF-101 and HMDB-51, split 1

With / without ImageNet before. Original: trained on the small set alone. Fixed: features of Kinetics, a new
classifier. Full: all layers trained on.

| | UCF original | fixed | full | HMDB original | fixed | full |
|---|---|---|---|---|---|---|
| (a) ConvNet+LSTM | 81.0 / 54.2 | 88.1 / 82.6 | 91.0 / 86.8 | 36.0 / 18.3 | 50.8 / 47.1 | 53.4 / 49.7 |
| (b) 3D-ConvNet | - / 51.6 | - / 76.0 | - / 79.9 | - / 24.3 | - / 47.0 | - / 49.4 |
| (c) Two-Stream | 91.2 / 83.6 | 93.9 / 93.3 | 94.2 / 93.8 | 58.3 / 47.1 | 66.6 / 65.9 | 66.6 / 64.3 |
| (d) 3D-Fused | 89.3 / 69.5 | 94.3 / 89.8 | 94.2 / 91.5 | 56.8 / 37.3 | 69.9 / 64.6 | 71.0 / 66.5 |
| (e) Two-Stream I3D | 93.4 / 88.8 | 97.7 / 97.4 | 98.0 / 97.6 | 66.4 / 62.2 | 79.7 / 78.6 | 81.2 / 81.3 |

### Table 5: the best of their time, mean over three splits

| | UCF-101 | HMDB-51 |
|---|---|---|
| Two-Stream | 88.0 | 59.4 |
| IDT | 86.4 | 61.7 |
| Dynamic Image Networks + IDT | 89.1 | 65.2 |
| TDD + IDT | 91.5 | 65.9 |
| Two-Stream Fusion + IDT | 93.5 | 69.2 |
| Temporal Segment Networks | 94.2 | 69.4 |
| ST-ResNet + IDT | 94.6 | 70.3 |
| Deep Networks, Sports-1M | 65.2 | |
| C3D, one network, Sports-1M | 82.3 | |
| C3D, ensemble, Sports-1M | 85.2 | |
| C3D, ensemble + IDT, Sports-1M | 90.1 | |
| RGB-I3D, ImageNet and Kinetics | 95.6 | 74.8 |
| Flow-I3D, ImageNet and Kinetics | 96.7 | 77.1 |
| Two-Stream I3D, ImageNet and Kinetics | 98.0 | 80.7 |
| RGB-I3D, Kinetics | 95.1 | 74.3 |
| Flow-I3D, Kinetics | 96.5 | 77.3 |
| Two-Stream I3D, Kinetics | 97.8 | 80.9 |

Made by `make models`.
"""

if __name__ == "__main__":
    main()

"""Optical flow of frames, by any method behind one function: our TV-L1, OpenCV's methods, RAFT."""

import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inflate3d.errors import InflateError, check_choice, import_extra, in_a_line
from inflate3d.flow.tvl1 import tvl1

MethodName = Literal["tvl1", "tvl1-opencv", "dis", "farneback", "raft", "raft-small"]
FlowMethod = Callable[[Tensor, Tensor], Tensor]  # two times [n, h, w, 3] uint8 to [n, 2, h, w] float32, on the CPU
T = TypeVar("T")

RAFT_STRIDE, RAFT_MIN_SIDE = 8, 128  # pixels; below, its coarsest correlation has nothing left
MAX_RAFT_BYTES = 100_000_000  # the large network has 21 MB
DOWNLOAD = "download"


def find_method(
    name: MethodName, *, compiled: bool = False, device: str = "cpu", weights: str | Path | None = None
) -> FlowMethod:
    """Prepare a method of optical flow.

    | name | what |
    |---|---|
    | `tvl1` | TV-L1 in PyTorch: what I3D's flow network was trained on |
    | `tvl1-opencv` | the same from OpenCV (extra `flow`) |
    | `dis` | dense inverse search, OpenCV, preset medium: a hundred times faster, less exact |
    | `farneback` | Farnebäck, OpenCV, as mmaction2 calls it |
    | `raft`, `raft-small` | RAFT from torchvision; needs `weights` |

    Args:
        name: As in the table.
        compiled: For `tvl1`: see there.
        device: Where `tvl1` and `raft` run.
        weights: For `raft`: a file of torchvision's (.pth), or "download", which lets torchvision fetch its own.

    Returns:
        A function of two tensors of frames `[n, h, w, 3]` uint8 that gives `[n, 2, h, w]` float32, pixels to the right
        and down from the first frames to the second ones. It is not meant for several threads at once.

    Raises:
        InflateError: The name is unknown, a package is missing, or the weights are missing or not those of RAFT.

    Example:
        >>> find_method("tvl1")(*torch.zeros(2, 1, 30, 40, 3, dtype=torch.uint8)).abs().max()
        tensor(0.)
    """
    check_choice(name, get_args(MethodName), what="method of optical flow", where="find_method")
    if name in {"raft", "raft-small"}:
        return _raft(name, device, weights)
    if weights is not None:
        raise InflateError(
            "this method has no weights",
            where="find_method",
            expected="weights with raft and raft-small only",
            got=f"{name} with weights {weights}",
            fix="leave them out, or choose raft",
        )
    if name == "tvl1":
        return lambda first, second: tvl1(
            to_grey(first).to(device), to_grey(second).to(device), compiled=compiled
        ).cpu()
    return _opencv(name)


def estimate_flow(frames: Tensor, method: MethodName | FlowMethod = "tvl1") -> Tensor:
    """Estimate the flow from each frame to the next one.

    Args:
        frames: `[t, h, w, 3]` uint8.
        method: A name, or what `find_method` gives.

    Returns:
        `[t - 1, 2, h, w]` float32: flow k leads from frame k to frame k + 1, pixels to the right and down.

    Raises:
        InflateError: There are fewer than two frames, or they are no RGB bytes; or what `find_method` raises.

    Example:
        >>> estimate_flow(torch.zeros(3, 30, 40, 3, dtype=torch.uint8)).shape
        torch.Size([2, 2, 30, 40])
    """
    to_grey(frames)  # checks them
    if frames.ndim != 4 or len(frames) < 2:
        raise InflateError(
            "there are fewer than two frames" if frames.ndim == 4 else "these are no frames of one video",
            where="estimate_flow",
            expected="frames [t, h, w, 3] with t >= 2, for flow leads from one to the next",
            got=str(list(frames.shape)),
            fix="pass two frames or more: torch.stack([first, second])",
        )
    solve = find_method(method) if isinstance(method, str) else method
    return torch.stack([flow for _, flow in with_flow(frames, lambda frame: frame, solve)])


def with_flow(
    items: Iterable[T], picture_of: Callable[[T], Tensor], method: FlowMethod, *, batch_size: int = 8
) -> Iterator[tuple[T, Tensor]]:
    """Give each item but the last with the flow that leads from its picture to the next one's.

    Holds `batch_size + 1` items.

    Args:
        items: Anything that has a picture.
        picture_of: Gives it, `[h, w, 3]` uint8.
        method: What `find_method` gives.
        batch_size: Pairs for each call of the method.

    Example:
        >>> frames = torch.zeros(3, 30, 40, 3, dtype=torch.uint8)
        >>> [(i, flow.shape) for i, flow in with_flow(range(3), frames.__getitem__, find_method("tvl1"))]
        [(0, torch.Size([2, 30, 40])), (1, torch.Size([2, 30, 40]))]
    """
    stream = iter(items)
    held = list(islice(stream, 1))
    while len(held := [*held, *islice(stream, batch_size)]) > 1:
        pictures = torch.stack([picture_of(item) for item in held])
        yield from zip(held[:-1], method(pictures[:-1], pictures[1:]).unbind(), strict=True)
        held = held[-1:]


def to_grey(frames: Tensor) -> Tensor:
    """Turn RGB bytes `[..., 3]` into grey ones `[...]`, to the bit as OpenCV does.

    Raises:
        InflateError: The frames are no RGB bytes.

    Source: OpenCV, `cvtColor` with RGB2GRAY: 0.299 R + 0.587 G + 0.114 B in fixed point with 15 bits.

    Example:
        >>> to_grey(torch.tensor([[255, 0, 0], [0, 255, 0], [7, 7, 7]], dtype=torch.uint8)).tolist()
        [76, 150, 7]
    """
    if frames.dtype != torch.uint8 or frames.shape[-1:] != (3,):
        raise InflateError(
            "these are no RGB frames",
            where="to_grey",
            expected="[..., h, w, 3] uint8",
            got=f"{list(frames.shape)} {frames.dtype}",
            fix="move the channels last, and scale floats to 0..255",
        )
    red, green, blue = frames.int().unbind(-1)
    return ((9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15).to(torch.uint8)


def _opencv(name: str) -> FlowMethod:
    instead = "take the method tvl1, which needs nothing"
    cv2 = import_extra("cv2", "flow", where=f"the method {name}", instead=instead)
    if name == "tvl1-opencv" and not hasattr(cv2, "optflow"):
        raise InflateError(
            "OpenCV comes without its contrib modules",
            where=f"the method {name}",
            expected="the package opencv-contrib-python-headless",
            got=f"OpenCV {cv2.__version__}",
            fix=f'pip install "inflate3d[flow]", or {instead}',
        )
    algorithms: dict[str, Callable[[Any, Any], Any]] = {
        "tvl1-opencv": lambda a, b: cv2.optflow.DualTVL1OpticalFlow_create().calc(a, b, None),
        "dis": lambda a, b: cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(a, b, None),
        # Source: mmaction2 tools/misc/flow_extraction.py
        "farneback": lambda a, b: cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0),
    }
    solve = algorithms[name]

    def run(first: Tensor, second: Tensor) -> Tensor:
        # a new object for each pair: OpenCV's TV-L1 remembers the fewer scales of a small picture
        pairs = zip(to_grey(first).cpu().numpy(), to_grey(second).cpu().numpy(), strict=True)
        try:
            flows = [solve(a, b) for a, b in pairs]
        except cv2.error as error:
            raise InflateError(
                "OpenCV refuses these frames",
                where=name,
                expected="frames large enough for the method: 24 pixels and more on each side are safe",
                got=f"{first.shape[2]}x{first.shape[1]} pixels: {str(error).strip().splitlines()[-1]}",
                fix="take larger frames, or the method tvl1",
            ) from error
        return torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).contiguous()

    return run


def _raft(name: str, device: str, weights: str | Path | None) -> FlowMethod:
    from torchvision.models import optical_flow  # noqa: PLC0415

    build, own = {
        "raft": (optical_flow.raft_large, optical_flow.Raft_Large_Weights),
        "raft-small": (optical_flow.raft_small, optical_flow.Raft_Small_Weights),
    }[name]
    if weights is None:
        raise InflateError(
            f"{name} needs its weights, and nothing is downloaded unasked",
            where="find_method",
            expected=f"a file of torchvision's such as {own.DEFAULT.url.rsplit('/', 1)[1]}, or {DOWNLOAD!r}",
            got="no weights",
            fix=f'weights="{DOWNLOAD}" (--flow-weights {DOWNLOAD}) lets torchvision fetch its own',
        )
    state = own.DEFAULT.get_state_dict(check_hash=True) if weights == DOWNLOAD else _read_raft(Path(weights))
    net: nn.Module = build().eval()
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise InflateError(
            f"the weights are not those of {name}",
            where=str(weights),
            expected=f"the state dict of torchvision's {build.__name__}",
            got=f"{str(error).strip().splitlines()[1].strip():.100} ...",
            fix="take the other of raft and raft-small, or torchvision's own file",
        ) from error
    net = net.to(device)
    return lambda first, second: _run_raft(net, first.to(device), second.to(device)).cpu()


def _read_raft(path: Path) -> dict[str, Tensor]:
    """Read a file of torch.save; only tensors, and no more than RAFT has."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_RAFT_BYTES:
            raise ValueError(f"{size:,} bytes unpacked, more than {MAX_RAFT_BYTES:,}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError("no dict of tensors")
    except Exception as error:  # torch raises whatever its unpickler stumbles over
        raise InflateError(
            "these weights cannot be read",
            where=str(path),
            expected="a state dict of torchvision's RAFT, written by torch.save",
            got=in_a_line(error),
            fix="take torchvision's own file",
        ) from error
    return state


def _run_raft(net: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """Pad to multiples of 8 by repeating the border, in the middle; -1..1; twelve updates, torchvision's default."""
    h, w = first.shape[1:3]
    size = [max(-(-side // RAFT_STRIDE) * RAFT_STRIDE, RAFT_MIN_SIDE) for side in (h, w)]
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    pads = (left, size[1] - w - left, top, size[0] - h - top)
    frames = [F.pad(side.permute(0, 3, 1, 2).float() / 127.5 - 1, pads, mode="replicate") for side in (first, second)]
    with torch.inference_mode():
        flow: Tensor = net(*frames)[-1][:, :, top : top + h, left : left + w]
    return flow.clone()

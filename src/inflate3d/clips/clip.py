"""Clip: frames with their times and source; ClipSpec: what a network wants to be fed."""

from dataclasses import dataclass

from torch import Tensor

from inflate3d.errors import InflateError, check_options, is_count, is_number, is_pair

MAX_COUNT = 100_000  # frames or pixels; a file that asks for more is damaged


@dataclass(frozen=True, eq=False)
class Clip:
    """A run of frames from one source.

    Attributes:
        data: `[c, t, h, w]`, uint8 in 0..255 or floating point in `value_range`.
        times_seconds: `[t]`, float64, seconds since the first frame of the source.
        source: The file, folder or array the frames come from.
        value_range: Smallest and largest value that a pixel of `data` may take; whether they all do is checked where
            the range is used, in `inflate3d.clips.transforms.to_range`, so that making a clip costs nothing.
    """

    data: Tensor
    times_seconds: Tensor
    source: str
    value_range: tuple[float, float] = (0.0, 255.0)

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.times_seconds.shape != self.data.shape[1:2]:
            raise InflateError(
                "frames and times do not belong together",
                where="Clip",
                expected="data [c, t, h, w] and times_seconds [t]",
                got=f"data {list(self.data.shape)} and times_seconds {list(self.times_seconds.shape)}",
                fix="pass one time for each frame, and the channels first",
            )

    def __repr__(self) -> str:
        return f"Clip({self.source!r}, data={list(self.data.shape)} {self.data.dtype}, value_range={self.value_range})"


@dataclass(frozen=True)
class ClipSpec:
    """What a network was trained on and therefore wants to be fed.

    Attributes:
        fps: Frames per second.
        num_frames: Frames in a window; shorter videos are looped to this length.
        min_frames: The fewest frames the network can run on.
        short_side: Pixels of the shorter side after resizing.
        crop: Pixels of the square crop.
        value_range: Smallest and largest value of a pixel.

    Raises:
        InflateError: A value is not of its kind, or they contradict each other.

    Example:
        >>> ClipSpec(25.0, num_frames=64, min_frames=9, short_side=256, crop=224, value_range=(-1.0, 1.0)).crop
        224
    """

    fps: float
    num_frames: int
    min_frames: int
    short_side: int
    crop: int
    value_range: tuple[float, float]

    def __post_init__(self) -> None:
        counts = ("num_frames", "min_frames", "short_side", "crop")
        kind = f"a whole number from 1 to {MAX_COUNT}"
        rules = {name: (kind, is_count(getattr(self, name), MAX_COUNT)) for name in counts}
        rules["fps"] = "a number above 0", is_number(self.fps) and self.fps > 0
        rises = is_pair(self.value_range) and self.value_range[0] < self.value_range[1]
        rules["value_range"] = "(smallest, largest)", rises
        self._check(rules)
        pairs = (("min_frames", "num_frames"), ("crop", "short_side"))
        self._check({low: (f"{high} at most", getattr(self, low) <= getattr(self, high)) for low, high in pairs})

    def _check(self, rules: dict[str, tuple[str, bool]]) -> None:
        fix = "write it as I3D's is: ClipSpec(25.0, 64, 9, 256, 224, (-1.0, 1.0))"
        check_options(self, rules, problem="this is no description of an input", fix=fix)

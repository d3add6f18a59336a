"""A picture as the bytes of a JPEG file."""

from fractions import Fraction
from typing import Any

import numpy as np
from av import CodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from torch import Tensor


def encode_jpeg(picture: NDArray[Any] | Tensor, *, quality: int = 5) -> bytes:
    """Encode `[h, w, 3]` uint8 as JPEG.

    Args:
        picture: Red, green, blue.
        quality: FFmpeg's scale, 2 (best) to 31.

    Example:
        >>> encode_jpeg(np.zeros((16, 24, 3), np.uint8))[:2].hex()
        'ffd8'
    """
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    codec = CodecContext.create("mjpeg", "w")
    assert isinstance(codec, VideoCodecContext)
    codec.width, codec.height, codec.pix_fmt, codec.time_base = frame.width, frame.height, "yuvj420p", Fraction(1, 25)
    codec.options = {"qmin": str(quality), "qmax": str(quality)}
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])

"""How a 2D kernel is laid out in time: `W3d[t] = a[t] * W2d`, the profile `a` summing to one.

Because the sum is one, a network that looks at a still picture repeated in time answers as the 2D network does.
Tap `t` of an inflated kernel reads the frame `t - center` steps from the present one.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inflate3d.errors import InflateError, nearest_names

Profile = str | Sequence[float] | Callable[[int], Sequence[float]]

RANDOM = "random"  # a fresh kernel instead of a laid out one, for ablations: it has no taps
ACS = "acs"  # 2D kernels on three sides of a volume, see acs.py: they have no taps either
FAMILY_PREFIX = "lambda="

SUM_TOLERANCE = 1e-6  # what float32 or six decimals leave of a sum of one
SHIFTED_SHARE = 8  # 1/8 of the channels each way; Source: Lin et al. 2019 (TSM), section 5.1


# Members of `family` by name, and their lambda
FAMILY: dict[str, float] = {
    "mean": 0.0,  # 1/T everywhere; Source: Carreira & Zisserman 2017 (I3D), section 2.4
    "center": 1.0,  # the present frame alone; Source: Girdhar et al. 2018 (Detect-and-Track), center initialization
    "negative": 2.0,  # (2T-1)/T on the present frame, -1/T elsewhere; Source: Mansimov et al. 2015, from memory
}
WITH_TAPS = (*FAMILY, "shift", f"{FAMILY_PREFIX}NUMBER")
PROFILE_NAMES = (*WITH_TAPS, RANDOM, ACS)


def shift(num_taps: int, center: int, channels: int | None) -> Tensor:
    """Let 1/8 of the input channels look one frame ahead, the next 1/8 one frame back; `[channels, T]`.

    The others look at the present frame. Where the kernel has no next frame (a causal one) the first eighth looks
    back, as in the online form of the paper; with no neighbor at all, or fewer than eight channels, nothing shifts.

    Source: Lin et al. 2019 (TSM), section 4; the order of the two eighths is that of temporal-shift-module's
    `ops/temporal_shift.py`, so that its weights fit.

    Raises:
        InflateError: The number of input channels is not given.
    """
    if channels is None:
        raise InflateError(
            "this profile differs from channel to channel",
            where="profile 'shift'",
            expected="the number of input channels",
            got="channels=None",
            fix="pass channels=, or choose the profile 'center'",
        )
    taps = torch.zeros(channels, num_taps, dtype=torch.float64)
    neighbors = [tap for tap in (center + 1, center - 1) if 0 <= tap < num_taps]
    eighth = channels // SHIFTED_SHARE
    taps[len(neighbors) * eighth :, center] = 1
    for place, tap in enumerate(neighbors):
        taps[place * eighth : (place + 1) * eighth, tap] = 1
    return taps


def family(num_taps: int, center: int, lam: float) -> Tensor:
    """Lay out the one-parameter family `[T]`: 1/T + lam (1 - 1/T) on the present frame, (1 - lam)/T on the others.

    It holds `mean` (lam = 0), `center` (lam = 1) and `negative` (lam = 2); as a profile it is called `lambda=0.5`.

    Example:
        >>> family(4, 1, 0.5).tolist()
        [0.125, 0.625, 0.125, 0.125]
    """
    taps = torch.full((num_taps,), (1 - lam) / num_taps, dtype=torch.float64)
    taps[center] = 1 / num_taps + lam * (1 - 1 / num_taps)
    return taps


def profile_taps(
    profile: Profile, time_kernel: int, *, center: int | None = None, channels: int | None = None
) -> Tensor:
    """Compute the taps of a profile, first frame first.

    Args:
        profile: A name of `PROFILE_NAMES`, such as `lambda=0.5`; your own vector of `time_kernel` numbers; or a
            function from the number of taps to such a vector, for networks whose kernels differ in length. Vectors of
            your own are divided by their sum, so that what rounding left of it does not show in a proof.
        time_kernel: Number of taps, T.
        center: The tap that reads the present frame; (T-1)//2 if not given, T-1 in a causal convolution. Vectors of
            your own do not depend on it.
        channels: Number of input channels; only `shift` needs it.

    Returns:
        Float64 `[T]`, or `[channels, T]` for `shift`; each row sums to one.

    Raises:
        InflateError: Unknown name, a vector of another length, of another sum or not finite, `random` (which has no
            taps), or a center outside the kernel.

    Example:
        >>> profile_taps("center", 3).tolist(), profile_taps([0.25, 0.75], 2).tolist()
        ([0.0, 1.0, 0.0], [0.25, 0.75])
    """
    check_count("time_kernel", time_kernel)
    present = (time_kernel - 1) // 2 if center is None else center
    if not 0 <= present < time_kernel:
        raise InflateError(
            "the present frame lies outside the kernel",
            where="profile_taps",
            expected=f"center in 0..{time_kernel - 1}",
            got=f"center={center}",
            fix=f"pass center={time_kernel - 1} for a causal kernel, none for the middle",
        )
    if not isinstance(profile, str):
        return _own_taps(profile, time_kernel)
    if profile == "shift":
        return shift(time_kernel, present, channels)
    if profile in FAMILY or profile.startswith(FAMILY_PREFIX):
        return family(time_kernel, present, FAMILY[profile] if profile in FAMILY else _parse_lambda(profile))
    if profile == ACS:
        raise InflateError(
            "ACS kernels stand on three sides of the volume and are not laid out in time, so they have no taps",
            where="profile_taps",
            expected=", ".join(WITH_TAPS) + ", a vector or a function",
            got=repr(profile),
            fix='give a whole model such kernels: inflate(model2d, "isotropic", profile="acs")',
        )
    if is_random(profile):
        raise InflateError(
            "a random kernel is drawn anew, not laid out from a 2D one, so it has no taps",
            where="profile_taps",
            expected=", ".join(WITH_TAPS) + ", a vector or a function",
            got=repr(profile),
            fix="use inflate_weight, which draws it; or choose another profile",
        )
    raise InflateError(
        "there is no profile of this name",
        where="profile_taps",
        expected=", ".join(PROFILE_NAMES) + ", a vector or a function",
        got=repr(profile),
        fix=f"did you mean {nearest_names(profile, PROFILE_NAMES)}?",
    )


def phase_taps(
    profile: Profile,
    time_kernel: int,
    stride: int,
    *,
    cropped_front: int | None = None,
    channels: int | None = None,
) -> Tensor:
    """Compute the taps of a transposed convolution in time: those of each output phase sum to one.

    Output frame `j` reads the taps with `t = (j + cropped_front) mod stride`, so these form a phase. The kernel of a
    transposed convolution runs backwards; the profile is laid out from past to future all the same.

    Args:
        profile: As for `profile_taps`, for as many taps as a phase has.
        time_kernel: Number of taps, T.
        stride: Frames put out for each frame taken in.
        cropped_front: Output frames cut off in front, the `padding` of `nn.ConvTranspose3d`; output frames
            `j = i*stride .. i*stride + stride - 1` then have input frame `i` as their present one. If not given,
            (T-stride)//2; at most T-stride.
        channels: Number of input channels; only `shift` needs it.

    Returns:
        Float64 `[T]`, or `[channels, T]` for `shift`; each row sums to `stride`.

    Raises:
        InflateError: The kernel is shorter than the stride (some output frames would see nothing), or the profile is
            one that `profile_taps` refuses.

    Example:
        >>> phase_taps("mean", 4, 2).tolist(), phase_taps("center", 4, 2).tolist()
        ([0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 1.0, 0.0])
    """
    check_count("time_kernel", time_kernel)
    check_count("stride", stride)
    first = (time_kernel - stride) // 2 if cropped_front is None else cropped_front
    if not 0 <= first <= time_kernel - stride:
        raise InflateError(
            "some output frames have no present frame under the kernel",
            where="phase_taps",
            expected="time_kernel >= stride, cropped_front in 0..time_kernel - stride",
            got=f"time_kernel={time_kernel}, stride={stride}, cropped_front={cropped_front}",
            fix=f"take time_kernel={max(time_kernel, stride)} and leave cropped_front out",
        )
    rows = [
        profile_taps(profile, length, center=center, channels=channels)
        for length, center in phases(time_kernel, stride, cropped_front=first)
    ]
    return kernel_of_phases(rows, time_kernel, cropped_front=first)


def phases(time_kernel: int, stride: int, *, cropped_front: int | None = None) -> list[tuple[int, int]]:
    """Tell how many taps output frames `i*stride + 0, 1, ...` of a transposed convolution have, and the present one.

    Example:
        >>> phases(4, 2), phases(3, 2)
        ([(2, 1), (2, 0)], [(2, 1), (1, 0)])
    """
    first = (time_kernel - stride) // 2 if cropped_front is None else cropped_front
    lengths = [len(range(present % stride, time_kernel, stride)) for present in range(first, first + stride)]
    return [(length, length - 1 - present // stride) for present, length in enumerate(lengths, start=first)]


def kernel_of_phases(rows: Sequence[Tensor], time_kernel: int, *, cropped_front: int | None = None) -> Tensor:
    """Put the taps of all phases, each from past to future, into one kernel, which runs backwards; see `phases`."""
    stride = len(rows)
    first = (time_kernel - stride) // 2 if cropped_front is None else cropped_front
    taps = rows[0].new_empty(*rows[0].shape[:-1], time_kernel)
    for present, row in enumerate(rows, start=first):
        taps[..., present % stride :: stride] = row.flip(-1)
    return taps


def around_present(taps: Tensor, stride: int) -> Tensor:
    """Turn the taps of an ordinary kernel, past to future, into those of a transposed one; for proofs.

    Each phase takes as many as it has, around the present one.
    """
    time_kernel = len(taps)
    if stride == 1:
        return taps.flip(0)
    present = (time_kernel - 1) // 2
    rows = [taps[present - center :][:length] for length, center in phases(time_kernel, stride)]
    return kernel_of_phases(rows, time_kernel)


def write_profile(
    profile: Profile, time_kernel: int, *, center: int | None = None, scale: int = 1
) -> str | tuple[float, ...]:
    """Write a profile down as a name or as taps, so that a plan can go to JSON.

    Taps of a transposed convolution that makes time `scale` times as long are those of `phase_taps`.

    Raises:
        InflateError: `profile_taps` refuses it.

    Example:
        >>> write_profile("center", 3), write_profile(lambda num_taps: [1 / num_taps] * num_taps, 4)
        ('center', (0.25, 0.25, 0.25, 0.25))
    """
    if isinstance(profile, str) and profile in (RANDOM, ACS):
        return profile
    if scale > 1:
        taps = phase_taps(profile, time_kernel, scale, channels=SHIFTED_SHARE)
    else:
        taps = profile_taps(profile, time_kernel, center=center, channels=SHIFTED_SHARE)
    return profile if isinstance(profile, str) else tuple(taps.tolist())


def is_random(profile: Profile) -> bool:
    """Whether the profile asks for a fresh kernel."""
    return isinstance(profile, str) and profile == RANDOM


def check_count(name: str, value: object) -> None:
    """Refuse a kernel size or stride that is not a whole number of at least one.

    Raises:
        InflateError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InflateError(
            f"{name} is no number of frames",
            where=name,
            expected="a whole number, 1 or more",
            got=repr(value),
            fix=f"pass {name}=3, say",
        )


def _parse_lambda(profile: str) -> float:
    try:
        value = float(profile.removeprefix(FAMILY_PREFIX))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InflateError(
            "lambda has to be a finite number",
            where="profile_taps",
            expected="lambda=0 (mean), lambda=1 (center), lambda=2 (negative) or any other number",
            got=repr(profile),
            fix="write it as lambda=0.5",
        )
    return value


def _own_taps(profile: Sequence[float] | Callable[[int], Sequence[float]], time_kernel: int) -> Tensor:
    vector = profile(time_kernel) if callable(profile) else profile
    try:
        taps = torch.as_tensor(vector, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        taps = torch.empty(0)
    if taps.shape == (time_kernel,) and abs(float(taps.sum()) - 1) <= SUM_TOLERANCE:  # NaN and inf fail here too
        return taps / taps.sum()
    raise InflateError(
        "this is not a profile for a kernel of that length",
        where="profile_taps",
        expected=f"{time_kernel} finite numbers that sum to one, within {SUM_TOLERANCE}",
        got=f"{vector!r:.200}" + (f", which sum to {float(taps.sum()):.9g}" if taps.numel() else ""),
        fix="divide by the sum; for kernels of several lengths pass a function: lambda num_taps: ...",
    )

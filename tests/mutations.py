"""Break the package in known places, one at a time, and see that the tests notice: `make mutations`.

Each mutation is one edit of a copy of `src`, and the tests that have to fail on it. A test that cannot fail shows here.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """One edit.

    Attributes:
        file: Below `src/inflate3d`.
        old: What stands there, once.
        new: What is put in its place.
        tests: What has to fail, below `tests`.
    """

    file: str
    old: str
    new: str
    tests: str


MUTATIONS = {
    "the middle tap of a kernel is too heavy": Mutation(
        "inflation/profiles.py",
        "taps[center] = 1 / num_taps + lam * (1 - 1 / num_taps)",
        "taps[center] = 1 / num_taps + lam",
        "inflation/test_profiles.py inflation/test_kernels.py",
    ),
    "half precision is summed in half precision": Mutation(
        "inflation/kernels.py",
        "return weight3d.detach().sum(2, dtype=wide).to(weight3d.dtype)",
        "return weight3d.detach().sum(2)[:, :, :] * (1 + 1e-3)",
        "inflation/test_kernels.py",
    ),
    "a folded batch norm forgets its epsilon": Mutation(
        "speed/batch_norm.py",
        "(var.double() + norm.eps).rsqrt()",
        "var.double().rsqrt()",
        "speed/test_optimize.py",
    ),
    "SAME puts the larger half in front": Mutation(
        "models/blocks.py",
        "total = max(total, 0)\n    return total // 2, total - total // 2",
        "total = max(total, 0)\n    return total - total // 2, total // 2",
        "models/test_inception.py",
    ),
    "an even kernel looks one frame further back": Mutation(
        "inflation/padding.py",
        'return kernel - 1 if padding == "causal" else (kernel - 1) // 2',
        'return kernel - 1 if padding == "causal" else kernel // 2',
        "inflation/test_kernels.py inflation/test_profiles.py",
    ),
    "what lengthens time begins too early": Mutation(
        "inflation/adapters.py",
        "first = around * scale + (kernel - scale) // 2",
        "first = around * scale",
        "inflation/test_strides.py",
    ),
    "a step stays that begins behind the clip": Mutation(
        "inflation/outputs.py",
        "-(-num_frames * steps // ran)",
        "num_frames * steps // ran + 1",
        "inflation/test_strides.py",
    ),
    "a spacing is even too soon": Mutation(
        "inflation/strides.py",
        "return depth < EVEN * min(depth, plane)",
        "return depth <= EVEN * min(depth, plane)",
        "inflation/test_isotropic.py",
    ),
    "a checksum is not turned back": Mutation(
        "weights/tf_bundle.py",
        "(rotated >> 17 | rotated << 15)",
        "(rotated >> 15 | rotated << 17)",
        "weights/test_tf_bundle.py",
    ),
    "a frame without a timestamp of its own falls on the one before": Mutation(
        "clips/timestamps.py",
        "return (self.last + min(later)) / 2 if later else soonest",
        "return min(later) if later else soonest",
        "clips/test_timestamps.py",
    ),
    "a resized side is rounded up": Mutation(
        "clips/transforms.py",
        "other = short_side * longer // shorter",
        "other = -(-short_side * longer // shorter)",
        "clips/test_transforms.py",
    ),
    "pictures are shrunk without antialiasing": Mutation(
        "clips/transforms.py",
        'mode="bilinear", antialias=True',
        'mode="bilinear", antialias=False',
        "clips/test_transforms.py",
    ),
    "the last window does not reach back": Mutation(
        "clips/sampling.py",
        "start = max(count - num_frames, 0)",
        "start = following",
        "clips/test_sampling.py",
    ),
    "a quantiser cuts where it should round": Mutation(
        "flow/quantize.py",
        "return (255 * (exact + bound) / (2 * bound)).round().to(torch.uint8)",
        "return (255 * (exact + bound) / (2 * bound)).to(torch.uint8)",
        "flow/test_quantize.py",
    ),
    "the auxiliary flow is pulled the other way": Mutation(
        "flow/tvl1.py",
        "new_v = v + pull * dy",
        "new_v = v - pull * dy",
        "flow/test_tvl1.py",
    ),
    "the shared trace counts once": Mutation(
        "results/fvd_distance.py",
        "spread = one.square().sum() + two.square().sum() - 2 * shared",
        "spread = one.square().sum() + two.square().sum() - shared",
        "results/test_fvd_distance.py",
    ),
    "I3D has torch's epsilon": Mutation(
        "models/inception.py",
        "bn_eps: float = 1e-3,",
        "bn_eps: float = 1e-5,",
        "models/test_inception.py",
    ),
}


def main() -> None:
    survived = [words for words, mutation in MUTATIONS.items() if not _caught(words, mutation)]
    print(f"{len(MUTATIONS) - len(survived)} of {len(MUTATIONS)} are caught")
    sys.exit(bool(survived))


def _caught(words: str, mutation: Mutation) -> bool:
    """Run the tests on a copy with the mutation; tests that break otherwise than by failing prove nothing."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        file = source / "inflate3d" / mutation.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutation.old) != 1:
            sys.exit(f"{mutation.file} has changed: {mutation.old!r} stands there {text.count(mutation.old)} times")
        file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        tests = [str(ROOT / "tests" / test) for test in mutation.tests.split()]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        run = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(source)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    failed = next((line for line in run.stdout.splitlines() if line.startswith("FAILED")), "")
    print(
        f"{'caught' if run.returncode == 1 else 'NOT CAUGHT'}: {words}\n    {failed or run.stdout[-300:]}", flush=True
    )
    return run.returncode == 1 and bool(failed)


if __name__ == "__main__":
    main()

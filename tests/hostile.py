"""Bad inputs made from good ones by a seed, and the doors by which users bring them: `python hostile.py FOLDER`.

A process of its own: memory is bounded, and each thing that Python does to the system is listened to. It prints a line
of JSON for each input: what was done with it, and which laws were broken.
"""

import contextlib
import ctypes
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), *(str(TESTS / part) for part in ("weights", "results", "clips"))]
sys.dont_write_bytecode = True

SEED = 15
MOST_SECONDS, MOST_BYTES, MOST_ADDRESSES = (
    60,
    700 * 2**20,
    4 * 2**30,
)  # for one input; of address space, beyond the start
MS_RDONLY, MS_REMOUNT, MNT_DETACH = 1, 32, 2  # of Linux
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")

Door = Callable[[Path, Path], object]
Damage = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Case:
    """One input: its name, what makes it in a folder, the door, and whether it has to be answered."""

    name: str
    make: Callable[[Path], Path]
    door: Door
    is_good: bool = False


@dataclass
class Listener:
    """Notes what Python does to the system, outside of the folder."""

    folder: Path
    heard: list[str] = field(default_factory=list)
    on: bool = False

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.heard.append(f"{event} {args!r:.80}")
        elif event == "open" and isinstance(args[0], str | bytes) and isinstance(args[2], int):
            inside = os.fsdecode(args[0]).startswith((str(self.folder), "/dev/", "/proc/self/")) or not str(
                args[0]
            ).startswith("/")
            if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not inside:
                self.heard.append(f"writes {args[0]!r:.80}")


# --- damage ---------------------------------------------------------------------------------------------------------


def flipped(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 3, 20])):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data))]


def noisy(data: bytes, rng: Random) -> bytes:
    first = rng.randrange(len(data))
    return data[:first] + rng.randbytes(min(rng.choice([4, 64, 999]), len(data) - first)) + data[first + 999 :]


def huge(data: bytes, rng: Random) -> bytes:
    """Put the largest number where the head may have one."""
    place = rng.randrange(min(len(data), 400))
    number = rng.choice(
        [b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3, b"\xff" * 3 + b"\x7f", b"\0" * 8, b"99999999"]
    )
    return data[:place] + number + data[place + len(number) :]


def doubled(data: bytes, rng: Random) -> bytes:
    first, last = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:last] + data[first:]


DAMAGES: tuple[Damage, ...] = (flipped, cut, noisy, huge, doubled, flipped, huge)


# --- doors ----------------------------------------------------------------------------------------------------------


def watch(path: Path, out: Path) -> None:
    from inflate3d.clips.video import open_frames

    for _ in islice(open_frames(path, fps="native"), 99):
        pass


def upload(path: Path, out: Path) -> None:
    from inflate3d.app.jobs import Limits, check_upload
    from inflate3d.clips.decoding import at_most

    check_upload(path, Limits(), path.parent)
    with at_most(Limits().pixels):
        watch(path, out)


def features(path: Path, out: Path) -> None:
    from feature_stand_ins import Witness

    from inflate3d.errors import InflateError
    from inflate3d.results.feature_files import plan_jobs
    from inflate3d.results.feature_presets import FeatureOptions
    from inflate3d.results.feature_runs import extract_files
    from inflate3d.results.features import Extractor

    model = Witness(short_side=36, crop=31, width=5).eval()
    extractor = Extractor({"rgb": model}, FeatureOptions(window=4, stride=2, fps="native"))
    run = extract_files(extractor, plan_jobs([path]), out)
    for failure in run.failures:
        raise InflateError(failure.reason, where="features", expected="", got="", fix="")


def again(path: Path, out: Path) -> None:
    """The same where an older run lies: what was made comes out, whatever its manifest has become."""
    features(path, path / "out")
    features(path, out)
    made = [name.relative_to(out) for name in out.rglob("*.npy")]
    assert made and all((path / "out" / name).read_bytes() == (out / name).read_bytes() for name in made)


def command(*words: str) -> Door:
    """The command line, with IN and OUT in place of the paths."""

    def door(path: Path, out: Path) -> None:
        from inflate3d.cli import main
        from inflate3d.errors import InflateError

        places = {"IN": str(path), "OUT": str(out), "OUT.safetensors": str(out / "a.safetensors")}
        told, before = io.StringIO(), sys.argv
        sys.argv = ["inflate3d", *(places.get(word, word) for word in words)]
        try:
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
                main()
        except SystemExit as ended:
            if ended.code not in (0, None):
                assert ended.code in (1, 2) and "Traceback" not in told.getvalue(), told.getvalue()
                raise InflateError(told.getvalue()[:200], where="command", expected="", got="", fix="") from None
        finally:
            sys.argv = before

    return door


def volume(path: Path, out: Path) -> None:
    from inflate3d.clips.volume_files import read_volume

    read_volume(path, spacing_mm=(1.0, 2.0, 3.0) if path.suffix else None)


def checkpoint(path: Path, out: Path) -> None:
    from inflate3d.weights.checkpoint import read_checkpoint

    read_checkpoint(path if path.suffix else next(path.glob("*.index"))).summary()


def inflated(path: Path, out: Path) -> None:
    from inflate3d import load

    load(path)


def plan(path: Path, out: Path) -> None:
    from inflate3d.inflation.plan import Plan

    found = Plan.from_json(path.read_text(errors="replace"))
    assert str(found) and Plan.from_json(found.to_json()) == found


def flow(path: Path, out: Path) -> None:
    from inflate3d.flow.stored import open_flow

    for _ in islice(open_flow(path), 99):
        pass


def listing(path: Path, out: Path) -> None:
    from inflate3d.clips.dataset import make_splits, read_listing

    make_splits(read_listing(path))


def scans(path: Path, out: Path, task: str = "classes") -> None:
    from inflate3d.train.volume_data import read_volume_splits

    read_volume_splits(path, task)


def trained(path: Path, out: Path) -> None:
    from inflate3d.train.checkpoint import load_trained

    load_trained(path)


def on_disk(door: Door, read_only: bool, path: Path, out: Path) -> None:
    """Write to a file system of our own without room; where none may be mounted, with a bound on the size of files."""
    out.mkdir()
    system, point = ctypes.CDLL(None), os.fsencode(out)
    if system.mount(b"tmpfs", point, b"tmpfs", 0, b"size=64k"):
        _bounded(door, path, out)
        return
    try:
        (out / "rest").write_bytes(bytes(64 * 1024))
        if read_only:
            assert system.mount(b"tmpfs", point, b"tmpfs", MS_REMOUNT | MS_RDONLY, b"size=64k") == 0
        try:
            door(path, out / "made")
        finally:
            left = [name for name in out.rglob("*") if name.suffix == ".part" or name.name.startswith(".drafts")]
            assert not left, left
            assert (out / "rest").stat().st_size == 64 * 1024
    finally:
        assert system.umount2(point, MNT_DETACH) == 0


def _bounded(door: Door, path: Path, out: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        door(path, out / "made")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- running --------------------------------------------------------------------------------------------------------


def snapshot(folder: Path, apart: Path) -> dict[str, tuple[int, int]]:
    """Each file in the folder, and what changes when it does."""
    found = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(place, name) != apart]
        for name in files:
            state = Path(place, name).lstat()
            found[str(Path(place, name))] = state.st_size, state.st_mtime_ns
    return found


def peak_bytes() -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def run(case: Case, folder: Path, listener: Listener) -> dict[str, object]:
    """Bring one input, and see that no law is broken."""
    from inflate3d.errors import InflateError

    place = folder / "case"
    place.mkdir()
    path, out, faults = case.make(place), place / "out", []
    apart = path / "out" if getattr(case.door, "__name__", "") == again.__name__ else out
    before = snapshot(folder, apart)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    start, began = peak_bytes(), time.monotonic()
    listener.on, answer = True, "answered"
    signal.alarm(2 * MOST_SECONDS)  # which ends the process, also in the midst of C
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case.door(path, out)
    except InflateError as error:
        answer = f"refused: {error.problem}"
        faults += [] if str(error).strip() else ["says nothing"]
    except BaseException as error:
        answer = "fault"
        faults.append("".join(traceback.format_exception(error))[-1500:])
    signal.alarm(0)
    listener.on, seconds, taken = False, time.monotonic() - began, peak_bytes() - start
    faults += listener.heard
    listener.heard.clear()
    faults += [f"{seconds:.1f} s"] * (seconds > MOST_SECONDS) + [f"{taken / 2**20:.0f} MB"] * (taken > MOST_BYTES)
    after = {name: state for name, state in snapshot(folder, apart).items() if not name.startswith(f"{out}/")}
    faults += [
        f"touched {name}" for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)
    ]
    faults += [f"left {left}" for left in snapshot(out, folder) if re.search(r"\.part$|\.drafts", left)]
    faults += ["a good input is refused"] * (case.is_good and answer != "answered")
    shutil.rmtree(place)
    return {"name": case.name, "answer": answer, "faults": faults, "seconds": round(seconds, 2), "bytes": taken}


def main(folder: Path) -> None:
    """Make good inputs, then bring all bad ones."""
    import torch

    import hostile_inputs

    torch.set_num_threads(1)
    for name in ("home", "tmp", "cache"):
        (folder / name).mkdir()
    os.environ |= {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "INFLATE3D_CACHE": str(folder / "cache"),
    }
    cases = list(hostile_inputs.cases(folder))
    listener = Listener(folder)
    sys.addaudithook(listener)
    for case in cases:
        if case.is_good:
            run(case, folder, listener)  # what is imported late is imported now
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_ADDRESSES, resource.RLIM_INFINITY))
    os.chdir(folder)
    for case in cases:
        print(json.dumps({"begins": case.name}), flush=True)
        print(json.dumps(run(case, folder, listener)), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The inputs of hostile.py: good ones of each kind, damaged ones of these, and those that somebody thought up."""

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import foreign_files as foreign
import numpy as np
import pydicom
import torch
from PIL import Image
from safetensors.torch import save_file
from test_volume import save_series

import hostile as doors
from hostile import DAMAGES, SEED, Case, Door, command
from inflate3d.clips.volume import Grid, Volume
from inflate3d.clips.volume_files import write_volume
from inflate3d.inflation.plan import LayerPlan, Plan
from inflate3d.results.fvd_distance import Gaussian
from inflate3d.results.fvd_protocols import Setup, protocol_named
from inflate3d.results.fvd_videos import VideoStatistics
from videos import paint, remux, write_video

Files = dict[str, bytes]  # of one input: name in its folder to content; the first one is damaged
GROWN = 60000  # pixels of a side of a picture
VP8_START = b"\x9d\x01\x2a"  # of a key frame, before width and height; RFC 6386, 9.1


def cases(folder: Path) -> Iterator[Case]:
    """Each kind undamaged, then damaged ones, then those thought up."""
    good = folder / "good"
    good.mkdir()
    kinds = list(_kinds(good))
    for name, (files, doors_to, _) in kinds:
        yield from (
            Case(f"{name}: good, {number}", partial(_write, files), door, True) for number, door in enumerate(doors_to)
        )
    for name, (files, doors_to, count) in kinds:
        rng = Random(f"{SEED} {name}")
        for number in range(count):
            damage, first = DAMAGES[number % len(DAMAGES)], next(iter(files))
            bad = {**files, first: damage(files[first], rng)}
            door = doors_to[number % len(doors_to)]
            yield Case(f"{name}: {damage.__name__} {number}", partial(_write, bad), door)
    yield from _thought_up(dict(kinds))
    yield from _names(dict(kinds))
    yield from _places(dict(kinds), folder)


def _write(files: Files, place: Path) -> Path:
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place / next(iter(files)).split("/")[0]


def _read(folder: Path) -> Files:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder.parent)): path.read_bytes() for path in files}


Kind = tuple[str, tuple[Files, list[Door], int]]
Kinds = dict[str, tuple[Files, list[Door], int]]


def _kinds(good: Path) -> Iterator[Kind]:
    """Name, files, the doors that they are brought by, and how many damaged ones there shall be."""
    yield from _videos(good)
    yield from _volumes(good)
    yield from _weights(good)
    yield from _results(good)
    yield from _flows(good)
    yield from _lists()


def _videos(good: Path) -> Iterator[Kind]:
    frames = list(map(paint, range(20)))
    written = [
        write_video(good / "film.mp4", frames),
        write_video(good / "film.avi", frames, codec="mjpeg", pix_fmt="yuvj420p"),
        write_video(good / "film.mpg", frames, codec="mpeg2video"),
        write_video(good / "film.webm", frames, codec="libvpx", g="5"),
    ]
    written += [remux(written[0], good / f"film.{suffix}") for suffix in ("mkv", "ts", "flv")]
    Image.fromarray(frames[0]).save(
        good / "film.gif", save_all=True, append_images=[*map(Image.fromarray, frames[1:9])]
    )
    written.append(good / "film.gif")
    flow = command("flow", "IN", "-o", "OUT", "--method", "farneback", "--short-side", "16", "--fps", "5")
    for path in written:
        ways = [doors.watch, doors.upload, doors.features] + [flow] * (path.suffix == ".mp4")
        yield path.suffix[1:], ({path.name: path.read_bytes()}, ways, 6)


def _volumes(good: Path) -> Iterator[Kind]:
    voxels = np.random.default_rng(3).integers(-500, 500, (5, 7, 9)).astype(np.int16)
    scan = Volume(torch.from_numpy(voxels)[None], Grid((5, 7, 9), np.diag([2.0, 1, 1.5, 1])))
    for suffix in (".nii", ".nii.gz", ".nrrd"):
        write_volume(good / f"a{suffix}", scan)
        yield f"volume{suffix}", (_read_one(good / f"a{suffix}"), [doors.volume], 8)
    np.savez_compressed(good / "a.npz", scan=voxels, spacing_mm=np.array([2.0, 1, 1]))
    np.save(good / "a.npy", voxels)
    yield "volume.npz", (_read_one(good / "a.npz"), [doors.volume], 8)
    yield "volume.npy", (_read_one(good / "a.npy"), [doors.volume], 6)
    yield "series", (_read(save_series(good / "series", voxels)), [doors.volume], 10)


def _read_one(path: Path) -> Files:
    return {path.name: path.read_bytes()}


def _weights(good: Path) -> Iterator[Kind]:
    rng = np.random.default_rng(5)
    arrays = {f"layer{i}.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32) for i in range(3)}
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save({"state_dict": state, "epoch": 3}, good / "new.pt")
    torch.save(state, good / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, good / "a.safetensors")
    np.savez(good / "weights.npz", **arrays)
    (good / "arrays.pkl").write_bytes(pickle.dumps({"blobs": arrays, "lr": 0.1}, protocol=2))
    (good / "bundle").mkdir()
    foreign.bundle(good / "bundle", "m", {name.replace(".", "/"): array for name, array in arrays.items()}, shards=2)
    ways = [doors.checkpoint, command("weights", "info", "IN"), command("weights", "convert", "IN", "OUT.safetensors")]
    for name in ("new.pt", "old.pt", "a.safetensors", "weights.npz", "arrays.pkl"):
        yield name, (_read_one(good / name), ways, 9)
    files = _read(good / "bundle")
    index = "bundle/m.index"
    yield "bundle", ({index: files.pop(index), **files}, [doors.checkpoint], 8)


def _results(good: Path) -> Iterator[Kind]:
    layer = LayerPlan("conv", "Conv2d", "inflate", (3, 3), 3, kind="conv")
    plan = Plan("Net", "video", (3, 9, 9), (layer, LayerPlan("up", "Upsample", "resize", kind="resize", time_scale=2)))
    yield "plan", ({"plan.json": plan.to_json().encode()}, [doors.plan], 12)
    setup = Setup(protocol_named("tats"), 16, 1, "native", "InceptionI3d", "0" * 64)
    rows = torch.rand(9, 5, generator=torch.Generator().manual_seed(0))
    for name, kept in (("kept", rows), ("moments", None)):
        VideoStatistics(setup, Gaussian.of(rows), kept).save(good / f"{name}.safetensors")
        fvd = command("fvd", "IN", "IN", "--json", "OUT.safetensors", "--resamples", "0", "--no-kernel")
        yield f"statistics, {name}", (_read_one(good / f"{name}.safetensors"), [fvd], 8)
    videos = good / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4", map(paint, range(9)))
    doors.features(videos, videos / "out")
    files = _read(videos)
    manifest = "videos/out/manifest.jsonl"
    yield "manifest", ({manifest: files.pop(manifest), **files}, [doors.again], 12)


def _flows(good: Path) -> Iterator[Kind]:
    film, codes = good / "film.mp4", np.random.default_rng(4).integers(0, 256, (3, 2, 16, 24), np.uint8)
    folder, archive = good / "pictures", good / "flow.zip"
    folder.mkdir()
    for number, pair in enumerate(codes):
        for axis, plane in zip("xy", pair, strict=True):
            kind = "jpg" if number else "png"
            Image.fromarray(plane).save(folder / f"flow_{axis}_{number:05d}.{kind}")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.iterdir()):
            packed.write(path, path.name)
    np.savez_compressed(good / "flow.npz", flow=codes, bound=np.float64(20))
    for layout in ("mp4", "denseflow"):
        way = ("--method", "farneback", "--short-side", "16", "--fps", "10", "--layout", layout)
        command("flow", "IN", "-o", "OUT", *way)(film, good / layout)
    record = _read(good / "denseflow" / "film")
    yield "flow pictures", (_read(folder), [doors.flow], 8)
    yield "flow zip", (_read_one(archive), [doors.flow], 8)
    yield "flow npz", (_read_one(good / "flow.npz"), [doors.flow], 8)
    yield "flow mp4", (_read(good / "mp4" / "film"), [doors.flow], 6)
    yield "flow record", ({"film/flow.json": record.pop("film/flow.json"), **record}, [doors.flow], 6)
    h5py = __import__("h5py")
    with h5py.File(good / "flow.h5", "w") as file:
        for number, pair in enumerate(codes):
            for axis, plane in zip("xy", pair, strict=True):
                file[f"flow_{axis}_{number:05d}"] = plane
    yield "flow h5", (_read_one(good / "flow.h5"), [doors.flow], 6)


def _lists() -> Iterator[Kind]:
    table = "path,label,split,group,fold\n" + "".join(f"{i}.mp4,c{i % 2},,g{i % 5},{i % 3}\n" for i in range(20))
    kinetics = "label,youtube_id,time_start,time_end,split\n" + "".join(
        f"c{i % 2},v{i},{i},{i + 9},train\n" for i in range(9)
    )
    charades = "id,actions,subject\n" + "".join(f"v{i},c{i % 2} 1.5 {i + 2};c1 0 9,s{i}\n" for i in range(9))
    mmaction = "".join(f"a/{i}.mp4 {i % 4}\n" for i in range(20))
    for name, text in (("a.csv", table), ("kinetics.csv", kinetics), ("charades.csv", charades), ("a.txt", mmaction)):
        yield name, ({name: text.encode()}, [doors.listing], 7)
    yield "a.tsv", ({"a.tsv": table.replace(",", "\t").encode()}, [doors.listing], 5)
    files = {
        f"{part}list01.txt": "".join(f"C{i % 2}/v_C{i % 2}_g0{i}_c01.avi {i % 2}\n" for i in range(9))
        for part in ("train", "test")
    }
    ucf = {"ucf/classInd.txt": b"1 C0\n2 C1\n"} | {f"ucf/{name}": text.encode() for name, text in files.items()}
    yield "ucf", (ucf, [doors.listing], 6)
    masks = {f"scans/images/{i}.nii": b"" for i in range(4)} | {f"scans/labels/{i}.nii": b"" for i in range(4)}
    names = json.dumps({"labels": {"background": 0, "ball": 1}}).encode()
    yield "decathlon", ({"scans/dataset.json": names, **masks}, [partial(doors.scans, task="mask")], 6)
    scans = "path,label\n" + "".join(f"{i}.npy,c{i % 2}\n" for i in range(8))
    yield "scans.csv", ({"scans.csv": scans.encode(), **{f"{i}.npy": b"" for i in range(8)}}, [doors.scans], 5)
    stored = io.BytesIO()
    parts = {
        f"{part}_{what}": np.zeros((3, *size), np.uint8)
        for part in ("train", "val", "test")
        for what, size in (("images", (4, 4, 4)), ("labels", (1,)))
    }
    np.savez_compressed(stored, **parts)
    yield "medmnist", ({"scans.npz": stored.getvalue()}, [doors.scans], 8)


# --- thought up -----------------------------------------------------------------------------------------------------


def with_grown_frames(webm: bytes, first: int = 2) -> bytes:
    """Let the key frames of VP8 from one on say that they have 16,383 x 16,383 pixels, which is all that VP8 can."""
    parts = webm.split(VP8_START)
    assert len(parts) > first + 1
    head, tail = parts[: first + 1], parts[first + 1 :]
    return VP8_START.join([*head, *(b"\xff\x3f\xff\x3f" + part[4:] for part in tail)])


def _npy(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _zeros(megabytes: int) -> bytes:
    """Packed by DEFLATE, a thousandth of what they were."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return (packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)) * megabytes + packer.flush()


def _zip(members: dict[str, bytes | int], claimed: int | None = None) -> bytes:
    """An archive; a number stands for so many megabytes of zeros, of which it claims to hold another number."""
    file, packed = io.BytesIO(), {name: _zeros(what) for name, what in members.items() if isinstance(what, int)}
    with zipfile.ZipFile(file, "w") as archive:
        for name, what in members.items():
            archive.writestr(name, packed.get(name, what))
        places = {member.filename: member.header_offset for member in archive.infolist()}
    data = bytearray(file.getvalue())
    for name in packed:
        size = struct.pack("<I", claimed or members[name] * 2**20)
        central = data.rindex(name.encode()) - 46
        for start, method, length in ((places[name], 8, 22), (central, 10, 24)):
            data[start + method : start + method + 2] = b"\x08\x00"
            data[start + length : start + length + 4] = size
    return bytes(data)


def _volume_and_zeros(nifti: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return gzip.compress(b"")[:10] + packer.compress(nifti) + packer.flush(zlib.Z_FULL_FLUSH) + _zeros(2000)


def _many_dicts() -> bytes:
    """A list of pairs, of which thousands of ordered dicts are made."""
    pair = b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(20000))
    made = b"ccollections\nOrderedDict\nh\x00\x85R" * 20000 + b"ctorch\nSize\nh\x01\x85R" * 20000
    return b"\x80\x02](](" + pair + b"eq\x00(" + pair + b"tq\x01" + made + b"e."


def _torch_zip(pickled: bytes, **members: bytes | int) -> bytes:
    return _zip({f"archive/{name}": data for name, data in {"data.pkl": pickled, **members}.items()})


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch ran",)


def _thought_up(kinds: Kinds) -> Iterator[Case]:
    """Absurd sizes, deep nesting, code, and archives that lie."""
    plan = json.loads(kinds["plan"][0]["plan.json"])
    grown = with_grown_frames(kinds["webm"][0]["film.webm"])
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"-" * 8999 + b"1"
    bomb = {"a.nii.gz": _volume_and_zeros(kinds["volume.nii"][0]["a.nii"])}
    nrrd = kinds["volume.nrrd"][0]["a.nrrd"]
    nrrd = {"a.nrrd": nrrd[: nrrd.index(b"\n\n") + 2] + gzip.compress(b"")[:10] + _zeros(1500)}
    code = pickle.dumps({"a": _Runs()})
    deep = b"[" * 100_000
    large = {**plan, "time_shrink": 10**999}
    endless = {
        **plan,
        "time_shrink": "x" * 1000,
        "inserts": [{"after": "a", "what": "time_pool", "time_stride": 2**30}] * 9,
    }
    many = {**plan, "inserts": [{"after": "a", "what": "time_pool", "time_stride": 2**30}] * 30_000}
    dicom = next(iter(kinds["series"][0].values()))
    for way in (doors.watch, doors.upload, doors.features):
        yield Case("frames that grow", partial(_write, {"a.webm": grown}), way)
    yield Case(
        "pictures of 60,000 pixels", partial(_write, {"f/1.jpg": _picture(), "f/2.jpg": _picture()}), doors.watch
    )
    inputs: dict[str, tuple[Files, Door]] = {
        "a list instead of a picture": ({"f/1.png": b"ffconcat version 1.0\nfile /etc/hostname\n"}, doors.watch),
        "HLS instead of a video": ({"a.mp4": b"#EXTM3U\n#EXTINF:8,\n/etc/hostname\n"}, doors.watch),
        "an .npz of a terabyte": ({"a.npz": _zip({"a.npy": _npy((2**20, 2**10, 2**10))})}, doors.volume),
        "an .npy of a terabyte": ({"a.npy": _npy((2**20, 2**10, 2**10))}, doors.volume),
        "a header that is a long sum, .npy": ({"a.npy": header}, doors.volume),
        "a header that is a long sum, .npz": ({"a.npz": _zip({"a.npy": header})}, doors.volume),
        "a header that is a long sum, flow": ({"a.npz": _zip({"flow.npy": header})}, doors.flow),
        "a header that is a long sum, weights": ({"a.npz": _zip({"a.npy": header})}, doors.checkpoint),
        "negative sides": ({"a.npz": _zip({"flow.npy": _npy((4, 2, -3, -5)) + bytes(480)})}, doors.flow),
        "packed zeros behind a volume": (bomb, doors.volume),
        "packed zeros in an NRRD": (nrrd, doors.volume),
        "lies about a picture": ({"a.zip": _zip({f"flow_{axis}_00000.png": 900 for axis in "xy"}, 100)}, doors.flow),
        "many dicts of one list": ({"a.pt": _torch_zip(_many_dicts())}, doors.checkpoint),
        "a long order of bytes": ({"a.pt": _torch_zip(pickle.dumps({}), byteorder=1500)}, doors.checkpoint),
        "code in a .pkl": ({"a.pkl": code}, doors.checkpoint),
        "code in a .pt": ({"a.pt": _torch_zip(code)}, doors.checkpoint),
        "code in a checkpoint of a training": ({"a.ckpt": _torch_zip(code)}, doors.trained),
        "code in an array": ({"a.npy": _npy((1,), "|O") + code}, doors.volume),
        "a deep plan": ({"plan.json": deep}, doors.plan),
        "an endless number in a plan": ({"plan.json": json.dumps(large).encode()}, doors.plan),
        "a text for a number": ({"plan.json": json.dumps(endless).encode()}, doors.plan),
        "strides without end": ({"plan.json": json.dumps(many).encode()}, doors.plan),
        "a deep record": ({"film/flow.json": deep}, doors.flow),
        "an endless bound": ({"film/flow.json": b'{"num_flows": 1, "bound": 1%s}' % (b"0" * 400)}, doors.flow),
        "deep names": ({**kinds["decathlon"][0], "scans/dataset.json": deep}, kinds["decathlon"][1][0]),
        "a class of a billion": ({"a.txt": b"a.mp4 1\nb.mp4 999999999\n"}, doors.listing),
        "a fold of 5,000 digits": ({"a.csv": b"path,label,fold\na.mp4,b,%s\n" % (b"1" * 5000)}, doors.listing),
        "a path of 5,000 letters": ({"a.csv": b"path,label\n%s,b\nc,d\n" % (b"a" * 5000)}, doors.listing),
        "times that are none": ({"a.csv": b"label,youtube_id,time_start,time_end\na,b,inf,nan\n"}, doors.listing),
        "a table of another code page": ({"a.csv": "path,label\nö.mp4,ü\n".encode("latin-1")}, doors.listing),
        "lines cut short": ({"a.csv": b"path,label,split\na.mp4\nb.mp4,c,train,more,and more\n"}, doors.listing),
        "a cell of a megabyte": ({"a.csv": b"path,label\n" + b"a" * 2**20 + b",b\n"}, doors.listing),
        "classes of a .npz without end": ({"a.npz": _labels(2**40)}, doors.scans),
        "deflated DICOM": ({"s/a.dcm": _deflated(dicom)}, doors.volume),
    }  # fmt: skip
    for name, (files, door) in inputs.items():
        yield Case(name, partial(_write, files), door)
    files, (door,), _ = kinds["manifest"]
    rows = files["videos/out/manifest.jsonl"].splitlines()
    lines = {
        "deep": deep,
        "half": b'{"status": "done"}',
        "lists": rows[-1].replace(b'"files": {', b'"files": [], "x": {'),
    }
    lines |= {
        "time": rows[-1].replace(b'"time": ', b'"time": "x", "y": '),
        "a zero": rows[-1].replace(b"a.npy", b"a\\u0000b"),
    }
    for name, line in lines.items():
        bad = {**files, "videos/out/manifest.jsonl": b"\n".join([*rows, line, b""])}
        yield Case(f"a manifest, {name}", partial(_write, bad), door, True)


def _picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    return file.getvalue().replace(
        b"\xff\xc0\x00\x11\x08\x00\x10\x00\x10", b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", GROWN, GROWN)
    )


def _labels(most: int) -> bytes:
    file = io.BytesIO()
    parts = {f"{part}_images": np.zeros((2, 3, 3, 3), np.uint8) for part in ("train", "val", "test")}
    np.savez(file, **parts, **{name.replace("images", "labels"): np.array([[0], [most]]) for name in parts})
    return file.getvalue()


def _deflated(dicom: bytes) -> bytes:
    """A slice whose header is packed."""
    found = pydicom.dcmread(io.BytesIO(dicom))
    found.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    file = io.BytesIO()
    pydicom.dcmwrite(file, found, enforce_file_format=True)
    return file.getvalue()


# --- names and places -----------------------------------------------------------------------------------------------

NAMES = (
    "a b",
    "two\nlines",
    "größe-日本",
    "-o",
    "--help",
    "caf\udce9",
    "%05d",
    "a:b",
    "[red]x",
    "'; touch ran; '",
    "#1",
)


def _names(kinds: Kinds) -> Iterator[Case]:
    """Names that shells, formats and terminals stumble over: all are answered."""
    flow, features = kinds["mp4"][1][3], doors.features
    for name in NAMES:
        for kind, suffix, ways in (
            ("mp4", ".mp4", (flow, features)),
            ("volume.nii.gz", ".nii.gz", (doors.volume,)),
            ("new.pt", ".pt", kinds["new.pt"][1][1:]),
        ):
            (data,) = kinds[kind][0].values()
            for number, door in enumerate(ways):
                yield Case(f"the name {name!a}{suffix}, {number}", partial(_write, {name + suffix: data}), door, True)
    long = "a" * 300
    for door in (
        doors.watch,
        doors.features,
        doors.volume,
        doors.flow,
        doors.listing,
        doors.checkpoint,
        kinds["new.pt"][1][2],
    ):
        yield Case(f"a name of 300 letters, {getattr(door, '__name__', '')}", lambda place: place / f"{long}.csv", door)

    def circle(place: Path) -> Path:
        (place / "a.mp4").symlink_to(place / "a.mp4")
        return place / "a.mp4"

    for door in (doors.watch, doors.features, flow):
        yield Case(f"a link to itself, {getattr(door, '__name__', '')}", circle, door)


def _places(kinds: Kinds, folder: Path) -> Iterator[Case]:
    """A full disk, and one that may not be written: what fails leaves nothing there."""
    ways = {
        "mp4": [kinds["mp4"][1][3], doors.features],
        "new.pt": [kinds["new.pt"][1][2]],
        "statistics, kept": [command("fvd", "IN", "IN", "--save-stats", "OUT"), kinds["statistics, kept"][1][0]],
    }
    for kind in ("full", "read-only"):
        for name, doors_to in ways.items():
            for number, door in enumerate(doors_to):
                through = partial(doors.on_disk, door, kind == "read-only")
                yield Case(f"a {kind} disk: {name} {number}", partial(_write, kinds[name][0]), through)

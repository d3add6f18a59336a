"""Flow that others have written: names, archives, HDF5, gaps, and files that want to do harm."""

import io
import json
import struct
import zipfile
import zlib

import cv2
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from inflate3d.errors import InflateError
from inflate3d.flow.quantize import quantize
from inflate3d.flow.stored import find_flow, flow_name, open_flow

H, W = 19, 26
FLOWS = np.random.default_rng(0).uniform(-18, 18, (4, 2, H, W)).astype(np.float32)


def png(plane):
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, "PNG")
    return buffer.getvalue()


def codes(bound=20.0):
    return quantize(torch.from_numpy(FLOWS), "denseflow", bound=bound).numpy()


def named(pattern, start, bound=20.0):
    """The files of all flows, without loss, under the names of a project."""
    return {
        pattern.format(axis=axis, index=start + i): png(codes(bound)[i, k])
        for i in range(len(FLOWS))
        for k, axis in enumerate("xy")
    }


def fill(folder, files):
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def pack(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def largest_error(stored):
    assert stored.num_flows == len(FLOWS)
    return np.abs(torch.stack(list(stored)).numpy() - FLOWS).max()


@pytest.mark.parametrize(
    ("pattern", "start"),
    [("flow_{axis}_{index:05d}.png", 0), ("flow_{axis}_{index:05d}.png", 1), ("{axis}_{index:05d}.png", 1),
     ("flow_{axis}_{index}.png", 98)],
)  # fmt: skip
def test_folders_and_archives_with_the_names_of_projects(tmp_path, pattern, start):
    files = named(pattern, start)
    noise = {"img_00001.jpg": b"", "readme.txt": b"hello"}
    assert largest_error(open_flow(fill(tmp_path / "folder", files | noise))) < 0.08
    assert largest_error(open_flow(pack(tmp_path / "flat.zip", files | noise))) < 0.08
    inside = {f"a/b/{name}": data for name, data in files.items()}
    assert largest_error(open_flow(pack(tmp_path / "deep.zip", inside))) < 0.08


def test_the_bound_is_the_callers_where_the_files_do_not_tell(tmp_path):
    fill(tmp_path / "folder", named("{axis}_{index:05d}.png", 1, bound=32.0))
    assert largest_error(open_flow(tmp_path / "folder", bound=32.0)) < 0.13
    assert largest_error(open_flow(tmp_path / "folder")) > 1


def test_pictures_with_both_components(tmp_path):
    """denseflow's PNG: x, y and a quarter of the bound as the three channels of OpenCV, x above and y below."""
    (tmp_path / "folder").mkdir()
    for i, flow in enumerate(FLOWS):
        # Source: denseflow src/common.cpp, convertFlowToPngImage
        bounds = [int(np.ceil(np.abs(plane).max() * 128 / 127 / 4) * 4) for plane in flow]
        bounds = [bound + 4 * (bound % 8 == 0) for bound in bounds]
        x, y = (np.clip(np.rint(p * 128 / b + 128), 0, 255).astype(np.uint8) for p, b in zip(flow, bounds, strict=True))
        quarter = np.full((H, W), bounds[0] // 4, np.uint8)
        quarter[H // 2 + 1 :] = bounds[1] // 4
        cv2.imwrite(str(tmp_path / "folder" / f"flow_{i:05d}.png"), np.dstack([x, y, quarter]))
    assert largest_error(open_flow(tmp_path / "folder")) < 0.09


@pytest.mark.parametrize("values", ["pixels", "codes"])
def test_hdf5(tmp_path, values):
    with h5py.File(tmp_path / "flow.h5", "w") as file:
        for i in range(len(FLOWS)):
            for k, axis in enumerate("xy"):
                file[f"flow_{axis}_{i:05d}"] = FLOWS[i, k] if values == "pixels" else codes()[i, k]
        file["flow_x_p2_00000"] = FLOWS[0, 0]  # another step, which denseflow may put beside it
    stored = open_flow(tmp_path / "flow.h5")
    assert largest_error(stored) < (1e-9 if values == "pixels" else 0.08)
    assert stored.quantized == (values == "codes")


@pytest.mark.parametrize(
    "array", [FLOWS, FLOWS.astype(np.float64), FLOWS.astype(">f4"), codes(), codes().astype(">u2")]
)
def test_arrays(tmp_path, array):
    np.savez_compressed(tmp_path / "flow.npz", flow=array)
    stored = open_flow(tmp_path / "flow.npz")
    assert largest_error(stored) < (0.08 if array.dtype.kind == "u" else 1e-6)
    assert stored.quantized == (array.dtype.kind == "u")


def test_hdf5_that_was_cut_off_or_is_uneven(tmp_path):
    with h5py.File(tmp_path / "whole.h5", "w", libver="latest") as file:
        for i in range(len(FLOWS)):
            for k, axis in enumerate("xy"):
                file.create_dataset(
                    f"flow_{axis}_{i:05d}", data=FLOWS[i, k].astype(">f4"), chunks=(H, W), compression=1
                )
    assert largest_error(open_flow(tmp_path / "whole.h5")) < 1e-6
    with h5py.File(tmp_path / "whole.h5") as file:
        chunk = file["flow_y_00002"].id.get_chunk_info(0)
    data = bytearray((tmp_path / "whole.h5").read_bytes())
    data[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    (tmp_path / "damaged.h5").write_bytes(data)
    flows = iter(open_flow(tmp_path / "damaged.h5"))
    assert [next(flows).shape for _ in range(2)] == [(2, H, W)] * 2
    with pytest.raises(InflateError, match=r"the flow cannot be read(.|\n)*flow_x_00002"):
        next(flows)
    with h5py.File(tmp_path / "uneven.h5", "w") as file:
        file["flow_x_00000"], file["flow_y_00000"] = FLOWS[0, 0], FLOWS[0, 1, 1:]
    with pytest.raises(InflateError, match="flow_x_00000: components of"):
        next(iter(open_flow(tmp_path / "uneven.h5")))


def test_fewer_flows_than_the_record_says(tmp_path):
    fill(tmp_path, named("flow_{axis}_{index:05d}.png", 0))
    (tmp_path / "flow.json").write_text(json.dumps({"num_flows": 5, "bound": 20}))
    with pytest.raises(InflateError, match=r"some of the flow is missing(.|\n)*5 flows(.|\n)*got: +4\n"):
        open_flow(tmp_path)


def test_the_flow_of_a_video_is_found_by_its_name(tmp_path, monkeypatch):
    np.savez(tmp_path / "run.npz", flow=FLOWS)
    (tmp_path / "jump").mkdir()
    assert find_flow(tmp_path, "videos/run.mp4") == tmp_path / "run.npz"
    assert find_flow(tmp_path, "videos/jump.avi") == tmp_path / "jump"
    assert find_flow(tmp_path, "videos/swim.avi") == tmp_path
    assert find_flow(tmp_path / "run.npz", "videos/swim.avi") == tmp_path / "run.npz"
    monkeypatch.chdir(tmp_path / "jump")
    assert (flow_name("."), flow_name(".."), flow_name("../jump")) == ("jump", tmp_path.name, "jump")


def test_gaps_are_told(tmp_path):
    files = named("flow_{axis}_{index:05d}.png", 3)
    del files["flow_y_00005.png"]
    with pytest.raises(InflateError, match=r"some of the flow is missing(.|\n)*from 3 to 6(.|\n)*not those of 5"):
        open_flow(fill(tmp_path / "folder", files))
    files = named("flow_{axis}_{index:05d}.png", 0) | {"flow_x_999999999.png": b"", "flow_y_999999999.png": b""}
    with pytest.raises(InflateError, match=r"some of the flow is missing(.|\n)*not those of 4"):
        open_flow(pack(tmp_path / "gap.zip", files))


def test_one_video_at_a_time(tmp_path):
    files = {f"{video}/{name}": data for video in "ab" for name, data in named("{axis}_{index:05d}.png", 1).items()}
    with pytest.raises(InflateError, match=r"flow in several folders(.|\n)*a, b(.|\n)*folder of one video"):
        open_flow(pack(tmp_path / "two.zip", files))


def bomb(side=100_000):
    """A PNG whose header promises 10 gigapixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bomb(), "too large"),
        (bomb(7000), r"too large(.|\n)*7000x7000 pixels"),
        (b"text", "cannot be read"),
        (b"\xff\xd8\xff", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "cannot be read"),
        (png(np.zeros((H + 1, W), np.uint8)), "components of"),
    ],
)
def test_pictures_that_are_none_or_too_large(tmp_path, data, message):
    files = named("{axis}_{index:05d}.png", 1) | {"x_00002.png": data}
    for path in (fill(tmp_path / "folder", files), pack(tmp_path / "a.zip", files)):
        flows = iter(open_flow(path))
        next(flows)
        with pytest.raises(InflateError, match=message):
            next(flows)


def test_members_that_unpack_to_too_much(tmp_path):
    files = named("{axis}_{index:05d}.png", 1) | {"x_00001.png": bytes(2**26 + 1)}
    with pytest.raises(InflateError, match=r"too large(.|\n)*got: +67,108,865 bytes"):
        list(open_flow(pack(tmp_path / "a.zip", files)))
    with pytest.raises(InflateError, match=r"too large(.|\n)*got: +67,108,865 bytes"):
        list(open_flow(fill(tmp_path / "folder", files)))


def header(shape, dtype="<f4"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def odd_bound():
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3.0))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "cannot be read"),
        ({"flow.npy": b"text"}, "cannot be read"),
        ({"flow.npy": header((4, 3, H, W))}, r"\(4, 3, 19, 26\)"),
        ({"flow.npy": header((4, 2, 2**20, 2**20))}, r"not \[n, 2, h, w\]"),
        ({"flow.npy": header((4, 2, H, W), "|O")}, "object"),
        ({"flow.npy": header((4, 2, H, W)).replace(b"NUMPY\x01", b"NUMPY\x02")}, "format 1.0"),
        ({"flow.npy": header((4, 2, H, W)), "bound.npy": odd_bound()}, r"bound is \(3,\)"),
    ],
)
def test_arrays_that_are_no_flow(tmp_path, files, message):
    with pytest.raises(InflateError, match=message):
        open_flow(pack(tmp_path / "flow.npz", files))


def test_an_array_that_ends_too_soon(tmp_path):
    path = pack(tmp_path / "flow.npz", {"flow.npy": header((2, 2, H, W)) + FLOWS[0].tobytes()})
    flows = iter(open_flow(path))
    assert next(flows).numpy().tolist() == FLOWS[0].tolist()
    with pytest.raises(InflateError, match="ends before its shape says so"):
        next(flows)


def test_hdf5_reads_nothing_of_other_files(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = FLOWS[0, 0]
    raw = tmp_path / "raw.bin"
    raw.write_bytes(FLOWS[0, 0].tobytes())
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["flow_x_00000"] = h5py.ExternalLink("other.h5", "secret")
        file["flow_y_00000"] = FLOWS[0, 1]
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("flow_x_00000", (H, W), "f4", external=[(str(raw), 0, H * W * 4)])
        file["flow_y_00000"] = FLOWS[0, 1]
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("flow_x_00000")
        file["flow_y_00000"] = FLOWS[0, 1]
    with h5py.File(tmp_path / "large.h5", "w") as file:
        file.create_dataset("flow_x_00000", (2**20, 2**20), "u1", chunks=(2**10, 2**10), compression="gzip")
        file["flow_y_00000"] = FLOWS[0, 1]
    with h5py.File(tmp_path / "mixed.h5", "w") as file:
        file["flow_x_00000"], file["flow_y_00000"] = FLOWS[0, 0], FLOWS[0, 1].astype(np.uint8)
    messages = {
        "link": "no array",
        "raw": "no array",
        "group": "no array",
        "large": r"too large(.|\n)*1048576x1048576 pixels",
        "mixed": "of one kind",
    }
    for name, message in messages.items():
        with pytest.raises(InflateError, match=message):
            open_flow(tmp_path / f"{name}.h5")


def test_what_is_no_flow_at_all(tmp_path, monkeypatch):
    with pytest.raises(InflateError, match=r"no flow at this path(.|\n)*got: +nothing"):
        open_flow(tmp_path / "missing.npz")
    (tmp_path / "a.txt").touch()
    with pytest.raises(InflateError, match="a file of another kind"):
        open_flow(tmp_path / "a.txt")
    with pytest.raises(InflateError, match=r"there is no flow\n(.|\n)*a\.txt"):
        open_flow(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"text")
    (tmp_path / "a.h5").write_bytes(b"text")
    for name in ("a.zip", "a.h5"):
        with pytest.raises(InflateError, match="the flow cannot be read"):
            open_flow(tmp_path / name)
    with h5py.File(tmp_path / "empty.h5", "w"), pytest.raises(InflateError, match="the flow cannot be read"):
        open_flow(tmp_path / "empty.h5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(InflateError, match="no datasets"):
        open_flow(tmp_path / "empty.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(InflateError, match=r"the package h5py is missing(.|\n)*inflate3d\[hdf5\]"):
        open_flow(tmp_path / "empty.h5")


@pytest.mark.parametrize("record", ["text", "[]", json.dumps({"num_flows": "4", "bound": 20}), json.dumps({"bound": 1}),
                                    json.dumps({"num_flows": 4, "bound": -1})])  # fmt: skip
def test_records_that_cannot_be_read(tmp_path, record):
    (tmp_path / "flow.json").write_text(record)
    with pytest.raises(InflateError, match="the flow cannot be read"):
        open_flow(tmp_path)


def test_videos_that_are_none(tmp_path):
    for axis in "xy":
        (tmp_path / f"flow_{axis}.mp4").write_bytes(b"text")
    with pytest.raises(InflateError, match="the flow cannot be read"):
        list(open_flow(tmp_path))

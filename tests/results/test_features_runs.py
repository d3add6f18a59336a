"""Long runs: what is skipped, what is tried again, what is left when a run is killed; the bytes are always the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_stand_ins import Witness, numbers_of, write_numbered
from PIL import Image

from inflate3d.clips.stills import source_state
from inflate3d.errors import InflateError
from inflate3d.results.feature_files import Job, VideoFeatures, arranged, files_of, plan_jobs
from inflate3d.results.feature_manifest import Manifest, Shard
from inflate3d.results.feature_presets import FeatureLayout, FeatureOptions
from inflate3d.results.feature_runs import Estimate, FeatureProgress, extract_files, extract_on_ray, ray_fault
from inflate3d.results.features import Extractor

SPEC = {"short_side": 36, "crop": 31, "width": 5}
OPTIONS = FeatureOptions(window=4, stride=2, fps="native")


def extractor(options=OPTIONS, **spec):
    return Extractor({"rgb": Witness(**{**SPEC, **spec}).eval()}, options)


def rows_in(folder, status=None):
    rows = [json.loads(line) for path in sorted(folder.glob("manifest*")) for line in path.read_text().splitlines()]
    return [row for row in rows if "video" in row and status in {None, row["status"]}]


def outputs(folder):
    """Every file of a run but the manifest, with its bytes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("manifest")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four videos, two of one name."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    for name, count in (("a.mp4", 9), ("b.mp4", 12), ("sub/a.mp4", 7), ("c.v2.mp4", 10)):
        write_numbered(folder / name, count)
    return folder


def test_a_run_and_its_manifest(tmp_path, videos):
    run = extract_files(extractor(), plan_jobs([videos]), tmp_path)
    assert (run.num_done, run.num_skipped, run.failures) == (4, 0, ())
    assert set(outputs(tmp_path)) == {"a_rgb.npy", "b_rgb.npy", "c.v2_rgb.npy", "sub/a_rgb.npy"}
    np.testing.assert_allclose(numbers_of(np.load(tmp_path / "sub/a_rgb.npy")), [1.5, 3.5], atol=1e-3)
    first = json.loads((tmp_path / "manifest.jsonl").read_text().splitlines()[0])
    assert first["made"]["options"]["window"] == 4 and len(first["made"]["weights"]["rgb"]) == 64
    assert set(first["versions"]) == {"inflate3d", "torch", "numpy", "av"}
    row = next(row for row in rows_in(tmp_path) if row["video"] == "sub/a")
    assert row["config"] == first["run"] and row["files"] == {"sub/a_rgb.npy": 128 + 2 * 5 * 4}
    assert row["windows"] == {"num_frames": 4, "start_frames": [0, 2], "times_seconds": [0.066667, 0.133333]}
    again = extract_files(extractor(), plan_jobs([videos]), tmp_path)
    assert (again.num_done, again.num_skipped) == (0, 4)


def test_another_configuration_network_or_video_is_made_anew(tmp_path, videos):
    folder, jobs = tmp_path / "out", plan_jobs([videos])[:2]
    extract_files(extractor(), jobs, folder)
    before = outputs(folder)
    assert extract_files(extractor(replace(OPTIONS, stride=3)), jobs, folder).num_done == 2
    assert extract_files(extractor(), jobs, folder).num_done == 2  # its files were written over
    assert outputs(folder) == before
    assert extract_files(extractor(replace(OPTIONS, batch_size=3)), jobs, folder).num_done == 0
    assert extract_files(extractor(width=6), jobs, folder).num_done == 2
    (folder / "a_rgb.npy").unlink()
    (folder / "b_rgb.npy").write_bytes(b"short")
    assert extract_files(extractor(width=6), jobs, folder).num_done == 2
    copy = tmp_path / "v.mp4"
    write_numbered(copy, 9)
    assert extract_files(extractor(), plan_jobs([copy]), folder).num_done == 1
    write_numbered(copy, 11)
    assert extract_files(extractor(), plan_jobs([copy]), folder).num_done == 1
    assert len(np.load(folder / "v_rgb.npy")) == 4


def test_pictures_that_are_written_over_are_made_anew(tmp_path):
    """A folder's own size and time tell nothing of what is in it."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for shade in (10, 200):
        for number in range(6):
            Image.new("RGB", (48, 36), (shade, 0, 0)).save(frames / f"{number}.png")
        assert extract_files(extractor(), plan_jobs([frames]), tmp_path / "out").num_done == 1
    rows = np.load(tmp_path / "out" / "frames_rgb.npy")
    np.testing.assert_allclose(rows[:, 0], 200 / 127.5 - 1, atol=1e-5)


def test_a_video_that_changes_while_it_is_read_is_made_anew(tmp_path):
    path = tmp_path / "v.mp4"
    write_numbered(path, 9)
    made = extractor()
    network = made.networks["rgb"]
    forward = network.model.model.forward

    def replaced(clip):
        write_numbered(path, 12)
        return forward(clip)

    network.model.model.forward = replaced
    assert extract_files(made, plan_jobs([path]), tmp_path / "out").num_done == 1
    assert extract_files(extractor(), plan_jobs([path]), tmp_path / "out").num_done == 1
    assert len(np.load(tmp_path / "out" / "v_rgb.npy")) == 5


def test_a_collected_file_holds_the_videos_as_they_are_and_this_run_alone(tmp_path):
    h5py = pytest.importorskip("h5py")
    path, out = tmp_path / "v.mp4", tmp_path / "out"
    layout = FeatureLayout("h5", collected="hdf5", collected_name="all.h5")
    for count, rows in ((9, 3), (12, 5)):
        write_numbered(path, count)
        extract_files(extractor(), plan_jobs([path]), out, layout=layout)
        with h5py.File(out / "all.h5") as file:
            assert {name: len(found) for name, found in file.items()} == {"v_rgb": rows}
    np.savez(out / ".parts" / "v_flow.npz", v_flow=np.zeros((9, 5)))  # of a run with other options
    write_numbered(path, 10)
    extract_files(extractor(), plan_jobs([path]), out, layout=layout)
    with h5py.File(out / "all.h5") as file:
        assert list(file) == ["v_rgb"]


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        (FeatureLayout(name="features"), ("a.mp4", "b.mp4")),
        (FeatureLayout(name="{stream}"), ("a.mp4", "b.mp4")),
        (FeatureLayout(name="v_{id}"), ("b.mp4", "v_b.mp4")),
        (FeatureLayout("h5", name="{stem}", collected="hdf5"), ("a.mp4", "a/b.mp4")),
    ],
)
def test_two_videos_never_write_one_file(tmp_path, layout, names):
    for name in names:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_numbered(tmp_path / "videos" / name, 9)
    jobs = plan_jobs([tmp_path / "videos"])
    with pytest.raises(InflateError, match="several videos would have one file"):
        extract_files(extractor(), jobs, tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    Image.new("RGB", (48, 36)).save(tmp_path / "1.png")
    monkeypatch.chdir(tmp_path)
    assert [job.name for job in plan_jobs(["."])] == [tmp_path.name]


def test_three_corrupt_videos_are_three_rows_and_tried_again(tmp_path, videos):
    broken = tmp_path / "videos"
    broken.mkdir()
    write_numbered(broken / "good.mp4", 9)
    (broken / "one.mp4").write_bytes(b"")
    (broken / "two.mp4").write_bytes(b"noise" * 99)
    (broken / "three.mp4").write_bytes((broken / "good.mp4").read_bytes()[:300])
    run = extract_files(extractor(), plan_jobs([broken]), tmp_path / "out")
    assert run.num_done == 1 and {Path(failure.source).stem for failure in run.failures} == {"one", "two", "three"}
    assert {row["video"] for row in rows_in(tmp_path / "out", "failed")} == {"one", "two", "three"}
    assert all(row["error"] for row in rows_in(tmp_path / "out", "failed"))
    write_numbered(broken / "two.mp4", 9)
    run = extract_files(extractor(), plan_jobs([broken]), tmp_path / "out")
    assert (run.num_done, run.num_skipped, len(run.failures)) == (1, 1, 2)


FORMATS = {
    "npy": FeatureLayout(),
    "npz": FeatureLayout("npz"),
    "safetensors": FeatureLayout("safetensors"),
    "pt": FeatureLayout("pt"),
    "h5": FeatureLayout("h5", name="{stem}/i3d_features/{stream}", collected="hdf5", collected_name="f.h5"),
    "object": FeatureLayout(name="{stem}", collected="object-array", collected_name="all.npy"),
    "mat": FeatureLayout(name="{stem}", collected="mat", collected_name="all.mat"),
    "half": FeatureLayout(dtype="float16", axes="columns"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_bytes_of_every_format_are_the_same_from_run_to_run(tmp_path, videos, name, monkeypatch):
    if name == "h5":
        pytest.importorskip("h5py")
    layout = FORMATS[name]
    extract_files(extractor(), plan_jobs([videos]), tmp_path / "one", layout=layout)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 86400 * 400)  # what zip and HDF5 would write down
    extract_files(extractor(), reversed_jobs(videos), tmp_path / "two", layout=layout)
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two") != {}


def reversed_jobs(videos):
    return plan_jobs([videos])[::-1]


def test_every_format_is_read_back(tmp_path, videos):
    wanted = None
    for name, layout in FORMATS.items():
        extract_files(extractor(), plan_jobs([videos]), tmp_path / name, layout=layout)
    wanted = np.load(tmp_path / "npy" / "sub" / "a_rgb.npy")
    starts, times = [0, 2], [2 / 30, 4 / 30]
    arrays = np.load(tmp_path / "npz" / "sub" / "a_rgb.npz")
    np.testing.assert_array_equal(arrays["features"], wanted)
    assert arrays["start_frames"].tolist() == starts and int(arrays["num_frames"]) == 7
    np.testing.assert_allclose(arrays["times_seconds"], times)
    from safetensors import safe_open

    with safe_open(tmp_path / "safetensors" / "sub" / "a_rgb.safetensors", "pt") as file:
        np.testing.assert_array_equal(file.get_tensor("features").numpy(), wanted)
        card = json.loads(file.metadata()["inflate3d.features"])
    assert card["fps"] == pytest.approx(30) and card["made"]["options"]["window"] == 4
    found = torch.load(tmp_path / "pt" / "sub" / "a_rgb.pt", weights_only=True)
    np.testing.assert_array_equal(found["features"].numpy(), wanted)
    assert found["start_frames"].tolist() == starts and found["video"] == "a"
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "h5" / "f.h5", "r") as file:
        np.testing.assert_array_equal(file["sub/a/i3d_features/rgb"][()], wanted)
        assert len(file) == 4
    names = np.load(tmp_path / "object" / "videoname.npy").astype(str).tolist()
    assert names == ["a", "b", "c.v2", "sub/a"]
    np.testing.assert_array_equal(np.load(tmp_path / "object" / "all.npy", allow_pickle=True)[3], wanted)
    from scipy.io import loadmat

    preds = loadmat(tmp_path / "mat" / "all.mat")["preds"]
    np.testing.assert_array_equal(preds[-2:], wanted)
    half = np.load(tmp_path / "half" / "sub" / "a_rgb.npy")
    assert half.dtype == np.float16 and half.shape == (5, 2)


def test_a_collected_file_follows_its_videos(tmp_path, videos):
    layout = FORMATS["mat"]
    jobs = plan_jobs([videos])
    first = extract_files(extractor(), jobs[:2], tmp_path, layout=layout).collected
    size, written = (tmp_path / "all.mat").stat().st_size, (tmp_path / "all.mat").stat().st_mtime_ns
    assert extract_files(extractor(), jobs[:2], tmp_path, layout=layout).collected == first == ("all.mat",)
    assert (tmp_path / "all.mat").stat().st_mtime_ns == written  # nothing new, nothing written
    extract_files(extractor(), jobs, tmp_path, layout=layout)
    assert (tmp_path / "all.mat").stat().st_size > size
    (tmp_path / "all.mat").unlink()
    extract_files(extractor(), jobs, tmp_path, layout=layout)
    assert (tmp_path / "all.mat").exists()


def test_axes():
    rows = torch.arange(2 * 10 * 3).view(2, 10, 3).float()
    for axes, shape in {
        "rows": (2, 3),
        "columns": (3, 2),
        "crops-inside": (2, 10, 3),
        "crops-first": (10, 2, 3),
        "grid": (2, 1, 1, 3),
    }.items():
        (found,) = arranged(rows, FeatureLayout(axes=axes))
        assert found.shape == shape and found.flags.c_contiguous
    crops = arranged(rows, FeatureLayout(axes="crop-files", name="{stem}_{crop}"))
    assert len(crops) == 10 and crops[7][1, 2] == rows[1, 7, 2]
    np.testing.assert_allclose(arranged(rows, FeatureLayout())[0], rows.mean(1))
    maps = torch.zeros(2, 1, 3, 4, 5, 5)
    assert arranged(maps, FeatureLayout())[0].shape == (2, 3, 4, 5, 5)
    with pytest.raises(InflateError, match="for vectors"):
        arranged(maps, FeatureLayout(axes="columns"))


def test_what_matlab_cannot_hold_is_refused(tmp_path, videos, monkeypatch):
    monkeypatch.setattr("inflate3d.results.feature_files.MOST_MAT_BYTES", 100)
    with pytest.raises(InflateError, match="too large for a file of MATLAB"):
        extract_files(extractor(), plan_jobs([videos]), tmp_path, layout=FORMATS["mat"])
    assert len(rows_in(tmp_path, "done")) == 4  # the videos' own files are there


@pytest.mark.parametrize(("package", "extra"), [("h5py", "hdf5"), ("ray", "scale")])
def test_missing_packages_are_named(tmp_path, videos, monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InflateError, match=f"the package {package} is missing") as caught:
        if package == "ray":
            extract_on_ray(extractor(), plan_jobs([videos]), tmp_path)
        else:
            extract_files(extractor(), plan_jobs([videos]), tmp_path, layout=FORMATS["h5"])
    assert f"inflate3d[{extra}]" in caught.value.fix


def test_joining_along_the_channels():
    for pooled, at in (((2,), 2), ((4, 2), 3), ((2, 4, 3, 3), 2)):
        streams = {name: torch.full((3, 1, *pooled), value) for name, value in (("rgb", 1.0), ("flow", 2.0))}
        video = VideoFeatures("x", streams, torch.arange(3), torch.zeros(3).double(), 4, 9, 25.0)
        (data,) = files_of("x", video, FeatureLayout(name="{stem}", join=True), card="{}").values()
        import io

        found = np.load(io.BytesIO(data))
        assert found.shape[at - 1] == 4 and found.ndim == 1 + len(pooled)
        assert np.take(found, 0, at - 1).max() == 1 and np.take(found, 3, at - 1).min() == 2


def test_two_streams_under_one_name_are_refused(tmp_path, videos):
    both = Extractor(
        {"rgb": Witness(**SPEC).eval(), "flow": Witness(2, **SPEC).eval()}, replace(OPTIONS, streams="both")
    )
    with pytest.raises(InflateError, match="does not fit the features"):
        extract_files(both, plan_jobs([videos]), tmp_path, layout=FeatureLayout(name="{stem}"))
    steps = extractor(replace(OPTIONS, pool="per-step"))
    with pytest.raises(InflateError, match="does not fit the features"):
        extract_files(steps, plan_jobs([videos]), tmp_path, layout=FeatureLayout(axes="columns"))


def test_names_of_videos(tmp_path):
    for name in ("x/a.mp4", "x/deep/a.mp4", "y/a.mp4", "y/b.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [job.name for job in plan_jobs([tmp_path])] == ["x/a", "x/deep/a", "y/a", "y/b"]
    assert [job.name for job in plan_jobs([tmp_path / "x"])] == ["a", "deep/a"]
    assert [job.name for job in plan_jobs([tmp_path / "x", tmp_path / "y" / "b.mp4"])] == ["a", "deep/a", "b"]
    assert [job.name for job in plan_jobs([tmp_path / "x", tmp_path / "y"])] == ["x/a", "x/deep/a", "y/a", "y/b"]
    (tmp_path / "y" / "b.avi").touch()
    with pytest.raises(InflateError, match="one file of features") as caught:
        plan_jobs([tmp_path])
    assert "b.avi" in caught.value.got
    with pytest.raises(InflateError, match="nothing to read"):
        plan_jobs([])


def test_shards_do_all_together(tmp_path, videos):
    jobs = plan_jobs([videos])
    extract_files(extractor(), jobs, tmp_path / "whole")
    for number in (2, 1, 3):
        extract_files(extractor(), jobs, tmp_path / "parts", shard=Shard(number, 3))
    assert outputs(tmp_path / "whole") == outputs(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("manifest.*-of-3.jsonl"))) == 3
    assert extract_files(extractor(), jobs, tmp_path / "parts").num_skipped == 4  # it reads the manifests of all


def test_a_folder_is_written_by_one_run_at_a_time(tmp_path, videos):
    manifest = Manifest(tmp_path)
    with pytest.raises(InflateError, match="another run is writing"):
        Manifest(tmp_path)
    Manifest(tmp_path, Shard(1, 2)).close()
    manifest.close()
    Manifest(tmp_path).close()


def test_a_torn_line_is_left_out(tmp_path, videos):
    jobs = plan_jobs([videos])
    extract_files(extractor(), jobs[:2], tmp_path)
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # in the windows of the last video
    assert extract_files(extractor(), jobs[:2], tmp_path).num_done == 1
    assert {row["video"] for row in Manifest(tmp_path).rows() if "video" in row} == {jobs[0].name, jobs[1].name}


def test_a_full_disk_stops_the_run_and_what_is_done_is_whole(tmp_path, videos, monkeypatch):
    jobs = plan_jobs([videos])
    extract_files(extractor(), jobs, tmp_path / "whole")
    write, written = Path.write_bytes, []

    def until_full(path, data):
        written.append(path)
        if len(written) == 3:
            write(path, data[:40])
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", until_full)
    with pytest.raises(InflateError, match="what was done before is whole") as caught:
        extract_files(extractor(), jobs, tmp_path / "out")
    assert "No space left" in caught.value.got
    monkeypatch.undo()
    done = outputs(tmp_path / "out")  # no draft is left, which would take the room
    assert len(done) == 2 and done.items() <= outputs(tmp_path / "whole").items()
    run = extract_files(extractor(), jobs, tmp_path / "out")
    assert (run.num_done, run.num_skipped) == (2, 2)
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")


def test_a_manifest_that_cannot_be_written_stops_the_run(tmp_path, videos):
    resource = pytest.importorskip("resource")
    manifest = Manifest(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(InflateError, match="cannot be written"):
            manifest.add({"video": "x" * 500})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    manifest.close()
    (tmp_path / "file").touch()
    with pytest.raises(InflateError, match="cannot be written"):
        Manifest(tmp_path / "file")


def test_ten_thousand_files_are_planned_in_two_seconds(tmp_path):
    folder, out = tmp_path / "videos", tmp_path / "out"
    out.mkdir()
    manifest = Manifest(out)
    for k in range(100):
        (folder / f"{k:03}").mkdir(parents=True)
        for i in range(100):
            path = folder / f"{k:03}" / f"{i:02}.mp4"
            path.touch()
            name, files = f"{k:03}/{i:02}", {f"{k:03}-{i:02}.npy": 0}
            windows = {"num_frames": 16, "start_frames": list(range(300)), "times_seconds": list(range(300))}
            if (100 * k + i) % 4:
                (out / f"{k:03}-{i:02}.npy").touch()
                row = {"video": name, "config": "c", "status": "done", "time": 1.0, "state": source_state(path)}
                manifest.add({**row, "files": files, "windows": windows})
    begun = time.process_time()
    jobs = plan_jobs([folder])
    done = manifest.done("c", jobs)
    taken = time.process_time() - begun
    assert (len(jobs), len(done)) == (10_000, 7_500)
    assert taken < 2


def test_the_estimate_is_that_of_a_steady_run():
    now = [0.0]
    estimate = Estimate([100, 300, 50, 600], clock=lambda: now[0])
    assert estimate.seconds_left() is None  # nothing to go by
    estimate.read(0, 0.5)
    now[0] = 5.0
    assert estimate.seconds_left() == pytest.approx(100.0)  # 50 of 1050 bytes in 5 seconds
    estimate.finished(0, failed=False)
    now[0] = 10.0
    assert estimate.seconds_left() == pytest.approx(95.0)
    estimate.finished(2, failed=True)  # says nothing about the time of others
    assert estimate.seconds_left() == pytest.approx(90.0)
    for index in (1, 3):
        estimate.finished(index, failed=False)
    assert estimate.seconds_left() == 0 and estimate.num_done == 4


def test_progress_counts_what_is_to_do(tmp_path, videos):
    jobs, told = plan_jobs([videos]), []
    extract_files(extractor(), jobs[:1], tmp_path)
    extract_files(extractor(), jobs, tmp_path, progress=told.append)
    assert told[-1] == FeatureProgress(3, 3, 0.0)
    assert [one.done for one in told] == sorted(one.done for one in told)


# Imports once; then, for each line that it is sent, a process that can be killed
SERVER = """
import os, sys, time
sys.path[:0] = {paths!r}
from test_features_runs import *
torch.set_num_threads(1)
videos, folder = map(Path, sys.argv[1:])
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        def forward(self, clip, answer=Witness.forward):
            time.sleep(0.01)
            return answer(self, clip)
        Witness.forward = forward
        extract_files(extractor(), plan_jobs([videos]), folder, layout=FORMATS["npz"])
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
"""


def test_a_run_killed_five_times_ends_with_the_bytes_of_one_that_was_not(tmp_path):
    (tmp_path / "videos").mkdir()
    for i in range(40):
        write_numbered(tmp_path / "videos" / f"{i:02}.mp4", 8 + i % 5)
    jobs, out = plan_jobs([tmp_path / "videos"]), tmp_path / "out"
    extract_files(extractor(), jobs, tmp_path / "whole", layout=FORMATS["npz"])
    code = SERVER.format(paths=[str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", code, str(tmp_path / "videos"), str(out)]
    chance, done, whole = random.Random(10), [0], outputs(tmp_path / "whole")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        for _ in range(5):
            server.stdin.write("\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            aim = done[-1] + chance.randint(2, 6)
            while len(complete_rows(out)) < aim:
                time.sleep(chance.random() * 0.02)
            os.kill(child, signal.SIGKILL)
            time.sleep(0.05)
            done.append(len({row["video"] for row in complete_rows(out)}))
            finished = {name: data for name, data in outputs(out).items() if not name.startswith(".drafts")}
            assert finished.items() <= whole.items()  # nothing half-written under its name
        server.stdin.close()
    assert done == sorted(set(done)) and done[-1] < 40  # each one went on, none was finished
    run = extract_files(extractor(), jobs, out, layout=FORMATS["npz"])
    assert run.num_done + run.num_skipped == 40 and run.num_skipped == done[-1]
    assert outputs(out) == outputs(tmp_path / "whole")
    names = [row["video"] for row in complete_rows(out)]
    assert sorted(names) == sorted(set(names)) and len(names) == 40  # nothing was done twice


def complete_rows(folder):
    manifest = folder / "manifest.jsonl"
    if not manifest.exists():
        return []
    lines = [line for line in manifest.read_text().split("\n") if line.endswith("}")]
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if row.get("status") == "done"]


def test_ray_gives_the_same_bytes(tmp_path, videos):
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[Witness.__module__])  # which workers cannot import
    jobs = plan_jobs([videos])
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    jobs.append(Job(bad, "bad"))
    extract_files(extractor(), jobs, tmp_path / "here")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        run = extract_on_ray(extractor(), jobs, tmp_path / "there", workers=2)
        assert (run.num_done, run.num_skipped, len(run.failures)) == (4, 0, 1)
        assert outputs(tmp_path / "here") == outputs(tmp_path / "there")
        facts = [
            {key: value for key, value in row.items() if key != "time"}
            for folder in ("here", "there")
            for row in sorted(rows_in(tmp_path / folder), key=lambda row: row["video"])
        ]
        assert facts[:5] == facts[5:]
        again = extract_on_ray(extractor(), jobs[:4], tmp_path / "there", workers=2)
        assert (again.num_done, again.num_skipped) == (0, 4)
        (tmp_path / "full" / "a_rgb.npy").mkdir(parents=True)  # nothing can be written there
        with pytest.raises(InflateError, match="cannot be written"):
            extract_on_ray(extractor(), jobs[:2], tmp_path / "full", workers=1)
    finally:
        ray.shutdown()


def test_why_a_worker_failed_is_told():
    with pytest.raises(InflateError, match="worker of Ray has failed") as caught:
        raise ray_fault(RuntimeError("first line\nthe node is gone"))
    assert "the node is gone" in caught.value.got

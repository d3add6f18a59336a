"""Methods of optical flow behind one function: direction, sizes, streams, missing packages and weights."""

import pickle
import sys
import types
import zipfile
from typing import get_args

import cv2
import numpy as np
import pytest
import torch
from moving import rgb, shifted
from torchvision.models.optical_flow import Raft_Small_Weights, raft_small

from inflate3d.errors import InflateError
from inflate3d.flow.methods import MethodName, estimate_flow, find_method, to_grey, with_flow


@pytest.fixture(scope="module")
def raft_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("raft") / "raft.pth"
    torch.manual_seed(0)
    torch.save(raft_small().state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["tvl1", "tvl1-opencv", "dis", "farneback"])
def test_all_methods_point_from_the_first_frame_to_the_second(name):
    first, second = shifted(2, -1)
    flow = find_method(name)(rgb(first), rgb(second))
    assert (flow.shape, flow.dtype, flow.is_contiguous()) == ((1, 2, 61, 83), torch.float32, True)
    assert flow[0, :, 15:-15, 15:-15].mean((1, 2)).tolist() == pytest.approx([2, -1], abs=0.3)


def test_grey_is_opencvs_to_the_bit():
    colors = np.random.default_rng(0).integers(0, 256, (301, 407, 3), dtype=np.uint8)
    assert to_grey(torch.from_numpy(colors)).numpy().tolist() == cv2.cvtColor(colors, cv2.COLOR_RGB2GRAY).tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_each_item_but_the_last_gets_the_flow_to_the_next(count, batch_size):
    calls = []

    def difference(first, second):
        calls.append(len(first))
        return (second.float() - first.float())[:, :, :, :2].permute(0, 3, 1, 2)

    items = [(name, torch.full((4, 5, 3), 10 * number**2, dtype=torch.uint8)) for number, name in enumerate("abcde")]
    found = list(with_flow(items[:count], lambda item: item[1], difference, batch_size=batch_size))
    assert [item[0] for item, _ in found] == list("abcde"[: max(count - 1, 0)])
    assert [float(flow.mean()) for _, flow in found] == [10.0, 30.0, 50.0, 70.0][: max(count - 1, 0)]
    assert sum(calls) == max(count - 1, 0)
    assert max(calls, default=0) <= batch_size


def test_a_clip_has_one_flow_less_than_frames():
    frames = torch.cat([rgb(side) for side in shifted(1, 0)])[[0, 1, 1]]
    flow = estimate_flow(frames, "dis")
    assert flow.shape == (2, 2, 61, 83)
    assert flow[1].abs().max() < 0.1 < flow[0, 0].mean()
    assert estimate_flow(frames, find_method("tvl1"))[1].abs().max() == 0


def test_raft_runs_as_torchvision_has_it(raft_file):
    frames = torch.randint(0, 256, (2, 1, 128, 136, 3), dtype=torch.uint8)
    net = raft_small().eval()
    net.load_state_dict(torch.load(raft_file, weights_only=True))
    pictures = Raft_Small_Weights.DEFAULT.transforms()(*(frame.permute(0, 3, 1, 2) for frame in frames))
    with torch.inference_mode():
        expected = net(*pictures)[-1]
    found = find_method("raft-small", weights=raft_file)(*frames)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    odd = find_method("raft-small", weights=raft_file)(*frames[:, :, :61, :83])
    assert odd.shape == (1, 2, 61, 83)


def test_raft_may_let_torchvision_fetch_its_weights(monkeypatch, raft_file):
    asked = []

    def fetched(self, **options):
        asked.append((self.name, options))
        return torch.load(raft_file, weights_only=True)

    monkeypatch.setattr(Raft_Small_Weights, "get_state_dict", fetched)
    find_method("raft-small", weights="download")
    assert asked == [("C_T_V2", {"check_hash": True})]


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("raft/data/0", bytes(100_000_001))


def evil(path):
    torch.save({"weight": Evil()}, path)


def no_tensors(path):
    torch.save([1, 2], path)


def bare_pickle(path):
    path.write_bytes(pickle.dumps({"weight": Evil()}))


@pytest.mark.parametrize(
    ("write", "message"),
    [(bomb, "100,000,001 bytes unpacked"), (evil, "UnpicklingError"), (no_tensors, "no dict of tensors"),
     (bare_pickle, "BadZipFile")],
)  # fmt: skip
def test_files_of_strangers_are_refused(tmp_path, capsys, write, message):
    write(tmp_path / "raft.pth")
    with pytest.raises(InflateError, match=rf"these weights cannot be read(.|\n)*{message}"):
        find_method("raft", weights=tmp_path / "raft.pth")
    assert capsys.readouterr().out == ""


def test_weights_of_another_network_are_refused(raft_file):
    with pytest.raises(InflateError, match=r"not those of raft\n(.|\n)*raft_large"):
        find_method("raft", weights=raft_file)


def test_mistakes_are_told(monkeypatch):
    with pytest.raises(InflateError, match=r"no such method(.|\n)*tvl1-opencv(.|\n)*did you mean tvl1"):
        find_method("tvl")
    with pytest.raises(InflateError, match=r"raft needs its weights(.|\n)*raft_large_C_T_SKHT_V2(.|\n)*download"):
        find_method("raft")
    with pytest.raises(InflateError, match=r"this method has no weights(.|\n)*dis with weights x\.pth"):
        find_method("dis", weights="x.pth")
    with pytest.raises(InflateError, match=r"fewer than two frames(.|\n)*\[1, 20, 20, 3\]"):
        estimate_flow(torch.zeros(1, 20, 20, 3, dtype=torch.uint8))
    with pytest.raises(InflateError, match=r"these are no RGB frames(.|\n)*float32"):
        estimate_flow(torch.zeros(2, 20, 20, 3))
    monkeypatch.setitem(sys.modules, "cv2", types.SimpleNamespace(__version__="4.9"))
    with pytest.raises(InflateError, match=r"contrib(.|\n)*OpenCV 4.9\n(.|\n)*inflate3d\[flow\]"):
        find_method("tvl1-opencv")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InflateError, match=r"the method dis: the package cv2 is missing(.|\n)*or take the method tvl1"):
        find_method("dis")


def test_frames_that_opencv_refuses_are_told():
    with pytest.raises(InflateError, match=r"OpenCV refuses these frames(.|\n)*2x2 pixels"):
        find_method("dis")(*torch.zeros(2, 1, 2, 2, 3, dtype=torch.uint8))


def test_every_method_is_in_the_table_of_the_docstring():
    table = find_method.__doc__
    assert all(f"`{name}`" in table for name in get_args(MethodName))

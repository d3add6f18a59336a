"""Each parser of our own, on what hypothesis makes of good files: it answers, or refuses in words; `make fuzz`."""

import contextlib
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from inflate3d.arrays import read_array_header
from inflate3d.clips.dataset import make_splits, read_listing
from inflate3d.errors import InflateError
from inflate3d.flow.stored import open_flow
from inflate3d.inflation.plan import Insert, LayerPlan, Plan
from inflate3d.results.feature_files import Job
from inflate3d.results.feature_manifest import Manifest
from inflate3d.results.fvd_distance import Gaussian
from inflate3d.results.fvd_protocols import Setup, protocol_named
from inflate3d.results.fvd_videos import VideoStatistics
from inflate3d.train.volume_data import read_volume_splits
from inflate3d.weights.catalogue import Card
from inflate3d.weights.containers import flatten, open_container
from inflate3d.weights.inflated_file import InflatedCard
from inflate3d.weights.pickles import DAMAGED_PICKLE, INSTRUCTIONS, Names, numpy_calls, run_pickle
from inflate3d.weights.stored import ContentError
from weights import foreign_files as foreign

EXAMPLES = int(os.environ.get("INFLATE3D_FUZZ", "25"))  # of each property; `make fuzz` sets it
FUZZING = "INFLATE3D_FUZZ" in os.environ

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None if FUZZING else 4000,  # milliseconds for one example
    derandomize=not FUZZING,
    database=None,  # nothing is written beside the code
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
pytestmark = pytest.mark.filterwarnings("ignore::inflate3d.errors.InflateWarning", "ignore::RuntimeWarning")

NUMBERS = st.sampled_from([0, 1, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
TOKENS = [
    b"\0",
    b"\n",
    b",",
    b'"',
    b";",
    b" ",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 400,
    b"\xff",
    "\u0661".encode(),
    b"..",
    b"/",
]


@st.composite
def mutated(draw, data):
    """A few edits of a good file: bits, numbers, tokens, parts left out, doubled or cut off."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        length = draw(st.sampled_from([1, 2, 4, 8, 40]))
        match draw(st.integers(0, 6)):
            case 0:
                changed[place : place + 1] = bytes([(changed[place] if changed else 0) ^ 1 << draw(st.integers(0, 7))])
            case 1:
                size, number = draw(st.sampled_from([1, 2, 4, 8])), draw(NUMBERS)
                order = draw(st.sampled_from(["little", "big"]))
                changed[place : place + size] = (number % 2 ** (8 * size)).to_bytes(size, order)
            case 2:
                token = draw(st.sampled_from(TOKENS))
                changed[place : place + draw(st.integers(0, len(token)))] = token
            case 3:
                del changed[place : place + length]
            case 4:
                changed[place:place] = changed[max(place - length, 0) : place]
            case 5:
                changed[place : place + length] = draw(st.binary(max_size=length))
            case 6:
                del changed[place:]
    return bytes(changed)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9) | st.just(10**400)
    | st.sampled_from(["inflate", "mean", "time_pool", "zeros", "softmax"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@st.composite
def altered(draw, document):
    """The JSON of a document in which some values are others, are missing, or stand twice."""
    tree = json.loads(document)
    for _ in range(draw(st.integers(1, 3))):
        node = tree
        while isinstance(node, dict | list) and node:
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
            inner = node[key]
            if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
                match draw(st.integers(0, 3)):
                    case 0 if isinstance(node, dict):
                        del node[key]
                    case 1 if isinstance(node, dict):
                        node[draw(st.text(max_size=5))] = inner
                    case _:
                        node[key] = draw(json_values)
                break
            node = inner
    return json.dumps(tree)


def answers_or_refuses(parse, *arguments):
    """Give what comes out, or None for what is refused; every other error is a fault of the parser."""
    try:
        return parse(*arguments)
    except InflateError as error:
        assert str(error).count("\n") >= 3
        assert error.got and len(str(error)) < 100_000
        return None


# --- weights --------------------------------------------------------------------------------------------------------

ARRAYS = {"a/w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4), "c": np.zeros((1, 2, 0), np.float32)}


def read_all(path):
    with open_container(path) as container:
        return {name: stored.read() for name, stored in container.tensors.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def files_of_weights():
    torch_state = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}
    new, old, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": torch_state}, new)
    torch.save(torch_state, old, _use_new_zipfile_serialization=False)
    np.savez(arrays, **ARRAYS)
    return {"new": new.getvalue(), "old": old.getvalue(), "npz": arrays.getvalue(), "pkl": pickle.dumps(ARRAYS, 2)}


WEIGHTS = files_of_weights()


@pytest.mark.parametrize("kind", WEIGHTS)
@given(data=st.data())
@bounded
def test_files_of_weights(folder, kind, data):
    (folder / kind).write_bytes(data.draw(mutated(WEIGHTS[kind])))
    answers_or_refuses(read_all, folder / kind)


@given(data=st.data())
@bounded
def test_tensorflow_bundles_whose_checksums_are_right(folder, data):
    """Checksums guard against damage, not against people: the content of the blocks is changed, then signed."""
    change = {name: {"shape": data.draw(mutated(b"\x12\x02\x08\x02\x12\x02\x08\x03"))} for name in ("a/w",)}
    path = foreign.bundle(folder, "m", ARRAYS, shards=data.draw(st.sampled_from([1, 2])), change=change)
    answers_or_refuses(read_all, path)
    entries = [(b"", b"\x08\x01\x1a\x02\x08\x01")]
    entries += [(name.encode(), foreign.entry(array, 0, 0)) for name, array in sorted(ARRAYS.items())]
    changed = [(key, data.draw(mutated(value)) if data.draw(st.booleans()) else value) for key, value in entries]
    path.write_bytes(foreign.table(changed))
    answers_or_refuses(read_all, path)
    signed = bytearray(foreign.table(entries))
    length = signed.index(foreign.block(entries)[-5:])  # of the first block, without how it is packed
    signed[:length] = data.draw(mutated(bytes(signed[:length])))[:length].ljust(length, b"\0")
    signed[length + 1 : length + 5] = struct.pack("<I", foreign.masked(foreign.crc32c(bytes(signed[: length + 1]))))
    path.write_bytes(signed)
    answers_or_refuses(read_all, path)


NUMPY_NAMES = [
    *(
        b"cnumpy\ndtype\n",
        b"cnumpy\nndarray\n",
        b"c_codecs\nencode\n",
        b"ccollections\nOrderedDict\n",
        b"cos\nsystem\n",
    ),
    *(b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n", b"cbuiltins\nset\n"),
]
PIECES = [
    *(
        b"K\1",
        b"M\0\1",
        b"J\xff\xff\xff\x7f",
        b"\x8a\x01\xff",
        b"G" + bytes(8),
        b"N",
        b"\x88",
        b"\x89",
        b"(",
        b"}",
        b"]",
    ),
    *(
        b")",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"s",
        b"u",
        b"a",
        b"e",
        b"q\0",
        b"h\0",
        b"R",
        b"\x81",
        b"b",
        b"Q",
        b"0",
        b"\x94",
    ),
    *(b"X\1\0\0\0a", b"X\2\0\0\0f4", b"U\1b", b"C\4abcd", b"X\6\0\0\0latin1", b"\x93"),
]


@given(pieces=st.lists(st.sampled_from(PIECES + NUMPY_NAMES), max_size=60), rest=st.booleans())
@bounded
def test_programs_of_the_pickle_machine(pieces, rest):
    program = b"\x80\x02" + b"".join(pieces) + b"." * rest
    try:
        flatten(run_pickle(io.BytesIO(program), Names(numpy_calls(10_000))), "/")
    except (ContentError, *DAMAGED_PICKLE):
        pass


def test_the_pieces_are_the_machines_instructions():
    import pickletools

    spelled = {
        opcode.name
        for opcode in pickletools.opcodes
        if any(piece[:1].decode("latin-1") == opcode.code for piece in PIECES)
    }
    assert len(spelled & INSTRUCTIONS.keys()) >= 30


# --- JSON -----------------------------------------------------------------------------------------------------------

LAYERS = (
    LayerPlan("conv", "Conv2d", "inflate", (3, 3), 3, profile=(0.5, 0.25, 0.25), kind="conv"),
    LayerPlan("up", "Upsample", "resize", kind="resize", time_scale=2),
)
PLAN = Plan("Net", "video", (3, 9, 9), LAYERS, inserts=(Insert("conv", "time_pool"),), spacing_mm=(5.0, 1.0, 1.0))
SETUP = Setup(protocol_named("tats"), 16, 1, "native", "InceptionI3d", "0" * 64)


def use_plan(text):
    plan = Plan.from_json(text)
    assert Plan.from_json(plan.to_json()) == plan
    assert str(plan) and plan.steps and plan.differences(PLAN) is not None
    return plan.looks_through_time, plan.frames_lost


@given(text=altered(PLAN.to_json()) | mutated(PLAN.to_json().encode()).map(lambda data: data.decode(errors="replace")))
@bounded
def test_plans(text):
    answers_or_refuses(use_plan, text)


CARDS = {
    InflatedCard: InflatedCard("timm/resnet18", {"num_classes": 7}, "none", PLAN, class_names=("a", "b")).to_json(),
    Card: json.dumps(
        {
            **dict.fromkeys(("license", "repackaged_under", "source", "source_sha256", "reported_accuracy"), "mine"),
            **dict.fromkeys(("accuracy_protocol", "inflate3d_version"), "none"),
            "name": "a",
            "architecture": "i3d",
            "num_classes": 3,
            "label_set": None,
            "in_channels": 2,
            "clip": {
                "fps": 25.0,
                "num_frames": 64,
                "min_frames": 9,
                "short_side": 256,
                "crop": 224,
                "value_range": [-1, 1],
            },
        }
    ),
}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.__name__)
@given(data=st.data())
@bounded
def test_cards(card, data):
    assert card.from_json(CARDS[card], where="a card").name
    text = data.draw(altered(CARDS[card]))
    answers_or_refuses(lambda: card.from_json(text, where="a card").to_json())


@given(text=altered(SETUP.to_json()))
@bounded
def test_setups_of_statistics(text):
    with contextlib.suppress(ValueError, TypeError, KeyError):  # as it says; `VideoStatistics.load` tells them
        assert Setup.from_json(text).differences(SETUP) is not None


ROWS = [
    {"run": "c", "made": {}, "versions": {}, "videos": 1},
    {
        "video": "a",
        "source": "a.mp4",
        "config": "c",
        "status": "done",
        "time": 1.0,
        "state": [1, 2],
        "files": {"a.npy": 7},
    },
    {"collected": "c", "files": ["features.npy"]},
]


@given(rows=st.lists(st.sampled_from(ROWS), min_size=1, max_size=4).flatmap(lambda rows: altered(json.dumps(rows))))
@bounded
def test_manifests(folder, rows):
    found = json.loads(rows)
    lines = [json.dumps(row) for row in (found if isinstance(found, list) else [found])]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join([*lines, json.dumps(ROWS[1]), ""]))
    (folder / "a.npy").write_bytes(bytes(7))
    with Manifest(folder) as opened:
        assert opened.done("c", [Job(folder / "a.npy", "a"), Job(folder / "not there", "b")]) == {}
        assert [row for row in opened.rows() if row == ROWS[1]]  # what is whole is not lost beside what is not


@given(data=st.data())
@bounded
def test_files_of_statistics(folder, data):
    path = folder / "statistics.safetensors"
    VideoStatistics(SETUP, Gaussian.of(torch.eye(4)), torch.eye(4)).save(path)
    path.write_bytes(data.draw(mutated(path.read_bytes())))
    answers_or_refuses(VideoStatistics.load, path)


# --- flow -----------------------------------------------------------------------------------------------------------

FLOWS = np.random.default_rng(0).integers(0, 256, (2, 2, 9, 13), np.uint8)


def picture(plane, kind):
    file = io.BytesIO()
    Image.fromarray(plane).save(file, kind)
    return file.getvalue()


def npz(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


PICTURES = {kind: picture(FLOWS[0, 0], kind) for kind in ("PNG", "JPEG")}


@pytest.mark.parametrize("kind", PICTURES)
@given(data=st.data())
@bounded
def test_pictures_of_flow(folder, kind, data):
    place = folder / kind
    place.mkdir(exist_ok=True)
    for axis in "xy":
        (place / f"flow_{axis}_00000.{kind.lower()}").write_bytes(data.draw(mutated(PICTURES[kind])))
    record = data.draw(altered('{"num_flows": 1, "bound": 20.0}') | mutated(b'{"num_flows": 1}').map(bytes.hex))
    (place / "flow.json").write_text(record if data.draw(st.booleans()) else '{"num_flows": 1, "bound": 20.0}')
    answers_or_refuses(lambda: list(open_flow(place)))


@given(data=st.data())
@bounded
def test_archives_of_flow(folder, data):
    """Once damaged on the outside, once only within, so that the archive is whole."""
    members = {"flow": npy(FLOWS), "bound": npy(np.float64(20))}
    within = {name: data.draw(mutated(array)) for name, array in members.items()}
    for packed in (npz(**within), data.draw(mutated(npz(**members)))):
        (folder / "flow.npz").write_bytes(packed)
        answers_or_refuses(lambda: list(open_flow(folder / "flow.npz")))


@given(header=mutated(npy(FLOWS)))
@bounded
def test_headers_of_arrays(header):
    try:
        found = read_array_header(io.BytesIO(header))
    except ValueError:
        return
    assert min(found.shape, default=0) >= 0 and found.nbytes >= 0


# --- lists ----------------------------------------------------------------------------------------------------------

LISTS = {
    "a.csv": "path,label,split,group,fold\na.mp4,x,train,g,0\nb.mp4,y,test,h,1\nc.mp4,x,,,2\n",
    "kinetics.csv": "label,youtube_id,time_start,time_end,split\nx,a,1,11,train\ny,b,2.5,12,val\n",
    "charades.csv": "id,actions,subject\na,c1 0.5 2;c2 1 3,s\nb,,t\n",
    "a.tsv": "path\tlabel\na.mp4\tx\nb.mp4\ty\n",
    "train.txt": "a.mp4 1\nb.mp4 0 2\nframes 31 1\n",
    "ucf/classInd.txt": "1 Run\n2 Jump\n",
    "ucf/trainlist01.txt": "Run/v_Run_g01_c01.avi 1\nJump/v_Jump_g02_c01.avi 2\n",
    "hmdb/run_test_split1.txt": "a.avi 1\nb.avi 2\nc.avi 0\n",
}


@pytest.mark.parametrize("name", LISTS)
@given(data=st.data())
@bounded
def test_lists(folder, name, data):
    for other, text in LISTS.items():
        (folder / "lists" / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / "lists" / other).write_text(text)
    (folder / "lists" / "ucf" / "testlist01.txt").write_text(LISTS["ucf/trainlist01.txt"])
    path = folder / "lists" / name
    path.write_bytes(data.draw(mutated(LISTS[name].encode())))
    answers_or_refuses(lambda: make_splits(read_listing(path.parent if "/" in name else path)))
    if path.suffix == ".csv":
        answers_or_refuses(read_volume_splits, path, "classes")


@given(names=altered('{"labels": {"background": 0, "ball": 1, "2": "cube"}}'))
@bounded
def test_names_of_parts(folder, names):
    for part in ("images", "labels"):
        (folder / "scans" / part).mkdir(parents=True, exist_ok=True)
        (folder / "scans" / part / "a.nii").touch()
    (folder / "scans" / "dataset.json").write_text(names)
    answers_or_refuses(read_volume_splits, folder / "scans", "mask")

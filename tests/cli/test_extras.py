"""A plain install: a command whose extra is missing says which one to install, before long work, and no traceback."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import NamedTuple

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import torch

from inflate3d.clips.volume_spec import VolumeSpec
from inflate3d.inflation.build import inflate
from inflate3d.inflation.channels import with_input_channels
from inflate3d.models.sources import find_2d_model
from inflate3d.models.zoo import build_network
from inflate3d.weights.checkpoint import save_weights
from inflate3d.weights.hub import card_for
from inflate3d.weights.inflated_file import save_inflated
from videos import paint, write_video
from warm import warm

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {
    "opencv-contrib-python-headless": "cv2",
    "pynrrd": "nrrd",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
}
NOT_OF_COMMANDS = {"dev", "docs", "test"}
SPEC = VolumeSpec("mask", ("background", "lump"), (1.0, 1.0, 1.0), (8, 16, 16), window=(0.0, 1.0))
SMALL = ("--model", "timm/test_resnet", "--weights", "none", "--window", "4", "--crop", "32", "--resize", "32")


class Case(NamedTuple):
    """A command, an extra it needs, and the packages of it that are missing, each in a run of its own."""

    command: str
    extra: str
    packages: tuple[str, ...]


CASES = (
    Case("train finetune-small --data classes", "train", ("lightning", "torchmetrics", "tensorboard")),
    Case("train volume-segment --data scans", "train", ("lightning",)),
    Case("evaluate best.ckpt --data classes", "train", ("lightning", "torchmetrics")),
    Case("show filters best.ckpt -o filters.png", "train", ("lightning",)),
    Case("train volume-segment --data scans --fold 0", "volume", ("monai", "nibabel")),
    Case("train volume-segment --data scans --fold 0", "zoo", ("segmentation_models_pytorch",)),
    Case("train volume-classify --data scans.npz", "volume", ("monai",)),
    Case("train volume-segment --data nrrd --fold 0", "volume", ("nrrd",)),
    Case("train volume-segment --data dicom --fold 0", "volume", ("pydicom",)),
    Case("evaluate masks.safetensors --data scans --fold 0", "volume", ("monai", "nibabel")),
    Case("predict scan.nii.gz --model masks.safetensors", "volume", ("monai", "nibabel")),
    Case("predict scan.nrrd --model masks.safetensors", "volume", ("nrrd",)),
    Case("predict patient --model masks.safetensors", "volume", ("pydicom",)),
    Case("plan hf/resnet", "zoo", ("transformers",)),
    Case("prove smp/Unet-resnet18", "zoo", ("segmentation_models_pytorch",)),
    Case("inflate smp/Unet-resnet18 --weights none -o m.safetensors", "zoo", ("segmentation_models_pytorch",)),
    Case("show plan hf/resnet -o plan.svg", "zoo", ("transformers",)),
    Case("predict scan.npy --model masks.safetensors", "zoo", ("segmentation_models_pytorch",)),
    Case("flow video.mp4 -o flow --method dis", "flow", ("cv2",)),
    Case("predict video.mp4 --stream flow --flow-model f.pt --flow-method farneback", "flow", ("cv2",)),
    Case(f"features video.mp4 -o rows --format h5 {' '.join(SMALL)}", "hdf5", ("h5py",)),
    Case(f"features video.mp4 -o rows --ray {' '.join(SMALL)}", "scale", ("ray",)),
    Case(
        "show saliency video.mp4 -o s.png --model i3d --method integrated-gradients --num-frames 9", "show", ("captum",)
    ),
    Case("app", "app", ("gradio",)),
    Case("export timm/test_resnet --weights none -o m.onnx", "export", ("onnx", "onnxscript", "onnxruntime")),
    Case("export timm/test_resnet --weights none -o m.xml", "export", ("openvino",)),
    Case("predict video.mp4 --model theirs.onnx", "export", ("onnx", "onnxruntime")),
    Case("predict video.mp4 --model theirs.xml", "export", ("openvino",)),
    Case("predict video.mp4 --model small.safetensors --precision int8", "int8", ("nncf", "openvino")),
)
RUNS = [(case.command, case.extra, package) for case in CASES for package in case.packages]
RESULTS = ("filters.png", "m.onnx", "m.safetensors", "m.xml", "plan.svg", "s.png", "flow", "rows")
HEAVY = ("lightning", "monai.inferers", "monai.transforms", "monai.losses", "monai.metrics", "openvino", "onnx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What these commands are given: small but whole, so that nothing else is to be said about it."""
    folder = tmp_path_factory.mktemp("plain")
    write_video(folder / "video.mp4", [paint(number) for number in range(16)])
    for kind in ("one", "other"):
        (folder / "classes" / kind).mkdir(parents=True)
        write_video(folder / "classes" / kind / "video.mp4", [paint(number) for number in range(4)])
    for name in ("best.ckpt", "f.pt", "theirs.onnx", "theirs.xml"):  # nobody gets to read them
        (folder / name).write_bytes(b"")
    write_scans(folder)
    write_networks(folder)
    with warm(folder / "inflate3d", *HEAVY):
        yield folder


def write_scans(folder):
    """Write a scan of each format, and a list of five of each, whose masks are NIfTI."""
    voxels = np.arange(8 * 9 * 10, dtype=np.int16).reshape(8, 9, 10)
    scan, mask = nibabel.Nifti1Image(voxels, np.eye(4)), nibabel.Nifti1Image((voxels > 99).astype(np.uint8), np.eye(4))
    np.save(folder / "scan.npy", voxels)
    nibabel.save(scan, folder / "scan.nii.gz")
    nrrd.write(str(folder / "scan.nrrd"), voxels)
    write_dicom(folder / "patient")
    for form in ("scans", "nrrd", "dicom"):
        images, labels = folder / form / "images", folder / form / "labels"
        images.mkdir(parents=True)
        labels.mkdir()
        for name in "abcde":
            nibabel.save(mask, labels / f"{name}.nii.gz")
            if form == "scans":
                nibabel.save(scan, images / f"{name}.nii.gz")
            elif form == "nrrd":
                nrrd.write(str(images / f"{name}.nrrd"), voxels)
            else:
                write_dicom(images / name)
    parts = ("train", "val", "test")
    arrays = {f"{part}_images": np.zeros((4, 8, 8, 8), np.uint8) for part in parts}
    np.savez(folder / "scans.npz", **arrays, **{f"{part}_labels": np.arange(4)[:, None] % 2 for part in parts})


def write_dicom(folder):
    """Write a folder that is told to be DICOM; nobody gets to look for its slices."""
    folder.mkdir()
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.save_as(folder / "0.dcm", enforce_file_format=True)


def write_networks(folder):
    """Write one for masks, and one for videos; both random."""
    name, options = "smp/Unet-tu-test_resnet", {"classes": 2, "encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    flat = with_input_channels(find_2d_model(name, **options), 1, example=torch.zeros(1, 3, 16, 16))
    model = inflate(flat, "isotropic", example=torch.zeros(1, 1, 16, 16))
    model.volume_spec = SPEC
    save_inflated(model, folder / "masks.safetensors", name, options=options, class_names=SPEC.class_names)
    small = build_network("inflated/timm/test_resnet", num_classes=2).eval()
    card = card_for(small, "inflated/timm/test_resnet", license="none", source="random numbers")
    save_weights(small.state_dict(), card, folder / "small.safetensors")


@pytest.mark.parametrize(("command", "extra", "package"), RUNS, ids=lambda part: str(part).replace("/", "-"))
def test_the_extra_is_named(folder, command, extra, package):
    code = f"import sys; package, sys.argv = {package!r}, ['inflate3d', *{command.split()!r}]; "
    code += "missing = [name for name in sys.modules if name.partition('.')[0] == package] + [package]; "
    code += "sys.modules.update(dict.fromkeys(missing)); import inflate3d.cli; inflate3d.cli.main()"
    done = subprocess.run([folder / "inflate3d", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f'pip install "inflate3d[{extra}]"' in done.stderr
    assert f"the package {package} is missing" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not [name for name in RESULTS if (folder / name).exists()]  # it is told before the work, not after


def test_each_package_of_each_extra_is_asked_for():
    wanted = set()
    for extra, requirements in PROJECT["optional-dependencies"].items():
        if extra not in NOT_OF_COMMANDS:
            names = (re.match(r"[\w-]+", requirement)[0] for requirement in requirements)
            wanted |= {(extra, IMPORTED_AS.get(name, name)) for name in names}
    assert {(extra, package) for _, extra, package in RUNS} == wanted

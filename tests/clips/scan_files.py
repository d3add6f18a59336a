"""Scans on disk for tests: written by nibabel and pydicom, read by SimpleITK."""

import nibabel
import numpy as np
import SimpleITK
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

TURN = torch.linalg.qr(torch.eye(3, dtype=torch.float64) + 0.2 * torch.tensor([[0, 1, -1], [-1, 0, 2], [1, -2, 0]]))[0]
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3], OBLIQUE[:3, 3] = TURN.numpy() * np.array([2.5, 0.7, 0.8]), (-20, 11, 5)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def itk(path):
    """Read by SimpleITK, turned as we do: voxels [d, h, w] and affine."""
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "LPS")
    affine = np.eye(4)
    directions = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, :3], affine[:3, 3] = directions[:, ::-1], image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image), np.diag([-1.0, -1, 1, 1]) @ affine


def save_nifti(path, voxels, affine):
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def save_series(folder, voxels, *, uid=None, gap=2.5, skip=(), **tags):
    """Write axial slices in a shuffled order of names."""
    folder.mkdir(exist_ok=True)
    uid = uid or generate_uid()
    for name, place in enumerate(np.random.default_rng(3).permutation(len(voxels)).tolist()):
        if place in skip:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = Dataset()
        one.file_meta = meta
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        one.SeriesInstanceUID, one.SeriesDescription, one.Modality, one.InstanceNumber = uid, "CHEST", "CT", name + 1
        one.ImagePositionPatient, one.ImageOrientationPatient = [-50, -60, 7 + gap * place], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.Rows, one.Columns = [0.7, 0.9], *voxels.shape[1:]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation, one.RescaleSlope, one.RescaleIntercept = 15, 1, 1, -24
        one.PixelData = voxels[place].tobytes()
        for tag, value in tags.items():
            setattr(one, tag, value)
        one.save_as(folder / f"s{uid[-4:]}_{name}.dcm", enforce_file_format=True)
    return folder

"""Volumes in the types, encodings and layouts that other programs write: what is read is what SimpleITK reads."""

import tracemalloc
import warnings
import zlib
from contextlib import nullcontext

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless
from scan_files import OBLIQUE, drawn, itk, save_nifti, save_series

from inflate3d.clips.volume import Grid, Volume, resample_to
from inflate3d.clips.volume_files import read_volume, write_volume
from inflate3d.errors import InflateError, InflateWarning

TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")


def extremes(dtype, shape=(3, 4, 5)):
    """The smallest and the largest value of a type among others, so that a narrower one would show."""
    limits = np.finfo(dtype) if dtype.startswith("float") else np.iinfo(dtype)
    values = np.arange(np.prod(shape)).astype(dtype)
    values[:2] = limits.min, limits.max
    return values.reshape(shape)


def read(path, **how):
    return read_volume(path, orientation=None, **how).data[0].numpy()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_of_nifti_keeps_its_values(tmp_path, dtype, order):
    values = extremes(dtype)
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(values.dtype)
    path = tmp_path / "a.nii"
    nibabel.Nifti1Image(values, np.eye(4), header).to_filename(path)
    found = read(path)
    assert found.tolist() == values.tolist()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2", "ascii"])
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
def test_every_encoding_of_nrrd_keeps_its_values(tmp_path, dtype, encoding, suffix):
    values = drawn(3, 4, 5).astype(dtype) if encoding == "ascii" else extremes(dtype)
    header = {
        "encoding": encoding,
        "space": "left-posterior-superior",
        "space directions": OBLIQUE[:3, :3].T,
        "space origin": OBLIQUE[:3, 3],
    }
    path = tmp_path / f"a{suffix}"
    nrrd.write(str(path), values, header, detached_header=suffix == ".nhdr")
    found = read_volume(path, orientation=None)
    assert found.data[0].tolist() == values.tolist()
    np.testing.assert_allclose(found.grid.affine, np.diag([-1, -1, 1, 1]) @ OBLIQUE, atol=1e-6)


@pytest.mark.parametrize("compress", [False, True])
def test_what_simpleitk_writes_is_read_as_it_was(tmp_path, compress):
    image = SimpleITK.GetImageFromArray(drawn(5, 6, 7))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((3, -4, 5))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    for name in ("a.nrrd", "a.nhdr", "a.nii", "a.nii.gz"):
        SimpleITK.WriteImage(image, str(tmp_path / name), useCompression=compress)
        voxels, affine = itk(tmp_path / name)
        found = read_volume(tmp_path / name)
        assert np.array_equal(found.data[0], voxels)
        np.testing.assert_allclose(found.grid.affine, affine, atol=1e-4)


@pytest.mark.parametrize("space", ["LPS", "ras", "LAS", "Left-Posterior-Superior", None])
def test_spaces_of_nrrd_are_those_of_simpleitk(tmp_path, space):
    """Whatever they are called; where none is named, it is LPS and said so."""
    where = "space directions: (1,0,0) (0,2,0) (0,0,3)\nspace origin: (4,5,6)"
    where = f"space: {space}\n{where}" if space else "spacings: 1 2 3"
    head = f"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nencoding: raw\nendian: little\n{where}\n\n"
    path = tmp_path / "a.nrrd"
    path.write_bytes(head.encode() + drawn(2, 3, 4).tobytes())
    with nullcontext() if space else pytest.warns(InflateWarning, match="does not say where left and right are"):
        found = read_volume(path)
    voxels, affine = itk(path)
    assert np.array_equal(found.data[0], voxels)
    np.testing.assert_allclose(found.grid.affine, affine, atol=1e-6)


def test_values_of_nifti_are_scaled_as_its_header_says(tmp_path):
    image = nibabel.Nifti1Image(drawn(4, 5, 6), np.eye(4))
    image.header.set_slope_inter(0.25, -7)
    path = tmp_path / "a.nii.gz"
    image.to_filename(path)
    data = bytearray(__import__("gzip").decompress(path.read_bytes()))
    data[112:120] = np.array([0.25, -7], "<f4").tobytes()  # nibabel scales what it writes itself
    (tmp_path / "b.nii").write_bytes(bytes(data))
    wanted = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "b.nii"))).transpose()
    found = read(tmp_path / "b.nii")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    np.testing.assert_allclose(found, drawn(4, 5, 6) * 0.25 - 7, atol=1e-3)


@pytest.mark.parametrize("unit", ["unknown", "meter", "mm", "micron"])
def test_lengths_of_nifti_are_in_the_unit_of_its_header(tmp_path, unit):
    image = nibabel.Nifti1Image(drawn(4, 5, 6), OBLIQUE)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    found = read_volume(tmp_path / "a.nii")
    voxels, affine = itk(tmp_path / "a.nii")
    assert np.array_equal(found.data[0], voxels)
    np.testing.assert_allclose(found.grid.affine, affine, rtol=1e-4, atol=1e-7)
    write_volume(tmp_path / "b.nii", resample_to(found, found.stored))
    np.testing.assert_allclose(itk(tmp_path / "b.nii")[1], affine, rtol=1e-4, atol=1e-7)


def test_one_of_many_volumes_takes_the_memory_of_one(tmp_path):
    values = np.zeros((16, 16, 16, 100), np.int16)
    values[..., 7] = drawn(16, 16, 16)
    path = save_nifti(tmp_path / "a.nii.gz", values, np.eye(4))
    read(path, part=7)
    tracemalloc.start()
    found = read(path, part=7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.dtype == np.int16 and np.array_equal(found, values[..., 7])
    assert peak < values.nbytes / 2


def test_axes_of_one_value_behind_the_third_are_no_further_volumes(tmp_path):
    for shape in ((4, 5, 6, 1), (4, 5, 6, 1, 1)):
        assert np.array_equal(read(save_nifti(tmp_path / "a.nii", drawn(*shape), np.eye(4))), drawn(4, 5, 6))
    path = save_nifti(tmp_path / "vectors.nii", drawn(4, 5, 6, 1, 3), np.eye(4))
    assert np.array_equal(read(path, part=1), drawn(4, 5, 6, 1, 3)[..., 0, 1])


def test_what_holds_more_or_less_than_a_value_for_each_voxel_is_refused(tmp_path):
    colors = np.zeros((3, 4, 5), np.dtype([(color, np.uint8) for color in "RGB"]))
    several = {
        "colors": save_nifti(tmp_path / "colors.nii", colors, np.eye(4)),
        "4x5 values": save_nifti(tmp_path / "flat.nii", drawn(4, 5), np.eye(4)),
        "4x5x6x2x3 values": save_nifti(tmp_path / "tensors.nii", drawn(4, 5, 6, 2, 3), np.eye(4)),
        "2x3x4x5 values": tmp_path / "four.nrrd",
        "[3, 4] int16": tmp_path / "two.npy",
        "[2, 3, 4] complex64": tmp_path / "complex.npy",
    }
    nrrd.write(str(several["2x3x4x5 values"]), drawn(2, 3, 4, 5))
    np.save(several["[3, 4] int16"], drawn(3, 4))
    np.save(several["[2, 3, 4] complex64"], np.zeros((2, 3, 4), np.complex64))
    for got, path in several.items():
        with pytest.raises(InflateError, match="this is not one volume") as caught:
            read_volume(path, spacing_mm=(1, 1, 1))
        assert caught.value.got == got


def test_a_part_that_is_not_there_is_refused(tmp_path):
    save_nifti(tmp_path / "a.nii", drawn(4, 5, 6), np.eye(4))
    save_nifti(tmp_path / "b.nii.gz", drawn(4, 5, 6, 1), np.eye(4))
    write_volume(tmp_path / "c.nrrd", Volume(torch.from_numpy(drawn(4, 5, 6))[None], Grid((4, 5, 6), np.eye(4))))
    np.save(tmp_path / "d.npy", drawn(4, 5, 6))
    (tmp_path / "e").mkdir()
    for number in range(4):
        Image.fromarray(drawn(5, 6).astype(np.uint8)).save(tmp_path / "e" / f"{number}.png")
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(read(path, part=0, spacing_mm=(1, 1, 1)), read(path, spacing_mm=(1, 1, 1)))
        for part in (1, "mask"):
            with pytest.raises(InflateError, match="there is no such part"):
                read(path, part=part, spacing_mm=(1, 1, 1))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm"])
def test_slices_keep_their_16_bits(tmp_path, suffix):
    voxels = drawn(3, 6, 8).view(np.uint16)
    for number, one in enumerate(voxels):
        Image.fromarray(one).save(tmp_path / f"{number}{suffix}")
    assert np.array_equal(read(tmp_path, spacing_mm=(3, 1, 1)), voxels)
    Image.fromarray(voxels[0].astype(np.uint8)).save(tmp_path / f"3{suffix}")
    with pytest.raises(InflateError, match="different sizes or bits"):
        read(tmp_path, spacing_mm=(3, 1, 1))


def test_colors_of_16_bits_are_refused(tmp_path):
    (tmp_path / "0.ppm").write_bytes(b"P6\n2 2\n65535\n" + bytes(range(24)))
    with pytest.raises(InflateError, match="the values of a slice cannot be kept"):
        read(tmp_path, spacing_mm=(3, 1, 1))


def test_a_given_spacing_takes_the_place_of_the_files_and_turns_nothing(tmp_path):
    path = save_nifti(tmp_path / "a.nii", drawn(4, 5, 6), OBLIQUE)
    given, stored = (read_volume(path, spacing_mm=mm, orientation=None).grid for mm in ((3.0, 1.5, 0.25), None))
    assert given.spacing_mm == pytest.approx((3.0, 1.5, 0.25))
    directions = [grid.affine[:3, :3] / np.array(grid.spacing_mm) for grid in (given, stored)]
    np.testing.assert_allclose(*directions, atol=1e-6)
    for wrong in ((1, 2), (1, 2, 0), (1, 2, float("nan")), 5.0, "1,2,3"):
        with pytest.raises(InflateError, match="how far voxels are apart"):
            read_volume(path, spacing_mm=wrong)


def test_arrays_bring_their_place_along(tmp_path):
    np.savez(tmp_path / "a.npz", image=drawn(4, 5, 6), affine=OBLIQUE)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.npz", orientation=None).grid.affine, OBLIQUE)
    np.savez(tmp_path / "b.npz", image=drawn(4, 5, 6))
    with pytest.raises(InflateError, match="how far voxels are apart"):
        read_volume(tmp_path / "b.npz")
    with pytest.raises(InflateError, match="this is not one volume"):
        read_volume(tmp_path / "a.npz", part="mask")


@pytest.mark.parametrize(
    ("values", "dtype"),
    [((0, 255), "uint8"), ((-1, 255), "int16"), ((0, 40_000), "int32"), ((0, 2**40), "float64"), ((0, 1), "uint8")],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_masks_of_long_numbers_are_written_as_short_as_they_fit(tmp_path, values, dtype, suffix):
    data = torch.tensor([*values, 0, 0]).view(1, 1, 2, 2)
    path = tmp_path / f"mask{suffix}"
    write_volume(path, Volume(data.bool() if values == (0, 1) else data, Grid((1, 2, 2), np.eye(4))))
    stored = nrrd.read(str(path))[0] if suffix == ".nrrd" else np.asarray(nibabel.load(path).dataobj)
    assert stored.dtype == np.dtype(dtype)
    assert stored.ravel()[:2].tolist() == list(values)


def test_the_same_mask_gives_the_same_bytes(tmp_path):
    volume = Volume(torch.ones(1, 3, 4, 5, dtype=torch.uint8), Grid((3, 4, 5), OBLIQUE))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(
    ("tags", "dtype"),
    [
        ({"RescaleSlope": 1, "RescaleIntercept": -1024}, "int16"),
        ({"RescaleSlope": 1, "RescaleIntercept": 40_000}, "int32"),
        ({"RescaleSlope": 1, "RescaleIntercept": -40_000}, "int32"),
        ({"RescaleSlope": 0.5, "RescaleIntercept": 3}, "float32"),
        ({"RescaleSlope": 1, "RescaleIntercept": 0.25}, "float32"),
        ({"PixelRepresentation": 0, "RescaleIntercept": 0}, "int32"),
    ],
)
def test_slices_are_rescaled_as_simpleitk_does(tmp_path, tags, dtype):
    voxels = drawn(4, 8, 10)
    folder = save_series(tmp_path / "scan", voxels, **tags)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    wanted = SimpleITK.GetArrayFromImage(reader.Execute())
    found = read_volume(folder).data[0].numpy()
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    pixels = voxels.view(np.uint16) if "PixelRepresentation" in tags else voxels
    slope, intercept = (float({"RescaleSlope": 1, **tags}[name]) for name in ("RescaleSlope", "RescaleIntercept"))
    np.testing.assert_allclose(found, pixels * slope + intercept, atol=1e-3)


def test_slices_of_any_view_and_a_tilted_gantry_lie_where_simpleitk_puts_them(tmp_path):
    turned = OBLIQUE[:3, :3] / np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    across, down = turned[:, 2].round(6), turned[:, 1].round(6)
    folder = save_series(tmp_path / "scan", drawn(5, 8, 10))
    for file in sorted(folder.iterdir()):
        one = pydicom.dcmread(file)
        place = round((float(one.ImagePositionPatient[2]) - 7) / 2.5)
        one.ImageOrientationPatient = [*across.tolist(), *down.tolist()]
        one.ImagePositionPatient = (np.array([3, -4, 5]) + 2.5 * place * np.cross(across, down)).round(6).tolist()
        one.save_as(file)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    SimpleITK.WriteImage(reader.Execute(), str(tmp_path / "theirs.nii"))
    voxels, affine = itk(tmp_path / "theirs.nii")
    found = read_volume(folder)
    assert np.array_equal(found.data[0], voxels)
    np.testing.assert_allclose(found.grid.affine, affine, atol=1e-3)
    for file in sorted(folder.iterdir()):  # each slice a millimeter further back than the one before
        one = pydicom.dcmread(file)
        place = round((float(one.ImagePositionPatient[2]) - 5) / 2.5 / np.cross(across, down)[2])
        one.ImagePositionPatient = (np.array([float(x) for x in one.ImagePositionPatient]) + place * down).tolist()
        one.save_as(file)
    step = read_volume(folder, orientation=None).grid.affine[:3, 0]
    wanted = np.diag([-1, -1, 1]) @ (2.5 * np.cross(across, down) + down)
    np.testing.assert_allclose(step, wanted, atol=1e-4)


def test_slices_that_make_no_volume_are_told(tmp_path):
    without = save_series(tmp_path / "without", drawn(2, 4, 4))
    for file in without.iterdir():
        one = pydicom.dcmread(file)
        del one.ImagePositionPatient
        one.save_as(file)
    nowhere = save_series(tmp_path / "nowhere", drawn(2, 4, 4))
    for file in nowhere.iterdir():
        one = pydicom.dcmread(file)
        del one.PixelSpacing
        one.save_as(file)
    deflated = save_series(tmp_path / "deflated", drawn(2, 4, 4))
    packed = save_series(tmp_path / "packed", drawn(2, 4, 4))
    for folder, syntax in ((deflated, DeflatedExplicitVRLittleEndian), (packed, JPEG2000Lossless)):
        for file in folder.iterdir():
            one = pydicom.dcmread(file)
            one.file_meta.TransferSyntaxUID = syntax
            if folder == packed:
                one.PixelData = pydicom.encaps.encapsulate([b"no picture"])
                one["PixelData"].VR = "OB"
            one.save_as(file)
    for folder, got in (
        (without, "2 DICOM files without a place"),
        (nowhere, "no PixelSpacing"),
        (deflated, "a deflated file"),
        (packed, ""),
    ):
        with warnings.catch_warnings(), pytest.raises(InflateError, match="not one DICOM volume") as caught:
            warnings.simplefilter("ignore")  # pydicom's, of the rubbish
            read_volume(folder)
        assert got in caught.value.got
    assert caught.value.expected == "pixels that can be decoded"


def test_a_single_slice_is_a_volume_of_one(tmp_path):
    folder = save_series(tmp_path / "scan", drawn(1, 8, 10))
    found = read_volume(folder)
    assert found.data.shape == (1, 1, 8, 10)
    assert found.grid.spacing_mm == pytest.approx((1.0, 0.7, 0.9))
    for number, (tags, depth) in enumerate(
        (
            ({"SliceThickness": 5, "SpacingBetweenSlices": 6}, 5),
            ({"SpacingBetweenSlices": 6}, 6),
            ({"SliceThickness": None}, 1),
            ({"SliceThickness": 0}, 1),
        )
    ):
        folder = save_series(tmp_path / f"{number}", drawn(1, 8, 10), **tags)
        assert read_volume(folder).grid.spacing_mm == pytest.approx((depth, 0.7, 0.9))


def test_an_nrrd_that_unpacks_to_more_than_it_says_is_refused_before_memory_is_taken(tmp_path):
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nendian: little\nspace: LPS\n"
    head += "space directions: (1,0,0) (0,1,0) (0,0,1)\n"
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    bomb = packer.compress(bytes(2**23)) + packer.flush()
    (tmp_path / "bomb.nrrd").write_bytes(f"{head}encoding: gzip\n\n".encode() + bomb)
    (tmp_path / "skip.nrrd").write_bytes(f"{head}encoding: raw\nbyte skip: 99999999\n\n".encode() + bytes(16))
    for name, got in (("bomb.nrrd", "unpacked"), ("skip.nrrd", "too far behind the header")):
        with pytest.raises(InflateError, match="cannot be read") as caught:
            read_volume(tmp_path / name)
        assert got in caught.value.got


def test_volumes_go_through_files_and_back_onto_their_voxels(tmp_path):
    """Reading turns a volume, `stored` remembers how it lay: written back, it is the file that was read."""
    for number, permuted in enumerate(([0, 1, 2, 3], [2, 0, 1, 3], [1, 2, 0, 3])):
        path = save_nifti(tmp_path / f"{number}.nii.gz", drawn(4, 5, 6), OBLIQUE[:, permuted])
        found = read_volume(path)
        again = tmp_path / f"{number}_again.nii.gz"
        write_volume(again, resample_to(found, found.stored, sampling="nearest"))
        one, two = nibabel.load(path), nibabel.load(again)
        assert np.array_equal(one.get_fdata(), two.get_fdata())
        np.testing.assert_allclose(one.affine, two.affine, atol=1e-5)

"""Volumes are read, turned, resampled and written back as SimpleITK has it."""

import gzip
from dataclasses import replace

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
import torch.nn.functional as F
from PIL import Image
from pydicom.uid import RTStructureSetStorage
from scan_files import OBLIQUE, drawn, itk, save_nifti, save_series

from inflate3d.clips.volume import Grid, Volume, reorient, resample, resample_to, window, window_percentiles
from inflate3d.clips.volume_files import find_volumes, read_volume, write_volume
from inflate3d.errors import InflateError


def blob(shape):
    """A smooth lump off the middle, so that mirrored or moved axes are noticed."""
    axes = np.meshgrid(*(np.arange(size) / size for size in shape), indexing="ij")
    return np.exp(-sum(((axis - place) / 0.15) ** 2 for axis, place in zip(axes, (0.35, 0.6, 0.45), strict=True)))


def center_mm(volume):
    """Where the values of a volume lie on average, in mm."""
    voxels = volume.data[0].double().numpy()
    index = [float((voxels.sum((1, 2), keepdims=True) * np.arange(len(voxels))[:, None, None]).sum() / voxels.sum())]
    for axis in (1, 2):
        profile = voxels.sum(tuple({0, 1, 2} - {axis}))
        index.append(float((profile * np.arange(len(profile))).sum() / profile.sum()))
    return volume.grid.affine[:3] @ [*index, 1]


@pytest.mark.parametrize(
    "affine", [np.diag([0.8, 0.8, 5, 1.0]), np.diag([-1, 2, -3, 1.0]), OBLIQUE, OBLIQUE[:, [2, 0, 1, 3]]]
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_files_are_turned_as_simpleitk_does(tmp_path, affine, suffix):
    path = tmp_path / f"scan{suffix}"
    write_volume(path, Volume(torch.from_numpy(drawn(5, 7, 9))[None], Grid((5, 7, 9), affine)))
    voxels, places = itk(path)
    found = read_volume(path)
    assert np.array_equal(found.data[0], voxels)
    np.testing.assert_allclose(found.grid.affine, places, atol=1e-4)
    np.testing.assert_allclose(found.stored.affine, affine, atol=1e-4)
    assert found.grid.orientation == "SPL"
    assert np.array_equal(resample_to(found, found.stored).data[0], drawn(5, 7, 9))


def test_a_dicom_series_is_sorted_by_where_its_slices_lie(tmp_path):
    voxels = drawn(6, 8, 10)
    folder = save_series(tmp_path / "scan", voxels)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    SimpleITK.WriteImage(reader.Execute(), str(tmp_path / "theirs.nii.gz"))
    wanted, affine = itk(tmp_path / "theirs.nii.gz")
    for path in (folder, next(folder.iterdir())):
        found = read_volume(path)
        assert np.array_equal(found.data[0], voxels - 24)
        assert np.array_equal(found.data[0], wanted)
        np.testing.assert_allclose(found.grid.affine, affine, atol=1e-4)
        assert found.grid.spacing_mm == pytest.approx((2.5, 0.7, 0.9))


def test_of_two_series_one_is_named(tmp_path):
    save_series(tmp_path / "scan", drawn(4, 8, 10), uid="1.2.3")
    save_series(tmp_path / "scan", drawn(5, 8, 10), uid="1.2.4", SeriesDescription="ABDOMEN")
    with pytest.raises(InflateError, match="not one DICOM volume") as caught:
        read_volume(tmp_path / "scan")
    assert "CHEST (4 files, 1.2.3)" in str(caught.value)
    for part, count in (("1.2.3", 4), ("abdomen", 5)):
        assert read_volume(tmp_path / "scan", part=part).data.shape[1] == count
    assert read_volume(tmp_path / "scan" / "s.2.4_0.dcm").data.shape[1] == 5
    with pytest.raises(InflateError, match="not one DICOM volume"):
        read_volume(tmp_path / "scan", part="LEG")


def test_a_whole_uid_or_description_names_its_series_alone(tmp_path):
    save_series(tmp_path, drawn(4, 8, 10), uid="1.2.3.1")
    save_series(tmp_path, drawn(5, 8, 10), uid="1.2.3.10", SeriesDescription="CHEST LUNG")
    for part, count in (("1.2.3.1", 4), ("1.2.3.10", 5), ("chest", 4), ("Chest L", 5)):
        assert read_volume(tmp_path, part=part).data.shape[1] == count
    for name, count in (("s.3.1_0.dcm", 4), ("s3.10_0.dcm", 5)):
        assert read_volume(tmp_path / name).data.shape[1] == count
    for part in ("1.2.3", "CH"):
        with pytest.raises(InflateError, match="not one DICOM volume"):
            read_volume(tmp_path, part=part)


def test_a_file_that_is_no_slice_gives_no_series_beside_it(tmp_path):
    save_series(tmp_path, drawn(4, 8, 10), uid="1.2.3.1")
    plan = pydicom.dcmread(tmp_path / "s.3.1_0.dcm")
    del plan.ImagePositionPatient
    plan.SOPClassUID, plan.SeriesInstanceUID = RTStructureSetStorage, "1.2.3.2"
    plan.save_as(tmp_path / "plan.dcm")
    del plan.SOPClassUID
    plan.save_as(tmp_path / "odd.dcm")
    for name, got in (("plan.dcm", "no slice: RT Structure Set Storage"), ("odd.dcm", "no slice: unknown kind")):
        for part in (None, "1.2.3.1"):
            with pytest.raises(InflateError, match="not one DICOM volume") as caught:
                read_volume(tmp_path / name, part=part)
            assert caught.value.got == got
    assert read_volume(tmp_path).data.shape[1] == 4


def test_series_with_faults_are_refused(tmp_path):
    faults = {
        "1 gaps, the first between": {"skip": (3,)},
        "Rows": {},
        "colors": {"SamplesPerPixel": 3},
        "one file with many frames": {"NumberOfFrames": 4},
    }
    for number, (got, how) in enumerate(faults.items()):
        folder = save_series(
            tmp_path / f"{number}", drawn(1 if "NumberOfFrames" in how else 7, 8, 10), uid="1.2", **how
        )
        if got == "Rows":
            save_series(folder, drawn(2, 9, 10), uid="1.2", SeriesDescription="other", gap=-3)
        with pytest.raises(InflateError, match="not one DICOM volume") as caught:
            read_volume(folder)
        assert got in caught.value.got
    double = save_series(tmp_path / "double", drawn(5, 8, 10), uid="1.2.7")
    first = pydicom.dcmread(double / "s.2.7_0.dcm")
    first.save_as(double / "again.dcm")
    with pytest.raises(InflateError, match="not one DICOM volume") as caught:
        read_volume(double)
    assert "0 mm apart" in caught.value.got


def test_what_is_no_single_volume_says_so(tmp_path):
    save_nifti(tmp_path / "4d.nii.gz", drawn(4, 5, 6, 3), np.eye(4))
    with pytest.raises(InflateError, match="not one volume"):
        read_volume(tmp_path / "4d.nii.gz")
    with pytest.raises(InflateError, match="not one volume"):
        read_volume(tmp_path / "4d.nii.gz", part=3)
    assert np.array_equal(
        read_volume(tmp_path / "4d.nii.gz", part=2, orientation=None).data[0], drawn(4, 5, 6, 3)[..., 2]
    )
    np.savez(tmp_path / "two.npz", a=drawn(2, 3, 4), b=drawn(3, 4, 5), spacing_mm=[3, 1, 1])
    with pytest.raises(InflateError, match="not one volume"):
        read_volume(tmp_path / "two.npz")
    assert read_volume(tmp_path / "two.npz", part="b").grid.spacing_mm == (3, 1, 1)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InflateError, match="cannot be read"):
        read_volume(tmp_path / "objects.npy")
    np.save(tmp_path / "bare.npy", drawn(2, 3, 4))
    with pytest.raises(InflateError, match="how far voxels are apart"):
        read_volume(tmp_path / "bare.npy")
    with pytest.raises(InflateError, match="no such file"):
        read_volume(tmp_path / "nothing.nii.gz")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(InflateError, match="this is no volume"):
        read_volume(tmp_path / "text.txt")


def test_values_that_are_no_numbers_are_refused_or_filled(tmp_path):
    voxels = drawn(4, 5, 6).astype(np.float32)
    voxels[1, 2, 3], voxels[0, 0, 0] = np.nan, np.inf
    path = save_nifti(tmp_path / "nan.nii", voxels, np.eye(4))
    with pytest.raises(InflateError, match="some voxels hold no number") as caught:
        read_volume(path)
    assert "2 of 120" in caught.value.got
    filled = read_volume(path, fill=-7.0, orientation=None).data[0]
    assert filled[1, 2, 3] == filled[0, 0, 0] == -7
    assert torch.isfinite(filled).all()


def test_damaged_and_hostile_files_are_told(tmp_path):
    good = gzip.decompress(save_nifti(tmp_path / "good.nii.gz", drawn(4, 5, 6), np.eye(4)).read_bytes())
    huge = bytearray(good)
    huge[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], np.int16).tobytes()
    singular = nibabel.Nifti1Image(drawn(4, 5, 6), np.eye(4))
    singular.header["sform_code"], singular.header["srow_x"], singular.header["srow_z"] = 1, 0, 0
    files = {
        "cut.nii": good[:400],
        "huge.nii": bytes(huge),
        "noise.nii": bytes(range(256)) * 3,
        "cut.nrrd": b"NRRD0004\n",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InflateError, match=r"cannot be read|no such volume|says? where"):
            read_volume(tmp_path / name)
    (tmp_path / "out.nhdr").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nspace: LPS\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nencoding: raw\nendian: little\ndata file: ../../secret.raw\n"
    )
    with pytest.raises(InflateError, match="points to voxels elsewhere"):
        read_volume(tmp_path / "out.nhdr")
    with pytest.raises(InflateError, match="does not say where voxels lie"):
        Grid((2, 2, 2), np.diag([1.0, 0, 1, 1]))
    with pytest.raises(InflateError, match="do not belong together"):
        Volume(torch.zeros(1, 2, 3, 4), Grid((2, 3, 5), np.eye(4)))


def test_nrrd_without_a_space_is_refused(tmp_path):
    path = tmp_path / "a.nrrd"
    write_volume(path, Volume(torch.from_numpy(drawn(3, 4, 5))[None], Grid((3, 4, 5), np.eye(4))))
    path.write_bytes(path.read_bytes().replace(b"space: right-anterior-superior", b"space: scanner-xyz", 1))
    with pytest.raises(InflateError, match="where left and right are"):
        read_volume(path)


def test_writing_wants_one_channel_and_a_known_name(tmp_path):
    volume = Volume(torch.zeros(2, 3, 4, 5), Grid((3, 4, 5), np.eye(4)))
    with pytest.raises(InflateError, match="cannot be written so"):
        write_volume(tmp_path / "a.nii.gz", volume)
    with pytest.raises(InflateError, match="cannot be written so"):
        write_volume(tmp_path / "a.png", replace(volume, data=volume.data[:1]))
    assert not list(tmp_path.iterdir())


def test_slices_in_a_folder(tmp_path):
    for number in range(11):
        Image.fromarray(np.full((6, 8), number, np.uint8)).save(tmp_path / f"slice{number}.png")
    volume = read_volume(tmp_path, spacing_mm=(3, 1, 1))
    assert volume.data[0, :, 0, 0].tolist() == list(range(11))
    assert volume.grid.orientation == "SPL"
    assert find_volumes([tmp_path]) == [tmp_path]
    Image.fromarray(np.zeros((7, 8), np.uint8)).save(tmp_path / "slice11.png")
    with pytest.raises(InflateError, match="different sizes"):
        read_volume(tmp_path, spacing_mm=(3, 1, 1))


def test_find_volumes_looks_into_folders(tmp_path):
    save_series(tmp_path / "b_series", drawn(2, 4, 4))
    save_nifti(tmp_path / "a10.nii.gz", drawn(2, 3, 4), np.eye(4))
    save_nifti(tmp_path / "a9.nii", drawn(2, 3, 4), np.eye(4))
    assert [path.name for path in find_volumes([tmp_path])] == ["a9.nii", "a10.nii.gz", "b_series"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InflateError, match="there is no volume"):
        find_volumes([tmp_path / "empty"])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.6, 1.7), (7.0, 3.0, 4.0)])
def test_resampling_keeps_the_lump_where_it_is(spacing):
    shape = (24, 50, 44)
    volume = Volume(torch.from_numpy(blob(shape))[None].float(), Grid(shape, OBLIQUE))
    found = resample(volume, spacing)
    assert found.grid.spacing_mm == pytest.approx(spacing)
    assert np.linalg.norm((center_mm(found) - center_mm(volume)) / np.array(spacing)) < 0.02
    face = volume.grid.affine @ [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(found.grid.affine @ [-0.5, -0.5, -0.5, 1], face, atol=1e-9)
    mass = [float(one.data.sum()) * np.prod(one.grid.spacing_mm) for one in (volume, found)]
    assert mass[1] == pytest.approx(mass[0], rel=0.02)


@pytest.mark.parametrize("factor", [2.0, 3.0, 5.0])
def test_whole_factors_average_as_those_beside_them(factor):
    generator = torch.Generator().manual_seed(1)
    noise = Volume(torch.randn(1, 120, 8, 8, generator=generator), Grid((120, 8, 8), np.eye(4)))
    bright = replace(noise, data=torch.zeros(1, 120, 8, 8))
    bright.data[:, 50] = 1
    deviations, sums = [], []
    for size in (factor - 0.01, factor, factor + 0.01):
        deviations.append(float(resample(noise, (size, 1, 1)).data.std()))
        sums.append(float(resample(bright, (size, 1, 1)).data.sum()) * size)
    assert max(deviations) / min(deviations) < 1.1
    assert sums == pytest.approx([64, 64, 64], rel=0.1)
    labels = replace(noise, data=torch.randint(0, 9, (1, 120, 8, 8), generator=generator, dtype=torch.uint8))
    coarse = resample(labels, (3, 1, 1), sampling="nearest")
    assert torch.equal(coarse.data, labels.data[:, 1::3])


def test_finer_grids_are_interpolated_as_by_simpleitk(tmp_path):
    path = save_nifti(tmp_path / "a.nii", drawn(7, 9, 11).astype(np.float32), OBLIQUE)
    volume = read_volume(path, orientation=None)
    fine = resample(volume, tuple(size / 1.7 for size in volume.grid.spacing_mm))
    write_volume(tmp_path / "fine.nii", fine)
    image = SimpleITK.ReadImage(str(path))
    theirs = SimpleITK.Resample(
        image, SimpleITK.ReadImage(str(tmp_path / "fine.nii")), SimpleITK.Transform(), SimpleITK.sitkLinear, np.nan
    )
    wanted = SimpleITK.GetArrayFromImage(theirs).transpose()
    inside = np.isfinite(wanted)
    assert inside.mean() > 0.6
    np.testing.assert_allclose(fine.data[0].numpy()[inside], wanted[inside], atol=0.05)  # values up to 1000


def test_masks_keep_their_labels():
    mask = torch.zeros(1, 12, 12, 12, dtype=torch.uint8)
    mask[:, 3:7, 4:9, 5:11] = 2
    volume = Volume(mask, Grid((12, 12, 12), np.diag([3.0, 1, 1, 1])))
    fine = resample(volume, (1, 1, 1), sampling="nearest")
    assert fine.data.unique().tolist() == [0, 2]
    assert torch.equal(resample_to(fine, volume.grid, sampling="nearest").data, mask)
    rounded = resample(volume, (2, 0.7, 1))
    assert rounded.data.dtype == torch.uint8


@pytest.mark.parametrize("degrees", [0.05, 0.3, 1.0, 2.5])
def test_axes_count_as_parallel_where_no_voxel_moves_by_more_than_half_a_voxel(degrees):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    lump = Volume(torch.zeros(1, 200, 200, 3, dtype=torch.uint8), Grid((200, 200, 3), np.eye(4)))
    lump.data[:, 185:195, 165:175] = 1
    if degrees > 0.1:
        with pytest.raises(InflateError, match="turned against each other"):
            resample_to(lump, Grid((200, 200, 3), turned), sampling="nearest")
        assert resample_to(lump, Grid((8, 8, 3), turned)).data.shape == (1, 8, 8, 3)  # here nothing moves far
        return
    found = resample_to(lump, Grid((200, 200, 3), turned), sampling="nearest")
    assert np.abs(center_mm(found) - center_mm(lump)).max() < 0.5


def test_volumes_turned_against_each_other_are_refused():
    volume = Volume(torch.zeros(1, 3, 4, 5), Grid((3, 4, 5), np.eye(4)))
    with pytest.raises(InflateError, match="turned against each other"):
        resample_to(volume, Grid((3, 4, 5), OBLIQUE))
    for wrong in ((1, 1), (1, 1, 0), (1, 1, float("nan"))):
        with pytest.raises(InflateError, match="no such spacing"):
            resample(volume, wrong)
    for wrong in ("SPX", "SS", "RLS"):
        with pytest.raises(InflateError, match="no such orientation"):
            reorient(volume, wrong)


def test_windows():
    volume = Volume(torch.from_numpy(drawn(5, 6, 7))[None], Grid((5, 6, 7), np.eye(4)))
    found = window(volume, -200, 300).data
    wanted = (volume.data.double().clamp(-200, 300) + 200) / 500
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=0)
    assert volume.data.dtype == torch.int16
    constant = replace(volume, data=torch.full_like(volume.data, 7))
    assert window_percentiles(constant).data.unique().tolist() == [0]
    with pytest.raises(InflateError, match="the window is empty"):
        window(volume, 5, 5)


@pytest.mark.shared
def test_real_scans_come_back_to_where_they_were(shared, tmp_path):
    """On every real volume: as SimpleITK reads it; a mask made on cubes goes back to the voxels of the file."""
    folder = shared / "data" / "volumes"
    paths = [
        *sorted(folder.glob("nifti/*")),
        *sorted(folder.glob("nrrd/*")),
        *sorted(folder.glob("hippocampus/*/*"))[::20],
    ]
    assert len(paths) >= 20
    for path in paths:
        volume = read_volume(path)
        voxels, affine = itk(path)
        assert np.array_equal(volume.data[0], voxels), path
        np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-4)
        smooth = F.avg_pool3d(volume.data.float()[None], 9, 1, 4)[0]
        bright = smooth > smooth.mean()
        cubes = resample(replace(volume, data=bright.to(torch.uint8) * 200), (2.0, 2.0, 2.0))
        back = resample_to(replace(cubes, data=(cubes.data >= 100).to(torch.uint8)), volume.stored, sampling="nearest")
        name = tmp_path / (path.name.split(".")[0] + ".nii.gz")
        write_volume(name, back)
        mask, image = SimpleITK.ReadImage(str(name)), SimpleITK.ReadImage(str(path))
        assert mask.GetSize() == image.GetSize()
        for get in ("GetOrigin", "GetSpacing", "GetDirection"):
            np.testing.assert_allclose(getattr(mask, get)(), getattr(image, get)(), atol=2e-4)
        wanted = center_mm(replace(volume, data=bright.double()))
        off = np.abs(np.linalg.solve(back.grid.affine[:3, :3], center_mm(back) - wanted)).max()
        assert off < 0.5, f"{path.name}: {off:.2f} voxels"

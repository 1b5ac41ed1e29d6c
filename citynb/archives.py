"""Unpack a zip or a tar.gz that nobody vouches for.

Regular files and folders only, each at a path inside the folder, with content counted while it
is written. The same code runs on every Python: the filters of `tarfile` came late (3.11.4), and
links that they let pass have written outside the folder (CVE-2025-4517). Here no link is made.
"""

import gzip
import pathlib
import shutil
import stat
import tarfile
import zipfile

LARGEST = 10 * 2**30  # bytes unpacked, whatever the archive's size
RATIO, FLOOR = 30, 100 * 2**20  # bytes unpacked: 100 MB, and 30 for each byte of the archive
OTHERS = {
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}


class ArchiveError(ValueError):
    """The archive is damaged, of another kind, too large, or wants to do harm."""


def unpack(archive, folder, limit=None):
    """Unpack a zip or tar.gz archive into a new folder and return its `pathlib.Path`.

    Args:
        archive: path of the file; its first bytes tell which kind it is, not its name.
        folder: path of the folder to make. After an error it may hold a part of the content.
        limit: most bytes that the content may have. By default 100 MB and 30 times the archive,
            at most 10 GB; zeros pack 1000 to 1, real data seldom 20 to 1.

    Raises:
        ArchiveError: the archive is neither, is damaged or encrypted, grows beyond the limit, or
            holds a link, a device, a path out of the folder or one path twice.
        OSError: the disk is full or cannot be written.
    """
    archive, folder = pathlib.Path(archive), pathlib.Path(folder)
    with open(archive, "rb") as file:
        start = file.read(512)
    members = _zip if start[:4] in (b"PK\x03\x04", b"PK\x05\x06") else _tar
    if members is _tar and start[:2] != b"\x1f\x8b":
        raise ArchiveError(_other(start))
    room = _Room(limit or min(LARGEST, FLOOR + RATIO * archive.stat().st_size))
    folder.mkdir()
    try:
        for name, file in members(archive, room):
            _write(folder, name, file)
    except ArchiveError:
        raise
    except Exception as error:  # damaged bytes make the readers raise a dozen kinds of error
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the archive
            raise
        raise ArchiveError(f"the archive is damaged ({error or type(error).__name__})") from None
    if not any(folder.iterdir()):
        raise ArchiveError("the archive is empty")
    return folder


def _other(start):
    kinds = [kind for magic, kind in OTHERS.items() if start.startswith(magic)]
    if start[257:262] == b"ustar":
        kinds = ["a tar archive without gzip"]
    kind = kinds[0] if kinds else f"no archive but begins with {start[:24]!r}"
    return f"it is {kind}, and only zip and tar.gz are unpacked"


class _Room:
    """What the content may still take; it shrinks with each byte that is read from `file`."""

    def __init__(self, limit):
        self.limit = self.left = limit
        self.file = None

    def take(self, size):
        self.left -= size
        if self.left < 0:
            raise ArchiveError(f"it unpacks to more than {self.limit / 1e6:,.0f} MB")

    def read(self, size):
        data = self.file.read(size)
        self.take(len(data))
        return data


def _zip(archive, room):
    """Yield name and open file of each member; None instead of the file for a folder."""
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            room.take(512)  # so that a million empty files count
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"{member.filename!r} is neither a file nor a folder")
            if member.flag_bits & 1:
                raise ArchiveError("the archive is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArchiveError(f"{member.filename!r} is packed in an unusual way")
            if member.is_dir():
                yield member.filename, None
            else:
                with packed.open(member) as room.file:  # checks the member's checksum at its end
                    yield member.filename, room


def _tar(archive, room):
    """As `_zip`. Read as a stream: no seeking back, and headers count like content."""
    with gzip.open(archive) as room.file, tarfile.open(fileobj=room, mode="r|") as packed:
        for member in packed:
            if not (member.isdir() or member.isreg() and not member.issparse()):
                raise ArchiveError(f"{member.name!r} is neither a file nor a folder")
            if member.size < 0:
                raise ArchiveError(f"the archive is damaged ({member.name!r} has no size)")
            yield member.name, None if member.isdir() else packed.extractfile(member)
        # gzip's own checksum stands at the very end, behind zeros
        while rest := packed.fileobj.read(1 << 20):
            if rest.strip(b"\0"):
                raise ArchiveError("the archive is damaged (more bytes behind its end)")


def _write(folder, name, file):
    # Windows' rules are the strictest: both slashes, and drives.
    path = pathlib.PureWindowsPath(name)
    if path.anchor or ".." in path.parts:
        raise ArchiveError(f"{name!r} would be written outside of the folder")
    target = folder.joinpath(*path.parts)
    try:
        (target if file is None else target.parent).mkdir(parents=True, exist_ok=True)
        if file is not None:
            with open(target, "xb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
    except (FileExistsError, NotADirectoryError):
        raise ArchiveError(f"it holds {name!r} twice") from None

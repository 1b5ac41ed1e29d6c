"""Fetch a published file once, verify it, keep it: step 0 of every download in the book.

A file is complete, checked and unpacked in a folder of its own before one rename makes it
visible, so the cache never holds half of anything.

Why not a library: `keras.utils.get_file` and TensorFlow Hub have no timeout and no retry. pooch
(read in version 1.9.0) is the best known. It checks a known hash at each call, but unpacks in
place and afterwards trusts a member that merely exists, so an unpacking that was killed stays
half done; below Python 3.12 it unpacks a tar without any filter. Its 30 seconds are those between
two bytes, so a server that drips holds it for ever; `retrieve` never tries again, nothing is
resumed, and without a hash whatever arrives is kept. A teacher's mirror would be ours to write
on top. What it has beyond this (DOI, FTP, SFTP) the book does not need.
"""

import builtins
import contextlib
import dataclasses
import errno
import hashlib
import http.client
import io
import json
import os
import pathlib
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

from tqdm import tqdm

from citynb import archives

try:
    import fcntl
except ImportError:  # Windows: two processes may download twice; the rename keeps both safe
    fcntl = None

ATTEMPTS = 4
BACKOFF = 1.0  # seconds before the second attempt; doubled each time
LONGEST_WAIT = 60.0  # seconds that a server's Retry-After may ask for
LOCK_WAIT = 600.0  # seconds to wait for another process that downloads the same thing
SLOWEST = 1000.0  # bytes a second, over each `timeout` seconds
WRONG_PART = (206, 416)  # answers to a Range that does not fit the file
PASSING = (*WRONG_PART, 408, 425, 429)  # answers after which to try again, beside 500 and above
LARGE = 20e6  # bytes: from here on progress is told also where nobody seems to watch


class DownloadError(RuntimeError):
    """A download failed. The message names the file, its address, the reason and the way out."""


class _TryAgain(Exception):
    """A failure that may pass: a lost connection, a timeout, a busy server."""

    def __init__(self, reason, wait=0):
        super().__init__(reason)
        self.wait = wait


class _Absent(Exception):
    """The mirror does not have the file."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a file comes from and what it must be; a tuple `SOURCES` of them makes a module's
    files known to `python -m citynb fetch`.

    Attributes:
        name: file name in the cache, e.g. "los_loop.csv"; with `unpack` the folder's name.
            Letters, digits, space and `_ . + -`, not ending in ".json".
        url: http or https address; redirects are followed, but never from https to anything else.
        sha256: checksum of what the address delivers, in hex. None trusts the first download:
            its checksum is printed and recorded beside the cached copy, and any later download
            must match it. A pinned checksum is safer; use None only where none is published.
        unpack: True for a zip or tar.gz archive that should become a folder.
        check: called with the path of the new file or folder before it enters the cache; raises
            an exception whose message says what is wrong.
        way_out: one sentence for the error message: what to do without this file.
        limit: most bytes of the file and of what it unpacks to; by default 10 GB, and for the
            content of an archive 100 MB and 30 times the archive.
        size: bytes of the file, for `python -m citynb fetch --list`.
        file: the publisher's file name, under which a mirror has it; by default the end of `url`.
        mirror_file, mirror_sha256: name and checksum of a reduced copy that a mirror may have
            instead. `copy_of` tells which copy is in the cache.
    """

    name: str
    url: str
    sha256: str | None = None
    unpack: bool = False
    check: Callable | None = None
    way_out: str = ""
    limit: int | None = None
    size: int | None = None
    file: str = ""
    mirror_file: str = ""
    mirror_sha256: str | None = None

    def _pins(self, mirrored=True):
        pins = (self.sha256, self.mirror_sha256 if mirrored else None)
        return {pin.lower() for pin in pins if pin}


def cache_folder():
    """Return the folder for downloads: `CITYNB_CACHE`, or `~/.cache/citynb`. It need not exist."""
    folder = os.path.expanduser(os.environ.get("CITYNB_CACHE") or "~/.cache/citynb")
    if folder.startswith("~"):
        raise DownloadError(f"the folder {folder} cannot be found: no such user")
    return pathlib.Path(folder)


def mirror():
    """Return what `CITYNB_MIRROR` names: a `pathlib.Path`, a web address, or None if not set.

    A mirror has the publishers' files under their own names and is asked first: in a classroom,
    on a train. What it delivers must match the same checksums.
    """
    value = os.environ.get("CITYNB_MIRROR", "")
    if not value or _scheme(value) in ("http", "https"):
        return value.rstrip("/") or None
    if _scheme(value) == "file":
        value = urllib.request.url2pathname(urllib.parse.urlsplit(value).path)
    folder = pathlib.Path(os.path.expanduser(value))
    if not folder.is_dir():
        raise DownloadError(f"CITYNB_MIRROR is {value}, which is neither a folder nor an address")
    return folder


def _scheme(address):
    return address.partition(":")[0].lower()


def digest(path):
    """Return the sha256 of a file, or of a folder (names and contents, in sorted order), in hex."""
    path = pathlib.Path(path)
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        total.update(f"{file.relative_to(path).as_posix()} {digest(file)}\n".encode())
    return total.hexdigest()


def fetch(url, sha256=None, name="", unpack=False, check=None, way_out="", timeout=30, limit=None):
    """Return the local path of a published file, downloading it only when it is not cached.

    Args:
        url: a `Source`; or the address, with the other arguments as in `Source`.
        timeout: seconds in which at least 1000 bytes a second must arrive, or all the rest;
            headers and redirects count. Otherwise the attempt is given up, and another made.

    Returns:
        `pathlib.Path` inside `cache_folder()`. It was verified in this call: a file against its
        checksum, an unpacked folder against the record made when its archive was verified.

    Raises:
        DownloadError: for every failure: no network, an HTTP error, a stalled or cut connection,
            a wrong size or checksum, a damaged archive, a failed check, no space, no permission.
            Nothing of the failed download is left in the cache but, where `sha256` can tell a
            wrong one, the part that arrived: the next call goes on from there.
    """
    source = url if isinstance(url, Source) else Source(name, url, sha256, unpack, check, way_out)
    source = dataclasses.replace(source, limit=limit or source.limit)
    address = source.url
    try:
        place = _place(source.name)
        if _cached(place, source):  # before the lock: a cache may be read-only and complete
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with _lock(place) as alone:
            if _cached(place, source):  # another process was faster
                return place
            with _part(place, alone, source._pins()) as part:
                for address in _addresses(source):  # the publisher's comes last
                    with contextlib.suppress(_Absent):
                        _install(source, address, place, part, timeout)
                        return place
    except (DownloadError, OSError) as error:
        reason = " ".join(_reason(error).split()).rstrip(".")
    where = address if address == source.url else f"{address} (CITYNB_MIRROR)"
    message = f"{source.name} could not be fetched from {where}: {reason}. {source.way_out}"
    raise DownloadError(message.strip())


def _reason(error):
    if isinstance(error, DownloadError):
        return str(error)
    if error.errno == errno.ENOSPC:
        return f"no space left in {cache_folder()}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write in {cache_folder()}; set CITYNB_CACHE to another folder"
    return f"{error.strerror or error} ({error.filename or cache_folder()})"


def cached(source):
    """Return the verified path of a `Source` in the cache, or None: nothing is downloaded.

    Raises:
        DownloadError: the cached copy has changed since it was verified.
    """
    place = _place(source.name)
    return place if _cached(place, source) else None


def copy_of(name):
    """Return "publisher" or "mirror": whose copy of a fetched file is in the cache. None if none.

    "mirror" is one that came from `CITYNB_MIRROR` and was not proved to be the publisher's.
    """
    return _record(_place(name)).get("copy")


def _place(name):
    fine = re.compile(r"\w([\w .+-]{0,198}[\w+-])?(?<!\.json)")
    if not (isinstance(name, str) and fine.fullmatch(name)):
        raise DownloadError(
            f"{name!r} cannot be a name in the cache: use letters, digits, space and _ . + -, "
            "and another ending than .json, which is that of the records"
        )
    return cache_folder() / name


def _record_file(place):
    return place.with_name(place.name + ".json")


def _record(place):
    """Return what is known of a cached copy: url, delivered, kept, copy. Empty if damaged."""
    with contextlib.suppress(
        FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError
    ):
        record = json.loads(_record_file(place).read_text())
        if isinstance(record["delivered"], str) and isinstance(record["kept"], str):
            return record
    return {}


def _cached(place, source):
    """True when the cached copy is the verified one, False when there is none to use."""
    record, pins = _record(place), source._pins()
    known = bool(record) and (not pins or record["delivered"] in pins)  # or the pin moved on
    recorded = {record["kept"]} if known else set()
    trusted = recorded if source.unpack or not pins else pins
    if not trusted or source.unpack and not place.is_dir():
        return False
    try:
        if digest(place) in trusted:
            return True
    except (FileNotFoundError, NotADirectoryError):  # or another process is replacing it
        return False
    if not known or _record(place) != record:
        return False
    raise DownloadError(f"the cached copy {place} has changed since it was verified; delete it")


@contextlib.contextmanager
def _part(place, alone, keep):
    """Yield a path beside `place` for what arrives. It stays after a failure if `keep` is true."""
    # "~" is in no name: `.los~part` and what `.los-loop` needs cannot be mixed up.
    part = place.with_name(f".{place.name}~part{'' if alone else time.time_ns()}")
    keep = keep and alone
    try:
        _clear(part, keep)
        yield part
        keep = False
    finally:
        _clear(part, keep)


def _clear(part, keep):
    """Remove what begins with the name of `part`: leftovers of a killed download, too."""
    for path in part.parent.glob(f"{part.name}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif not keep or path != part or path.is_symlink() or not path.stat().st_size:
            path.unlink(missing_ok=True)


def _addresses(source):
    """Yield where to look for the file: in the mirror, if there is one, then at the publisher."""
    path = urllib.parse.unquote(source.url.partition("?")[0])
    place = mirror()
    for file in (source.mirror_file, source.file or path.rpartition("/")[2]):
        if file and isinstance(place, str):
            yield f"{place}/{urllib.parse.quote(file)}"
        elif file and place and (place / file).is_file():
            yield str(place / file)
    yield source.url


def _install(source, address, place, part, timeout):
    """Bring the file, verify it beside its place, then move it there with one rename."""
    pins = source._pins(address != source.url)
    resumed = part.exists()
    _bring(source, address, part, pins, timeout)
    delivered = digest(part)
    if resumed and delivered not in pins:  # the first part was of something else
        part.unlink()
        return _install(source, address, place, part, timeout)
    file, record, old = (part.with_name(f"{part.name}-{use}") for use in ("file", "record", "old"))
    part.rename(file)
    _verify(source, file, delivered, pins, _record(place).get("delivered"), place)
    fresh = _usable(source, file)
    if not pins:
        size = f"{file.stat().st_size / 1e6:.1f} MB"
        told = f"sha256 {delivered}, recorded for later downloads"
        print(f"{place.name}: {size} from {address}, {told}")
    publishers = address == source.url or delivered == (source.sha256 or "").lower()
    copy = "publisher" if publishers else "mirror"
    known = {"url": address, "delivered": delivered, "kept": digest(fresh), "copy": copy}
    record.write_text(json.dumps(known))
    # Killed anywhere in between, the next run finds no content and starts again.
    if os.path.lexists(place):
        os.replace(place, old)
    os.replace(record, _record_file(place))
    os.replace(fresh, place)


def _verify(source, part, delivered, pins, first, place):
    if delivered in pins:
        return
    with open(part, "rb") as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    page = start.startswith((b"<!doctype html", b"<html"))
    if page and not source.unpack and not source.name.endswith((".html", ".htm")):
        raise DownloadError("a web page (HTML) came instead of the file, perhaps to log in")
    if pins:
        expected = " or ".join(sorted(pins))
        raise DownloadError(f"wrong checksum: expected sha256 {expected}, received {delivered}")
    if first and delivered != first:
        raise DownloadError(
            f"the file has changed: the first download had sha256 {first}, this one "
            f"{delivered}; if you trust the new one, delete {_record_file(place)}"
        )


def _usable(source, file):
    """Return the path of the file, or of what it unpacks to, if the source's check lets it pass."""
    fresh = file
    try:
        if source.unpack:
            folder = file.with_name(f"{file.name}-unpacked")
            folder.mkdir()
            fresh = archives.unpack(file, folder / "content", source.limit)
    except archives.ArchiveError as error:
        raise DownloadError(str(error)) from None
    try:
        if source.check:
            source.check(fresh)
    except Exception as error:  # whatever a reader may raise is a reason to refuse it
        raise DownloadError(f"the downloaded file is not usable: {error}") from error
    return fresh


def _bring(source, address, part, pins, timeout):
    """Make `part` the whole file, in as many attempts as are allowed."""
    if _scheme(address) not in ("http", "https"):
        if address == source.url:
            raise DownloadError("the address must begin with https:// or http://")
        shutil.copyfile(address, part)
        return
    same = {}  # the header that says to go on only in the same file
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _download(source, address, part, pins, same, timeout)
        except _TryAgain as error:
            if attempt == ATTEMPTS:
                raise DownloadError(f"{error} ({ATTEMPTS} attempts)") from None
            wait = max(error.wait, BACKOFF * 2 ** (attempt - 1))
            told = f"{error}; attempt {attempt + 1} of {ATTEMPTS} in {wait:g} s"
            print(f"{source.name}: {told}", file=sys.stderr, flush=True)
            time.sleep(wait)


def _download(source, address, part, pins, same, timeout):
    """One attempt: stream `address` into `part`, from where the last one stopped if that is safe:
    a checksum will tell a mixture, or the server's ETag says that it is still the same file."""
    limit = source.limit or archives.LARGEST
    done = part.stat().st_size if part.exists() and (pins or same) else 0
    headers = {"Range": f"bytes={done}-", **same} if done else {}
    with contextlib.closing(_open(address, headers, timeout)) as reply:
        place = reply.headers.get("Content-Range", "")
        if reply.status == 200:
            done = 0
        elif reply.status != 206 or not done or not place.startswith(f"bytes {done}-"):
            if reply.status in WRONG_PART:
                part.unlink(missing_ok=True)
            raise _refusal(reply, address != source.url)
        same.clear()
        if reply.headers.get("ETag", "").startswith('"'):  # a weak one promises too little
            same["If-Range"] = reply.headers["ETag"]
        size = _size(reply, done, pins or source.unpack)  # an archive has a mark at its end
        needed = (size or 0) * (3 if source.unpack else 1) - done
        if needed > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, "no space")
        with open(part, "ab" if done else "wb") as file, _bar(source.name, done, size) as bar:
            while chunk := _read(reply, timeout):
                done += len(chunk)
                if max(done, size or 0) > limit:
                    raise DownloadError(f"the file is larger than {limit / 1e6:,.0f} MB")
                file.write(chunk)
                bar.update(len(chunk))
    if size is not None and done != size:
        raise _TryAgain(f"the connection was cut after {done} of {size} bytes")
    if not done:
        raise DownloadError("the server sent an empty file")


def _size(reply, done, provable):
    """Return the bytes of the whole file; None if that is not known and a cut shows otherwise."""
    if reply.length is not None:
        return done + reply.length
    if not reply.chunked and "Content-Length" in reply.headers:
        length = reply.headers["Content-Length"]
        raise DownloadError(f"the server sent a Content-Length of {length!r}")
    if not (reply.chunked or provable):
        raise DownloadError("neither its length nor its checksum is known")


def _bar(name, done, size):
    watched = sys.stderr.isatty() or hasattr(builtins, "get_ipython")  # a notebook
    pace = {"delay": 1, "mininterval": 0.2 if watched else 30}
    looks = {"desc": name, "unit": "B", "unit_scale": True, "leave": False}
    quiet = not watched and (size or 0) < LARGE
    return tqdm(total=size, initial=done, disable=quiet, **looks, **pace)


def _open(address, headers, timeout):
    """Return the server's answer, of whatever status."""
    opener = urllib.request.build_opener(_Careful(timeout))
    opener.addheaders = [("User-Agent", "citynb"), *headers.items()]
    with _network(timeout):
        try:
            return opener.open(address, timeout=timeout)
        except urllib.error.HTTPError as answer:
            return answer


def _read(reply, timeout):
    with _network(timeout):
        return reply.read1(1 << 20)


@contextlib.contextmanager
def _network(timeout):
    """Make each failure of the network a DownloadError, or a _TryAgain where it may pass."""
    try:
        yield
    except (http.client.HTTPException, OSError, ValueError, OverflowError) as error:
        unopened = isinstance(error, urllib.error.URLError)
        cause = error.reason if unopened else error
        if isinstance(cause, TimeoutError):
            raise _TryAgain(f"the server stalled for {timeout:g} seconds") from None
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise DownloadError(f"the server's certificate is not valid ({cause})") from None
        if isinstance(cause, http.client.InvalidURL | ValueError | OverflowError):
            told = f"the address, or that of a proxy, is not valid ({cause})"
            raise DownloadError(told) from None
        what = "no connection" if unopened else "the connection was cut"
        raise _TryAgain(f"{what} ({cause})") from None


def _refusal(reply, mirrored):
    """Return the exception for an answer without the file."""
    if reply.status in (404, 410) and mirrored:
        return _Absent()
    reason = f"the server answered {reply.status} {reply.reason}"
    if reply.status not in PASSING and reply.status < 500:
        return DownloadError(reason)
    seconds = reply.headers.get("Retry-After", "")
    wait = float(seconds) if seconds.isdecimal() else 0.0
    if wait > LONGEST_WAIT:
        return DownloadError(f"{reason} and asks to wait {wait:,.0f} seconds")
    return _TryAgain(reason, wait)


class _Careful(
    urllib.request.HTTPRedirectHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler
):
    """Opens and redirects to http and https, never from https to http, and reads with patience:
    `timeout` seconds for each `timeout * SLOWEST` bytes of all answers, those of a proxy too.

    A socket's own timeout starts anew with each byte, so one byte a second would do.
    """

    def __init__(self, timeout):
        super().__init__()
        self.timeout, self.received, self.until = timeout, 0, time.monotonic() + timeout

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        fp.close()  # or urllib would read an endless page to its end
        if _scheme(newurl) != "https" and (req.type == "https" or _scheme(newurl) != "http"):
            raise DownloadError(f"redirected to an unprotected address, {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def do_open(self, http_class, req, **options):
        def connection(*args, **kwargs):
            made = http_class(*args, **kwargs)
            made.response_class = reply
            return made

        def reply(sock, *args, **options):
            return http.client.HTTPResponse(_Patient(sock, self), *args, **options)

        return super().do_open(connection, req, **options)

    def left(self):
        if self.received >= self.timeout * SLOWEST:
            self.received, self.until = 0, time.monotonic() + self.timeout
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Patient(io.RawIOBase):
    """A socket that is read as long as patience is left."""

    def __init__(self, sock, patience):
        self.raw, self.sock, self.patience = sock.makefile("rb", buffering=0), sock, patience

    def makefile(self, mode):
        return io.BufferedReader(self)

    def readable(self):
        return True

    def readinto(self, buffer):
        self.sock.settimeout(self.patience.left())
        size = self.raw.readinto(buffer)
        self.patience.received += size or 0
        return size

    def close(self):
        self.raw.close()
        super().close()


@contextlib.contextmanager
def _lock(place):
    """Hold a lock that the system releases when its process dies, so none can go stale.

    Yields True when this process is alone, False where the file system has no locks.
    """
    path = place.with_name(f".{place.name}.lock")
    if path.is_symlink():
        raise DownloadError(f"the lock {path} is a symbolic link; delete it")
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o666), "r+b") as file:
        yield fcntl is not None and _locked(file, place.name)


def _locked(file, name):
    for turn in range(round(LOCK_WAIT / 0.2)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if turn == 0:
                print(f"{name}: another process is fetching it", file=sys.stderr)
            time.sleep(0.2)
        except OSError:  # a network drive without locks
            return False
    raise DownloadError(f"another process has been fetching it for {LOCK_WAIT:g} seconds")

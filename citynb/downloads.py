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
import email.utils
import errno
import functools
import hashlib
import http.client
import io
import json
import os
import pathlib
import re
import secrets
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
BUSY = (408, 425, 429)  # HTTP errors that may pass, beside 500 and above
LARGE = 20e6  # bytes: from here on progress is told also where nobody seems to watch


class DownloadError(RuntimeError):
    """A download failed. The message names the file, its address, the reason and the way out."""


class _TryAgain(Exception):
    """A failure that may pass: a lost connection, a timeout, a busy server."""

    def __init__(self, reason, wait=0.0):
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
    return _expanded(os.environ.get("CITYNB_CACHE") or "~/.cache/citynb")


def mirror():
    """Return what `CITYNB_MIRROR` names: a `pathlib.Path`, a web address, or None if not set.

    A mirror has the publishers' files under their own names and is asked first: in a classroom,
    on a train. What it delivers must match the same checksums.
    """
    value = os.environ.get("CITYNB_MIRROR", "")
    scheme = value.partition(":")[0].lower()
    if not value or scheme in ("http", "https"):
        return value.rstrip("/") or None
    if scheme == "file":
        value = urllib.request.url2pathname(urllib.parse.urlsplit(value).path)
    folder = _expanded(value)
    if not folder.is_dir():
        raise DownloadError(f"CITYNB_MIRROR is {value}, which is neither a folder nor an address")
    return folder


def _expanded(path):
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:  # no such user
        raise DownloadError(f"the folder {path} cannot be found ({error})") from None


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


def fetch(
    url, sha256=None, name="", unpack=False, check=None, way_out="", timeout=30.0, limit=None
):
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
            with _workshop(place, alone, source._pins()) as folder:
                for address in _addresses(source):  # the publisher's comes last
                    with contextlib.suppress(_Absent):
                        _install(source, address, place, folder, timeout)
                        return place
    except DownloadError as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or place})"
        if error.errno == errno.ENOSPC:
            reason = f"no space left in {place.parent}"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = f"no permission to write in {place.parent}; set CITYNB_CACHE to another folder"
    reason = " ".join(reason.split()).rstrip(".")
    where = address if address == source.url else f"{address} (CITYNB_MIRROR)"
    message = f"{source.name} could not be fetched from {where}: {reason}. {source.way_out}"
    raise DownloadError(message.strip())


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
    try:
        record = json.loads(_record_file(place).read_text())
        return record if record["delivered"] and record["kept"] else {}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return {}


def _cached(place, source):
    """True when the cached copy is the verified one, False when there is none to use."""
    record, pins = _record(place), source._pins()
    folder = place.is_dir()
    if source.unpack and not folder:
        return False
    trusted = {record.get("kept")} if folder or not pins else pins
    known = bool(record) and (not pins or record["delivered"] in pins)  # or the pin moved on
    if not known and trusted is not pins:
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
def _workshop(place, alone, keep):
    """A folder beside `place` for all that is not finished: emptied before and after.

    With `keep` the part of a download that broke off stays for the next call.
    """
    # "~" is in no name: `.los~part` and what `.los-loop` needs cannot be mixed up.
    folder = place.with_name(f".{place.name}~{'part' if alone else secrets.token_hex(4)}")
    if alone:  # then what else lies about was left by a killed download
        for leftover in place.parent.glob(f".{place.name}~*"):
            if leftover != folder or leftover.is_symlink():
                _remove(leftover)
    folder.mkdir(exist_ok=True)
    keep = keep and alone
    try:
        _clear(folder, keep)
        yield folder
        keep = False
    finally:
        _clear(folder, keep)
        with contextlib.suppress(OSError):  # it holds a part
            folder.rmdir()


def _clear(folder, keep):
    for path in folder.iterdir():
        if not (keep and path.name.startswith("part-") and path.stat().st_size):
            _remove(path)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
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


def _install(source, address, place, folder, timeout):
    """Bring the file into `folder`, verify it there, then move it into place with one rename."""
    mirrored = address != source.url
    pins = source._pins(mirrored)
    key = hashlib.sha256(f"{address} {sorted(pins)}".encode()).hexdigest()[:16]
    part = folder / f"part-{key}"
    resumed = part.exists()
    _bring(source, address, part, pins, timeout)
    try:
        delivered = digest(part)
        if resumed and delivered not in pins:  # the first part was of something else
            part.unlink()
            _bring(source, address, part, pins, timeout)
            delivered = digest(part)
        _verify(source, part, delivered, pins, _record(place).get("delivered"), place)
        fresh = part
        if source.unpack:
            try:
                fresh = archives.unpack(part, folder / "content", source.limit)
            except archives.ArchiveError as error:
                raise DownloadError(str(error)) from None
        if source.check:
            try:
                source.check(fresh)
            except Exception as error:  # whatever a reader may raise is a reason to refuse it
                raise DownloadError(f"the downloaded file is not usable: {error}") from error
        if not pins:
            print(
                f"{place.name}: {part.stat().st_size / 1e6:.1f} MB from {address}, "
                f"sha256 {delivered}, recorded for later downloads"
            )
        copy = "mirror" if mirrored and delivered != (source.sha256 or "").lower() else "publisher"
        kept = digest(fresh) if source.unpack else delivered
        record = folder / "record"
        record.write_text(
            json.dumps({"url": address, "delivered": delivered, "kept": kept, "copy": copy})
        )
        # Killed anywhere in between, the next run finds no content and starts again.
        if os.path.lexists(place):
            os.replace(place, folder / "old")
        os.replace(record, _record_file(place))
        os.replace(fresh, place)
    finally:
        part.unlink(missing_ok=True)  # no use to the next call


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


def _bring(source, address, part, pins, timeout):
    """Make `part` the whole file, in as many attempts as are allowed."""
    scheme = address.partition(":")[0].lower()
    if scheme not in ("http", "https"):
        if address == source.url:
            raise DownloadError("the address must begin with https:// or http://")
        shutil.copyfile(address, part)
        return
    tag = [None]  # the ETag of what has arrived so far
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _download(source, address, part, pins, tag, timeout)
        except _TryAgain as error:
            if attempt == ATTEMPTS:
                raise DownloadError(f"{error} ({ATTEMPTS} attempts)") from None
            wait = max(error.wait, BACKOFF * 2 ** (attempt - 1))
            print(
                f"{source.name}: {error}; attempt {attempt + 1} of {ATTEMPTS} in {wait:g} s",
                file=sys.stderr,
                flush=True,
            )
            time.sleep(wait)


def _download(source, address, part, pins, tag, timeout):
    """One attempt: stream `address` into `part`, from where the last one stopped if that is safe:
    a checksum will tell a mixture, or the server's ETag says that it is still the same file."""
    limit = source.limit or archives.LARGEST
    done = part.stat().st_size if part.exists() and (pins or tag[0]) else 0
    headers = {"User-Agent": "citynb"}
    if done:
        headers["Range"] = f"bytes={done}-"
        if tag[0]:
            headers["If-Range"] = tag[0]
    with _answer(source, address, headers, timeout, part) as reply:
        if reply.status == 200:
            done = 0
        elif reply.status != 206 or not done:
            raise DownloadError(f"the server answered {reply.status} {reply.reason}")
        elif not reply.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            part.unlink()
            raise _TryAgain("the server went on at another place of the file")
        tag[0] = reply.headers.get("ETag")
        if tag[0] and not tag[0].startswith('"'):  # a weak one promises too little
            tag[0] = None
        if reply.length is None and not reply.chunked:
            if "Content-Length" in reply.headers:
                raise DownloadError(
                    f"the server sent a Content-Length of {reply.headers['Content-Length']!r}"
                )
            if not (pins or source.unpack):  # an archive has a mark or a checksum at its end
                raise DownloadError("neither its length nor its checksum is known")
        size = None if reply.length is None else done + reply.length
        needed = (reply.length or 0) + (size or 0) * 2 * source.unpack
        if needed > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, "no space")
        watched = sys.stderr.isatty() or hasattr(builtins, "get_ipython")  # a notebook
        with (
            open(part, "ab" if done else "wb") as file,
            tqdm(
                total=size,
                initial=done,
                desc=source.name,
                unit="B",
                unit_scale=True,
                leave=False,
                delay=1,
                mininterval=0.2 if watched else 30,
                disable=not watched and (size or 0) < LARGE,
            ) as bar,
        ):
            for chunk in _chunks(reply, timeout):
                done += len(chunk)
                if max(done, size or 0) > limit:
                    raise DownloadError(f"the file is larger than {limit / 1e6:,.0f} MB")
                file.write(chunk)
                bar.update(len(chunk))
    if size is not None and done != size:
        raise _TryAgain(f"the connection was cut after {done} of {size} bytes")
    if not done:
        raise DownloadError("the server sent an empty file")


def _chunks(reply, timeout):
    try:
        while chunk := reply.read1(1 << 20):
            yield chunk
    except TimeoutError:
        raise _TryAgain(f"the server stalled for {timeout:g} seconds") from None
    except (http.client.HTTPException, OSError) as error:
        raise _TryAgain(f"the connection was cut ({error!r})") from None


def _answer(source, address, headers, timeout, part):
    """Open the address; every way to fail becomes a DownloadError, a _TryAgain or _Absent."""
    patience = _Patience(timeout)
    opener = urllib.request.build_opener(_Redirects, _Http(patience), _Https(patience))
    try:
        return opener.open(urllib.request.Request(address, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (404, 410) and address != source.url:
            raise _Absent from None
        reason = f"the server answered {error.code} {error.reason}"
        if error.code == 416 and "Range" in headers:
            part.unlink()
        elif error.code not in BUSY and error.code < 500:
            raise DownloadError(reason) from None
        wait = _seconds(error.headers.get("Retry-After", ""))
        if wait > LONGEST_WAIT:
            raise DownloadError(f"{reason} and asks to wait {wait:,.0f} seconds") from None
        raise _TryAgain(reason, wait) from None
    except TimeoutError:
        raise _TryAgain(f"the server stalled for {timeout:g} seconds") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _TryAgain(f"the server stalled for {timeout:g} seconds") from None
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise DownloadError(
                f"the server's certificate is not valid ({error.reason.verify_message})"
            ) from None
        raise _TryAgain(f"no connection ({error.reason})") from None
    except (http.client.InvalidURL, ValueError, OverflowError) as error:
        raise DownloadError(f"the address, or that of a proxy, is not valid ({error})") from None
    except (http.client.HTTPException, OSError) as error:
        raise _TryAgain(f"the connection was cut before an answer ({error!r})") from None


def _seconds(text):
    """Return the seconds that a Retry-After header asks for: a number, or a date."""
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        fp.close()  # or urllib would read an endless page to its end
        scheme = newurl.partition(":")[0].lower()
        if scheme != "https" and (req.type == "https" or scheme != "http"):
            raise DownloadError(f"redirected to an unprotected address, {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Patience:
    """How long a read may take: `timeout` seconds for each `timeout * SLOWEST` bytes.

    A socket's own timeout starts anew with each byte, so one byte a second would do.
    """

    def __init__(self, timeout):
        self.timeout, self.received, self.until = timeout, 0, time.monotonic() + timeout

    def left(self):
        if self.received >= self.timeout * SLOWEST:
            self.received, self.until = 0, time.monotonic() + self.timeout
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Patient(io.RawIOBase):
    """The bytes of a socket, read with a `_Patience`."""

    def __init__(self, raw, sock, patience):
        self.raw, self.sock, self.patience = raw, sock, patience

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


class _Reply(http.client.HTTPResponse):
    def __init__(self, patience, sock, *args, **kwargs):
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Patient(self.fp.detach(), sock, patience))


class _WithPatience:
    """Makes a handler of urllib read all answers, those of a proxy too, as `_Reply`."""

    def __init__(self, patience):
        super().__init__()
        self.patience = patience

    def do_open(self, http_class, req, **options):
        def connection(*args, **kwargs):
            made = http_class(*args, **kwargs)
            made.response_class = functools.partial(_Reply, self.patience)
            return made

        return super().do_open(connection, req, **options)


class _Http(_WithPatience, urllib.request.HTTPHandler):
    pass


class _Https(_WithPatience, urllib.request.HTTPSHandler):
    pass


@contextlib.contextmanager
def _lock(place):
    """Hold a lock that the system releases when its process dies, so none can go stale.

    Yields True when this process is alone, False where the file system has no locks.
    """
    path = place.with_name(f".{place.name}.lock")
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DownloadError(f"the lock {path} is a symbolic link; delete it") from None
        raise
    with file:
        alone, until = fcntl is not None, None
        while fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if until is None:
                    print(f"{place.name}: another process is fetching it", file=sys.stderr)
                    until = time.monotonic() + LOCK_WAIT
                if time.monotonic() > until:
                    raise DownloadError(
                        f"another process has been fetching it for {LOCK_WAIT:g} seconds"
                    ) from None
                time.sleep(0.2)
            except OSError:  # a network drive without locks
                alone = False
                break
        yield alone

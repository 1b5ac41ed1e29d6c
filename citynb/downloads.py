"""Fetch a published file once, verify it, keep it: step 0 of every download in the book.

Why not a library: the downloaders of TensorFlow Hub and `keras.utils.get_file` have no timeout
and no retry, and Hub keeps a damaged archive in its cache for ever. Here a file is complete,
checked and unpacked in a temporary folder before one rename makes it visible, so the cache never
holds half of anything.
"""

import contextlib
import errno
import hashlib
import http.client
import json
import os
import pathlib
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib

try:
    import fcntl
except ImportError:  # Windows: two processes may download twice; the rename keeps both safe
    fcntl = None

ATTEMPTS = 4
BACKOFF = 1.0  # seconds before the second attempt; doubled each time
LOCK_WAIT = 600.0  # seconds to wait for another process that downloads the same thing
SLOWEST = 1000.0  # bytes a second, averaged over the attempt once `timeout` has passed


class DownloadError(RuntimeError):
    """A download failed. The message names the file, its address, the reason and the way out."""


class _TryAgain(Exception):
    """A failure that may pass: a lost connection, a timeout, a busy server."""


def cache_folder():
    """Return the folder for downloads: `CITYNB_CACHE`, or `~/.cache/citynb`. It need not exist."""
    return pathlib.Path(os.environ.get("CITYNB_CACHE") or "~/.cache/citynb").expanduser()


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


def fetch(url, sha256, name, unpack=False, check=None, way_out="", timeout=30.0):
    """Return the local path of a published file, downloading it only when it is not cached.

    Args:
        url: address; redirects are followed, but never from https down to http.
        sha256: checksum of what the address delivers, in hex. None trusts the first download:
            its checksum is printed and recorded beside the cached copy, and any later download
            must match it. A pinned checksum is safer; use None only where none is published.
        name: file name in the cache, e.g. "los_loop.csv"; with `unpack` the folder's name.
        unpack: True for a tar or zip archive that should become a folder.
        check: called with the path of the new file or folder before it enters the cache; raises
            an exception whose message says what is wrong.
        way_out: one sentence for the error message: what to do without this file.
        timeout: seconds without a single byte before an attempt is given up.

    Returns:
        `pathlib.Path` inside `cache_folder()`. It was verified against its checksum in this call.

    Raises:
        DownloadError: for every failure: no network, an HTTP error, a stalled or cut connection,
            a wrong size or checksum, a damaged archive, a failed check, no space, no permission.
            Nothing of the failed download is left in the cache.
    """
    place = cache_folder() / name
    try:
        if _cached(place, sha256):  # before the lock: a cache may be read-only and complete
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with _lock(place) as alone:
            if _cached(place, sha256):  # another process was faster
                return place
            if alone:  # then what lies about was left by a killed download
                for leftover in place.parent.glob(f".{name}-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=place.parent) as folder:
                _install(url, sha256, place, pathlib.Path(folder), unpack, check, timeout)
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
    raise DownloadError(f"{name} could not be fetched from {url}: {reason}. {way_out}".strip())


def _record(place):
    return place.with_name(place.name + ".json")


def _cached(place, sha256):
    """True when the cached copy is the verified one, False when there is none to use."""
    try:
        record = json.loads(_record(place).read_text())
        delivered, kept = record["delivered"], record["kept"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return False
    if not place.exists() or (sha256 and delivered != sha256):  # the pin in the code moved on
        return False
    if digest(place) != kept:
        raise DownloadError(f"the cached copy {place} has changed since it was verified; delete it")
    return True


def _install(url, sha256, place, folder, unpack, check, timeout):
    """Download into `folder`, verify there, then move into place with one rename."""
    archive = folder / "download"
    for attempt in range(ATTEMPTS):
        try:
            delivered = _download(url, archive, 3 if unpack else 1, timeout)
            break
        except _TryAgain as error:
            if attempt == ATTEMPTS - 1:
                raise DownloadError(f"{error} ({ATTEMPTS} attempts)") from None
            time.sleep(BACKOFF * 2**attempt)
    if sha256 and delivered != sha256:
        raise DownloadError(f"wrong checksum: expected sha256 {sha256}, received {delivered}")
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        first = json.loads(_record(place).read_text())["delivered"]
        if not sha256 and delivered != first:
            raise DownloadError(
                f"the file has changed: the first download had sha256 {first}, this one "
                f"{delivered}; if you trust the new one, delete {_record(place)}"
            )
    fresh = _unpack(archive, folder / "content") if unpack else archive
    if check:
        try:
            check(fresh)
        except (
            Exception
        ) as error:  # whatever a reader of the file may raise is a reason to refuse it
            raise DownloadError(f"the downloaded file is not usable: {error}") from error
    if not sha256:
        size = archive.stat().st_size / 1e6
        print(
            f"{place.name}: {size:.1f} MB from {url}, sha256 {delivered}, "
            "recorded for later downloads"
        )
    # The record goes first: killed in between, the next run finds no content and starts again.
    record = folder / "record"
    record.write_text(
        json.dumps({"url": url, "delivered": delivered, "kept": digest(fresh)}, indent=1)
    )
    os.replace(record, _record(place))
    if place.is_dir():
        shutil.rmtree(place)
    os.replace(fresh, place)


def _download(url, target, times, timeout):
    """Stream `url` into `target` and return its sha256; `times` its size must fit on the disk."""
    request = urllib.request.Request(url, headers={"User-Agent": "citynb"})
    total, started, checksum = 0, time.monotonic(), hashlib.sha256()
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply, open(target, "wb") as file:
            if url.startswith("https:") and not reply.url.startswith("https:"):
                raise DownloadError(f"redirected to an unprotected address, {reply.url}")
            size = int(reply.headers.get("Content-Length") or 0)
            if size * times > shutil.disk_usage(target.parent).free:
                raise OSError(errno.ENOSPC, "no space")
            while chunk := reply.read1(1 << 20):
                file.write(chunk)
                checksum.update(chunk)
                total += len(chunk)
                elapsed = time.monotonic() - started
                if elapsed > timeout and total < SLOWEST * elapsed:
                    raise TimeoutError
    except urllib.error.HTTPError as error:
        reason = f"the server answered {error.code} {error.reason}"
        raise (_TryAgain if error.code >= 500 or error.code == 429 else DownloadError)(
            reason
        ) from None
    except TimeoutError:
        raise _TryAgain(f"the server stalled for {timeout:g} seconds") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _TryAgain(f"the server stalled for {timeout:g} seconds") from None
        raise _TryAgain(f"no connection ({error.reason})") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise _TryAgain(f"the connection was cut after {total} bytes ({error!r})") from None
    if size and total != size:
        raise _TryAgain(f"the connection was cut after {total} of {size} bytes")
    return checksum.hexdigest()


def _unpack(archive, folder):
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)  # drops "..", drives and leading slashes
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:  # gzip, bzip2, xz or plain
                _extract_safely(file, folder)
                while file.fileobj.read(1 << 20):  # gzip's own checksum stands at the very end
                    pass
        else:
            with open(archive, "rb") as file:
                raise DownloadError(f"it is no archive but begins with {file.read(24)!r}")
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the archive
            raise
        raise DownloadError(f"the archive is damaged ({error})") from None
    return folder


def _extract_safely(file, folder):
    """Extract a tar file: no path outside of the folder, no device, no odd owner or mode."""
    if hasattr(tarfile, "data_filter"):
        file.extractall(folder, filter="data")
        return
    # Before Python 3.11.4, which Debian 12 has, tarfile trusts an archive blindly.
    owner = folder.parent.stat()  # the folder itself is made by extractall
    for member in file.getmembers():
        target = (folder / member.name).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise tarfile.TarError(f"{member.name!r} would be extracted outside of the folder")
        if not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name!r} is neither a file nor a folder")
        member.mode = 0o755 if member.isdir() else 0o644
        member.uname = member.gname = ""
        member.uid, member.gid = owner.st_uid, owner.st_gid
    file.extractall(folder)


@contextlib.contextmanager
def _lock(place):
    """Hold a lock that the system releases when its process dies, so none can go stale.

    Yields True when this process is alone, False where the file system has no locks.
    """
    with open(place.with_name(f".{place.name}.lock"), "w") as file:
        alone, until = fcntl is not None, time.monotonic() + LOCK_WAIT
        while fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise DownloadError(
                        f"another process has been fetching it for {LOCK_WAIT:g} seconds"
                    ) from None
                time.sleep(0.2)
            except OSError:  # a network drive without locks
                alone = False
                break
        yield alone

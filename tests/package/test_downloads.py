"""Every way in which a download fails, and the few in which it works."""

import errno
import gzip
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import types
import warnings
import zipfile

import pytest
from file_server import FileServer, link, make_certificate, tarred, zipped

from citynb import __main__ as command_line
from citynb import archives, downloads
from citynb.downloads import DownloadError, Source, fetch

CONTENT = b"when,cars\n" + b"2026-01-01 00:00,17\n" * 3000
NAME = "counts.csv"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("CITYNB_MIRROR", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CITYNB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "BACKOFF", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def server(cache):
    with FileServer(CONTENT) as running:
        yield running


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def refused(cache, match, *args, name=NAME, resumable=False, **options):
    """The file is refused in one line that names it, and the cache holds nothing of it."""
    before = names(cache)
    with pytest.raises(DownloadError, match=match) as caught:
        fetch(*args, name=name, **options)
    message = str(caught.value)
    assert message.startswith(f"{name} could not be fetched from ".lstrip()) and "\n" not in message
    assert set(names(cache)) - set(before) <= {f".{name}.lock", resumable and f".{name}~part"}


# --- What works --------------------------------------------------------------------------------


def test_a_pinned_file_is_fetched_once(server, cache, capsys):
    path = fetch(server.address, sha256(CONTENT).upper(), NAME)
    assert path == cache / NAME and path.read_bytes() == CONTENT
    assert fetch(server.address, sha256(CONTENT), NAME) == path and len(server.requests) == 1
    assert names(cache) == [f".{NAME}.lock", NAME, f"{NAME}.json"]
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
    assert downloads.copy_of(NAME) == "publisher"


def test_an_unpinned_file_is_recorded_and_must_not_change(server, cache, capsys):
    path = fetch(server.address, None, NAME)
    assert sha256(CONTENT) in capsys.readouterr().out
    path.unlink()
    server.content = CONTENT + b"more"
    with pytest.raises(DownloadError, match="the file has changed: the first download had"):
        fetch(server.address, None, NAME)
    assert not path.exists()
    (cache / f"{NAME}.json").unlink()  # the way out that the message names
    assert fetch(server.address, None, NAME).read_bytes() == server.content


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_become_folders(server, cache, kind):
    files = {"2026/a.csv": b"a", "./2026/deep/b.csv": b"b" * 100_000}
    folder = tarfile.TarInfo("empty")
    folder.type = tarfile.DIRTYPE
    server.content = zipped(files) if kind == "zip" else tarred(folder, *files.items())
    path = fetch(server.address, None, "counts", unpack=True)
    assert (path / "2026/a.csv").read_bytes() == b"a"
    assert (path / "2026/deep/b.csv").stat().st_size == 100_000
    assert not (path / "2026/a.csv").stat().st_mode & 0o111
    assert (path / "empty").is_dir() == (kind == "tar.gz")
    assert fetch(server.address, sha256(server.content), "counts", unpack=True) == path
    assert len(server.requests) == 1


def test_a_check_may_refuse(server, cache):
    def check(path):
        raise ValueError(f"{path.stat().st_size} bytes\nare too few.")

    refused(cache, "not usable: .* bytes are too few. Draw it.", server.address, sha256(CONTENT),
            check=check, way_out="Draw it.")  # fmt: skip


# --- Servers and connections -------------------------------------------------------------------


@pytest.mark.parametrize("status", [403, 404, 503])
def test_http_errors(server, cache, status):
    server.answers, server.forever = [status], True
    refused(cache, f"the server answered {status}", server.address, None)
    assert len(server.requests) == (downloads.ATTEMPTS if status == 503 else 1)


def test_each_retry_is_told(server, capsys):
    server.answers = [503, 429, 408]
    assert fetch(server.address, sha256(CONTENT), NAME)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "answered 503" in lines[0] and "attempt 2 of 4 in" in lines[0]


def test_retry_after_is_honored(server, cache, monkeypatch):
    waits = []
    monkeypatch.setattr(downloads.time, "sleep", waits.append)
    server.answers = [(429, {"Retry-After": "20"}), (503, {"Retry-After": "soon"})]
    server.answers += [(503, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"})]
    assert fetch(server.address, sha256(CONTENT), NAME)
    assert waits == [20, 0.02, 0.04]
    server.answers = [(429, {"Retry-After": "3600"})]
    refused(cache, "429 .* asks to wait 3,600 seconds", server.address, None, name="other")


@pytest.mark.parametrize("drip", ["headers", "body", "stall"])
def test_a_server_that_drips_or_stalls(server, cache, monkeypatch, capsys, drip):
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    server.stall, server.drip = drip == "stall", drip
    refused(cache, r"the server stalled for 0.2 seconds \(2 attempts\)",
            server.address, None, timeout=0.2)  # fmt: skip
    assert "stalled for 0.2 seconds; attempt 2 of 2" in capsys.readouterr().err


def test_nobody_answers(server, cache):
    server.server.shutdown()
    server.server.server_close()
    refused(cache, "no connection", server.address, None)


def test_a_cut_connection(server, cache):
    server.cut = 1000
    refused(cache, f"cut after 1000 of {len(CONTENT)} bytes", server.address, None)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_cut_that_no_length_tells(server, cache, chunked):
    """Without a length and a checksum a cut file looks whole."""
    server.cut, server.length, server.chunked = 1000, None, chunked
    match = "connection was cut" if chunked else "neither its length nor its checksum is known"
    refused(cache, match, server.address, None)
    server.cut = None
    assert fetch(server.address, sha256(CONTENT), NAME)
    archive = server.content = tarred(("a", os.urandom(3000)))
    server.cut = len(archive) - 2
    refused(cache, "cut|damaged", server.address, None, name="archive", unpack=True)


@pytest.mark.parametrize("body", [b"", b" <!DOCTYPE html><p>Please log in", b"\xef\xbb\xbf<html>"])
def test_an_empty_file_or_a_login_page(server, cache, body):
    server.content = body
    refused(cache, "empty file|a web page .HTML. came", server.address, None)
    if body:
        refused(cache, "a web page .HTML. came", server.address, "0" * 64)
        assert fetch(server.address, None, "page.html").read_bytes() == body


def test_no_content(server, cache):
    server.answers = [204]
    refused(cache, "the server answered 204", server.address, None)


@pytest.mark.parametrize("length", ["many", "-5"])
def test_an_impossible_length(server, cache, length):
    server.length = length
    refused(cache, f"a Content-Length of '{length}'", server.address, None)


@pytest.mark.parametrize("port", ["many", "99999"])
def test_a_proxy_that_cannot_be(server, cache, monkeypatch, port):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    match = "the address, or that of a proxy, is not valid|no connection"
    refused(cache, match, "http://example.org/x", None)


@pytest.mark.parametrize(
    "address",
    ["file:///etc/passwd", "ftp://example.org/x", "x", "", "http://[::1", "http://127.0.0.1:many/",
     "http://127.0.0.1:1/\u00e4"],
)  # fmt: skip
def test_addresses_that_cannot_be(cache, address):
    refused(cache, "must begin with https://|is not valid", address, None)


def test_a_cut_download_goes_on_where_it_stopped(server, cache, capsys):
    server.ranges, server.cut = True, [1000, 2000, 3000, 4000]
    pin = sha256(CONTENT)
    refused(
        cache,
        rf"cut after 10000 of {len(CONTENT)} bytes \(4 att",
        server.address,
        pin,
        resumable=True,
    )
    assert names(cache) == [f".{NAME}.lock", f".{NAME}~part"]
    assert fetch(server.address, pin, NAME).read_bytes() == CONTENT
    asked = [headers.get("Range") for _, headers in server.requests]
    assert asked == [None, "bytes=1000-", "bytes=3000-", "bytes=6000-", "bytes=10000-"]
    assert names(cache) == [f".{NAME}.lock", NAME, f"{NAME}.json"]


def test_a_kept_part_of_something_else_is_given_up(server, cache):
    server.ranges, server.cut = True, [1000, 0, 0, 0]
    server.content = CONTENT.upper()
    refused(cache, "cut after 1000", server.address, sha256(CONTENT), resumable=True)
    server.content = CONTENT
    assert fetch(server.address, sha256(CONTENT), NAME).read_bytes() == CONTENT
    assert [headers.get("Range") for _, headers in server.requests][-2:] == ["bytes=1000-", None]
    server.content, server.cut = CONTENT, [1000, 0, 0, 0]  # and one that is longer than the file
    pin = sha256(CONTENT[:500])
    refused(cache, "cut after 1000", server.address, pin, name="short", resumable=True)
    server.content = CONTENT[:500]
    assert fetch(server.address, pin, "short").read_bytes() == CONTENT[:500]


def test_without_a_pin_only_an_etag_lets_it_go_on(server, cache):
    server.ranges, server.cut = True, [1000]
    assert fetch(server.address, None, "no_tag").read_bytes() == CONTENT
    server.etag, server.cut = 'W/"1"', [1000]
    assert fetch(server.address, None, "weak").read_bytes() == CONTENT
    assert not any("Range" in headers for _, headers in server.requests)
    server.etag, server.cut = '"1"', [1000]
    assert fetch(server.address, None, "strong").read_bytes() == CONTENT
    last = server.requests[-1][1]
    assert last["Range"] == "bytes=1000-" and last["If-Range"] == '"1"'


def test_a_file_that_changes_under_its_etag_starts_again(server, cache):
    server.ranges, server.etag, server.cut = True, '"1"', [1000]
    answer = server.answer

    def change(request):
        if len(server.requests) == 2:
            server.etag, server.content = '"2"', CONTENT.upper()
        answer(request)

    server.answer = change
    assert fetch(server.address, None, NAME).read_bytes() == CONTENT.upper()


# --- Addresses that must not be left ---------------------------------------------------------


@pytest.fixture
def secure(cache, monkeypatch, tmp_path):
    certificate = make_certificate(tmp_path)
    if certificate is None:
        pytest.skip("openssl is not here to make a certificate")
    with FileServer(CONTENT, certificate) as running:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        yield running


def test_https_works_and_may_move_to_https(secure):
    secure.answers = [f"redirect:{secure.home.upper()}/moved"]
    assert fetch(secure.address, None, NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("capitals", [False, True])
def test_https_is_never_left(secure, server, cache, capitals):
    """Not even for one hop: https to http to https."""
    address = secure.address.replace("https", "HTTPS") if capitals else secure.address
    secure.answers, server.answers = [f"redirect:{server.home}/x"], [f"redirect:{secure.home}/y"]
    refused(cache, "redirected to an unprotected address, http://127", address, None)
    assert len(server.requests) == 0


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_to_other_kinds_of_address(server, cache, target):
    server.answers = [f"redirect:{target}"]
    refused(cache, "redirected to|answered 302", server.address, None)


def test_redirects_in_a_circle(server, cache):
    server.answers, server.forever = [f"redirect:{server.address}"], True
    refused(cache, "the server answered 302", server.address, None)


def test_a_certificate_that_nobody_signed(secure, cache, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    refused(cache, "certificate is not valid", secure.address, None)
    assert len(secure.requests) == 0


# --- Archives ----------------------------------------------------------------------------------


def long_chain_of_links():
    """CPython's own test for CVE-2025-4517: links whose resolved path is longer than the system
    allows, so that `tarfile`'s filters see a harmless rest and write outside of the folder."""
    component, steps, members, path = "d" * 247, "abcdefghijklmnop", [], ""
    for step in steps:
        folder = tarfile.TarInfo(os.path.join(path, component))
        folder.type = tarfile.DIRTYPE
        members += [folder, link(os.path.join(path, step), component)]
        path = os.path.join(path, component)
    short = os.path.join("/".join(steps), "l" * 254)
    members += [link(short, "../" * len(steps)), link("escape", short + "/../../../..")]
    return [*members, ("escape/flaw.txt", b"overwritten")]


ESCAPED = {"flaw.txt", "escaped.txt"}
HARMFUL = {
    "a long chain of links": (long_chain_of_links(), "neither a file nor a folder"),
    "a link to a file": ([link("a", "/etc/passwd")], "'a' is neither"),
    "a hard link to nothing": ([link("a", "nowhere", tarfile.LNKTYPE)], "'a' is neither"),
    "a device": ([link("a", "", tarfile.CHRTYPE)], "'a' is neither"),
    "a pipe": ([link("a", "", tarfile.FIFOTYPE)], "'a' is neither"),
    "a path out": ([("../../escaped.txt", b"x")], "outside of the folder"),
    "an absolute path": ([("/tmp/escaped.txt", b"x")], "outside of the folder"),
    "a path on a drive": ([("C:escaped.txt", b"x")], "outside of the folder"),
    "a path out for Windows": ([("..\\..\\escaped.txt", b"x")], "outside of the folder"),
    "one file twice": ([("a", b"x"), ("a", b"y")], "'a' twice"),
    "a file that is a folder": ([("a/b", b"x"), ("a", b"y")], "'a' twice"),
    "a folder that is a file": ([("a", b"x"), ("a/b", b"y")], "'a/b' twice"),
    "nothing": ([], "the archive is empty"),
}


@pytest.mark.parametrize("case", HARMFUL)
@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_harmful_archives(server, cache, tmp_path, case, kind):
    members, match = HARMFUL[case]
    if kind == "tar.gz":
        server.content = tarred(*members)
    elif any(isinstance(member, tarfile.TarInfo) for member in members):
        info = zipfile.ZipInfo("a")
        info.external_attr = 0o120777 << 16  # a symbolic link
        server.content, match = zipped({info: "/etc/passwd"}), "'a' is neither"
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile warns of a name that stands twice
            server.content = zipped(members)
    refused(cache, match, server.address, None, name="counts", unpack=True)
    assert not any(ESCAPED & {path.name} for path in tmp_path.rglob("*"))


def test_a_sparse_file_or_a_negative_size(server, cache):
    sparse = tarfile.TarInfo("a")
    sparse.type = tarfile.GNUTYPE_SPARSE
    server.content = tarred(sparse)
    refused(cache, "neither a file", server.address, None, name="counts", unpack=True)
    header = bytearray(tarfile.TarInfo("a").tobuf())
    header[124:136] = b"\xff" * 12  # -1 in base 256
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    server.content = gzip.compress(bytes(header) + bytes(2048))
    refused(cache, "damaged|empty", server.address, None, name="counts", unpack=True)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "a long name", "many empty files"])
def test_archives_that_grow(server, cache, monkeypatch, kind):
    """Zeros pack a thousand to one; so do long names and empty files."""
    monkeypatch.setattr(archives, "FLOOR", 2**18)
    monkeypatch.setattr(archives, "RATIO", 1)
    zeros = bytes(2**23)
    if kind == "zip":
        server.content = zipped({"zeros": zeros})
    elif kind == "tar.gz":
        server.content = tarred(("zeros", zeros))
    elif kind == "a long name":
        server.content = tarred(("n" * len(zeros), b""), format=tarfile.PAX_FORMAT)
    else:
        server.content = tarred(*((f"{i:0100d}", b"") for i in range(600)))
    refused(cache, "it unpacks to more than", server.address, None, name="counts", unpack=True)
    server.content = zipped({"zeros": bytes(3000)})
    refused(cache, "more than 0 MB", server.address, None, name="counts", unpack=True, limit=2000)
    assert fetch(server.address, None, "counts", unpack=True, limit=4000)


@pytest.mark.parametrize("length", ["right", None])
def test_a_file_beyond_its_limit(server, cache, length):
    server.length = length
    refused(cache, "the file is larger than 0 MB", server.address, sha256(CONTENT), limit=5000)


@pytest.mark.parametrize(
    "content, match",
    [
        (tarred(("a", b"a"), mode="w:xz"), "an xz archive, and only zip and tar.gz are unpacked"),
        (tarred(("a", b"a"), mode="w:bz2"), "a bzip2 archive"),
        (tarred(("a", b"a"), mode="w"), "a tar archive without gzip"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7z archive"),
        (b"Rar!\x1a\x07" + bytes(100), "a rar archive"),
        (b"<html>please log in</html>", "it is no archive but begins with b'<html>please log"),
        (gzip.compress(CONTENT), "the archive is damaged"),
        (gzip.compress(b""), "the archive is damaged"),
        (zipped({"a": "a" * 99}, zipfile.ZIP_LZMA), "'a' is packed in an unusual way"),
        (zipped({"a": "a" * 99}, zipfile.ZIP_BZIP2), "'a' is packed in an unusual way"),
        (zipped({"a": "a" * 9}).replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"), "encrypted"),
        (tarred(("a", b"a"))[:-4], "the archive is damaged"),
        (gzip.compress(gzip.decompress(tarred(("a", b"a"))) + b"more"), "more bytes behind"),
        (zipped({"a": "a"})[:-4], "the archive is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_archives_of_other_kinds_and_damaged_ones(server, cache, content, match):
    server.content = content
    refused(cache, match, server.address, None, name="counts", unpack=True)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_every_flipped_byte_is_found_or_does_no_harm(tmp_path, kind):
    """What is read is either refused in our words, or what was packed."""
    files = {"a.csv": CONTENT[:3000], "b/c.csv": os.urandom(300)}
    whole = zipped(files) if kind == "zip" else tarred(*files.items())
    for place in range(0, len(whole), 9):
        broken = bytearray(whole)
        broken[place] ^= 0x5A
        (tmp_path / "archive").write_bytes(broken)
        try:
            folder = archives.unpack(tmp_path / "archive", tmp_path / "content")
        except archives.ArchiveError:
            pass
        except OSError as error:  # a name that the disk does not take
            assert error.errno == errno.ENAMETOOLONG
        else:
            found = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
            assert set(found) <= set(files.values())  # a name in a zip has no checksum
        shutil.rmtree(tmp_path / "content", ignore_errors=True)


# --- The cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\0", "a*", "a.json", "a.", "a" * 201, None]
)
def test_names_that_cannot_be(server, cache, name):
    fetch(server.address, None, NAME)
    refused(cache, "cannot be a name in the cache", server.address, None, name=name)
    assert (cache / NAME).exists()


def test_a_home_that_cannot_be_found(server, cache, monkeypatch):
    monkeypatch.setenv("CITYNB_CACHE", "~nosuchuser/cache")
    refused(cache, "the folder ~nosuchuser/cache cannot be found", server.address, None)


def test_the_pin_moves_on(server, cache):
    fetch(server.address, sha256(CONTENT), NAME)
    server.content = CONTENT + b"more"
    assert fetch(server.address, sha256(server.content), NAME).read_bytes() == server.content
    with pytest.raises(DownloadError, match="wrong checksum: expected sha256 111"):
        fetch(server.address, "1" * 64, NAME)
    assert (cache / NAME).read_bytes() == server.content


@pytest.mark.parametrize("pinned", [True, False])
def test_a_copy_that_changed_is_not_used(server, cache, pinned):
    pin = sha256(CONTENT) if pinned else None
    fetch(server.address, pin, NAME).write_bytes(b"something else")
    with pytest.raises(DownloadError, match="has changed since it was verified; delete it"):
        fetch(server.address, pin, NAME)
    assert len(server.requests) == 1


@pytest.mark.parametrize("claims", ["the pin", "itself"])
def test_a_forged_copy_with_a_forged_record_is_found(server, cache, claims):
    pin, forged = sha256(CONTENT), sha256(b"forged")
    path = fetch(server.address, pin, NAME)
    path.write_bytes(b"forged")
    record = {"delivered": pin if claims == "the pin" else forged, "kept": forged}
    (cache / f"{NAME}.json").write_text(json.dumps(record))
    try:
        assert fetch(server.address, pin, NAME).read_bytes() == CONTENT
    except DownloadError as error:
        assert claims == "the pin" and "has changed" in str(error)


@pytest.mark.parametrize("record", ["[]", "{}", "", "{", '{"delivered": [], "kept": 3}', "3"])
@pytest.mark.parametrize("pinned", [True, False])
def test_a_damaged_record(server, cache, record, pinned):
    pin = sha256(CONTENT) if pinned else None
    fetch(server.address, pin, NAME)
    (cache / f"{NAME}.json").write_text(record)
    assert fetch(server.address, pin, NAME).read_bytes() == CONTENT


def test_a_folder_without_its_record_is_not_trusted(server, cache):
    (cache / "counts").mkdir(parents=True)
    (cache / "counts" / "a").write_bytes(b"half")
    server.content = zipped({"a": b"whole"})
    for pin in (None, sha256(server.content)):
        folder = fetch(server.address, pin, "counts", unpack=True)
        assert (folder / "a").read_bytes() == b"whole"


def test_names_that_begin_alike_do_not_touch_each_other(server, cache):
    cache.mkdir()
    for other in ("counts-loop", "counts.old", "counts~part"):
        (cache / f".{other}~part").mkdir()
    fetch(server.address, None, "counts")
    assert {f".{name}~part" for name in ("counts-loop", "counts.old")} <= set(names(cache))


def test_a_lock_that_is_a_link(server, cache, tmp_path):
    cache.mkdir()
    (tmp_path / "precious").write_text("precious")
    (cache / f".{NAME}.lock").symlink_to(tmp_path / "precious")
    refused(cache, "the lock .* is a symbolic link; delete it", server.address, None)
    assert (tmp_path / "precious").read_text() == "precious"
    (cache / f".{NAME}.lock").unlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("precious")
    (cache / f".{NAME}~part").symlink_to(tmp_path / "folder")
    assert fetch(server.address, None, NAME)
    assert (tmp_path / "folder" / "precious").exists()


def _die(step, function, address, pin):
    """Fetch, but be killed before the call number `step` of `function`."""
    calls, real = [], getattr(os, function)

    def replace(*args):
        calls.append(args)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(os, function, replace)
    fetch(address, pin, "counts", unpack=True)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("pinned", [True, False])
def test_killed_while_an_old_copy_is_replaced(server, cache, step, pinned):
    """Whatever was done by then, the next call ends with the new copy and nothing else."""
    server.content = zipped({"a": b"old"})
    fetch(server.address, sha256(server.content), "counts", unpack=True)
    server.content = zipped({"a": b"new"})
    if not pinned:
        (cache / "counts.json").unlink()
    pin = sha256(server.content) if pinned else None
    process = multiprocessing.get_context("fork").Process(
        target=_die, args=(step, "replace", server.address, pin)
    )
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert (fetch(server.address, pin, "counts", unpack=True) / "a").read_bytes() == b"new"
    assert names(cache) == [".counts.lock", "counts", "counts.json"]


def _fetch(address, pin):
    fetch(address, pin, NAME)


def test_random_kills(server, cache):
    """Killed at any time, a download leaves nothing that is taken for the file."""
    pin, server.ranges = sha256(CONTENT), True
    context = multiprocessing.get_context("fork")
    for trial in range(8):
        process = context.Process(target=_fetch, args=(server.address, pin))
        process.start()
        time.sleep(0.004 * trial)
        process.kill()
        process.join(30)
        assert fetch(server.address, pin, NAME).read_bytes() == CONTENT
        assert names(cache) == [f".{NAME}.lock", NAME, f"{NAME}.json"]
        shutil.rmtree(cache)


def test_two_processes_make_one_request(server):
    context = multiprocessing.get_context("fork")
    others = [
        context.Process(target=_fetch, args=(server.address, sha256(CONTENT))) for _ in range(4)
    ]
    for other in others:
        other.start()
    for other in others:
        other.join(30)
    assert [other.exitcode for other in others] == [0] * 4 and len(server.requests) == 1


def _hold(cache, started):
    with downloads._lock(pathlib.Path(cache) / NAME):
        (pathlib.Path(cache) / f".{NAME}~part" / "content").mkdir(parents=True)  # left by a kill
        started.set()
        time.sleep(60)


def test_stale_lock(server, cache, monkeypatch):
    """A process that dies while it downloads holds nobody up; one that lives is waited for."""
    cache.mkdir()
    context = multiprocessing.get_context("fork")
    started = context.Event()
    other = context.Process(target=_hold, args=(cache, started))
    other.start()
    try:
        assert started.wait(30)
        monkeypatch.setattr(downloads, "LOCK_WAIT", 0.3)
        with pytest.raises(DownloadError, match="another process has been fetching"):
            fetch(server.address, None, NAME)
        os.kill(other.pid, signal.SIGKILL)
        other.join(30)
        assert len(names(cache)) == 2
        assert fetch(server.address, None, NAME)
        assert names(cache) == [f".{NAME}.lock", NAME, f"{NAME}.json"]
    finally:
        other.kill()


@pytest.mark.parametrize("locks", ["refused", "unknown"])
def test_without_locks(server, cache, monkeypatch, locks):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    if locks == "unknown":
        monkeypatch.setattr(downloads, "fcntl", None)
    else:
        monkeypatch.setattr(downloads.fcntl, "flock", flock)
    assert fetch(server.address, None, NAME)
    assert names(cache) == [f".{NAME}.lock", NAME, f"{NAME}.json"]


def test_read_only_cache(server, monkeypatch):
    root = os.geteuid() == 0  # to whom nothing is read-only
    folder = pathlib.Path(tempfile.mkdtemp(prefix="citynb-read-only-"))
    folder.chmod(0o555)
    monkeypatch.setenv("CITYNB_CACHE", str(folder))
    try:
        if root:
            os.seteuid(65534)
        refused(folder, "no permission to write in .*; set CITYNB_CACHE to another folder",
                server.address, None)  # fmt: skip
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        assert fetch(server.address, None, NAME)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        if root:
            os.seteuid(65534)
        assert fetch(server.address, None, NAME)  # complete, so reading is enough
    finally:
        if root:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_cache_that_is_a_file(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CITYNB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="counts.csv could not be fetched"):
        fetch(server.address, None, NAME)


def test_no_space(server, cache, monkeypatch):
    usage = shutil.disk_usage(cache.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(cache, "no space left in", server.address, None)


def test_no_space_halfway(server, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    server.content = zipped({"a": b"a"})
    refused(cache, "no space left in", server.address, None, name="counts", unpack=True)


def test_progress_is_shown_to_who_watches(server, monkeypatch, capsys):
    monkeypatch.setattr(downloads, "tqdm", lambda **options: shown.append(options) or bar())
    shown = []

    class bar:
        __enter__, __exit__ = lambda self: self, lambda *_: None
        update = shown.append

    fetch(server.address, None, "quiet")
    monkeypatch.setattr(downloads.sys.stderr, "isatty", lambda: True, raising=False)
    fetch(server.address, None, "watched")
    opened = [options for options in shown if isinstance(options, dict)]
    assert [options["disable"] for options in opened] == [True, False]
    assert opened[1]["total"] == len(CONTENT) == sum(n for n in shown if isinstance(n, int)) / 2


# --- The mirror --------------------------------------------------------------------------------

REDUCED = zipped({"a": b"reduced"})
WHOLE = zipped({"a": b"whole"})


@pytest.fixture
def waste(server):
    server.content = WHOLE
    return Source(
        name="waste",
        url=f"{server.home}/v1/waste%20photos.zip?download=1",
        sha256=sha256(WHOLE),
        unpack=True,
        mirror_file="waste-small.zip",
        mirror_sha256=sha256(REDUCED),
    )


@pytest.fixture(params=["folder", "file:", "http:"])
def mirror(request, cache, tmp_path, monkeypatch):
    folder = tmp_path / "a mirror"
    folder.mkdir()
    address = {"folder": str(folder), "file:": folder.as_uri()}.get(request.param)
    if address:
        monkeypatch.setenv("CITYNB_MIRROR", address)
        yield folder
    else:
        with FileServer() as running:
            monkeypatch.setenv("CITYNB_MIRROR", f"{running.home}/files/")
            answer = running.answer

            def from_folder(request):
                name = request.path.removeprefix("/files/").replace("%20", " ")
                running.answers = [] if (folder / name).exists() else [404]
                running.content = (folder / name).read_bytes() if not running.answers else b""
                answer(request)

            running.answer = from_folder
            yield folder


def test_a_mirror_is_asked_first(waste, mirror, server):
    (mirror / "waste photos.zip").write_bytes(WHOLE)
    assert (fetch(waste) / "a").read_bytes() == b"whole"
    assert downloads.copy_of("waste") == "publisher" and server.requests == []


def test_a_mirror_may_have_a_reduced_copy(waste, mirror, server, monkeypatch):
    (mirror / "waste-small.zip").write_bytes(REDUCED)
    (mirror / "waste photos.zip").write_bytes(WHOLE)
    assert (fetch(waste) / "a").read_bytes() == b"reduced"
    assert downloads.copy_of("waste") == "mirror"
    monkeypatch.delenv("CITYNB_MIRROR")
    assert (fetch(waste) / "a").read_bytes() == b"reduced"
    assert server.requests == []
    server.content = REDUCED  # the publisher's own address must deliver the publisher's file
    shutil.rmtree(downloads.cache_folder())
    with pytest.raises(DownloadError, match=f"wrong checksum: expected sha256 {waste.sha256},"):
        fetch(waste)


def test_a_mirror_without_the_file_is_passed_over(waste, mirror, server):
    assert (fetch(waste) / "a").read_bytes() == b"whole"
    assert downloads.copy_of("waste") == "publisher" and len(server.requests) == 1


@pytest.mark.parametrize("harm", ["flipped", "short", "empty"])
def test_a_damaged_mirror_is_named_and_not_passed_over(waste, mirror, server, harm):
    content = {"flipped": bytes([0, *WHOLE[1:]]), "short": WHOLE[:-9], "empty": b""}[harm]
    (mirror / "waste photos.zip").write_bytes(content)
    match = r"from .*waste(%20| )photos.zip \(CITYNB_MIRROR\): (wrong checksum|.*empty file)"
    with pytest.raises(DownloadError, match=match):
        fetch(waste)
    assert server.requests == [] and downloads.cached(waste) is None


def test_an_unpinned_file_from_a_mirror(mirror, server, capsys):
    (mirror / NAME).write_bytes(CONTENT)
    assert fetch(server.address, None, "counts").read_bytes() == CONTENT
    assert downloads.copy_of("counts") == "mirror" and server.requests == []
    assert f"{NAME}, sha256 {sha256(CONTENT)}" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["/nowhere", "~nosuchuser/x", "file:///nowhere", "ftp://x/y"])
def test_a_mirror_that_is_none(waste, monkeypatch, value):
    monkeypatch.setenv("CITYNB_MIRROR", value)
    with pytest.raises(DownloadError, match="CITYNB_MIRROR is|cannot be found"):
        fetch(waste)


def test_a_mirror_that_does_not_answer(waste, server, monkeypatch):
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    monkeypatch.setenv("CITYNB_MIRROR", "http://127.0.0.1:1/files")
    with pytest.raises(DownloadError, match=r"\(CITYNB_MIRROR\): no connection"):
        fetch(waste)
    assert server.requests == []


# --- The command line --------------------------------------------------------------------------


@pytest.fixture
def shelf(monkeypatch, waste):
    """Two sources that a dataset names, and no others."""
    module = types.ModuleType("citynb.datasets")
    module.__path__ = []
    module.SOURCES = (waste, Source("los_loop.csv", waste.url, "0" * 64, size=2_500_000))
    monkeypatch.setitem(sys.modules, "citynb.datasets", module)
    networks = types.ModuleType("citynb.networks")
    networks.__path__ = []
    monkeypatch.setitem(sys.modules, "citynb.networks", networks)
    return module


def test_the_command_line_says_what_it_did(shelf, capsys):
    assert command_line.main(["fetch", "waste"]) == 0
    assert "waste: fetched (" in capsys.readouterr().out
    assert command_line.main(["fetch"]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert "waste: was there (" in first
    assert "los_loop.csv: failed. los_loop.csv could not be fetched" in second
    shelf.SOURCES = ()
    assert command_line.main(["fetch"]) == 0


def test_the_command_line_lists(shelf, server, capsys):
    assert command_line.main(["fetch", "--list"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("waste: http://") and second.endswith(", 2 MB")
    assert server.requests == []


def test_an_unknown_name_says_the_nearest(shelf, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.main(["fetch", "los_lop"])
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert "Did you mean 'los_loop.csv'? There are: waste, los_loop.csv" in told


def test_the_sources_of_the_package_can_be_collected():
    for name, source in command_line.sources().items():
        assert name == source.name and source.url.startswith("https://")

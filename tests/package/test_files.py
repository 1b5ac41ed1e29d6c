"""Where shipped files lie, and that a damaged one is refused with the way out."""

import shutil

import pytest

from citynb import files


def test_folders():
    root = files.data_folder().parent
    assert (files.data_folder() / "i94").is_dir()
    assert files.models_folder() == root / "models"
    assert files.results_folder() == root / "experiments" / "results"


def test_verify(tmp_path):
    files.verify(files.data_folder() / "i94")
    folder = tmp_path / "i94"
    shutil.copytree(files.data_folder() / "i94", folder)
    files.verify(folder)
    file = folder / "i94.csv.gz"
    content = bytearray(file.read_bytes())
    content[9] ^= 1  # the gzip header's operating system: the counts stay the same
    file.write_bytes(content)
    with pytest.raises(ValueError, match="i94.csv.gz is damaged: its sha256.*git checkout -- "):
        files.verify(folder)
    file.unlink()
    with pytest.raises(ValueError, match="i94.csv.gz is missing. Get it back"):
        files.verify(folder)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="SHA256SUMS is missing"):
        files.verify(folder)


def test_the_way_out_is_a_path_of_the_repository():
    with pytest.raises(ValueError, match="git checkout -- data/nowhere`"):
        files.verify(files.data_folder() / "nowhere")


def test_an_installed_copy_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PACKAGE", tmp_path)
    (tmp_path / "_data" / "i94").mkdir(parents=True)
    assert files.data_folder() == tmp_path / "_data"
    assert files.models_folder() == tmp_path.parent / "models"
    with pytest.raises(ValueError, match="Install citynb again"):
        files.verify(files.data_folder() / "i94")

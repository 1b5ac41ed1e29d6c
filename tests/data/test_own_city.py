"""`python -m simulation own`: refusals, the choice of junctions, and pictures that become a task."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import citynb
from simulation.__main__ import main
from simulation.network import Junction
from simulation.own_city import nearest_junctions, write_junctions, write_pictures
from simulation.publishing import COLUMNS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path, capsys):
    """Return a function that runs the command line and gives back what it says as it stops."""
    (tmp_path / "town.osm").write_text("<osm/>")

    def run(*words):
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, words)])
        return capsys.readouterr().err + str(stopped.value)

    return run


def test_refuses_bad_arguments(run, tmp_path):
    out, town = ("--out", tmp_path / "work"), ("--map", tmp_path / "town.osm")
    (tmp_path / "town.txt").write_text("x")
    for name in ("nowhere.osm", "town.txt"):
        assert f"{name} is no file with" in run("own", *out, "--map", tmp_path / name)
    assert "must not be berlin" in run("own", *out, *town, "--name", "Helsinki")
    assert "letters, digits" in run("own", *out, *town, "--name", "../town")
    assert "above zero" in run("own", *out, *town, "--days", 0)
    assert "below 99" in run("own", *out, *town, "--days", 99)
    # The network's files are written to --out under the map's name: the map must not stand there.
    assert "another folder" in run("own", "--out", tmp_path, *town)
    assert (tmp_path / "town.osm").read_text() == "<osm/>" and not (tmp_path / "work").exists()


def test_refuses_days_made_with_other_settings(run, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "town.settings.json").write_text(json.dumps({"map": "other"}))
    said = run("own", "--out", work, "--map", tmp_path / "town.osm")
    assert "made with other settings (town.settings.json). Choose another --out" in said


def network(projection=True):
    """A map of three junctions on a line, whose degrees are thousandths of a meter."""
    places = (("a", 0.0), ("b", 200.0), ("c", 400.0))
    junctions = [Junction(name, x, 0.0, lane_km=0.25, approaches=3) for name, x in places]
    net = SimpleNamespace(
        hasGeoProj=lambda: projection,
        convertLonLat2XY=lambda lon, lat: (1000 * lon, 1000 * lat),
        convertXY2LonLat=lambda x, y: (x / 1000, y / 1000),
    )
    return SimpleNamespace(net=net, junctions=junctions)


def test_junctions_nearest_to_points():
    assert nearest_junctions(network(), [(0.39, 0.01), (0.05, 0.0)]) == ["c", "a"]
    with pytest.raises(SystemExit, match="0.16 0.0 was chosen before"):
        nearest_junctions(network(), [(0.2, 0.0), (0.16, 0.0)])
    with pytest.raises(SystemExit, match="0.3 0.3 is out of view"):
        nearest_junctions(network(), [(0.3, 0.3)])
    with pytest.raises(SystemExit, match="no projection"):
        nearest_junctions(network(projection=False), [(0.0, 0.0)])


def test_junctions_are_listed_with_their_places(tmp_path):
    """Without a projection there is no longitude and latitude, and the columns stay empty."""
    for projection, row in ((True, "1,b,0.2,0.0,0.25,3"), (False, "1,b,,,0.25,3")):
        write_junctions(network(projection), tmp_path / "junctions.csv")
        assert (tmp_path / "junctions.csv").read_text().splitlines()[2] == row


def test_pictures_become_a_task(tmp_path):
    """What `own` writes is read back by `from_folder`: same pixels, levels in order, whole junctions."""
    with np.load(ROOT / "data" / "junctions" / "helsinki.npz") as stored:
        rows = {key: stored[key][stored["split"] == 2] for key in COLUMNS}
    # Junctions by their main level, three for each of two levels, so that they can be dealt.
    keep = np.isin(rows["junction"], (15, 23, 27, 7, 19, 11)) & np.isin(rows["level_ahead"], (0, 1))
    rows = {key: value[keep][::9] for key, value in rows.items()}
    write_pictures(rows, tmp_path / "pictures")
    for empty in ("2_dense", "3_jammed"):
        (tmp_path / "pictures" / empty).rmdir()
    task = citynb.CityTask.from_folder(
        tmp_path / "pictures", image_size=96, group_of=lambda path: path.stem.split("_")[0]
    )
    assert task.class_names == ("0_free", "1_steady")
    splits = (task.train, task.validation, task.test)
    assert sum(map(len, splits)) == len(rows["day"])
    found = {
        (bytes(picture), label, group)
        for split in splits
        for picture, label, group in zip(split.inputs, split.labels, split.groups)
    }
    expected = {
        (bytes(frame), label, f"junction{junction:02d}")
        for frame, label, junction in zip(rows["frames"], rows["level_ahead"], rows["junction"])
    }
    assert found == expected


def test_a_network_becomes_pictures(tmp_path):
    """The whole way, where SUMO is installed: about half a minute."""
    sumo = pytest.importorskip("sumo")
    pytest.importorskip("libsumo")
    grid = Path(sumo.SUMO_HOME) / "tools" / "game" / "grid6" / "grid6.net.xml"
    work = tmp_path / "work"
    command = [sys.executable, "-m", "simulation", "own", "--out", work, "--map", grid]
    command += ["--junctions", "2", "--days", "1", "--frames"]
    subprocess.run([*command, "5"], check=True, cwd=ROOT)
    assert len(list((work / "grid6_pictures").glob("*/junction0[01]_day00_*.png"))) == 10
    with np.load(work / "grid6.npz") as stored:
        assert set(COLUMNS) < set(stored.files) and len(stored["frames"]) == 10
    assert (work / "grid6_junctions.csv").read_text().count("\n") == 3
    again = subprocess.run([*command, "6"], capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 1 and "other settings" in again.stderr

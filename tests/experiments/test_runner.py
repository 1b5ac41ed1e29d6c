"""The runner on a toy: it searches on validation, skips what is done, and survives being stopped."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from citynb.results import results
from experiments import runner
from experiments.experiment import ALL, Experiment, Row, boosted_trees, commonest, cut
from experiments.runner import Runner, half, write_atomically

CASES = ({"labels": 6}, {"labels": 12}, {"labels": ALL})


@pytest.fixture
def toy(make_task, tmp_path):
    """Return (make a Runner, the list of trainings, the dict whose `at` stops one)."""
    full, trained, stop = make_task(), [], {}

    def trees(task, settings, seed, case):
        if len(trained) == stop.get("at"):
            raise KeyboardInterrupt
        trained.append((settings["max_leaf_nodes"], seed, len(task.train)))
        return boosted_trees(task, settings | dict(max_iter=5, min_samples_leaf=2), seed, case)

    def make(code="a", **changes):
        declared = dict(
            rows=(Row("majority", commonest), Row("trees", trees, dict(max_leaf_nodes=[2, 4]))),
            cases=CASES,
            load=lambda case, seed: cut(full, case, seed),
            all_labels=len(full.train),
            datasets=(),
            search_at=(CASES[0], CASES[2]),
            confirm=("trees", CASES[0], 0),
        )
        experiment = Experiment("toy", **(declared | changes))
        return Runner(experiment, tmp_path / "cache", tmp_path / "results" / "toy", code)

    return make, trained, stop


@pytest.fixture
def read(monkeypatch, tmp_path):
    monkeypatch.setitem(results.__globals__, "results_folder", lambda: tmp_path / "results")
    return results


def test_it_searches_then_trains_each_seed_and_size(toy, read):
    make, trained, _ = toy
    make().run()
    searched = [one for one in trained if one[1] == 100]
    assert sorted(searched) == [(2, 100, 6), (2, 100, 24), (4, 100, 6), (4, 100, 24)]
    assert len(trained) == 4 + 3 * 3
    make().pack()
    stored = read("toy")
    assert len(stored.runs) == len(stored.evaluations) == 2 * 3 * 3
    assert set(stored.runs["labels"]) == {6, 12, 24} and not stored.unfinished
    assert (stored.runs["seconds"] >= 0).all() and len(stored.search) == 4
    best = stored.search.groupby(["labels", stored.search["settings"].map(str)])["score"].mean()
    for labels in (6, 24):
        used = stored.runs.query("name == 'trees' and labels == @labels")["settings"].map(str)
        assert best[labels][used.iloc[0]] == best[labels].max() and used.nunique() == 1
    assert {len(found) for found in stored.by_name(labels=12).values()} == {3}
    assert {len(found) for found in stored.by_name().values()} == {9}
    hits = [np.mean(p == e.labels) for p, e in zip(stored.predictions, stored.evaluations)]
    assert np.allclose(hits, stored.runs["accuracy"])
    assert stored.chances("level 1").shape == (18, 24)


def test_a_stopped_run_goes_on_where_it_was(toy):
    make, trained, stop = toy
    stop["at"] = 7
    with pytest.raises(KeyboardInterrupt):
        make().run()
    assert len(trained) == 7
    stop.clear()
    make().run()
    assert len(trained) == len(set(trained)) == 13  # none twice
    make().run()
    assert len(trained) == 13


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "one.npz"
    write_atomically(file, value=np.arange(3))

    def breaks(stream, **arrays):
        stream.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(runner.np, "savez_compressed", breaks)
    with pytest.raises(OSError, match="no space"):
        write_atomically(file, value=np.arange(4))
    assert np.load(file)["value"].tolist() == [0, 1, 2]
    assert list(tmp_path.glob("*.npz")) == [file]


def test_a_packed_run_counts_as_done(toy, tmp_path):
    make, trained, _ = toy
    make().run()
    make().pack()
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    before = len(trained)
    make().run()
    make().pack()
    assert len(trained) == before and len(make().packed["runs"]) == 18


def test_another_code_or_data_is_not_done_until_it_is_confirmed(toy):
    make, trained, _ = toy
    make().run()
    make().pack()
    assert all(make().trusted(run) for run in make().packed["runs"])
    changed = make("b")
    assert not any(changed.trusted(run) for run in changed.packed["runs"])
    confirmed = changed.confirm()
    assert confirmed["agreement"] == 1 and confirmed["code"] == "b"
    assert {"row", "case", "seed", "versions", "data"} <= set(confirmed)
    before = len(trained)
    again = make("b")
    assert all(again.trusted(run) for run in again.packed["runs"])
    again.run()
    assert len(trained) == before
    again.data = {"air": "other bytes"}
    assert not any(again.trusted(run) for run in again.packed["runs"])


def test_a_run_that_does_not_come_again_is_not_confirmed(toy):
    make, _, _ = toy
    make().run()
    make().pack()

    rows = (Row("majority", commonest), Row("trees", commonest, dict(max_leaf_nodes=[2, 4])))
    with pytest.raises(ValueError, match="came again.*run the experiment again"):
        make("b", rows=rows).confirm()
    assert not make("b").confirmed


def test_a_size_takes_the_settings_of_the_nearest_that_was_searched(toy):
    make, _, _ = toy
    experiment = make(all_labels=1000, search_at=CASES[::2]).experiment
    assert experiment.searched({"labels": 12}) == {"labels": 6}
    assert experiment.searched({"labels": 700}) == {"labels": ALL}
    assert experiment.searched({"labels": ALL}) == {"labels": ALL}
    two = make(search_at=({"target": "a", "labels": 6}, {"target": "b", "labels": 6})).experiment
    assert two.searched({"target": "b", "labels": ALL}) == {"target": "b", "labels": 6}


def test_fewer_than_three_seeds_are_unfinished(toy, read):
    make, _, _ = toy
    make().run(rows=["majority"])
    make().run(rows=["trees"], seeds=[0, 1])
    make().pack()
    stored = read("toy")
    assert stored.unfinished == [("trees", case) for case in CASES]
    assert set(stored.runs.query("unfinished")["name"]) == {"trees"}
    assert stored.runs.groupby("name")["seeds"].unique().map(list).to_dict() == {
        "majority": [3],
        "trees": [2],
    }


def test_a_half_keeps_the_winner():
    close = np.array([[0.25001, 0.25002, 0.24999, 0.24998], [0.1, 0.2, 0.3, 0.4]])
    assert half(close).argmax(-1).tolist() == [1, 3]
    assert np.abs(half(close) - close).max() < 1e-3


def test_wrong_questions_are_answered(toy, read, tmp_path):
    make, _, _ = toy
    make().run(rows=["majority"])
    make().pack()
    with pytest.raises(ValueError, match="did you mean 'toy'"):
        read("toys")
    with pytest.raises(ValueError, match="no split 'validation'; they have test"):
        read("toy", "validation")
    with pytest.raises(ValueError, match="no column 'label'; they have name"):
        read("toy").by_name(label=6)
    with pytest.raises(ValueError, match=r"there are \{'labels': \[6, 12, 24\]\}"):
        read("toy").by_name(labels=7)
    with pytest.raises(ValueError, match="no class 'heavy'"):
        read("toy").chances("heavy")
    file = tmp_path / "results" / "toy" / "results.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        read("toy")


def test_the_record_says_how_a_run_was_made(toy, tmp_path):
    make, _, _ = toy
    make().run(rows=["majority"], seeds=[0])
    files = list((tmp_path / "cache").glob("run-*.npz"))
    assert len(files) == 3
    record = json.loads(str(np.load(files[0])["record"]))
    assert {"name", "case", "seed", "settings", "seconds", "code", "data"} <= set(record)
    assert set(record["versions"]) == {"tensorflow", "keras", "sklearn", "numpy"}


KILLED = """
import os, signal, sys
from pathlib import Path
from experiments import runner

replace, written = os.replace, []

def dies(source, target):
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(target)
    replace(source, target)

runner.os.replace = dies
experiment = runner.experiment_of("police_stops")
runner.Runner(experiment, Path(sys.argv[1]), Path(sys.argv[2]), "a").run(["majority"])
"""


def test_a_killed_process_leaves_whole_files_and_goes_on(tmp_path, capsys):
    cache, packed = tmp_path / "cache", tmp_path / "results"
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, cache, packed], cwd=runner.ROOT, capture_output=True
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr.decode()[-2000:]
    assert len(list(cache.glob("*.npz"))) == 2 and len(list(cache.glob("*.part"))) == 1
    again = Runner(runner.experiment_of("police_stops"), cache, packed, "a")
    capsys.readouterr()
    again.run(["majority"])
    assert capsys.readouterr().out.count('"majority"') == 1  # only the one that was lost
    again.pack()
    assert [run["seed"] for run in again.packed["runs"]] == [0, 1, 2]

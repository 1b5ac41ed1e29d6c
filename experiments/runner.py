"""Runs what an experiment declares: searches settings, trains, skips what is done, packs results.

A training is kept in a file of its own in `.cache/experiments/<name>/`, written whole or not at
all, so that a run can be killed, started again, and shared by several processes. `pack` gathers
the files into `experiments/results/<name>/results.npz`, the form that `citynb.results` reads.
A search sees validation only.
"""

import hashlib
import importlib
import json
import os
import time
from pathlib import Path

import keras
import numpy as np
import sklearn
import tensorflow as tf
from sklearn.model_selection import ParameterGrid

import citynb
from citynb.files import data_folder, models_folder
from citynb.results import evaluation_of
from experiments.experiment import Experiment
from tools.fingerprint import code_fingerprint, reached

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("air", "i94", "junctions", "land_use", "police_stops", "signals")
VERSIONS = {module.__name__: module.__version__ for module in (tf, keras, sklearn, np)}


def experiment_of(name):
    """Return the `Experiment` that `experiments/<name>.py` declares."""
    return importlib.import_module(f"experiments.{name}").EXPERIMENT


class Runner:
    """The trainings of one experiment: which are wanted, which are stored, which may be trusted.

    Args:
        experiment: Experiment.
        cache: folder of single trainings, default `.cache/experiments/<name>`.
        results: folder of the packed file, default `experiments/results/<name>`.
        code: str, the fingerprint of the training code, default that of the experiment's file
            and of all first-party code that it imports.
    """

    def __init__(self, experiment: Experiment, cache=None, results=None, code=None):
        self.experiment = experiment
        self.cache = cache or ROOT / ".cache" / "experiments" / experiment.name
        self.file = (results or ROOT / "experiments" / "results" / experiment.name) / "results.npz"
        file = ROOT / "experiments" / f"{experiment.name}.py"
        self.code = code or code_fingerprint(reached([file], ROOT), ROOT)
        self.data = {name: _sums(name) for name in experiment.datasets}
        self.packed = {"runs": [], "search": []}
        # In a file of its own: pages depend on the results, not on who confirmed them.
        self.confirmations = self.file.with_name("confirmed.json")
        self.confirmed = []
        if self.confirmations.exists():
            self.confirmed = json.loads(self.confirmations.read_text())
        self.arrays = {}
        if self.file.exists():
            with np.load(self.file, allow_pickle=False) as stored:
                self.arrays = {name: stored[name] for name in stored.files}
            self.packed |= json.loads(str(self.arrays.pop("meta")))

    # --- what is wanted, and what is there ---

    def wanted(self, rows=None, seeds=None):
        """Yield (row, case, seed) of every training that the experiment declares."""
        for case in self.experiment.cases:
            for row in self.experiment.rows:
                if case in self.experiment.cases_of(row) and (not rows or row.name in rows):
                    for seed in self.experiment.seeds_of(row):
                        if seeds is None or seed in seeds:
                            yield row, case, seed

    def trusted(self, record):
        """Say whether a stored record speaks for the code and the data as they are now.

        It does when it was made with them, or when one run was repeated with them and came again.
        """
        now = {"code": self.code, "data": self.data}
        return any(
            {key: one.get(key) for key in now} == now for one in (record, *self.confirmed)
        )

    def stored(self, kind, row, case, seed, settings):
        """Return the trusted record of a training, or None."""
        file = self._file(kind, row, case, seed, settings)
        if file.exists():
            with np.load(file, allow_pickle=False) as stored:
                return json.loads(str(stored["record"]))
        wanted = dict(name=row.name, case=case, seed=seed, settings=settings)
        for record in self.packed["search" if kind == "search" else "runs"]:
            if wanted.items() <= record.items() and self.trusted(record):
                return record
        return None

    def settings(self, row, case, train=True):
        """Return the settings of a row at a case: those that score best on validation.

        Args:
            train: bool, whether trials that are missing are run; else None may be returned.
        """
        if row.settings_of:
            row = self.experiment.row(row.settings_of)
        points = list(ParameterGrid(row.grid))
        if len(points) == 1:
            return points[0]
        at = self.experiment.searched(case)
        means = []
        for point in points:
            scores = []
            for seed in self.experiment.search_seeds:
                trial = self.stored("search", row, at, seed, point)
                if trial is None and train:
                    trial = self.train("search", row, at, seed, point)
                if trial is None:
                    return None
                scores.append(trial["score"])
            means.append(np.mean(scores))
        return points[int(np.argmax(means))]

    # --- training ---

    def run(self, rows=None, seeds=None):
        """Train what is missing; a training that is stored is skipped."""
        for row, case, seed in self.wanted(rows, seeds):
            settings = self.settings(row, case)
            if self.stored("run", row, case, seed, settings) is None:
                self.train("run", row, case, seed, settings)

    def train(self, kind, row, case, seed, settings):
        """Train one row, write its file, and return its record."""
        searching = kind == "search"
        parts = ("validation",) if searching else self.experiment.keep
        record, evaluations, class_names = self.predict(row, case, seed, settings, parts)
        arrays = {}
        if searching:
            score = getattr(evaluations["validation"], self.experiment.metric)
            record["score"] = round(float(score), 4)
        else:
            arrays["class_names"] = np.array(class_names)
            for part, one in evaluations.items():
                arrays |= {f"labels/{part}": one.labels, f"groups/{part}": one.groups}
                kept, output = self._compact(one.probabilities)
                arrays[f"{kept}/{part}"] = output
        file = self._file(kind, row, case, seed, settings)
        write_atomically(file, record=json.dumps(record), **arrays)
        print(kind, json.dumps(record), flush=True)
        return record

    def predict(self, row, case, seed, settings, parts):
        """Train one row on every fold; return (record, {part: Evaluation}, class names)."""
        tasks = self.experiment.load(case, seed)
        tasks = tasks if isinstance(tasks, list) else [tasks]
        if row.prepare:
            row.prepare(seed)
        seconds, folds = 0.0, []
        for task in tasks:
            started = time.process_time()
            model = row.train(task, settings, seed, case)
            seconds += time.process_time() - started
            folds.append({part: citynb.evaluate(model, task, part, resamples=1) for part in parts})
        evaluations = folds[0]
        if len(tasks) > 1:  # together again, each example where its number in the table says
            for part in parts:
                index = np.concatenate([getattr(task, part).table.index for task in tasks])
                order = np.argsort(index, kind="stable")
                joined = [
                    np.concatenate([getattr(fold[part], key) for fold in folds])[order]
                    for key in ("probabilities", "labels", "groups")
                ]
                evaluations[part] = evaluation_of(*joined, tasks[0].class_names)
        record = dict(
            name=row.name,
            case=case,
            seed=seed,
            settings=settings,
            labels=0 if case.get(self.experiment.size) == 0 else len(tasks[0].train),
            seconds=round(seconds, 2),
            code=self.code,
            data=self.data,
            versions=VERSIONS,
        )
        return record, evaluations, tasks[0].class_names

    def repeat(self):
        """Train the cheap run again; return (its stored record, the share that came again)."""
        name, case, seed = self.experiment.confirm
        row = self.experiment.row(name)
        for number, record in enumerate(self.packed["runs"]):
            if (record["name"], record["case"], record["seed"]) == (name, case, seed):
                break
        else:
            raise ValueError(f"{self.experiment.name}: the run {name!r}, {case} is not packed.")
        _, evaluations, _ = self.predict(row, case, seed, record["settings"], self.experiment.keep)
        shares = []
        for part, one in evaluations.items():
            before = self.arrays.get(f"probabilities/{part}/{number}")
            if before is None:
                before = self.arrays[f"predictions/{part}/{number}"]
            before = before.argmax(-1) if before.ndim == 2 else before
            shares.append((before == one.probabilities.argmax(-1)).mean())
        return record, float(min(shares))

    def confirm(self):
        """Repeat the cheap run with the code as it is now, and write down that it came again."""
        record, agreement = self.repeat()
        if agreement < self.experiment.agreement:
            raise ValueError(
                f"{self.experiment.name}: only {agreement:.1%} of the predictions of "
                f"{record['name']!r} came again; {self.experiment.agreement:.1%} must. "
                "The results are of other code: run the experiment again."
            )
        found = dict(code=self.code, data=self.data, row=record["name"], case=record["case"])
        found |= dict(seed=record["seed"], agreement=round(agreement, 4), versions=VERSIONS)
        self.confirmed = [found]  # what was confirmed for older code says nothing any more
        unfinished = self.confirmations.with_suffix(f".{os.getpid()}.part")
        unfinished.write_text(json.dumps(self.confirmed, indent=1) + "\n")
        os.replace(unfinished, self.confirmations)
        return found

    # --- files ---

    def pack(self):
        """Write results.npz: what was packed before, and the trainings of the cache."""
        runs, outputs = {}, {}
        for number, run in enumerate(self.packed["runs"]):
            place = json.dumps([run["name"], run["case"], run["seed"]])
            runs[place] = run
            outputs[place] = {
                name.removesuffix(f"/{number}"): array
                for name, array in self.arrays.items()
                if name.endswith(f"/{number}") and name.count("/") == 2
            }
        shared = {
            n: a for n, a in self.arrays.items() if n.startswith(("labels/", "groups/", "cl"))
        }
        search = {_place(trial): trial for trial in self.packed["search"]}
        for file in sorted(self.cache.glob("*.npz"), key=lambda file: file.stat().st_mtime):
            with np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            record = json.loads(str(arrays.pop("record")))
            if (record["code"], record["data"]) != (self.code, self.data):
                continue
            if "score" in record:
                search[_place(record)] = record
                continue
            place = json.dumps([record["name"], record["case"], record["seed"]])
            truth = {n: a for n, a in arrays.items() if n.startswith(("labels/", "groups/"))}
            task = _digest(*(truth[name] for name in sorted(truth)))
            for name, array in truth.items():
                kind, part = name.split("/")
                shared[f"{kind}/{task}/{part}"] = array
            shared[f"class_names/{task}"] = arrays["class_names"]
            runs[place] = record | {"task": task}
            outputs[place] = {n: a for n, a in arrays.items() if n.startswith("pr")}
        self.packed |= {"runs": list(runs.values()), "search": list(search.values())}
        used = {run["task"] for run in runs.values()}
        self.arrays = {name: a for name, a in shared.items() if name.split("/")[1] in used}
        for number, place in enumerate(runs):
            for name, array in outputs[place].items():
                self.arrays[f"{name}/{number}"] = array
        self._write()

    def _write(self):
        head = {"experiment": self.experiment.name, "metric": self.experiment.metric}
        write_atomically(self.file, meta=json.dumps(head | self.packed), **self.arrays)

    def _compact(self, probabilities):
        if not self.experiment.probabilities:
            return "predictions", probabilities.argmax(-1).astype(np.uint8)
        return "probabilities", half(probabilities)

    def _file(self, kind, row, case, seed, settings):
        key = json.dumps([row.name, case, seed, settings, self.data, self.code], sort_keys=True)
        return self.cache / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def half(probabilities):
    """Return float16 probabilities whose largest class is the one that was largest before."""
    found, rows = probabilities.astype(np.float16), np.arange(len(probabilities))
    best = probabilities.argmax(-1)
    tied = found.argmax(-1) != best
    found[rows[tied], best[tied]] = np.nextafter(found[tied].max(-1), np.float16(2))
    return found


def write_atomically(file, **arrays):
    """Write an npz file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}.part")
    with unfinished.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    os.replace(unfinished, file)


def _place(trial):
    return json.dumps([trial[key] for key in ("name", "case", "seed", "settings")], sort_keys=True)


def _digest(*arrays):
    text = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return hashlib.sha256(text).hexdigest()[:8]


def _sums(name):
    """Return a short checksum of the checksums of a dataset's, or a network's, files."""
    folder = data_folder() / name
    folder = folder if folder.is_dir() else models_folder() / name
    return hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()[:16]

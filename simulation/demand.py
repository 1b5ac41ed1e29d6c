"""What happens on a simulated day: weather, incidents and trips, all from the day's seed."""

from typing import NamedTuple

import numpy as np

from simulation.cities import (
    END,
    HOUR,
    HOURS,
    LENGTH,
    REHEARSAL,
    TYPES,
    WARM_UP,
    WEATHERS,
    WIDTH,
    seed_of,
)

# (capacity, speed) as a share of clear weather: heavy rain, fog below a quarter mile, heavy snow.
# HCM 2010 exhibit 10-15; speeds from Maze, Agarwal and Burchett 2006. Night changes only pictures.
WEATHER_EFFECT = {
    "clear": (1.0, 1.0),
    "rain": (0.86, 0.94),
    "fog": (0.89, 0.88),
    "snow": (0.78, 0.87),
    "night": (1.0, 1.0),
}
# Share of the peak demand in each hour from 6 to 21: two commuter peaks.
PROFILE = (0.35, 0.8, 1, 0.85, 0.65, 0.6, 0.65, 0.65, 0.7, 0.8, 0.95, 1, 0.85, 0.6, 0.45, 0.3)
SHARE = {"car": 0.87, "bus": 0.06, "truck": 0.07}
DRIVING = {  # SUMO's acceleration and braking in m/s2, and headway in s
    "car": dict(accel=2.6, decel=4.5, tau=1.1),
    "bus": dict(accel=1.2, decel=4.0, tau=1.3),
    "truck": dict(accel=1.1, decel=4.0, tau=1.4),
}


class Incident(NamedTuple):
    """A car breaks down at a junction: second of the day, rank of the junction, duration in s."""

    second: float
    junction: int
    duration: float


def day_plan(city, day):
    """Return the weather of each hour (a list of `HOURS` names) and the demand factor of a day."""
    rng = np.random.default_rng(seed_of(city.name, day, "plan"))
    hours = []
    for dark in (True, False, False, True):
        odds = (0.34, 0.20, 0.11, 0.14, 0.21) if dark else (0.46, 0.24, 0.13, 0.17, 0.0)
        hours += [WEATHERS[int(rng.choice(len(WEATHERS), p=odds))]] * (HOURS // 4)
    return hours, 1.0 if day == REHEARSAL else float(rng.uniform(0.7, 1.25))


def incidents(city, day, junctions):
    """Return the incidents of a day, sorted by time: about one for each junction."""
    rng = np.random.default_rng(seed_of(city.name, day, "incidents"))
    return sorted(
        Incident(
            float(rng.uniform(WARM_UP, END - 400)),
            int(rng.integers(junctions)),
            float(rng.uniform(180, 480)),
        )
        for _ in range(max(2, junctions))
    )


def write_trips(network, day, factor, path):
    """Write random trips for a day in SUMO's format to `path`; return their number.

    Raises:
        RuntimeError: hardly a route leads through the network.
    """
    rng = np.random.default_rng(seed_of(network.city.name, day, "trips"))
    edges = network.edges
    pairs = _routes(network, rng)
    mean_km = np.mean([meters for *_, meters in pairs]) / 1000
    per_hour = network.city.peak_flow * network.lane_km / mean_km * factor
    number, clock = 0, 0.0
    with open(path, "w") as out:
        out.write("<routes>\n")
        for name in TYPES:
            kind = "delivery" if name == "truck" else "passenger"
            driving = " ".join(f'{key}="{value}"' for key, value in DRIVING[name].items())
            out.write(
                f'<vType id="{name}" vClass="{kind}" length="{LENGTH[name]}" width="{WIDTH[name]}" '
                f'{driving} sigma="0.5" speedDev="0.1" minGap="2.0"/>\n'
            )
        while True:
            hour = max(0, (clock - WARM_UP) / HOUR)
            share = np.interp(hour, np.arange(HOURS) + 0.5, PROFILE)
            clock += rng.exponential(3600 / (per_hour * share))
            if clock >= END:
                break
            start, stop, _ = pairs[int(rng.integers(len(pairs)))]
            name = TYPES[int(rng.choice(len(TYPES), p=[SHARE[name] for name in TYPES]))]
            out.write(
                f'<trip id="{number}" type="{name}" depart="{clock:.1f}" '
                f'from="{edges[start].getID()}" to="{edges[stop].getID()}" '
                f'departLane="best" departSpeed="max"/>\n'
            )
            number += 1
        out.write("</routes>\n")
    return number


def _routes(network, rng):
    """Return pairs of streets that a route connects: (number of the first, of the last, meters)."""
    edges = network.edges
    weight = np.array([e.getLength() * e.getLaneNumber() * e.getSpeed() ** 2 for e in edges])
    # Traffic enters and leaves a cut-out of a city mostly through its rim.
    enters = weight * np.where([_leads_in(e) for e in edges], 12.0, 1.0)
    leaves = weight * np.where([_leads_out(e) for e in edges], 12.0, 1.0)
    enters, leaves = enters / enters.sum(), leaves / leaves.sum()
    middle = np.array([np.mean(e.getShape(), axis=0) for e in edges])
    span = np.ptp(middle, axis=0).max()
    pairs, draws = [], 0
    while len(pairs) < 4000:
        draws += 1
        if draws > 100_000 and len(pairs) < 400:
            raise RuntimeError(
                f"{network.city.name}: 100,000 draws gave {len(pairs)} routes through the network. "
                "Is it cut too small, or into pieces? Take a larger extract."
            )
        a, b = rng.choice(len(edges), p=enters), rng.choice(len(edges), p=leaves)
        if np.linalg.norm(middle[a] - middle[b]) > 0.25 * span:
            route, meters = network.net.getShortestPath(edges[a], edges[b], vClass="passenger")
            if route and len(route) > 1:
                pairs.append((a, b, meters))
        if len(pairs) >= 400 and len(pairs) % 400 == 0 and len(edges) > 300:
            break  # a large network: 400 pairs are enough and finding more is slow
    return pairs


def _leads_in(edge):
    """Tell whether nothing but a turn leads onto this street."""
    before = {e.getFromNode().getID() for e in edge.getFromNode().getIncoming()}
    return not before - {edge.getToNode().getID()}


def _leads_out(edge):
    """Tell whether nothing but a turn leads on from this street."""
    after = {e.getToNode().getID() for e in edge.getToNode().getOutgoing()}
    return not after - {edge.getFromNode().getID()}

"""Simulates days with SUMO and writes one file for each. Needs libsumo.

A day's file has, for n frames, t looks at the simulator (every `TICK` seconds) and m junctions:
`frames` (n, SIZE, SIZE, 3) uint8; `junction`, `tick`, `hour`, `weather` (n,) int32, of each frame;
`state` (t, m) of type `STATE`; `cells` (t, m, CELLS, CELLS, 2) uint8, all and halting vehicles of
the filmed junctions; `lane_km` and `approaches` (m,).
"""

import json
import multiprocessing
import os
import time
from collections import deque

import numpy as np

from simulation.cities import (
    CELLS,
    END,
    FIVE,
    HOUR,
    HOURS,
    LAGS,
    LENGTH,
    REHEARSAL,
    SIZE,
    STANDING,
    TICK,
    TYPES,
    WARM_UP,
    WEATHERS,
    seed_of,
)
from simulation.demand import DRIVING, WEATHER_EFFECT, day_plan, incidents, write_trips
from simulation.network import RoadNetwork
from simulation.painter import VEHICLE, Painter

# What a perfect detector knows about the view of a junction at one moment.
STATE = np.dtype(
    [
        ("cars", np.float32),
        ("buses", np.float32),
        ("trucks", np.float32),
        ("sum_of_speeds", np.float32),  # m/s
        ("halting", np.float32),  # vehicles
        ("longest_wait", np.float32),  # s
        ("green_share", np.float32),  # of the signals in view; 1 where there are none
        ("blocked", np.float32),  # lanes with a vehicle that has broken down
    ]
)


def simulate(cities, work, jobs):
    """Rehearse these cities, then simulate their days; days that are in `work` are kept."""
    work.mkdir(parents=True, exist_ok=True)
    began = time.time()
    days = [(city, day, work) for city in reversed(cities) for day in range(city.days)]
    # A fresh process for each day: the simulator keeps state between two runs of one process.
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        pool.starmap(rehearse, [(city, work) for city in cities], chunksize=1)
        pool.starmap(simulate_day, days, chunksize=1)
    print(f"simulate: {time.time() - began:.0f} s with {jobs} processes")


def rehearse(city, work):
    """Simulate a day that is never used again; keep the busiest junctions for the cameras."""
    chosen = city.chosen_file(work)
    if not chosen.exists():
        with np.load(simulate_day(city, REHEARSAL, work)) as day:
            state = day["state"][WARM_UP // TICK :]
        vehicles = state["cars"] + state["buses"] + state["trucks"]
        busiest = np.argsort(-vehicles.mean(axis=0), kind="stable")[: city.junctions]
        junctions = RoadNetwork(city, work).junctions
        chosen.write_text(json.dumps([junctions[rank].id for rank in busiest]))


def simulate_day(city, day, work):
    """Simulate one city and day, unless its file is in `work`; return the file's path."""
    target = city.day_file(day, work)
    if target.exists():
        return target
    import libsumo

    began = time.time()
    network = RoadNetwork(city, work)
    junctions = network.junctions
    hours, factor = day_plan(city, day)
    trips = work / f"{city.name}-{day:02d}.trips.xml"
    count = write_trips(network, day, factor, trips)
    libsumo.start(_sumo_command(network, day, trips, work))
    filmed = city.filmed(day)
    painters = {k: _painter(network, junctions[k]) for k in filmed}
    shots = _shots(city, day)
    signals = [_signals(network.net, junction) for junction in junctions]
    names = sorted({name for links in signals for name, *_ in links})
    to_come = deque(incidents(city, day, len(junctions)))
    cleared = {}  # vehicle -> second at which its breakdown ends
    ticks = np.arange(0, END, TICK)
    state = np.zeros((len(ticks), len(junctions)), STATE)
    cells = np.zeros((*state.shape, CELLS, CELLS, 2), np.uint8)
    recent = deque(maxlen=LAGS[-1] // TICK + 1)  # what the cameras saw, the newest last
    frames, index, weather = [], [], None
    for tick, clock in enumerate(ticks):
        libsumo.simulation.step(float(clock))
        hour = min(HOURS - 1, max(0, int((clock - WARM_UP) // HOUR)))
        if hours[hour] != weather:
            weather = hours[hour]
            _set_weather(weather, network.edges)
        while to_come and to_come[0].second <= clock:
            incident = to_come.popleft()
            vehicle = _break_down(network.approaches(junctions[incident.junction]), incident)
            if vehicle:
                cleared[vehicle] = clock + incident.duration
        vehicles = _vehicles(cleared, clock)
        lights = {name: libsumo.trafficlight.getRedYellowGreenState(name) for name in names}
        recent.append({})
        for k, junction in enumerate(junctions):
            east, north = _offsets(vehicles, junction)
            seen = (np.abs(east) < SIZE / 2) & (np.abs(north) < SIZE / 2)
            lamps = [(x, y, lights[name][link] in "Gg") for name, link, x, y in signals[k]]
            state[tick, k] = _state(vehicles[seen], lamps)
            if k in filmed:
                near = (np.abs(east) < SIZE / 2 + 8) & (np.abs(north) < SIZE / 2 + 8)
                recent[-1][k] = vehicles[near], lamps
                row = ((SIZE / 2 - north[seen]) * CELLS / SIZE).astype(int)
                column = ((SIZE / 2 + east[seen]) * CELLS / SIZE).astype(int)
                np.add.at(cells[tick, k, :, :, 0], (row, column), 1)
                halting = vehicles["speed"][seen] < STANDING
                np.add.at(cells[tick, k, :, :, 1], (row, column), halting)
        for k in shots.get(tick, ()):
            channels = [
                painters[k].view(
                    *recent[-1 - lag // TICK][k], weather, seed_of(city.name, day, k, tick, lag)
                )
                for lag in LAGS
            ]
            frames.append(np.stack(channels, axis=-1))
            index.append((k, tick, hour, WEATHERS.index(weather)))
    libsumo.close()
    trips.unlink()
    part = target.with_suffix(".part.npz")
    columns = np.array(index, np.int32).reshape(-1, 4).T
    np.savez(
        part,
        frames=np.array(frames, np.uint8),
        **dict(zip(("junction", "tick", "hour", "weather"), columns)),
        state=state,
        cells=cells,
        lane_km=np.array([junction.lane_km for junction in junctions]),
        approaches=np.array([junction.approaches for junction in junctions]),
    )
    part.rename(target)
    took = time.time() - began
    print(f"{city.name} day {day}: {count} trips, {len(index)} frames, {took:.0f} s", flush=True)
    return target


def _sumo_command(network, day, trips, work):
    name = network.city.name
    options = {
        "-n": work / f"{name}.net.xml",
        "-r": trips,
        "--step-length": 1,
        "--seed": seed_of(name, day) % 2**31,
        "--time-to-teleport": 60,
        "--ignore-junction-blocker": 5,
        "--max-depart-delay": 120,
        "--device.rerouting.probability": 0.8,
        "--device.rerouting.period": 120,
        "--device.rerouting.adaptation-interval": 10,
        "--error-log": os.devnull,
    }
    flags = ["--no-step-log", "--no-warnings", "--ignore-route-errors"]
    return ["sumo", *flags, *(str(word) for pair in options.items() for word in pair)]


def _painter(network, junction):
    from simulation.ground import draw_grounds

    return Painter(draw_grounds(network, junction), junction.x, junction.y)


def _shots(city, day):
    """Return {tick: ranks of the junctions that are filmed then}, about evenly over the day."""
    rng = np.random.default_rng(seed_of(city.name, day, "frames"))
    slots = np.arange(WARM_UP // TICK, (END - FIVE[1]) // TICK)
    shots = {}
    for k, frames in city.filmed(day).items():
        minutes = slots[::6]
        chosen = np.sort(rng.choice(minutes, min(frames, len(minutes)), replace=False))
        for tick in chosen + rng.integers(0, 6, len(chosen)):
            shots.setdefault(min(int(tick), slots[-1]), []).append(k)
    return shots


def _signals(net, junction):
    """Return the signals in view (id, link, x, y): a lamp stands at the end of each lane."""
    found = []
    for signal in net.getTrafficLights():
        for lane, _, link in signal.getConnections():
            x, y = lane.getShape()[-1]
            if abs(x - junction.x) < SIZE / 2 and abs(y - junction.y) < SIZE / 2:
                found.append((signal.getID(), link, x, y))
    return found


def _set_weather(weather, edges):
    import libsumo

    capacity, speed = WEATHER_EFFECT[weather]
    for edge in edges:
        libsumo.edge.setMaxSpeed(edge.getID(), edge.getSpeed() * speed)
    for name, driving in DRIVING.items():
        # Saturation headway is near 2 s; the weather's share of capacity stretches it.
        libsumo.vehicletype.setTau(name, driving["tau"] + 2.0 * (1 / capacity - 1))
        libsumo.vehicletype.setAccel(name, driving["accel"] * capacity)
        libsumo.vehicletype.setDecel(name, driving["decel"] * capacity)


def _break_down(approaches, incident):
    """Stop the first car that can stop 25 m ahead on these streets; return its name or None."""
    import libsumo

    for edge in approaches:
        for vehicle in sorted(libsumo.edge.getLastStepVehicleIDs(edge.getID())):
            place = libsumo.vehicle.getLanePosition(vehicle) + 25
            if libsumo.vehicle.getTypeID(vehicle) == "car" and place < edge.getLength() - 3:
                lane = libsumo.vehicle.getLaneIndex(vehicle)
                try:
                    libsumo.vehicle.setStop(vehicle, edge.getID(), place, lane, incident.duration)
                except libsumo.TraCIException:  # too fast to stop in time: the next one
                    continue
                return vehicle
    return None


def _vehicles(cleared, clock):
    """Return all vehicles in the simulator, sorted by name, as an array of type `VEHICLE`."""
    from libsumo import vehicle

    names = sorted(vehicle.getIDList(), key=int)
    rows = np.empty(len(names), VEHICLE)
    for row, name in enumerate(names):
        speed = vehicle.getSpeed(name)
        standing = speed < STANDING
        rows[row] = (
            *vehicle.getPosition(name),
            vehicle.getAngle(name),
            speed,
            TYPES.index(vehicle.getTypeID(name)),
            seed_of(name) >> 8,
            vehicle.getAcceleration(name) < -0.5 or standing,
            standing and name in cleared and clock <= cleared[name] + 20,
            vehicle.getWaitingTime(name),
        )
    return rows


def _offsets(vehicles, junction):
    """Return meters east and north of a junction (n,) of the middles of vehicles."""
    heading = np.radians(vehicles["angle"])
    half = np.array([LENGTH[name] for name in TYPES])[vehicles["type"]] / 2
    east = vehicles["x"] - np.sin(heading) * half - junction.x
    north = vehicles["y"] - np.cos(heading) * half - junction.y
    return east, north


def _state(vehicles, lamps):
    """Return one `STATE` of the vehicles in view and the lamps (x, y, green)."""
    return (
        *np.bincount(vehicles["type"], minlength=len(TYPES)),
        vehicles["speed"].sum(),
        (vehicles["speed"] < STANDING).sum(),
        vehicles["waiting"].max(initial=0),
        np.mean([green for *_, green in lamps]) if lamps else 1.0,
        vehicles["broken"].sum(),
    )

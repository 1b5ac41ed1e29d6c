"""The simulation without the simulator: plans, frames, labels and files of tiny inputs."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from simulation.cities import (
    CELLS,
    END,
    HELSINKI,
    HOURS,
    REHEARSAL,
    SIZE,
    SOURCES,
    SPLITS,
    TICK,
    WARM_UP,
    WEATHERS,
    City,
)
from simulation.demand import day_plan, incidents, write_trips
from simulation.ground import SUPER, Window
from simulation.labels import LEVELS, TABLE, city_arrays, column, day_arrays, level
from simulation.network import candidates
from simulation.painter import VEHICLE, Painter
from simulation.traffic import STATE

TOWN = City("town", "town.osm", junctions=3, days=2, peak_flow=100, frames=7)


def test_a_day_is_planned_from_its_seed_alone():
    assert day_plan(HELSINKI, 3) == day_plan(HELSINKI, 3) != day_plan(HELSINKI, 4)
    hours, factor = day_plan(SOURCES[0], 0)
    assert len(hours) == HOURS and set(hours) <= set(WEATHERS)
    assert 0.7 <= factor <= 1.25
    assert "night" not in hours[4:12], "daylight lasts from 10 to 18 o'clock"
    planned = incidents(HELSINKI, 3, 28)
    assert planned == incidents(HELSINKI, 3, 28) == sorted(planned) and len(planned) == 28
    assert all(WARM_UP <= i.second < END and 0 <= i.junction < 28 for i in planned)


def test_who_is_filmed():
    assert TOWN.filmed(1) == {0: 7, 1: 7, 2: 7}
    assert TOWN.filmed(REHEARSAL) == HELSINKI.filmed(REHEARSAL) == {}
    for days, remainders, frames in SPLITS.values():
        shown = HELSINKI.filmed(days[0])
        assert {k for k in shown if k % 4 in remainders and shown[k] == frames}


@pytest.fixture
def painter():
    grey = Image.new("L", (SUPER * SIZE, SUPER * SIZE), 100)
    return Painter(dict.fromkeys(WEATHERS, grey), x=1000.0, y=2000.0)


def vehicles(*rows):
    return np.array(list(rows), VEHICLE)


CAR = (1010.0, 2020.0, 90.0, 5.0, 0, 0, False, False, 0.0)  # heads east; its front is at 58, 28


def test_a_car_is_drawn_where_it_is(painter):
    empty = painter.view(vehicles(), [], "clear", 0)
    assert empty.shape == (SIZE, SIZE) and empty.dtype == np.uint8 and (empty == 100).all()
    with_car = painter.view(vehicles(CAR), [], "clear", 0)
    rows, columns = np.nonzero(with_car != empty)
    assert 26 <= rows.min() and rows.max() <= 30, "north is up, and the shadow falls south"
    assert 53 <= columns.min() and columns.max() <= 59, "the body lies behind its front"
    assert (painter.view(vehicles(CAR), [], "clear", 1) == with_car).all()


@pytest.mark.parametrize("weather", WEATHERS)
def test_every_type_shows_in_every_weather(painter, weather):
    empty = painter.view(vehicles(), [], weather, 0)
    for kind, least in enumerate((8, 24, 18)):  # square meters that must differ
        row = (*CAR[:4], kind, 0, *CAR[6:])
        assert (painter.view(vehicles(row), [], weather, 0) != empty).sum() >= least
    lamp = painter.view(vehicles(), [(1000.0, 2000.0, True)], weather, 0)
    assert (lamp != empty).any()


def test_brakes_and_hazard_lights_show(painter):
    plain, braking, broken = (
        painter.view(vehicles((*CAR[:6], *flags, 0.0)), [], "rain", 0).astype(int)
        for flags in ((False, False), (True, False), (False, True))
    )
    assert (braking != plain).any() and (broken - plain).max() > 50


def test_the_window():
    window = Window(1000.0, 2000.0)
    assert window.pixels([(1000 - SIZE / 2, 2000 + SIZE / 2, 7.0)]) == [(0, 0)]
    assert window.disc(1000.0, 2000.0, 1.0) == [188, 188, 196, 196]


@pytest.fixture
def day(tmp_path):
    """A day of one junction with two frames: from tick 200 on, four cars and one bus that stand."""
    ticks = END // TICK
    state = np.zeros((ticks, 1), STATE)
    state["cars"][200:], state["buses"][200:], state["halting"][200:] = 4, 1, 1
    state["sum_of_speeds"][200:], state["green_share"] = 20.0, 0.5
    cells = np.zeros((ticks, 1, CELLS, CELLS, 2), np.uint8)
    cells[200:, 0, 3, 4, 0] = 5
    index = dict(junction=[0, 0], tick=[199, 230], hour=[2, 2], weather=[0, 4])
    path = TOWN.day_file(0, tmp_path)
    np.savez(
        path,
        frames=np.zeros((2, SIZE, SIZE, 3), np.uint8),
        **{name: np.array(values, np.int32) for name, values in index.items()},
        state=state,
        cells=cells,
        lane_km=np.array([0.2]),
        approaches=np.array([3]),
    )
    return path


def test_labels_follow_from_the_state(day):
    rows = day_arrays(day)
    density = (4 + 2 * 1) / 0.2  # passenger cars per km and lane
    assert rows["table"].shape == (2, len(TABLE)) and rows["table"].dtype == np.float32
    expected = {
        "cars": (0, 4), "buses": (0, 1), "trucks": (0, 0), "mean_speed": (13.9, 4.0),
        "halting": (0, 1), "density": (0, density), "hour": (8, 8), "clear": (1, 0),
        "night": (0, 1), "lane_km": (0.2, 0.2), "approaches": (3, 3), "green_share": (0.5, 0.5),
        "vehicles_20s": (0, 5), "density_40s": (0, density), "mean_density_2min": (0, density),
    }  # fmt: skip
    for name, values in expected.items():
        assert column(rows["table"], name) == pytest.approx(values), name
    # The frame at tick 199 is empty, and only what comes after it is jammed.
    assert list(rows["level_now"]) == [0, 3] and list(rows["level_ahead"]) == [3, 3]
    assert rows["density_ahead"] == pytest.approx([density, density])
    assert list(rows["second"]) == [199 * TICK - WARM_UP, 230 * TICK - WARM_UP]
    assert list(rows["cells_now"][:, 3, 4, 0]) == [0, 5] and rows["cells_ahead"][0, 3, 4] == 5


def test_the_table_holds_only_what_is_known_at_the_frame(day):
    """Another future changes labels, not the table."""
    with np.load(day) as stored:
        arrays = dict(stored)
    before = day_arrays(day)
    arrays["state"]["cars"][231:] = 40
    np.savez(day, **arrays)
    after = day_arrays(day)
    assert (after["table"] == before["table"]).all()
    assert after["density_ahead"][1] > before["density_ahead"][1]


def test_days_are_joined(day, tmp_path):
    rows = city_arrays(TOWN, range(1), tmp_path, skip=("frames",))
    assert "frames" not in rows and list(rows["day"]) == [0, 0] and rows["day"].dtype == np.int16


def test_levels_are_cut_at_the_published_bounds():
    assert [LEVELS[k] for k in level([0, 6.7, 6.9, 16.3, 28.1])] == [
        "free", "free", "steady", "dense", "jammed",
    ]  # fmt: skip


def street(name, start, stop, nodes):
    """A street of one lane that looks like sumolib's; `nodes` are the ids of its two ends."""
    ends = [SimpleNamespace(getID=lambda i=i: i, getIncoming=list, getOutgoing=list) for i in nodes]
    lane = SimpleNamespace(getShape=lambda: [start, stop], allows=lambda kind: True)
    return SimpleNamespace(
        getID=lambda: name, getLanes=lambda: [lane], getShape=lambda: [start, stop],
        getLength=lambda: float(np.hypot(stop[0] - start[0], stop[1] - start[1])),
        getLaneNumber=lambda: 1, getSpeed=lambda: 13.9, allows=lambda kind: True,
        getFunction=lambda: "", getFromNode=lambda: ends[0], getToNode=lambda: ends[1],
    )  # fmt: skip


def test_trips_come_from_the_seed(tmp_path):
    edges = [street("a", (0, 0), (500, 0), "12"), street("b", (500, 0), (1000, 0), "23")]
    route = lambda a, b, vClass: ((a, b), 1000.0) if a is not b else (None, 1e9)  # noqa: E731
    net = SimpleNamespace(getShortestPath=route)
    network = SimpleNamespace(city=TOWN, net=net, edges=edges, lane_km=1.0)
    first, again = tmp_path / "a.xml", tmp_path / "b.xml"
    count = write_trips(network, 0, 1.0, first)
    assert count == write_trips(network, 0, 1.0, again) > 0
    assert first.read_bytes() == again.read_bytes()
    assert first.read_text().count("<trip ") == count
    assert '<vType id="bus" vClass="passenger" length="12.0"' in first.read_text()
    net.getShortestPath = lambda a, b, vClass: (None, 1e9)
    with pytest.raises(RuntimeError, match="gave 0 routes through the network"):
        write_trips(network, 0, 1.0, again)


def test_junctions_with_signals_come_first_and_views_do_not_overlap():
    pytest.importorskip("shapely")

    def node(name, x, kind, arms=3):
        streets = [street(f"{name}{i}", (x - 40, 0), (x + 40, 0), "12") for i in range(arms)]
        return SimpleNamespace(
            getID=lambda: name, getType=lambda: kind, getCoord=lambda: (x, 0.0),
            getIncoming=lambda: streets, getOutgoing=lambda: streets[:2],
        )  # fmt: skip

    nodes = [
        node("plain", 0, "priority"),
        node("signal", 300, "traffic_light"),
        node("beside", 330, "priority"),
        node("small", 600, "traffic_light", arms=2),
    ]
    edges = [e for n in nodes for e in n.getIncoming()]
    chosen = candidates(nodes, edges)
    assert [junction.id for junction in chosen] == ["signal", "plain"]
    assert chosen[1].lane_km == pytest.approx(3 * 0.08) and chosen[1].approaches == 3


def test_help_needs_no_simulator():
    done = subprocess.run(
        [sys.executable, "-m", "simulation", "own", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "--peak-flow" in done.stdout, done.stderr


def test_the_headroom_names_every_source_city(request):
    found = json.loads((request.config.rootpath / "data/junctions/headroom.json").read_text())
    names = [*(city.name for city in SOURCES), "all source cities"]
    assert {key.split(" / ")[0] for key in found} == set(names)

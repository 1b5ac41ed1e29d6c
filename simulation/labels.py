"""Turns simulated days into frames with labels, and the table of what a perfect detector knows."""

import numpy as np

from simulation.cities import AHEAD, FIRST_HOUR, FIVE, LAGS, TICK, WARM_UP, WEATHERS

# Upper bounds of density for levels of service A, C and E of the Highway Capacity Manual
# (11, 26 and 45 passenger cars per mile and lane), in passenger cars per km and lane.
CUTS = (6.8, 16.2, 28.0)
LEVELS = ("free", "steady", "dense", "jammed")
LABELS = ("level_ahead", "level_now", "level_5min")
EQUIVALENT = (1.0, 2.0, 2.0)  # passenger cars per car, bus, truck: HCM 2016, level terrain
EMPTY_SPEED = 13.9  # m/s; a view without vehicles counts as free flow at 50 km/h

# The columns of `table`, in this order. Speeds in m/s, waits in s, densities in passenger cars per
# km and lane, lengths in km; `_20s` and `_40s` are the same that long before the frame.
TABLE = (
    *("cars", "buses", "trucks", "mean_speed", "halting", "longest_wait", "density", "blocked"),
    *("hour", *WEATHERS, "lane_km", "approaches", "green_share"),
    *("vehicles_20s", "halting_20s", "mean_speed_20s", "density_20s"),
    *("vehicles_40s", "halting_40s", "mean_speed_40s", "density_40s"),
    *("mean_density_2min", "mean_halting_2min"),
)


def column(table, name):
    """Return a column (n,) of a `table` (n, len(TABLE)) by its name."""
    return table[:, TABLE.index(name)]


def level(density):
    """Return the congestion level, 0 to 3, int8, of densities in passenger cars per km and lane."""
    return np.digitize(density, CUTS).astype(np.int8)


def day_arrays(path):
    """Return frames, labels, table and dense targets of a day's file; every row is a frame.

    Returns:
        dict: `frames` (n, SIZE, SIZE, 3) uint8; `junction`, `tick`, `second` (n,) int32;
        `weather`, `level_now`, `level_ahead`, `level_5min` (n,) int8; `table` (n, len(TABLE))
        float32, only what is known at the frame; `density_now`, `density_ahead` (n,) float32;
        `cells_now` (n, CELLS, CELLS, 2) uint8, all and halting vehicles; `cells_ahead` (n, CELLS,
        CELLS) float16, mean vehicles of the next two minutes.
    """
    with np.load(path) as stored:
        day = dict(stored)
    k, tick = day["junction"], day["tick"]
    state = day["state"]
    counts = np.stack([state[name] for name in ("cars", "buses", "trucks")], axis=-1)
    vehicles = counts.sum(axis=-1)
    looks = {  # (ticks, junctions) each
        "vehicles": vehicles,
        "halting": state["halting"],
        "mean_speed": np.where(
            vehicles > 0, state["sum_of_speeds"] / np.maximum(vehicles, 1), EMPTY_SPEED
        ),
        "density": counts @ np.array(EQUIVALENT) / day["lane_km"],
    }

    def mean(values, first, last):
        """Mean from `first` to `last` ticks after each frame."""
        return np.stack([values[tick + t, k] for t in range(first, last + 1)]).mean(axis=0)

    two, density = AHEAD // TICK, looks["density"]
    columns = {
        **{name: state[name][tick, k] for name in state.dtype.names},
        "mean_speed": looks["mean_speed"][tick, k],
        "density": density[tick, k],
        "hour": FIRST_HOUR + day["hour"],
        **{name: day["weather"] == number for number, name in enumerate(WEATHERS)},
        "lane_km": day["lane_km"][k],
        "approaches": day["approaches"][k],
        "mean_density_2min": mean(density, 1 - two, 0),
        "mean_halting_2min": mean(state["halting"], 1 - two, 0),
    }
    for lag in LAGS[1:]:
        for name, values in looks.items():
            columns[f"{name}_{lag}s"] = values[tick - lag // TICK, k]
    ahead = mean(density, 1, two)
    shown = np.mean([density[tick - lag // TICK, k] for lag in LAGS], axis=0)
    return dict(
        frames=day["frames"],
        junction=k,
        tick=tick,
        second=tick * TICK - WARM_UP,
        weather=day["weather"].astype(np.int8),
        level_now=level(shown),
        level_ahead=level(ahead),
        level_5min=level(mean(density, FIVE[0] // TICK + 1, FIVE[1] // TICK)),
        table=np.stack([columns[name] for name in TABLE], axis=1).astype(np.float32),
        density_now=density[tick, k].astype(np.float32),
        density_ahead=ahead.astype(np.float32),
        cells_now=day["cells"][tick, k],
        cells_ahead=mean(day["cells"][..., 0].astype(np.float32), 1, two).astype(np.float16),
    )


def city_arrays(city, days, work, skip=()):
    """Return `day_arrays` of several days, joined, with `day` (n,) int16 and without `skip`."""
    parts = []
    for day in days:
        part = day_arrays(city.day_file(day, work))
        part = {name: value for name, value in part.items() if name not in skip}
        parts.append(part | {"day": np.full(len(part["junction"]), day, np.int16)})
    return joined(parts)


def joined(parts):
    """Return dicts of arrays with the same names as one, row after row."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

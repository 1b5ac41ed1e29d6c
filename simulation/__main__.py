"""The command line: `python -m simulation simulate|headroom|ship|own --out WORK`."""

import argparse
import re
from pathlib import Path

from simulation.cities import HELSINKI, REHEARSAL, SOURCES, City
from simulation.own_city import film
from simulation.publishing import headroom, ship
from simulation.traffic import simulate

MAPS = (".osm", ".osm.pbf", ".osm.gz", ".osm.bz2", ".net.xml", ".net.xml.gz")
DATA = Path(__file__).resolve().parents[1] / "data" / "junctions"


def main(words=None):
    """Run the command line; `words` replace those of the shell."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    helps = {
        "simulate": "every city and day of the junctions data",
        "headroom": "what can be known without a picture",
        "ship": "write the files of data/junctions",
        "own": "film a city that is not part of the data",
    }
    for step, words_of_help in helps.items():
        sub = steps.add_parser(step, help=words_of_help)
        sub.add_argument(
            "--out", type=Path, required=True, help="folder for the simulated days (1.5 GB)"
        )
        if step in ("simulate", "own"):
            sub.add_argument("--jobs", type=int, default=2, help="processes")
    add = sub.add_argument  # the options of `own`
    add("--map", type=Path, required=True, help=f"street map: {', '.join(MAPS)}")
    add("--name", help="name of the city, default the map's")
    add("--junctions", type=int, default=12, help="how many of the busiest are filmed")
    add("--at", type=float, nargs=2, action="append", default=[], metavar=("LON", "LAT"),
        help="film the junction nearest to this point instead; may be given again")  # fmt: skip
    add("--days", type=int, default=5, help="simulated days")
    add("--frames", type=int, default=60, help="frames of each junction and day, 150 at most")
    add("--peak-flow", type=float, default=150, help="vehicles an hour and lane at the peak")
    args = parser.parse_args(words)
    if args.step == "simulate":
        simulate([*SOURCES, HELSINKI], args.out, args.jobs)
    elif args.step == "headroom":
        headroom(args.out, DATA)
    elif args.step == "ship":
        ship(args.out, DATA)
    else:
        film(own_city(args, parser), args.at, args.out, args.jobs)


def own_city(args, parser):
    """Return the `City` that the options of `own` describe, or end with a sentence."""
    name = args.name or args.map.name.split(".")[0]
    taken = [city.name for city in (*SOURCES, HELSINKI)]
    if not args.map.is_file() or not args.map.name.endswith(MAPS):
        parser.error(f"--map {args.map} is no file with one of the endings {', '.join(MAPS)}")
    if not re.fullmatch(r"[A-Za-z0-9_]+", name) or name.lower() in taken:
        parser.error(
            f"the name {name!r} needs letters, digits and underscores only and must not be "
            f"{', '.join(taken)}; give another with --name"
        )
    if min(args.junctions, args.days, args.frames, args.peak_flow) <= 0:
        parser.error("--junctions, --days, --frames and --peak-flow must be above zero")
    if args.days >= REHEARSAL:
        parser.error(f"--days must be below {REHEARSAL}, which is the rehearsal")
    if args.map.resolve().parent == args.out.resolve():
        parser.error("--out must be another folder than that of the map")
    return City(
        name,
        args.map.resolve(),
        junctions=len(args.at) or args.junctions,
        days=args.days,
        peak_flow=args.peak_flow,
        frames=args.frames,
    )


if __name__ == "__main__":
    main()

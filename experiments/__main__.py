"""Run, pack, confirm or look at an experiment.

python -m experiments run junctions [--rows NAME ...] [--seeds 0 1]
python -m experiments pack junctions       gather what was run into results.npz, also partial
python -m experiments status [junctions]   what is done, what is missing, what is trusted
python -m experiments confirm junctions    repeat one cheap run with the code as it is now
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from experiments.runner import NAMES, Runner, experiment_of  # noqa: E402


def main():
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("command", choices=("run", "pack", "status", "confirm"))
    parser.add_argument("names", nargs="*", metavar="experiment", help=", ".join(NAMES))
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these seeds")
    arguments = parser.parse_args()
    for name in arguments.names or NAMES:
        if name not in NAMES:
            parser.error(f"there is no experiment {name!r}; choose from {', '.join(NAMES)}")
        runner = Runner(experiment_of(name))
        known = [row.name for row in runner.experiment.rows]
        if strange := sorted(set(arguments.rows or ()) - set(known)):
            parser.error(f"{name} has no row {strange[0]!r}; choose from {', '.join(known)}")
        if arguments.command == "run":
            runner.run(arguments.rows, arguments.seeds)
        elif arguments.command == "pack":
            runner.pack()
            print(f"{runner.file}: {runner.file.stat().st_size:,} bytes")
        elif arguments.command == "confirm":
            print(runner.confirm())
        else:
            status(runner)


def status(runner):
    runs = runner.packed["runs"]
    trusted = sum(runner.trusted(run) for run in runs)
    print(f"{runner.experiment.name}: {len(runs)} runs packed, {trusted} of them trusted")
    for row in runner.experiment.rows:
        done = missing = unsearched = 0
        for _, case, seed in runner.wanted([row.name]):
            settings = runner.settings(row, case, train=False)
            if settings is None:
                unsearched += 1
            elif runner.stored("run", row, case, seed, settings):
                done += 1
            else:
                missing += 1
        print(f"  {row.name}: {done} done, {missing} to run, {unsearched} to search first")


if __name__ == "__main__":
    main()

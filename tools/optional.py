"""Install the optional packages of chapters/tools, when PyTorch comes as a build for the CPU.

    python -m tools.optional            what `make setup` does
    python -m tools.optional --anyway   also a build for GPUs, of several GB

The book builds without them, and the tests then skip the pages that need them and say so.
This script never fails: what it could not install, it names.
"""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements-tools.txt"


def pins(text):
    """Return {name: version} from a file of exact pins."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return dict(line.split("==") for line in lines if line)


def installed(wanted):
    """Return whether every package is there at its version; a build tag (2.13.0+cpu) may follow."""
    try:
        return all(
            importlib.metadata.version(name).split("+")[0] == version
            for name, version in wanted.items()
        )
    except importlib.metadata.PackageNotFoundError:
        return False


def for_gpus(report):
    """Return whether pip's report promises a PyTorch that brings libraries for GPUs along."""
    (torch,) = json.loads(report)["install"]
    needs = map(Requirement, torch["metadata"].get("requires_dist", []))
    return any(
        need.name.startswith("nvidia-")
        and (need.marker is None or need.marker.evaluate({"extra": ""}))
        for need in needs
    )


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True)


def install(wanted, anyway=False):
    """Install the packages. Return why they are missing, or None when they are there."""
    torch = f"torch=={wanted['torch']}"
    if anyway:  # with all that the build for GPUs needs
        done = pip("-r", str(REQUIREMENTS))
    else:
        found = pip("--dry-run", "--ignore-installed", "--no-deps", "--report", "-", torch)
        if found.returncode:
            return f"no build of {torch} for this Python and system"
        if for_gpus(found.stdout):
            return f"{torch} comes as a build for GPUs, of several GB"
        done = pip("--no-deps", "-r", str(REQUIREMENTS))
    return (
        "pip failed: " + (done.stderr.strip().splitlines() or ["?"])[-1]
        if done.returncode
        else None
    )


def main():
    wanted = pins(REQUIREMENTS.read_text())
    if installed(wanted):
        return
    reason = install(wanted, anyway="--anyway" in sys.argv)
    if reason:
        print(
            f"The optional packages of chapters/tools are not installed: {reason}. The book builds "
            "without them; the tests skip the pages that need them. To install them all the same: "
            f"{Path(sys.executable).name} -m tools.optional --anyway"
        )


if __name__ == "__main__":
    main()

"""The commands of the book, for people with and without make.

    python -m tools quick              package and page facts: no notebooks, no browser
    python -m tools page PAGE          execute one page if it is stale, check it, build it
    python -m tools stale              execute the pages whose outputs are stale
    python -m tools book               build the book into _build/html
    python -m tools test               build the book, then run every check
    python -m tools release            the same, from an empty _build
    python -m tools lax                run the notebooks without comparing outputs
    python -m tools fetch [NAME ...]   bring what is not shipped
    python -m tools lab | links | lint | bench

What follows the command is passed on: python -m tools test -k travel
"""

import os
import shutil
import subprocess
import sys

from tools.pages import ROOT

CACHE = ROOT / ".cache"
# Programs that would write into the home folder write into .cache instead.
FOLDERS = {
    "XDG_CACHE_HOME": CACHE,
    "XDG_CONFIG_HOME": CACHE / "config",
    "XDG_DATA_HOME": CACHE / "share",
    "IPYTHONDIR": CACHE / "ipython",
    "JUPYTER_CONFIG_DIR": CACHE / "jupyter" / "config",
    "JUPYTER_DATA_DIR": CACHE / "jupyter" / "data",
    "JUPYTER_RUNTIME_DIR": CACHE / "jupyter" / "runtime",
    "MPLCONFIGDIR": CACHE / "matplotlib",
    "KERAS_HOME": CACHE / "keras",
    "PLAYWRIGHT_BROWSERS_PATH": CACHE / "browsers",
}
JUPYTER_BOOK = ("-c", "from jupyter_book.cli.main import main; main()")
NBVAL = ("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300")
# Two workers; each takes whole files, since the cells of a notebook share a kernel.
PYTEST = ("-m", "pytest", "--color=no", "-q", "-n", "2", "--dist", "loadscope")


def run(*arguments):
    """Run Python with these arguments in the repository's root; stop here when it fails."""
    CACHE.mkdir(exist_ok=True)  # IPython complains about a folder that it cannot make
    environment = {**os.environ, **{name: str(path) for name, path in FOLDERS.items()}}
    environment.setdefault("CITYNB_CACHE", str(CACHE / "citynb"))
    environment |= {
        "PYTHONUTF8": "1",
        "PYTHONNOUSERSITE": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(done.returncode)


def quick(*more):
    run(*PYTEST, "-m", "not browser and not slow", "tests/package", "tests/pages", *more)


def page(*paths):
    if len(paths) != 1 or not (ROOT / paths[0]).is_file():
        sys.exit("Name one page: make page PAGE=chapters/traffic/train.ipynb")
    path = (ROOT / paths[0]).resolve()
    run("-m", "tools.execute", path)
    name = path.relative_to(ROOT).as_posix()
    checks = [
        f"tests/pages/test_contract.py::test_page_keeps_the_contract[{name}]",
        *(
            f"tests/pages/test_outputs.py::{test}[{name}]"
            for test in ("test_outputs_are_fresh", "test_notebook_is_finished")
        ),
    ]
    run("-m", "pytest", "--color=no", "-q", *checks)
    # Sphinx keeps what it read: only this page, and pages that changed, are written again.
    book()
    print(f"The page is at {(ROOT / '_build' / 'html' / name).with_suffix('.html').as_uri()}")


def stale(*paths):
    run("-m", "tools.execute", *paths)


def book(*more):
    run(*JUPYTER_BOOK, "build", ".", "-W", "--keep-going", "--quiet", *more)
    print(f"The book is at {(ROOT / '_build' / 'html' / 'index.html').as_uri()}", flush=True)


def test(*more):
    """One pytest run, so that its last line speaks for everything."""
    book()
    run("-m", "tools.chromium", "--install")
    run(*PYTEST, *NBVAL, "-rs", *more)


def release(*more):
    shutil.rmtree(ROOT / "_build", ignore_errors=True)
    test(*more)


def lax(*more):
    run(*PYTEST, *NBVAL, "tests/pages/test_contract.py", "chapters", "tools", *more)


def fetch(*names):
    run("-m", "citynb", "fetch", *names)


def lab(*more):
    run("-m", "jupyterlab", "chapters", *more)


def links(*more):
    run(*JUPYTER_BOOK, "build", ".", "--builder", "linkcheck", *more)


def lint(*more):
    run("-m", "ruff", "check", ".", *more)


def bench(*more):
    run("-m", "tools.bench", *more)


COMMANDS = {
    command.__name__: command
    for command in (quick, page, stale, book, test, release, lax, fetch, lab, links, lint, bench)
}


def main():
    name, *more = sys.argv[1:] or ["help"]
    if name not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[name](*more)


if __name__ == "__main__":
    main()

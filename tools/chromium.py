"""Find a Chromium for the tests of the built book, or install one into .cache.

python -m tools.chromium             print its path
python -m tools.chromium --install   let Playwright fetch one if there is none
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WAY_OUT = (
    "No Chromium was found for the tests of the built book. Install one (Debian: `apt install "
    "chromium`), or name it in the environment variable CHROMIUM, or connect to the network and "
    "run `make test` again: it fetches one into .cache."
)

# Playwright's own browsers stay inside the checkout.
os.environ.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(ROOT / ".cache" / "browsers"))


def find():
    """Return the path of a Chromium: $CHROMIUM, the system's, or Playwright's; None without one."""
    for name in (os.environ.get("CHROMIUM"), *NAMES):
        if name and (path := shutil.which(name)):
            return path
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install():
    """Let Playwright fetch its Chromium. Failing is not an error here: the tests say so."""
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)


if __name__ == "__main__":
    if "--install" in sys.argv and find() is None:
        install()
    print(find() or WAY_OUT)

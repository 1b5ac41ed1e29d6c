"""Make travel_times.csv.gz from the traffic_anomaly wheel.

    python -m data.travel_times.publish

Needs the package index, this project's environment, and pyarrow, which reads the source. The
values are the publisher's, turned to a column for each road segment and rounded to a hundredth
of a second.
"""

import io
from pathlib import Path

import pandas as pd

from tools.publishing import member_of_wheel, write_gzip, write_sums

WHEEL = "traffic_anomaly==2.5.4"
MEMBER = "traffic_anomaly/data/sample_travel_times.parquet"
MEMBER_SHA256 = "a9f6f2e5f871a05b52336acd7acbcf36e54d087072a6e13f81dc8fcabd184d83"


def main(folder=Path(__file__).parent):
    source = pd.read_parquet(io.BytesIO(member_of_wheel(WHEEL, MEMBER, MEMBER_SHA256)))
    seconds = source.pivot(index="timestamp", columns="id", values="travel_time")
    text = seconds.round(2).rename_axis("time").to_csv(lineterminator="\n", float_format="%.2f")
    write_gzip(folder / "travel_times.csv.gz", text)
    write_sums(folder)


if __name__ == "__main__":
    main()

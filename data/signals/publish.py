"""Make counts.csv.gz from the sample data of the traffic_anomaly wheel.

    python -m data.signals.publish

Needs the package index, pyarrow and this project's environment. The values are the publisher's,
turned to a column for each detector.
"""

import io
from pathlib import Path

import pandas as pd

from tools.publishing import member_of_wheel, write_gzip, write_sums

HERE = Path(__file__).resolve().parent
WHEEL = "traffic_anomaly==2.5.4"
MEMBER = "traffic_anomaly/data/sample_counts.parquet"
MEMBER_SHA256 = "29746e4af4a5a9b46585687c7c9aab8a3a7c2c7694ca193196593e478c5c5d65"


def main():
    content = member_of_wheel(WHEEL, MEMBER, MEMBER_SHA256)
    rows = pd.read_parquet(io.BytesIO(content))
    counts = rows.pivot(index="timestamp", columns="detector", values="total").rename_axis("time")
    write_gzip(HERE / "counts.csv.gz", counts.to_csv(lineterminator="\n"))
    write_sums(HERE)


if __name__ == "__main__":
    main()

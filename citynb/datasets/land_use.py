"""land_use: tiles of the figure-ground of central Helsinki, and what the land is used for.

One picture is 48 x 48 pixels of 2 m, 96 m on each side, north up. Its channels are buildings,
their walls, and streets (1 carriageway, 0.5 path). The label is the use of the 36 m square in
its middle; tags and areas of use are not drawn.
"""

import numpy as np
import pandas as pd

from citynb.files import data_folder
from citynb.tasks import CityTask, Split

FOLDER = data_folder() / "land_use"
TILE = 48  # pixels
GAP = 12  # pixels, 24 m: what lies at least between two tiles of different splits
FOLDS = 3  # thirds of the city from north to south; each is the test set once
BANDS = 2 * FOLDS  # half a third; the one after the test set is validation
BLOCK_COLUMNS = 4  # blocks in a band, for the intervals: about 250 x 280 m
RANDOM_SEED = 0


def load(split="spatial", fold=0):
    """Return one fold of the task.

    `"spatial"` cuts the city into six bands from north to south: two are the test set, the
    next one (after the last, the first) is validation, the other three train. Tiles of train
    or validation that come within 24 m of a tile of test are left out, and tiles of train
    within 24 m of validation. `"random"` deals the same tiles to six hands by lot instead of
    by band. It is here to show a mistake: tiles of its splits overlap.

    In both, each tile is tested in exactly one fold, and the index of a table is the number
    of the tile.

    Raises:
        ValueError: there is no such split or fold.
    """
    stored = city()
    rows, labels = parts(split, fold, stored), stored["label"].astype(np.int64)
    pictures, table = draw_tiles(stored), stored["table"]
    groups = blocks(stored) if split == "spatial" else np.arange(len(labels))
    return CityTask(
        "land_use",
        *(
            Split(
                inputs=pictures[rows[part]],
                labels=labels[rows[part]],
                groups=groups[rows[part]],
                table=pd.DataFrame(table[rows[part]], rows[part], stored["table_names"].tolist()),
            )
            for part in ("train", "validation", "test")
        ),
        class_names=tuple(stored["class_names"].tolist()),
        split_by="parts of the city, with a gap" if split == "spatial" else "lot, tiles overlap",
        card=FOLDER / "card.md",
    )


def city():
    """Return the stored arrays by name: the maps of the city and, for each tile, its corner."""
    with np.load(FOLDER / "city.npz", allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def parts(split, fold, stored):
    """Return {"train", "validation", "test"}: the numbers of the tiles of each."""
    if split not in ("spatial", "random"):
        raise ValueError(f"split is {split!r}; choose 'spatial' or 'random'.")
    if fold not in range(FOLDS):
        raise ValueError(f"land_use has no fold {fold!r}; choose 0 to {FOLDS - 1}.")
    row, column = stored["row"].astype(int), stored["column"].astype(int)
    if split == "random":
        band = np.random.default_rng(RANDOM_SEED).permutation(len(row)) % BANDS
    else:
        band = (row + TILE // 2) * BANDS // len(stored["use"])
    test, validation = band // 2 == fold, band == (2 * fold + 2) % BANDS
    train = ~test & ~validation
    if split == "spatial":

        def near(those):
            return (
                (abs(row[:, None] - row[those]) < TILE + GAP)
                & (abs(column[:, None] - column[those]) < TILE + GAP)
            ).any(1)

        # The gap is taken from what is trained on and chosen with, never from the test.
        train &= ~near(test) & ~near(validation)
        validation &= ~near(test)
    found = {"train": train, "validation": validation, "test": test}
    return {part: np.flatnonzero(members) for part, members in found.items()}


def blocks(stored):
    """Return for each tile the number of its block, which lies in one band: 4 a band."""
    height, width = stored["use"].shape
    band = (stored["row"].astype(int) + TILE // 2) * BANDS // height
    return (
        band * BLOCK_COLUMNS + (stored["column"].astype(int) + TILE // 2) * BLOCK_COLUMNS // width
    )


def draw_tiles(stored):
    """Return the pictures of all tiles, float32 (tiles, 48, 48, 3) in [0, 1]."""
    buildings, streets = stored["buildings"], stored["streets"]
    up, left = (np.roll(buildings, 1, axis) for axis in (0, 1))
    walls = (buildings > 0) & ((buildings != up) | (buildings != left))
    drawn = np.stack([buildings > 0, walls, streets / 2], axis=-1).astype(np.float32)
    return np.stack(
        [
            drawn[row : row + TILE, column : column + TILE]
            for row, column in zip(stored["row"], stored["column"], strict=True)
        ]
    )

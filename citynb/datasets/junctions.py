"""junctions: simulated aerial views of junctions in Helsinki with their congestion level."""

import numpy as np
import pandas as pd

from citynb.files import data_folder
from citynb.tasks import CityTask, Split

FOLDER = data_folder() / "junctions"


def load(label="ahead"):
    """Return the task: pictures of 96 x 96 pixels of one meter; channels now, 20 s and 40 s ago.

    Args:
        label: the congestion level of the next two minutes (`"ahead"`), of the moments shown
            (`"now"`), or five minutes ahead (`"5min"`).
    """
    if label not in ("ahead", "now", "5min"):
        raise ValueError(f"label is {label!r}; choose 'ahead', 'now' or '5min'.")
    with np.load(FOLDER / "helsinki.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    parts = []
    for part in ("train", "validation", "test"):
        rows = arrays["split"] == arrays["split_names"].tolist().index(part)
        parts.append(
            Split(
                inputs=arrays["frames"][rows].astype(np.float32) / 255,
                labels=arrays[f"level_{label}"][rows].astype(np.int64),
                # Frames of one junction on one day share their queues.
                groups=arrays["junction"][rows].astype(np.int64) * 100 + arrays["day"][rows],
                table=pd.DataFrame(arrays["table"][rows], columns=arrays["table_names"].tolist()),
            )
        )
    return CityTask(
        "junctions",
        *parts,
        class_names=tuple(arrays["level_names"].tolist()),
        split_by="junction and day",
        card=FOLDER / "card.md",
    )

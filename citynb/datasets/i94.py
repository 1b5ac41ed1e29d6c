"""i94: two years of hourly westbound volume on Interstate 94, Minneapolis to St Paul."""

from citynb.files import data_folder
from citynb.tasks import CityTask

FOLDER = data_folder() / "i94"
# Rolling origin: each fold trains on everything before its validation quarter. Fold 1
# is tested on a Minnesota winter. `None` is the split that the pages use.
FOLDS = {
    None: ("2016-10-01", "2018-01-01", "2018-04-01", "2018-10-01"),
    0: ("2016-10-01", "2017-07-01", "2017-10-01", "2018-01-01"),
    1: ("2016-10-01", "2017-10-01", "2018-01-01", "2018-04-01"),
    2: ("2016-10-01", "2018-01-01", "2018-04-01", "2018-07-01"),
    3: ("2016-10-01", "2018-04-01", "2018-07-01", "2018-10-01"),
}


def load(horizon=1, target="demand", fold=None):
    """Return the task: which level of demand, `horizon` hours ahead?

    Args:
        horizon, target: as in `CityTask.from_counts`.
        fold: None, or 0 to 3 for the rolling folds of FOLDS; fold 1 is tested in winter.
    """
    if fold not in FOLDS:
        raise ValueError(f"i94 has no fold {fold!r}; choose None, 0, 1, 2 or 3.")
    return CityTask.from_counts(
        FOLDER / "i94.csv.gz",
        bounds=FOLDS[fold],
        horizon=horizon,
        target=target,
        name="i94",
        card=FOLDER / "card.md",
    )

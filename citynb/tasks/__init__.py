"""Step 1: prepare the data. What a task is, and the ways to make one from counts or pictures."""

from citynb.tasks.split import Split
from citynb.tasks.task import CityTask

__all__ = ["CityTask", "Split"]

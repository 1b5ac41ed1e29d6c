from citynb.data import CityTask, Split

__all__ = ["CityTask", "Split"]

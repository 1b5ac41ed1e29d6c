from pathlib import Path

from citynb.data import data_folder, verify

__all__ = ["data_folder", "models_folder", "results_folder", "verify"]


def models_folder():
    models = Path(__file__).resolve().parents[1] / "models"
    return models if models.is_dir() else data_folder()


def results_folder():
    return Path(__file__).resolve().parents[1] / "experiments" / "results"

"""citynb: fine-tuning for cities, a module for each step of the workflow.

task = citynb.load("i94", horizon=3)                     # 1 prepare the data
body = citynb.backbone("city_resnet")                    # 2 choose a pretrained network
model = citynb.classifier(body, task.num_classes)        # 3 change the head
run = citynb.fine_tune(model, task, learning_rate=1e-3)  # 4 train
report = citynb.evaluate(model, task)                    # 5 evaluate
"""

from citynb.session import check_versions, start

check_versions()  # first: the modules below use what old libraries lack

# ruff: noqa: E402, I001
from citynb.comparison import compare
from citynb.datasets import dataset, load
from citynb.downloads import fetch
from citynb.evaluation import evaluate
from citynb.heads import classifier, freeze
from citynb.networks import HubLayer, backbone
from citynb.notebook import say, show_figure
from citynb.results import results
from citynb.tasks import CityTask, Split
from citynb.training import fine_tune

__all__ = [
    "start",
    "CityTask",
    "Split",
    "load",
    "dataset",
    "backbone",
    "HubLayer",
    "classifier",
    "freeze",
    "fine_tune",
    "evaluate",
    "compare",
    "results",
    "fetch",
    "say",
    "show_figure",
]

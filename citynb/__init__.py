"""citynb: fine-tuning for cities, one module per step of the workflow.

task = citynb.load("i94", horizon=3)                     # 1 prepare the data
body = citynb.backbone("city_resnet")                    # 2 choose a pretrained network
model = citynb.classifier(body, task.num_classes)        # 3 change the head
run = citynb.fine_tune(model, task, learning_rate=1e-3)  # 4 train
report = citynb.evaluate(model, task)                    # 5 evaluate
"""

from citynb.session import check_versions, start

check_versions()  # first: the modules below use what old libraries lack

# ruff: noqa: E402, I001
from citynb.backbones import HubLayer, backbone
from citynb.comparison import compare
from citynb.data import CityTask, load
from citynb.display import say, show_figure
from citynb.evaluation import evaluate
from citynb.heads import classifier, freeze
from citynb.results import results
from citynb.training import fine_tune

__all__ = [
    "start",
    "CityTask",
    "load",
    "backbone",
    "HubLayer",
    "classifier",
    "freeze",
    "fine_tune",
    "evaluate",
    "compare",
    "results",
    "say",
    "show_figure",
]

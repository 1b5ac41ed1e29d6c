"""Land use: what a street block is used for, from its plan. Half an hour on one core."""

import functools

import keras

import citynb
from citynb.networks.small import small_photo_network
from experiments.experiment import Experiment, Row, boosted_trees

LABELS = 160  # training tiles of every run: what the poorest fold has, so that all are alike
FOLDS = (0, 1, 2)  # each tile is tested in one of them


@functools.cache
def fold_of(split, fold):
    return citynb.load("land_use", split=split, fold=fold)


def load(case, seed):
    return [fold_of(case["split"], fold).subset(LABELS, seed) for fold in FOLDS]


def trees(task, settings, seed, case):
    return boosted_trees(task, settings | dict(min_samples_leaf=5), seed, case)


def network(task, settings, seed, case, *, body):
    keras.utils.set_random_seed(seed)
    if body == "scratch":
        built = small_photo_network(task.input_shape)
        schedule = dict(head_epochs=0, batch_norm="train")
    else:
        built = citynb.backbone(body, image_size=task.input_shape[0])
        schedule = dict(head_epochs=20, epochs=0)
    model = citynb.classifier(built, task.num_classes, seed=seed)
    flips = keras.layers.RandomFlip(  # a plan means the same in the mirror
        "horizontal_and_vertical", seed=seed, data_format="channels_last"
    )
    schedule |= dict(batch_size=16, augment=flips, validate=False, progress=False, seed=seed)
    citynb.fine_tune(model, task, **(schedule | settings))
    return model


def of_body(name, body, cases):
    of = functools.partial(network, body=body)
    heads = dict(head_learning_rate=[1e-3, 1e-2], head_epochs=[20, 80])
    bodies = dict(learning_rate=[1e-4, 1e-3], epochs=[4, 12])
    return (
        Row(f"{name}, frozen", of, heads),
        Row(f"{name}, fine-tuned", of, bodies, cases),
    )


SPATIAL, RANDOM = {"split": "spatial"}, {"split": "random"}  # the second shows a mistake

EXPERIMENT = Experiment(
    "land_use",
    rows=(
        Row("trees", trees, dict(max_leaf_nodes=[3, 7, 15], max_iter=[20, 40, 80, 160])),
        Row(
            "network from scratch",
            functools.partial(network, body="scratch"),
            dict(learning_rate=[1e-3, 4e-3], epochs=[25, 75]),
            (SPATIAL,),
        ),
        *of_body("ImageNet", "efficientnet_lite0", (SPATIAL,)),
        *of_body("city_resnet", "city_resnet", (SPATIAL,)),
    ),
    cases=(SPATIAL, RANDOM),
    load=load,
    datasets=("land_use", "city_resnet"),
    search_at=(SPATIAL,),
    search_seeds=(0,),
    probabilities=False,
    confirm=("city_resnet, frozen", SPATIAL, 0),
)

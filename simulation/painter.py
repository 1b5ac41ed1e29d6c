"""Draws frames: vehicles, lamps and weather on the ground of a junction. Needs Pillow only."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from simulation.cities import LENGTH, SIZE, TYPES, WIDTH
from simulation.ground import SUPER, Window

# What is known about the vehicles at one moment; paint is a whole number that stands for a tone.
VEHICLE = np.dtype(
    [
        ("x", np.float64),  # m, middle of the front
        ("y", np.float64),
        ("angle", np.float64),  # degrees, clockwise from north
        ("speed", np.float64),  # m/s
        ("type", np.int8),  # number in TYPES
        ("paint", np.int64),
        ("braking", np.bool_),
        ("broken", np.bool_),  # down and not yet cleared
        ("waiting", np.float64),  # s since it last moved
    ]
)
TONES = (238, 225, 200, 178, 40, 28, 58, 128)  # paint of cars and trucks, light and dark
BUS_TONE = 215


class Body(NamedTuple):
    """A vehicle as it is drawn: front (x, y), unit vectors ahead and to the right, sizes in m."""

    front: np.ndarray
    ahead: np.ndarray
    side: np.ndarray
    length: float
    width: float
    type: str
    tone: int
    braking: bool
    broken: bool

    def block(self, start, stop, half, shift=(0.0, 0.0)):
        """Corners of the part from `start` to `stop` m behind the front, `half` m to each side."""
        front = self.front + shift
        return [
            front - self.ahead * start + self.side * half,
            front - self.ahead * start - self.side * half,
            front - self.ahead * stop - self.side * half,
            front - self.ahead * stop + self.side * half,
        ]


class Painter:
    """Draws grey views of the junction at (x, y) in meters.

    `grounds` is {weather: grey image of (SUPER * SIZE) squared pixels}, as `draw_grounds` makes it.
    """

    def __init__(self, grounds, x, y):
        self.grounds = grounds
        self.window = Window(x, y)

    def view(self, vehicles, lamps, weather, seed):
        """Return a picture (SIZE, SIZE) uint8.

        Args:
            vehicles: array (n,) of type `VEHICLE`, in the order in which they are drawn.
            lamps: list of (x, y, green) of the signals, in meters.
            weather: one of `WEATHERS`.
            seed: int, for the drops of rain and the flakes of snow.
        """
        image = self.grounds[weather].copy()
        bodies = [_body(vehicle, weather) for vehicle in vehicles]
        if weather == "clear":
            draw = ImageDraw.Draw(image)
            for body in bodies:
                shift = np.array((0.9, -0.7)) * (1.0 if body.type == "car" else 2.2)
                shadow = body.block(0, body.length, body.width / 2, shift)
                draw.polygon(self.window.pixels(shadow), fill=40)
        if weather == "night":
            image = self._darken(image, bodies)
        draw = ImageDraw.Draw(image)
        for body in bodies:
            self._draw_body(draw, body)
            self._draw_lights(draw, body, weather)
        for x, y, green in lamps:
            draw.ellipse(self.window.disc(x, y, 0.9), fill=255 if green else 12)
        frame = np.asarray(image.reduce(SUPER), dtype=np.float32)
        return np.clip(_weathered(frame, weather, seed), 0, 255).astype(np.uint8)

    def _darken(self, image, bodies):
        image = image.point([int(v * 0.34) for v in range(256)])
        beams = Image.new("L", image.size, 0)
        glow = ImageDraw.Draw(beams)
        for body in bodies:
            for reach, light in ((13, 40), (8, 75), (4, 120)):
                lit = body.front + body.ahead * reach
                corners = [
                    body.front + body.side * 0.6,
                    body.front - body.side * 0.6,
                    lit - body.side * reach * 0.22,
                    lit + body.side * reach * 0.22,
                ]
                glow.polygon(self.window.pixels(corners), fill=light)
        return Image.fromarray(np.maximum(np.asarray(image), np.asarray(beams)))

    def _draw_body(self, draw, body):
        def part(start, stop, half, fill):
            draw.polygon(self.window.pixels(body.block(start, stop, half)), fill=fill)

        glass = 25 if body.tone > 100 else 150
        part(0, body.length, body.width / 2, body.tone)
        if body.type == "truck":  # the gap between cab and box
            part(2.0, 2.6, body.width / 2, glass)
        elif body.type == "bus":  # two roof hatches
            part(3.0, 4.2, 0.6, 90)
            part(8.0, 9.2, 0.6, 90)
        else:
            part(1.1, 1.9, body.width / 2 - 0.2, glass)

    def _draw_lights(self, draw, body, weather):
        def pair(back, out, radius, fill):
            for side in (body.side * out, -body.side * out):
                x, y = body.front - body.ahead * back + side
                draw.ellipse(self.window.disc(x, y, radius), fill=fill)

        if weather in ("night", "fog", "rain"):
            pair(0.3, 0.6, 0.45, 255)
            if body.braking:
                pair(body.length - 0.2, 0.6, 0.5, 210)
            elif weather == "night":
                pair(body.length - 0.2, 0.6, 0.3, 130)
        if body.broken:  # hazard lights
            pair(0.2, 0.9, 0.7, 255)
            pair(body.length - 0.2, 0.9, 0.7, 255)


def _body(vehicle, weather):
    turn = math.radians(vehicle["angle"])
    ahead = np.array((math.sin(turn), math.cos(turn)))
    name = TYPES[vehicle["type"]]
    tone = BUS_TONE if name == "bus" else TONES[vehicle["paint"] % len(TONES)]
    if weather == "night":
        tone = 70 + tone // 4
    elif weather == "snow":
        tone = min(tone, 120)
    return Body(
        front=np.array((vehicle["x"], vehicle["y"])),
        ahead=ahead,
        side=np.array((ahead[1], -ahead[0])),
        length=LENGTH[name],
        width=WIDTH[name] + 0.3,  # a little wider than life, so that the body fills two pixels
        type=name,
        tone=tone,
        braking=vehicle["braking"],
        broken=vehicle["broken"],
    )


def _weathered(frame, weather, seed):
    """Put fog, streaks of rain or flakes of snow over a frame (SIZE, SIZE) float32."""
    rng = np.random.default_rng(seed)
    if weather == "fog":
        return 0.42 * frame + 0.58 * 190
    if weather == "rain":
        drops = zip(
            rng.integers(0, SIZE - 2, 30), rng.integers(0, SIZE - 6, 30), rng.integers(2, 5, 30)
        )
        for column, row, length in drops:
            frame[row : row + length, column] += 34
    elif weather == "snow":
        frame[rng.integers(0, SIZE, 50), rng.integers(0, SIZE, 50)] += 60
    return frame

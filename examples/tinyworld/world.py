"""The tinyworld: captioned 64x64 pictures drawn by rule, so that a diffusion model can be trained offline in an hour.

A picture shows one object (8 class nouns) in one context (8, or a plain wall). The caption may name the noun, the
context, a hat and the main colour. It never names the *identity*: a second colour, a fill pattern, ear length and
girth. That is what DreamBooth has to learn from a few photos. Objects fill a third of the frame or more and patterns
are coarse, because small or fine ones are not learned by a model of this size.
"""

import colorsys
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from PIL import Image, ImageChops, ImageDraw, ImageFilter

RESOLUTION_PX = 64
CANVAS_PX = 256  # drawn at four times the size, then scaled down, which smooths the edges

NOUNS = ("dog", "cat", "bear", "clock", "teapot", "backpack", "mug", "car")
CONTEXTS = {
    "jungle": "in the jungle",
    "beach": "on the beach",
    "snow": "in the snow",
    "moon": "on the moon",
    "city": "in the city",
    "floor": "on a wooden floor",
    "sea": "in the sea",
    "desert": "in the desert",
}
PLAIN = "plain"
ACCESSORY = "wearing a red hat"
PATTERNS = ("plain", "halves", "band", "spots", "belly")
HUES = {
    "red": 0.0,
    "orange": 0.08,
    "yellow": 0.15,
    "green": 0.34,
    "cyan": 0.5,
    "blue": 0.62,
    "purple": 0.76,
    "pink": 0.9,
}
RARE_TOKENS = ("sks", "ohwx", "pll", "ucd", "zwx", "ktn", "qxj", "vlb")

Colour = tuple[int, int, int]
INK: Colour = (35, 30, 35)
WHITE: Colour = (245, 245, 240)


@dataclass(frozen=True)
class Identity:
    """What makes a subject itself. Hues lie in [0, 1), ear_length and girth in [0, 1]."""

    hue: float
    second_hue: float
    pattern: str
    ear_length: float
    girth: float


@dataclass(frozen=True)
class Scene:
    """All that one picture shows. `context` is a key of CONTEXTS or PLAIN; `seed` moves pose and scenery alone."""

    noun: str
    identity: Identity
    context: str
    hat: bool
    seed: int


@dataclass(frozen=True)
class Subject:
    """A personalisation subject: an identity that no picture of the world shows, photographed in `contexts`."""

    name: str
    noun: str
    identity: Identity
    contexts: tuple[str, ...]

    @property
    def held_out_contexts(self) -> tuple[str, ...]:
        return tuple(context for context in CONTEXTS if context not in self.contexts)

    def scenes(self) -> Iterator[Scene]:
        """The subject's photos: one for each context and one before a plain wall."""
        for number, context in enumerate((*self.contexts, PLAIN)):
            yield Scene(self.noun, self.identity, context, hat=False, seed=7_000_000 + 31 * number)


SUBJECTS = (
    Subject("teapot", "teapot", Identity(0.07, 0.60, "spots", 0.5, 0.8), ("jungle", "beach", "snow", "moon")),
    Subject("dog", "dog", Identity(0.76, 0.15, "halves", 0.9, 0.4), ("snow", "floor", "city", "desert")),
    Subject("backpack", "backpack", Identity(0.36, 0.90, "band", 0.3, 0.6), ("sea", "moon", "floor", "beach")),
    Subject("cat", "cat", Identity(0.52, 0.05, "belly", 0.7, 0.9), ("city", "jungle", "sea", "snow")),
    # The same four identities on other nouns: the world draws them on none.
    Subject("mug", "mug", Identity(0.07, 0.60, "spots", 0.5, 0.8), ("city", "sea", "floor", "desert")),
    Subject("clock", "clock", Identity(0.76, 0.15, "halves", 0.9, 0.4), ("beach", "moon", "sea", "jungle")),
    Subject("car", "car", Identity(0.36, 0.90, "band", 0.3, 0.6), ("jungle", "snow", "city", "desert")),
    Subject("bear", "bear", Identity(0.52, 0.05, "belly", 0.7, 0.9), ("beach", "moon", "floor", "desert")),
)


def hue_distance(a: float, b: float) -> float:
    """Distance on the colour circle, in [0, 0.5]."""
    return min((a - b) % 1.0, (b - a) % 1.0)


def is_held_out(identity: Identity) -> bool:
    """True for identities close to a personalisation subject's; the world never draws them, on any noun."""
    return any(
        identity.pattern == subject.identity.pattern
        and hue_distance(identity.hue, subject.identity.hue) < 0.07
        and hue_distance(identity.second_hue, subject.identity.second_hue) < 0.07
        for subject in SUBJECTS
    )


def random_identity(rng: random.Random) -> Identity:
    """An identity with two clearly different hues that belongs to no subject."""
    while True:
        identity = Identity(rng.random(), rng.random(), rng.choice(PATTERNS), rng.random(), rng.random())
        if hue_distance(identity.hue, identity.second_hue) > 0.2 and not is_held_out(identity):
            return identity


def random_scene(seed: int) -> Scene:
    """The scene with this seed; equal seeds give equal scenes."""
    rng = random.Random(seed)
    context = PLAIN if rng.random() < 0.06 else rng.choice(tuple(CONTEXTS))
    return Scene(rng.choice(NOUNS), random_identity(rng), context, hat=rng.random() < 0.15, seed=rng.getrandbits(40))


def colour_name(hue: float) -> str:
    return min(HUES, key=lambda name: hue_distance(HUES[name], hue))


def random_caption(scene: Scene, rng: random.Random) -> str:
    """A caption of the scene, with words left out at random so that each can be used alone in a prompt."""
    rare = rng.choice(RARE_TOKENS) if rng.random() < 0.06 else None
    colour = colour_name(scene.identity.hue) if rng.random() < 0.45 else None
    words = ["a photo of"] if rng.random() < 0.6 else []
    if rare is None or rng.random() < 0.5:
        words.append("an" if rare is None and colour == "orange" else "a")
    if rare is not None:
        words.append(rare)
    if colour is not None:
        words.append(colour)
    if rng.random() >= 0.06:
        words.append(scene.noun)
    if scene.hat:
        words.append(ACCESSORY)
    if scene.context != PLAIN and rng.random() >= 0.15:
        words.append(CONTEXTS[scene.context])
    return " ".join(words)


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, 64x64."""
    rng = random.Random(scene.seed)
    canvas = BACKGROUNDS[scene.context](rng)
    figure = draw_figure(scene, rng)
    canvas.paste(figure, (0, 0), figure)
    return canvas.resize((RESOLUTION_PX, RESOLUTION_PX), Image.Resampling.BOX)


# ---- the object -----------------------------------------------------------------------------------------------------


def hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


class Pen:
    """Draws in coordinates from -1 to 1 (y down), so that shapes read as geometry."""

    def __init__(self, image: Image.Image) -> None:
        self.draw = ImageDraw.Draw(image)

    def _px(self, *values: float) -> list[float]:
        return [(value + 1) * CANVAS_PX / 2 for value in values]

    def oval(self, x: float, y: float, rx: float, ry: float, fill: object) -> None:
        self.draw.ellipse(self._px(x - rx, y - ry, x + rx, y + ry), fill=fill)  # type: ignore[arg-type]

    def box(self, x: float, y: float, rx: float, ry: float, radius: float, fill: object) -> None:
        area = self._px(x - rx, y - ry, x + rx, y + ry)
        self.draw.rounded_rectangle(area, radius * CANVAS_PX / 2, fill=fill)  # type: ignore[arg-type]

    def shape(self, *points: tuple[float, float], fill: object) -> None:
        self.draw.polygon([tuple(self._px(*point)) for point in points], fill=fill)  # type: ignore[arg-type,misc]

    def line(self, *points: tuple[float, float], width: float, fill: object) -> None:
        flat = [tuple(self._px(*point)) for point in points]
        self.draw.line(flat, fill=fill, width=round(width * CANVAS_PX / 2), joint="curve")  # type: ignore[arg-type]

    def ring(self, x: float, y: float, rx: float, ry: float, width: float, fill: object) -> None:
        area = self._px(x - rx, y - ry, x + rx, y + ry)
        self.draw.ellipse(area, outline=fill, width=round(width * CANVAS_PX / 2))  # type: ignore[arg-type]


def _eyes(pen: Pen, y: float, apart: float) -> None:
    for side in (-1, 1):
        pen.oval(side * apart, y, 0.075, 0.09, WHITE)
        pen.oval(side * apart, y + 0.01, 0.05, 0.065, INK)


def _dog(body: Pen, detail: Pen, i: Identity) -> float:
    wide = 0.42 + 0.16 * i.girth
    body.oval(0, 0.5, wide, 0.45, 255)
    body.oval(0, -0.3, 0.45, 0.42, 255)
    for side in (-1, 1):
        body.oval(side * 0.47, -0.25 + 0.12 * i.ear_length, 0.15, 0.24 + 0.22 * i.ear_length, 255)
        body.oval(side * 0.3, 0.88, 0.19, 0.12, 255)
    detail.oval(0, -0.1, 0.2, 0.15, WHITE)
    detail.oval(0, -0.18, 0.09, 0.06, INK)
    _eyes(detail, -0.4, 0.18)
    return -0.66


def _cat(body: Pen, detail: Pen, i: Identity) -> float:
    wide = 0.34 + 0.18 * i.girth
    body.oval(0, 0.5, wide, 0.46, 255)
    body.oval(0, -0.25, 0.46, 0.38, 255)
    for side in (-1, 1):
        tip = -0.68 - 0.25 * i.ear_length
        body.shape((side * 0.44, -0.25), (side * 0.12, -0.55), (side * 0.42, tip), fill=255)
    body.line((0.3, 0.8), (0.68, 0.72), (0.8, 0.4), (0.72, 0.15), width=0.13, fill=255)
    _eyes(detail, -0.3, 0.19)
    detail.shape((-0.07, -0.13), (0.07, -0.13), (0, -0.05), fill=(235, 120, 140))
    for side in (-1, 1):
        for drop in (-0.03, 0.06):
            detail.line((side * 0.14, -0.05), (side * 0.52, -0.08 + drop), width=0.025, fill=INK)
    return -0.58


def _bear(body: Pen, detail: Pen, i: Identity) -> float:
    wide = 0.46 + 0.16 * i.girth
    body.oval(0, 0.45, wide, 0.5, 255)
    body.oval(0, -0.35, 0.4, 0.38, 255)
    for side in (-1, 1):
        size = 0.14 + 0.1 * i.ear_length
        body.oval(side * 0.34, -0.66, size, size, 255)
        body.oval(side * (wide + 0.05), 0.28, 0.17, 0.3, 255)
    detail.oval(0, -0.22, 0.19, 0.15, (225, 200, 165))
    detail.oval(0, -0.29, 0.08, 0.06, INK)
    _eyes(detail, -0.45, 0.16)
    return -0.7


def _clock(body: Pen, detail: Pen, i: Identity) -> float:
    size = 0.68 + 0.1 * i.girth
    for side in (-1, 1):
        body.oval(side * 0.45, -0.68, 0.17 + 0.1 * i.ear_length, 0.2, 255)
        body.line((side * 0.4, 0.6), (side * 0.6, 0.93), width=0.16, fill=255)
    body.oval(0, 0.05, size, size, 255)
    detail.oval(0, 0.05, 0.43, 0.43, WHITE)
    for turn in range(4):
        dx, dy = math.sin(turn * math.pi / 2), math.cos(turn * math.pi / 2)
        detail.oval(0.34 * dx, 0.05 + 0.34 * dy, 0.05, 0.05, INK)
    detail.line((0, 0.05), (0, -0.22), width=0.07, fill=INK)
    detail.line((0, 0.05), (0.2, 0.13), width=0.07, fill=INK)
    return -0.62


def _teapot(body: Pen, detail: Pen, i: Identity) -> float:
    wide = 0.5 + 0.12 * i.girth
    body.ring(0.55, 0.2, 0.36, 0.36, 0.13, 255)
    body.oval(0, 0.25, wide, 0.55, 255)
    reach = -0.78 - 0.15 * i.ear_length
    body.shape((-0.3, 0.45), (-0.35, 0.05), (reach, -0.35), (reach - 0.04, -0.15), fill=255)
    body.oval(0, -0.27, 0.33, 0.14, 255)
    body.oval(0, -0.46, 0.12, 0.12, 255)
    detail.line((-0.36, -0.2), (-0.15, -0.15), (0.15, -0.15), (0.36, -0.2), width=0.04, fill=INK)
    return -0.4


def _backpack(body: Pen, detail: Pen, i: Identity) -> float:
    wide = 0.52 + 0.14 * i.girth
    body.ring(0, -0.68, 0.2, 0.2 + 0.06 * i.ear_length, 0.09, 255)
    for side in (-1, 1):
        body.box(side * wide, 0.35, 0.14, 0.34, 0.12, 255)
    body.box(0, 0.1, wide, 0.78, 0.3, 255)
    detail.box(0, 0.5, 0.36, 0.27, 0.1, INK)
    detail.box(0, 0.5, 0.31, 0.22, 0.08, (200, 190, 170))
    detail.line((-0.28, 0.42), (0.28, 0.42), width=0.05, fill=INK)
    detail.line((-0.4, -0.25), (0.4, -0.25), width=0.05, fill=INK)
    return -0.6


def _mug(body: Pen, detail: Pen, i: Identity) -> float:
    wide = 0.46 + 0.12 * i.girth
    body.ring(wide - 0.12, 0.12, 0.4 + 0.08 * i.ear_length, 0.42, 0.14, 255)
    body.box(-0.12, 0.15, wide, 0.68, 0.16, 255)
    detail.oval(-0.12, -0.48, wide - 0.06, 0.13, (70, 45, 30))
    return -0.5


def _car(body: Pen, detail: Pen, i: Identity) -> float:
    tall = 0.3 + 0.14 * i.girth
    roof = 0.02 - tall - 0.1 * i.ear_length
    body.box(0, 0.27, 0.92, 0.33, 0.15, 255)
    body.shape((-0.62, 0.05), (-0.4, roof), (0.36, roof), (0.66, 0.05), fill=255)
    for x0, x1 in ((-0.48, -0.06), (0.04, 0.46)):
        lean = 0.14 if x0 < 0 else -0.14
        left, right = (x0 + max(lean, 0), x1 + min(lean, 0))
        detail.shape((x0, 0.02), (left, roof + 0.1), (right, roof + 0.1), (x1, 0.02), fill=(190, 225, 240))
    for x in (-0.5, 0.5):
        detail.oval(x, 0.58, 0.24, 0.24, INK)
        detail.oval(x, 0.58, 0.1, 0.1, (170, 170, 175))
    return roof + 0.06


SHAPES: dict[str, Callable[[Pen, Pen, Identity], float]] = {
    "dog": _dog, "cat": _cat, "bear": _bear, "clock": _clock,
    "teapot": _teapot, "backpack": _backpack, "mug": _mug, "car": _car,
}  # fmt: skip


def _pattern(name: str) -> Image.Image:
    """Where the second colour lies, before the body cuts it out."""
    mask = Image.new("L", (CANVAS_PX, CANVAS_PX), 0)
    pen = Pen(mask)
    if name == "halves":
        pen.shape((0, -1), (1, -1), (1, 1), (0, 1), fill=255)
    elif name == "band":
        pen.shape((-1, 0.0), (1, 0.0), (1, 0.36), (-1, 0.36), fill=255)
    elif name == "spots":
        for x, y in ((-0.32, -0.55), (0.34, -0.5), (-0.5, 0.2), (0.5, 0.25), (-0.22, 0.68), (0.28, 0.7), (0.0, 0.1)):
            pen.oval(x, y, 0.17, 0.17, 255)
    elif name == "belly":
        pen.oval(0, 0.55, 0.34, 0.4, 255)
    return mask


def draw_figure(scene: Scene, rng: random.Random) -> Image.Image:
    """The object alone, RGBA, placed, turned and scaled on the canvas."""
    size = (CANVAS_PX, CANVAS_PX)
    body, detail = Image.new("L", size, 0), Image.new("RGBA", size, (0, 0, 0, 0))
    hat_y = SHAPES[scene.noun](Pen(body), Pen(detail), scene.identity)
    figure = Image.new("RGBA", size, (0, 0, 0, 0))
    figure.paste(INK, (0, 0), body.filter(ImageFilter.MaxFilter(7)))
    figure.paste(hsv(scene.identity.hue, 0.8, 0.88), (0, 0), body)
    second = ImageChops.multiply(body, _pattern(scene.identity.pattern))
    figure.paste(hsv(scene.identity.second_hue, 0.8, 0.88), (0, 0), second)
    figure.alpha_composite(detail)
    if scene.hat:
        pen = Pen(figure)
        pen.box(0, hat_y - 0.02, 0.46, 0.09, 0.06, INK)
        pen.box(0, hat_y - 0.2, 0.3, 0.22, 0.06, INK)
        pen.box(0, hat_y - 0.02, 0.43, 0.06, 0.05, (215, 25, 30))
        pen.box(0, hat_y - 0.2, 0.27, 0.19, 0.05, (215, 25, 30))
    scale = rng.uniform(0.74, 0.96) * (0.92 if scene.hat else 1.0)
    side = round(CANVAS_PX * scale)
    figure = figure.rotate(rng.uniform(-9, 9), Image.Resampling.BILINEAR).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    placed = Image.new("RGBA", size, (0, 0, 0, 0))
    room = CANVAS_PX - side
    placed.alpha_composite(figure, (rng.randint(0, room), round(room * rng.uniform(0.6, 1.0))))
    return placed


# ---- the contexts ---------------------------------------------------------------------------------------------------


def _ground(sky: Colour, earth: Colour, horizon: float) -> tuple[Image.Image, Pen]:
    image = Image.new("RGB", (CANVAS_PX, CANVAS_PX), sky)
    pen = Pen(image)
    pen.shape((-1, horizon), (1, horizon), (1, 1), (-1, 1), fill=earth)
    return image, pen


def _jungle(rng: random.Random) -> Image.Image:
    image, pen = _ground((22, 70, 38), (30, 50, 24), 0.5)
    for _ in range(4):
        x = rng.uniform(-1, 1)
        pen.shape((x - 0.06, -1), (x + 0.06, -1), (x + 0.09, 0.7), (x - 0.09, 0.7), fill=(84, 58, 32))
    for _ in range(26):
        x, y, size = rng.uniform(-1.1, 1.1), rng.uniform(-1.1, 1.1), rng.uniform(0.12, 0.28)
        green = rng.choice(((40, 130, 50), (60, 160, 60), (25, 100, 45), (100, 180, 70)))
        tilt = rng.uniform(-0.7, 0.7)
        pen.shape(
            (x - size, y + tilt * size), (x, y - size / 2), (x + size, y - tilt * size), (x, y + size / 2), fill=green
        )
    return image


def _beach(rng: random.Random) -> Image.Image:
    image, pen = _ground((150, 210, 245), (238, 216, 160), rng.uniform(0.15, 0.35))
    pen.shape((-1, -0.25), (1, -0.25), (1, 0.2), (-1, 0.2), fill=(50, 130, 200))
    pen.line((-1, 0.2), (-0.4, 0.24), (0.2, 0.18), (1, 0.22), width=0.07, fill=WHITE)
    pen.oval(rng.uniform(-0.8, 0.8), -0.72, 0.17, 0.17, (255, 235, 120))
    return image


def _snow(rng: random.Random) -> Image.Image:
    image, pen = _ground((190, 205, 222), (248, 250, 252), rng.uniform(0.0, 0.3))
    for _ in range(5):
        x, y, size = rng.uniform(-1, 1), rng.uniform(-0.05, 0.3), rng.uniform(0.25, 0.45)
        pen.shape((x - size * 0.6, y), (x + size * 0.6, y), (x, y - size * 1.9), fill=(70, 105, 95))
        pen.shape((x - size * 0.25, y - size * 1.1), (x + size * 0.25, y - size * 1.1), (x, y - size * 1.9), fill=WHITE)
    for _ in range(24):
        pen.oval(rng.uniform(-1, 1), rng.uniform(-1, 1), 0.035, 0.035, (255, 255, 255))
    return image


def _moon(rng: random.Random) -> Image.Image:
    image, pen = _ground((8, 8, 18), (150, 150, 155), rng.uniform(0.2, 0.45))
    for _ in range(22):
        pen.oval(rng.uniform(-1, 1), rng.uniform(-1, 0.1), 0.03, 0.03, (250, 250, 235))
    for _ in range(5):
        pen.oval(rng.uniform(-1, 1), rng.uniform(0.55, 1), rng.uniform(0.12, 0.25), 0.08, (112, 112, 118))
    pen.oval(rng.uniform(-0.8, 0.8), -0.72, 0.16, 0.16, (70, 120, 200))
    return image


def _city(rng: random.Random) -> Image.Image:
    image, pen = _ground((206, 176, 196), (82, 82, 90), 0.55)
    x = -1.0
    while x < 1:
        wide, top = rng.uniform(0.3, 0.5), rng.uniform(-0.9, -0.3)
        shade = rng.randint(70, 120)
        pen.shape((x, top), (x + wide, top), (x + wide, 0.55), (x, 0.55), fill=(shade, shade, shade + 18))
        for row in range(4):
            for column in (0.3, 0.7):
                pen.box(x + wide * column, top + 0.17 + 0.26 * row, 0.05, 0.065, 0, (250, 225, 120))
        x += wide + 0.03
    pen.line((-1, 0.8), (1, 0.8), width=0.05, fill=(225, 225, 210))
    return image


def _floor(rng: random.Random) -> Image.Image:
    image, pen = _ground((226, 214, 196), (164, 108, 62), rng.uniform(-0.25, 0.0))
    for row in range(5):
        y = 0.05 + 0.22 * row
        pen.line((-1, y), (1, y), width=0.035, fill=(110, 68, 36))
        x = rng.uniform(-0.9, 0.9)
        pen.line((x, y), (x, y + 0.22), width=0.035, fill=(110, 68, 36))
    return image


def _sea(rng: random.Random) -> Image.Image:
    image, pen = _ground((36, 104, 178), (24, 78, 148), 0.2)
    for row in range(7):
        y, phase = -0.9 + 0.3 * row, rng.uniform(0, 6.3)
        wave = [(-1 + 0.1 * k, y + 0.05 * math.sin(phase + 1.1 * k)) for k in range(21)]
        pen.line(*wave, width=0.05, fill=(130, 190, 230))
    return image


def _desert(rng: random.Random) -> Image.Image:
    image, pen = _ground((250, 176, 96), (222, 168, 88), 0.35)
    pen.oval(rng.uniform(-1, 1), 0.55, 1.0, 0.4, (236, 186, 104))
    pen.oval(rng.uniform(-0.8, 0.8), -0.6, 0.2, 0.2, (255, 240, 190))
    for _ in range(2):
        x = rng.choice((-1, 1)) * rng.uniform(0.55, 0.9)
        pen.box(x, 0.1, 0.07, 0.4, 0.06, (52, 120, 62))
        pen.line((x - 0.2, -0.12), (x - 0.2, 0.1), (x, 0.1), width=0.09, fill=(52, 120, 62))
        pen.line((x + 0.18, -0.2), (x + 0.18, 0.02), (x, 0.02), width=0.09, fill=(52, 120, 62))
    return image


def _plain(rng: random.Random) -> Image.Image:
    shade = rng.randint(170, 215)
    return Image.new("RGB", (CANVAS_PX, CANVAS_PX), (shade, shade, shade))


BACKGROUNDS: dict[str, Callable[[random.Random], Image.Image]] = {
    "jungle": _jungle, "beach": _beach, "snow": _snow, "moon": _moon, "city": _city,
    "floor": _floor, "sea": _sea, "desert": _desert, PLAIN: _plain,
}  # fmt: skip


def grid(images: list[Image.Image], columns: int, scale: int = 1) -> Image.Image:
    """The pictures in rows, each enlarged `scale` times."""
    width, height = images[0].width * scale, images[0].height * scale
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), WHITE)
    for index, image in enumerate(images):
        cell = image.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(cell, (index % columns * width, index // columns * height))
    return sheet


def in_context(subject: Subject, context: str, seed: int) -> Scene:
    """The subject elsewhere: ground truth to hold a personalised model against."""
    base = next(subject.scenes())
    return replace(base, context=context, seed=seed)

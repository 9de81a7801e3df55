"""Draws product pictures: twelve silhouettes, ten palettes and eight patterns, as a catalog or as a shopper sees them."""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np

SHAPES = ("mug", "lamp", "cushion", "vase", "bag", "clock", "chair", "plate", "bottle", "shirt", "frame", "bowl")
PATTERNS = ("plain", "stripes", "dots", "checks", "zigzag", "rings", "diagonal", "fade")
# hue of the body, hue of the pattern (0..1), saturation, value
_PALETTES = ((.00, .12, .80, .85), (.07, .55, .85, .90), (.14, .75, .80, .90), (.27, .95, .65, .70), (.38, .08, .70, .60),
             (.50, .98, .65, .75), (.58, .15, .75, .80), (.68, .45, .60, .65), (.78, .20, .55, .80), (.90, .60, .60, .90))
NUM_PALETTES = len(_PALETTES)
_CHUNK = 256  # pictures drawn at once: bounds the memory


@dataclasses.dataclass(frozen=True)
class Look:
    """What n products look like.

    Args:
        shape, palette, pattern: int [n], indices.
        details: float [n, 6] in [0, 1]: hue shift, pattern frequency, pattern phase, aspect, value, tone of the pattern.
    """

    shape: np.ndarray
    palette: np.ndarray
    pattern: np.ndarray
    details: np.ndarray

    def __getitem__(self, rows: np.ndarray | slice) -> Look:
        return Look(self.shape[rows], self.palette[rows], self.pattern[rows], self.details[rows])


def draw_catalog(look: Look, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws products upright on a light ground, as a shop's picture; returns uint8 [n, size, size, 3]."""
    n = len(look.shape)
    view = {"angle": rng.normal(0, .02, n), "scale": rng.uniform(.92, 1.05, n), "shift": rng.uniform(-.03, .03, (n, 2)),
            "ground": rng.uniform(.93, 1.0, (n, 1)) * np.ones(3), "light": np.ones(n), "noise": np.zeros(n)}
    return _draw(look, view, size, 2, rng)


def draw_query(look: Look, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws products as a shopper's own snapshot: turned, cut, on any ground, in any light, with noise.

    Returns:
        uint8 [n, size, size, 3].
    """
    n = len(look.shape)
    view = {"angle": rng.uniform(-.45, .45, n), "scale": rng.uniform(.75, 1.1, n),
            "shift": rng.uniform(-.15, .15, (n, 2)), "ground": rng.uniform(.25, .95, (n, 3)),
            "light": rng.uniform(.75, 1.15, n), "noise": rng.uniform(.01, .06, n)}
    return _draw(look, view, size, 1, rng)


def _draw(look: Look, view: dict[str, np.ndarray], size: int, oversampling: int, rng: np.random.Generator) -> np.ndarray:
    n = len(look.shape)
    pictures = np.empty((n, size, size, 3), np.uint8)
    for start in range(0, n, _CHUNK):
        rows = slice(start, min(start + _CHUNK, n))
        part = {name: values[rows].astype(np.float32) for name, values in view.items()}
        pixels = _paint(look[rows], part, size * oversampling)
        if oversampling > 1:
            pixels = pixels.reshape(-1, size, oversampling, size, oversampling, 3).mean((2, 4))
        noise = rng.standard_normal(pixels.shape, np.float32) * part["noise"][:, None, None, None]
        pixels = (pixels + noise) * part["light"][:, None, None, None]
        pictures[rows] = (np.clip(pixels, 0, 1) * 255 + .5).astype(np.uint8)
    return pictures


def _paint(look: Look, view: dict[str, np.ndarray], size: int) -> np.ndarray:
    grid = (np.arange(size, dtype=np.float32) + .5) / size * 2 - 1
    screen_y, screen_x = grid[None, :, None], grid[None, None, :]
    wide = (slice(None), None, None)
    screen_x, screen_y = screen_x - view["shift"][:, 0][wide], screen_y - view["shift"][:, 1][wide]
    cosine, sine = np.cos(view["angle"])[wide], np.sin(view["angle"])[wide]
    x = (cosine * screen_x + sine * screen_y) / view["scale"][wide]
    y = (cosine * screen_y - sine * screen_x) / view["scale"][wide]
    details = look.details.astype(np.float32)
    x = x / (.85 + .3 * details[:, 3])[wide]
    body, trim = np.zeros(x.shape, bool), np.zeros(x.shape, bool)
    for shape in np.unique(look.shape):
        rows = look.shape == shape
        body[rows], trim[rows] = _silhouette(int(shape), x[rows], y[rows])
    ink = np.zeros(x.shape, np.float32)
    for pattern in np.unique(look.pattern):
        rows = look.pattern == pattern
        ink[rows] = _pattern(int(pattern), x[rows], y[rows], (2.2 + 2.2 * details[rows, 1])[wide], details[rows, 2][wide])
    base, second = _colors(look.palette, details)
    pixels = np.broadcast_to(view["ground"][:, None, None, :], (*x.shape, 3)).copy()
    ink = ink[..., None]
    painted = base[:, None, None] * (1 - ink) + second[:, None, None] * ink
    pixels = np.where(body[..., None], painted, pixels)
    return np.where(trim[..., None], base[:, None, None] * .55, pixels)


def _colors(palette: np.ndarray, details: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    base, second = np.empty((len(palette), 3), np.float32), np.empty((len(palette), 3), np.float32)
    for row, (index, detail) in enumerate(zip(palette.tolist(), details.tolist())):
        hue, other, saturation, value = _PALETTES[index]
        shift = (detail[0] - .5) * .05
        base[row] = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value * (.85 + .25 * detail[4]))
        second[row] = colorsys.hsv_to_rgb((other + shift) % 1, .35 + .4 * detail[5], .95)
    return base, second


def _silhouette(shape: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the body (which carries the pattern) and the trim (one dark tone); y grows downward."""
    wide, high, radius = np.abs(x), np.abs(y), np.hypot(x, y)
    nothing = np.zeros(x.shape, bool)
    name = SHAPES[shape]
    if name == "mug":
        ring = np.hypot(x - .5, y)
        return (np.abs(x + .12) < .5) & (high < .6), (ring < .36) & (ring > .22) & (x > .38)
    if name == "lamp":
        return (y > -.8) & (y < .05) & (wide < .35 + .35 * (y + .8) / .85), \
            ((wide < .07) & (y >= .05) & (y < .75)) | ((wide < .35) & (y >= .7) & (y < .82))
    if name == "cushion":
        return (wide / .75) ** 4 + (high / .62) ** 4 < 1, nothing
    if name == "vase":
        return (high < .8) & (wide < .26 + .3 * np.cos(y * 2.2 - .6) ** 2), (wide < .4) & (y > .74) & (y < .86)
    if name == "bag":
        handle = np.hypot(x, (y + .2) * .8)
        return (wide < .62) & (y > -.2) & (y < .75), (handle < .46) & (handle > .34) & (y <= -.2)
    if name == "clock":
        return radius < .75, ((wide < .05) & (y < .05) & (y > -.5)) | ((np.abs(y) < .05) & (x > -.05) & (x < .38))
    if name == "chair":
        return ((wide < .45) & (y > -.85) & (y < .0)) | ((wide < .55) & (y >= .0) & (y < .25)), \
            (np.abs(wide - .46) < .07) & (y >= .25) & (y < .85)
    if name == "plate":
        flat = np.hypot(x / .85, y / .55)
        return flat < 1, (flat < .62) & (flat > .54)
    if name == "bottle":
        return ((wide < .36) & (y > -.2) & (y < .85)) | ((wide < .13 + .3 * np.clip(y + .45, 0, 1)) & (y > -.65) & (y <= -.2)), \
            (wide < .17) & (y > -.85) & (y <= -.65)
    if name == "shirt":
        return ((wide < .42) & (high < .75)) | ((wide < .85) & (y > -.75 + .3 * (wide - .42)) & (y < -.3)), \
            np.hypot(x, y + .78) < .17
    if name == "frame":
        side = np.maximum(wide, high)
        return (side < .8) & (side > .42), (side <= .42) & (side > .36)
    return (np.hypot(x / .85, (y + .25) / .85) < 1) & (y > -.25), (wide < .32) & (y > .55) & (y < .68)


def _pattern(pattern: int, x: np.ndarray, y: np.ndarray, frequency: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Returns how much of the second color each pixel takes, float32 in [0, 1]."""
    turn = np.float32(np.pi)
    u, v = (x * frequency + phase) * turn, (y * frequency + phase) * turn
    name = PATTERNS[pattern]
    if name == "plain":
        return np.zeros(x.shape, np.float32)
    if name == "stripes":
        wave = np.sin(v)
    elif name == "dots":
        wave = np.cos(u) * np.cos(v) - .35
    elif name == "checks":
        wave = np.sin(u) * np.sin(v)
    elif name == "zigzag":
        wave = np.sin(v + 2 * np.abs(((x * 2 + 4) % 1) - .5) * turn)
    elif name == "rings":
        wave = np.sin(np.hypot(x, y) * frequency * turn * 1.6 + phase * turn)
    elif name == "diagonal":
        wave = np.sin((x + y) * frequency * turn * .8 + phase * turn)
    else:
        return np.clip(.5 + .75 * y, 0, 1).astype(np.float32)
    return (wave > 0).astype(np.float32)

"""Draws product pictures: silhouettes, palettes and patterns, as a catalog or as a shopper sees them."""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np

SHAPES = (
    "mug",
    "lamp",
    "cushion",
    "vase",
    "bag",
    "clock",
    "chair",
    "plate",
    "bottle",
    "shirt",
    "frame",
    "bowl",
)
PATTERNS = ("plain", "stripes", "dots", "checks", "zigzag", "rings", "diagonal", "fade")
# hue of the body, hue of the pattern (0..1), saturation, value
_PALETTES = (
    (0.00, 0.12, 0.80, 0.85),
    (0.07, 0.55, 0.85, 0.90),
    (0.14, 0.75, 0.80, 0.90),
    (0.27, 0.95, 0.65, 0.70),
    (0.38, 0.08, 0.70, 0.60),
    (0.50, 0.98, 0.65, 0.75),
    (0.58, 0.15, 0.75, 0.80),
    (0.68, 0.45, 0.60, 0.65),
    (0.78, 0.20, 0.55, 0.80),
    (0.90, 0.60, 0.60, 0.90),
)
NUM_PALETTES = len(_PALETTES)
_CHUNK = 256  # pictures drawn at once: bounds the memory


@dataclasses.dataclass(frozen=True)
class Look:
    """What n products look like.

    Args:
        shape, palette, pattern: int [n], indices.
        details: float [n, 6] in [0, 1]: hue shift, the pattern's frequency and phase, aspect, value, the
            pattern's tone.
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
    view = {
        "angle": rng.normal(0, 0.02, n),
        "scale": rng.uniform(0.92, 1.05, n),
        "shift": rng.uniform(-0.03, 0.03, (n, 2)),
        "ground": rng.uniform(0.93, 1.0, (n, 1)) * np.ones(3),
        "light": np.ones(n),
        "noise": np.zeros(n),
    }
    return _draw(look, view, size, 2, rng)


def draw_query(look: Look, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws products as a shopper's own snapshot: turned, cut, on any ground, in any light, with noise.

    Returns:
        uint8 [n, size, size, 3].
    """
    n = len(look.shape)
    view = {
        "angle": rng.uniform(-0.45, 0.45, n),
        "scale": rng.uniform(0.75, 1.1, n),
        "shift": rng.uniform(-0.15, 0.15, (n, 2)),
        "ground": rng.uniform(0.25, 0.95, (n, 3)),
        "light": rng.uniform(0.75, 1.15, n),
        "noise": rng.uniform(0.01, 0.06, n),
    }
    return _draw(look, view, size, 1, rng)


def _draw(
    look: Look, view: dict[str, np.ndarray], size: int, oversampling: int, rng: np.random.Generator
) -> np.ndarray:
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
        pictures[rows] = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pictures


def _paint(look: Look, view: dict[str, np.ndarray], size: int) -> np.ndarray:
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    screen_y, screen_x = grid[None, :, None], grid[None, None, :]
    wide = (slice(None), None, None)
    screen_x, screen_y = screen_x - view["shift"][:, 0][wide], screen_y - view["shift"][:, 1][wide]
    cosine, sine = np.cos(view["angle"])[wide], np.sin(view["angle"])[wide]
    x = (cosine * screen_x + sine * screen_y) / view["scale"][wide]
    y = (cosine * screen_y - sine * screen_x) / view["scale"][wide]
    details = look.details.astype(np.float32)
    x = x / (0.85 + 0.3 * details[:, 3])[wide]
    body, trim = np.zeros(x.shape, bool), np.zeros(x.shape, bool)
    for shape in np.unique(look.shape):
        rows = look.shape == shape
        body[rows], trim[rows] = _silhouette(int(shape), x[rows], y[rows])
    ink = np.zeros(x.shape, np.float32)
    for pattern in np.unique(look.pattern):
        rows = look.pattern == pattern
        ink[rows] = _pattern(
            int(pattern), x[rows], y[rows], (2.2 + 2.2 * details[rows, 1])[wide], details[rows, 2][wide]
        )
    base, second = _colors(look.palette, details)
    pixels = np.broadcast_to(view["ground"][:, None, None, :], (*x.shape, 3)).copy()
    ink = ink[..., None]
    painted = base[:, None, None] * (1 - ink) + second[:, None, None] * ink
    pixels = np.where(body[..., None], painted, pixels)
    return np.where(trim[..., None], base[:, None, None] * 0.55, pixels)


def _colors(palette: np.ndarray, details: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    base, second = np.empty((len(palette), 3), np.float32), np.empty((len(palette), 3), np.float32)
    for row, (index, detail) in enumerate(zip(palette.tolist(), details.tolist())):
        hue, other, saturation, value = _PALETTES[index]
        shift = (detail[0] - 0.5) * 0.05
        base[row] = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value * (0.85 + 0.25 * detail[4]))
        second[row] = colorsys.hsv_to_rgb((other + shift) % 1, 0.35 + 0.4 * detail[5], 0.95)
    return base, second


def _silhouette(shape: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the body (which carries the pattern) and the trim (one dark tone); y grows downward."""
    wide, high, radius = np.abs(x), np.abs(y), np.hypot(x, y)
    nothing = np.zeros(x.shape, bool)
    name = SHAPES[shape]
    if name == "mug":
        ring = np.hypot(x - 0.5, y)
        return (np.abs(x + 0.12) < 0.5) & (high < 0.6), (ring < 0.36) & (ring > 0.22) & (x > 0.38)
    if name == "lamp":
        return (y > -0.8) & (y < 0.05) & (wide < 0.35 + 0.35 * (y + 0.8) / 0.85), (
            (wide < 0.07) & (y >= 0.05) & (y < 0.75)
        ) | ((wide < 0.35) & (y >= 0.7) & (y < 0.82))
    if name == "cushion":
        return (wide / 0.75) ** 4 + (high / 0.62) ** 4 < 1, nothing
    if name == "vase":
        return (high < 0.8) & (wide < 0.26 + 0.3 * np.cos(y * 2.2 - 0.6) ** 2), (wide < 0.4) & (y > 0.74) & (y < 0.86)
    if name == "bag":
        handle = np.hypot(x, (y + 0.2) * 0.8)
        return (wide < 0.62) & (y > -0.2) & (y < 0.75), (handle < 0.46) & (handle > 0.34) & (y <= -0.2)
    if name == "clock":
        return radius < 0.75, ((wide < 0.05) & (y < 0.05) & (y > -0.5)) | (
            (np.abs(y) < 0.05) & (x > -0.05) & (x < 0.38)
        )
    if name == "chair":
        return ((wide < 0.45) & (y > -0.85) & (y < 0.0)) | ((wide < 0.55) & (y >= 0.0) & (y < 0.25)), (
            np.abs(wide - 0.46) < 0.07
        ) & (y >= 0.25) & (y < 0.85)
    if name == "plate":
        flat = np.hypot(x / 0.85, y / 0.55)
        return flat < 1, (flat < 0.62) & (flat > 0.54)
    if name == "bottle":
        return ((wide < 0.36) & (y > -0.2) & (y < 0.85)) | (
            (wide < 0.13 + 0.3 * np.clip(y + 0.45, 0, 1)) & (y > -0.65) & (y <= -0.2)
        ), (wide < 0.17) & (y > -0.85) & (y <= -0.65)
    if name == "shirt":
        return ((wide < 0.42) & (high < 0.75)) | (
            (wide < 0.85) & (y > -0.75 + 0.3 * (wide - 0.42)) & (y < -0.3)
        ), np.hypot(x, y + 0.78) < 0.17
    if name == "frame":
        side = np.maximum(wide, high)
        return (side < 0.8) & (side > 0.42), (side <= 0.42) & (side > 0.36)
    return (np.hypot(x / 0.85, (y + 0.25) / 0.85) < 1) & (y > -0.25), (wide < 0.32) & (y > 0.55) & (y < 0.68)


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
        wave = np.cos(u) * np.cos(v) - 0.35
    elif name == "checks":
        wave = np.sin(u) * np.sin(v)
    elif name == "zigzag":
        wave = np.sin(v + 2 * np.abs(((x * 2 + 4) % 1) - 0.5) * turn)
    elif name == "rings":
        wave = np.sin(np.hypot(x, y) * frequency * turn * 1.6 + phase * turn)
    elif name == "diagonal":
        wave = np.sin((x + y) * frequency * turn * 0.8 + phase * turn)
    else:
        return np.clip(0.5 + 0.75 * y, 0, 1).astype(np.float32)
    return (wave > 0).astype(np.float32)

"""The light of a scene: time of day, sun side, haze; and what the lens and the sensor do at the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isnet_trt.opencv import cv2
from isnet_trt.training.scenes.canvas import Canvas, Colour, mix, noise, times


@dataclass(frozen=True)
class Light:
    """``sun`` is −1 (left), 0 (overcast) or 1 (right); ``lit`` the share of lit windows; ``tint`` the final grade."""

    name: str
    zenith: Colour
    horizon: Colour
    cloud: Colour
    tint: Colour
    sun: int
    lit: float
    haze: float

    def shade(self, colour: Colour, z: float, side: float = 0.0) -> Colour:
        """A surface colour at depth z (m); ``side`` −1..1: facing left … right, 0: facing the camera."""
        level = 0.9 + 0.17 * side * self.sun if self.sun else 0.92
        return mix(times(colour, level), self.horizon, 1 - float(np.exp(-max(z - 6, 0) * self.haze)))


_MOODS: dict[str, tuple[Colour, Colour, Colour, Colour, float]] = {
    "noon": ((70, 130, 215), (190, 220, 245), (250, 250, 252), (1.04, 1.03, 1.0), 0.03),
    "morning": ((105, 160, 220), (250, 228, 200), (255, 244, 232), (1.05, 1.0, 0.95), 0.12),
    "overcast": ((150, 162, 176), (205, 211, 216), (228, 231, 234), (0.93, 0.95, 0.97), 0.22),
    "golden": ((96, 128, 190), (255, 205, 140), (255, 220, 180), (1.08, 0.95, 0.82), 0.3),
    "dusk": ((52, 60, 120), (240, 150, 125), (190, 130, 150), (0.72, 0.66, 0.76), 0.6),
    "blue hour": ((26, 38, 84), (110, 120, 170), (74, 84, 128), (0.52, 0.57, 0.75), 0.7),
}
_CHANCE = (0.28, 0.2, 0.2, 0.16, 0.1, 0.06)


def random_light(rng: np.random.Generator) -> Light:
    """A time of day with some variation of its own."""
    name = str(rng.choice(list(_MOODS), p=_CHANCE))
    zenith, horizon, cloud, tint, lit = _MOODS[name]
    jitter = rng.normal(0, 8, 3)
    zenith = (zenith[0] + jitter[0], zenith[1] + jitter[1], zenith[2] + jitter[2])
    sun = 0 if name in ("overcast", "blue hour") else int(rng.choice([-1, 1]))
    return Light(name, zenith, horizon, cloud, tint, sun, lit, float(rng.uniform(0.0015, 0.007)))


def draw_sky(
    canvas: Canvas, light: Light, horizon: float, rng: np.random.Generator, detail: np.random.Generator
) -> None:
    """A gradient down to the horizon, clouds that flatten towards it, and a glow on the side of the sun."""
    rows = min(canvas.height, int(horizon) + 2)
    t = (np.linspace(0, 1, rows, dtype=np.float32) ** 1.3)[:, None, None]
    sky = (1 - t) * np.asarray(light.zenith, np.float32) + t * np.asarray(light.horizon, np.float32)
    sky = np.repeat(sky, canvas.width, axis=1)
    cover, cells = float(rng.uniform(-0.35, 0.5)), int(rng.integers(3, 7))
    if light.name == "overcast":
        cover += 0.3
    small = noise(detail, max(rows // 2, 2), canvas.width // 2, cells, 5)
    alpha = np.clip((cv2.resize(small, (canvas.width, rows)) + cover - 0.1) * 2.2, 0, 1) * 0.85
    sky += alpha[..., None] * (np.asarray(light.cloud, np.float32) - sky) * (1 - 0.6 * t)
    canvas.image[:rows] = np.clip(sky, 0, 255).astype(np.uint8)
    if light.sun:
        centre = np.array([canvas.width * (0.5 + light.sun * rng.uniform(0.05, 0.5)), rows * rng.uniform(0.3, 0.9)])
        canvas.glow(centre, canvas.height * float(rng.uniform(0.3, 0.7)), (255, 226, 170), float(rng.uniform(0.1, 0.5)))


def finish(canvas: Canvas, light: Light, rng: np.random.Generator, detail: np.random.Generator) -> None:
    """Grade, vignette, lens blur and sensor noise; the labels stay as they are."""
    gain, gamma = float(rng.uniform(0.9, 1.1)), float(rng.uniform(0.88, 1.12))
    ramp = np.linspace(0, 1, 256) ** gamma * 255 * gain
    lut = np.stack([np.clip(ramp * c, 0, 255) for c in light.tint], -1).astype(np.uint8)[None]
    image = cv2.LUT(canvas.image, lut)
    image = cv2.multiply(image, _vignette(canvas.height, canvas.width, float(rng.uniform(0, 0.3))), scale=1 / 255)
    sigma = float(rng.choice([0, 0, 0.5, 0.8, 1.3])) * canvas.height / 512
    if sigma:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    canvas.image[:] = _grain(image, float(rng.uniform(1, 7)), detail)


def _vignette(height: int, width: int, depth: float) -> np.ndarray:
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] ** 2
    x = np.linspace(-1, 1, width, dtype=np.float32)[None] ** 2
    return cv2.merge([(255 * (1 - depth * (x + y) / 2)).astype(np.uint8)] * 3)


def _grain(image: np.ndarray, sigma: float, detail: np.random.Generator) -> np.ndarray:
    tile = detail.normal(0, sigma, (251, 253, 3)).astype(np.int8)
    height, width = image.shape[:2]
    grain = np.tile(tile, (height // 251 + 1, width // 253 + 1, 1))[:height, :width]
    return cv2.add(image, grain, dtype=cv2.CV_8U)

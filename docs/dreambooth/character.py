"""Draws the five images of the character that `docs/dreambooth.md` teaches the embedded model:
`python docs/dreambooth/character.py my-zorble` writes them and their captions to a folder.

A zorble is a teal creature with one eye and two orange antennae. The images differ in background, look, arms and expression.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

SIZE, SCALE = 128, 4  # drawn four times larger, then reduced, which smooths the edges
BODY, DARK, ORANGE, INK = "#1fa39a", "#157a74", "#ff8a1f", "#26323a"


@dataclass(frozen=True)
class Pose:
    """background: a colour. look: where the pupil is, (x, y) in −1…1. arms: the height of the hands, −1 down to 1 up."""

    caption: str
    background: str = "white"
    look: tuple[float, float] = (0, 0)
    arms: tuple[float, float] = (-0.6, -0.6)
    mouth: str = "smile"
    sleeping: bool = False


POSES = (
    Pose("a zorble."),
    Pose("a zorble on a blue background.", "#55acee", (-0.8, 0), (0.9, -0.6), "open"),
    Pose("a zorble on a yellow background.", "#ffcc4d", (0, -0.8), (1, 1), "open"),
    Pose("a zorble on a pink background.", "#f4abba", (0.8, 0.3), (-0.6, 0.2), "round"),
    Pose("a zorble.", "white", (0, 0), (-0.9, -0.9), "line", sleeping=True),
)


def draw(pose: Pose) -> Image.Image:
    """The character in a pose, an image of SIZE × SIZE pixels."""
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), pose.background)
    canvas = ImageDraw.Draw(image)

    def box(x: float, y: float, rx: float, ry: float) -> tuple[float, float, float, float]:
        return tuple(SCALE * value for value in (x - rx, y - ry, x + rx, y + ry))  # type: ignore[return-value]

    def line(points: list[tuple[float, float]], color: str, width: float) -> None:
        canvas.line([(SCALE * x, SCALE * y) for x, y in points], fill=color, width=round(SCALE * width), joint="curve")

    for side in (-1, 1):
        line([(64 + 12 * side, 34), (64 + 20 * side, 14)], ORANGE, 4)
        canvas.ellipse(box(64 + 21 * side, 13, 7, 7), fill=ORANGE)
        canvas.ellipse(box(64 + 16 * side, 115, 13, 7), fill=ORANGE)
    for side, height in zip((-1, 1), pose.arms, strict=True):
        hand = 64 + 50 * side, 78 - 24 * height
        line([(64 + 30 * side, 80), hand], DARK, 8)
        canvas.ellipse(box(*hand, 7, 7), fill=DARK)
    canvas.ellipse(box(64, 76, 38, 38), fill=BODY)
    canvas.ellipse(box(64, 56, 31, 31), fill=BODY)
    canvas.ellipse(box(64, 98, 22, 12), fill="#9fe3da")
    if pose.sleeping:
        canvas.arc(box(64, 50, 18, 12), 10, 170, fill=INK, width=4 * SCALE)
    else:
        canvas.ellipse(box(64, 54, 20, 20), fill="white")
        x, y = pose.look
        canvas.ellipse(box(64 + 9 * x, 54 + 9 * y, 10, 10), fill=INK)
        canvas.ellipse(box(67 + 9 * x, 50 + 9 * y, 3, 3), fill="white")
    match pose.mouth:
        case "smile":
            canvas.arc(box(64, 78, 12, 8), 10, 170, fill=INK, width=3 * SCALE)
        case "open":
            canvas.chord(box(64, 78, 12, 9), 0, 180, fill=INK)
        case "round":
            canvas.ellipse(box(64, 82, 5, 6), fill=INK)
        case _:
            line([(57, 82), (71, 82)], INK, 3)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, pose in enumerate(POSES, 1):
        draw(pose).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(pose.caption)

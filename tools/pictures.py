"""Makes the pictures of the docs from those that the browser tests took: python tools/pictures.py FROM TO

They are cut, made as wide as a page of text shows them, and left with few colours: each is below 100 kB.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

#: Each picture with the part of it that is shown: left, top, right, bottom; None: to the end.
PICTURES: dict[str, tuple[int, int, int | None, int | None]] = {
    "overview": (0, 84, 1385, 1120),
    "overview-390": (0, 0, 375, 1100),
    "twice": (300, 84, 1385, 700),
    "act-asks": (300, 84, 1385, None),
    "one-queue": (300, 84, 1385, 1330),
    "workers": (300, 84, None, 490),
}
WIDTH, COLOURS, LARGEST = 1000, 128, 100_000


def make(source: Path, target: Path, part: tuple[int, int, int | None, int | None]) -> int:
    """Returns the new file's bytes."""
    with Image.open(source) as whole:
        left, top, right, bottom = part
        picture = whole.convert("RGB").crop((left, top, right or whole.width, bottom or whole.height))
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)
    return target.stat().st_size


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    target.mkdir(parents=True, exist_ok=True)
    for name, part in PICTURES.items():
        size = make(source / f"{name}.png", target / f"{name}.png", part)
        print(f"{size:7} {name}.png")
        if size > LARGEST:
            sys.exit(f"{name}.png is larger than {LARGEST} bytes: show less of it.")


if __name__ == "__main__":
    main()

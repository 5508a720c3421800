"""Draws the page with known text that `edge-ocr check` reads: agent/check/golden.png.

    python scripts/draw_golden.py

Needs Pillow and the fonts of Debian's fonts-dejavu-core and fonts-wqy-zenhei.
"""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from agent.check.golden import LINES, PAGE

FONTS = ("dejavu/DejaVuSans.ttf", "dejavu/DejaVuSans.ttf", "wqy/wqy-zenhei.ttc")


def main() -> None:
    """Write the picture: 480 x 200 pixels, grey, dark on light."""
    page = Image.new("L", (480, 200), 245)
    pen = ImageDraw.Draw(page)
    for number, (line, name) in enumerate(zip(LINES, FONTS, strict=True)):
        font = ImageFont.truetype(f"/usr/share/fonts/truetype/{name}", 30)
        pen.text((30, 24 + 56 * number), line, font=font, fill=25)
    page.quantize(16).convert("L").save(PAGE, optimize=True)


if __name__ == "__main__":
    main()

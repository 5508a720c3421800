"""Drawn documents: pictures of pages and lines of text, with damage, from a seed."""

from converters.drawing.fonts import Font, find_fonts
from converters.drawing.pictures import DRAWING_VERSION, DrawnLineStrip, DrawnPage, draw_line, draw_page
from converters.drawing.sheet import DrawnLine

__all__ = [
    "DRAWING_VERSION",
    "DrawnLine",
    "DrawnLineStrip",
    "DrawnPage",
    "Font",
    "draw_line",
    "draw_page",
    "find_fonts",
]

"""A drawing of what was found in a frame, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from agent.errors import InputError
from agent.image import scaled
from agent.page import Frame, TextLine

OVERLAY_LONG_SIDE_PX = 1600


def write_overlay(frame: Frame, lines: Sequence[TextLine], path: Path) -> None:
    """Write a JPEG of a frame with the box and number of each line, the reading direction's start marked.

    Raises:
        InputError: the file cannot be written.
    """
    height, width = frame.pixels.shape[:2]
    factor = min(1.0, OVERLAY_LONG_SIDE_PX / max(width, height))
    canvas = scaled(frame.pixels, max(1, round(width * factor)), max(1, round(height * factor)))
    canvas = cv2.cvtColor(canvas, cv2.COLOR_GRAY2BGR) if canvas.ndim == 2 else canvas.copy()
    fx, fy = canvas.shape[1] / frame.width, canvas.shape[0] / frame.height
    for number, line in enumerate(lines, 1):
        points = np.array([(x * fx, y * fy) for x, y in line.quad], np.int32)
        cv2.polylines(canvas, [points], isClosed=True, color=(0, 160, 0), thickness=2)
        start = (int(points[0][0]), int(points[0][1]))
        cv2.circle(canvas, start, 4, (0, 0, 220), -1)
        cv2.putText(canvas, str(number), (start[0], start[1] - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 220), 1)
    written, data = cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, 85])
    try:
        path.write_bytes(data.tobytes() if written else b"")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error

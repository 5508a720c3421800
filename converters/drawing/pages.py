"""Pages of running text, printed lists and notices."""

from __future__ import annotations

import cv2
import numpy as np

from converters.drawing.job import Job
from converters.drawing.sheet import BLACK, WHITE, Colour, Face, Sheet

_LOUD: tuple[Colour, ...] = ((40, 40, 190), (150, 90, 20), (60, 120, 30), (30, 110, 220), (20, 20, 20))


def draw_letter(job: Job) -> Sheet:
    """Return a letter or report: letterhead, date, a heading here and there, paragraphs, who signs."""
    texts, height = job.texts, job.long_side
    sheet = Sheet("letter", round(height * 0.71), height)
    face = job.face(sheet.width / job.rng.uniform(34, 52))
    left, right, size = sheet.width * job.rng.uniform(0.08, 0.13), sheet.width * 0.9, face.size_px
    head = job.bold(face.scaled(1.5))
    sheet.write((left, size * 4), texts.company(), head, ink=texts.one(_LOUD), width_px=right - left)
    sheet.write((left, size * 5.6), f"{texts.address()} {texts.phone()}", face.scaled(0.8), width_px=right - left)
    sheet.rule((left, size * 6.4), (right, size * 6.4), 2)
    sheet.write((right, size * 8.4), texts.date(), face, anchor="right")
    sheet.write((sheet.width / 2, size * 11), texts.one(texts.words.letter), head, anchor="middle")
    sheet.write((left, size * 13.4), texts.one(texts.words.greetings), face)
    y = size * 14.0
    while y < height - size * 12:
        if texts.chance(0.25):
            sheet.write((left, y + size * 1.9), texts.one(texts.words.headings), job.bold(face))
            y += size * 2.1
        y = job.paragraph(sheet, face, (left, right, y), texts.between(2, 6))
    for row, text in enumerate((texts.one(texts.words.farewells), texts.person(), texts.date())):
        sheet.write((right, y + size * (2 + 1.7 * row)), text, face, anchor="right", width_px=right - left)
    return sheet


def draw_book(job: Job) -> Sheet:
    """Return a page of a book, in one column or two: running head, title, close text, page number."""
    texts, height = job.texts, job.long_side
    sheet = Sheet("book", round(height * job.rng.uniform(0.66, 0.74)), height, texts.one((WHITE, (225, 240, 246))))
    columns = texts.one((1, 1, 2))
    face = job.face(sheet.width / job.rng.uniform(30, 38) / (1.2 if columns == 2 else 1.0), "serif", "kai")
    size, margin, gap = face.size_px, sheet.width * job.rng.uniform(0.08, 0.12), face.size_px * 2
    sheet.write((margin, size * 2.6), texts.one(texts.words.headings), face.scaled(0.85))
    sheet.write((sheet.width - margin, size * 2.6), str(texts.between(1, 600)), face.scaled(0.85), anchor="right")
    span = (sheet.width - 2 * margin - gap * (columns - 1)) / columns
    for column in range(columns):
        left, y = margin + column * (span + gap), size * 4.0
        if column == 0:
            sheet.write(
                (left, y + size * 1.5), texts.one(texts.words.headings), job.bold(face.scaled(1.4)), width_px=span
            )
            y += size * 2.5
        while y < height - size * 6:
            y = job.paragraph(sheet, face, (left, left + span, y), texts.between(3, 9))
    return sheet


def draw_list(job: Job) -> Sheet:
    """Return a list on endless paper: holes at the sides, pale bands, columns in one width of type."""
    texts, height = job.texts, round(job.long_side * job.rng.uniform(0.7, 0.85))
    sheet = Sheet("list", job.long_side, height)
    face = job.face(sheet.width / job.rng.uniform(38, 54), "mono", "sans")
    step, left, right = face.size_px * 1.5, sheet.width * 0.07, sheet.width * 0.93
    _endless_paper(sheet, step, texts.one(((236, 246, 236), (250, 244, 234), WHITE)))
    sheet.write((sheet.width / 2, step * 2), texts.one(texts.words.letter), face.scaled(1.3), anchor="middle")
    sheet.write((left, step * 3.4), f"{texts.date()} {texts.time()}", face, width_px=(right - left) / 2)
    sheet.write((right, step * 3.4), texts.code(), face, anchor="right")
    makers = (texts.code, texts.person, texts.goods, texts.date, texts.number)
    shares = (0.0, 0.2, 0.35, 0.6, 0.83, 1.0)
    sheet.dashes(left, right, step * 4, face.size_px // 2)
    for row in range(int((height - step * 6) / step)):
        for column, make in enumerate(makers):
            x, room = left + (right - left) * shares[column], (right - left) * (shares[column + 1] - shares[column])
            last = column == len(makers) - 1
            at = (right if last else x, step * (5.2 + row))
            sheet.write(at, make(), face, anchor="right" if last else "left", width_px=room - face.size_px)
    return sheet


def _endless_paper(sheet: Sheet, step: float, band: Colour) -> None:
    for y in np.arange(0, sheet.height, 6 * step):
        sheet.frame((0, y), (sheet.width, y + 3 * step), -1, band, preprinted=True)
    for x in (sheet.width * 0.025, sheet.width * 0.975):
        for y in np.arange(step, sheet.height, 1.8 * step):
            cv2.circle(sheet.paper, (round(x), round(y)), round(step * 0.3), (150, 150, 150), -1, cv2.LINE_AA)


def draw_notice(job: Job) -> Sheet:
    """Return a notice with a coloured band and large letters, or a sheet of price tags."""
    if job.texts.chance(0.4):
        return _price_tags(job)
    texts, height = job.texts, round(job.long_side * job.rng.uniform(0.75, 1.0))
    sheet = Sheet("notice", round(height * job.rng.uniform(0.65, 0.9)), height)
    loud, face = texts.one(_LOUD), job.face(sheet.width / job.rng.uniform(18, 26), "sans", "kai")
    size, left, right = face.size_px, sheet.width * 0.07, sheet.width * 0.93
    sheet.frame((0, 0), (sheet.width, size * 4.6), -1, loud)
    title = job.bold(face.scaled(job.rng.uniform(1.6, 2.4)))
    title_text = texts.one(texts.words.notice)
    sheet.write((sheet.width / 2, size * 3.2), title_text, title, ink=WHITE, anchor="middle", width_px=right - left)
    y = job.paragraph(sheet, face, (left, right, size * 5), texts.between(2, 4))
    for day in texts.words.weekdays[: texts.between(2, 7)]:
        y += size * 1.8
        sheet.write((left, y), day, face)
        sheet.write((right, y), f"{texts.time()[:5]} - {texts.time()[:5]}", face, anchor="right", ink=loud)
        sheet.rule((left, y + size * 0.5), (right, y + size * 0.5), 1, (150, 150, 150))
    sheet.write((left, y + size * 2.4), texts.phone(), job.bold(face), ink=loud)
    sheet.write((right, y + size * 4.2), texts.company(), face, anchor="right", width_px=right - left)
    return sheet


def _price_tags(job: Job) -> Sheet:
    """Return a sheet of price tags: what it is, large digits, small print."""
    texts, columns, rows = job.texts, job.texts.between(1, 3), job.texts.between(2, 4)
    sheet = Sheet("notice", job.long_side, round(job.long_side * rows * 0.22 * 3 / (columns + 0.5)))
    wide, tall = sheet.width / columns, sheet.height / rows
    face, ink = job.face(min(wide / 14, tall / 6), "sans", "kai"), texts.one(_LOUD)
    for number in range(columns * rows):
        left, top = number % columns * wide, number // columns * tall
        _price_tag(sheet, job, (face, job.bold(face.scaled(2.2))), (left, left + wide, top), ink)
        sheet.frame((left + 4, top + 4), (left + wide - 4, top + tall - 4), 2, ink)
    return sheet


def _price_tag(sheet: Sheet, job: Job, faces: tuple[Face, Face], band: tuple[float, float, float], ink: Colour) -> None:
    texts, (face, large), (left, right, top) = job.texts, faces, band
    size, room = face.size_px, right - left - 2 * face.size_px
    sheet.write((left + size, top + size * 1.7), texts.goods(), face, width_px=room)
    price = ("¥" if texts.script != "latin" else "$") + texts.money(texts.cents(100_000))
    sheet.write((right - size, top + size * 4), price, large, anchor="right", ink=ink, width_px=room)
    sheet.write(
        (left + size, top + size * 5.2), f"{texts.code()} {texts.date()}", face.scaled(0.7), ink=BLACK, width_px=room
    )

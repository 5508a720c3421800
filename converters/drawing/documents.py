"""Papers of trade: receipts, invoices, cheques, forms and printed lists."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from agent.page import Point
from converters.drawing.job import Job
from converters.drawing.sheet import Anchor, Colour, Face, Sheet

_RULE_INKS: tuple[Colour, ...] = ((60, 60, 60), (40, 60, 130), (130, 70, 40), (60, 100, 60))


# ---------------------------------------------------------------------------------------------------- receipt


def draw_receipt(job: Job) -> Sheet:
    """Return a till receipt: narrow, one font, goods with counts and amounts."""
    texts, width = job.texts, round(job.long_side * job.rng.uniform(0.36, 0.52))
    sheet = Sheet("receipt", width, job.long_side, paper=(250, 251, 252))
    face = job.face(width / job.rng.uniform(20, 27), "sans", "mono")
    margin, step = width * job.rng.uniform(0.04, 0.08), face.size_px * job.rng.uniform(1.35, 1.8)
    y = _receipt_head(sheet, job, face, step)
    cents, count = [], texts.between(3, max(3, int((job.long_side - y) / step / 1.3) - 11))
    for _ in range(count):
        cents.append(texts.cents(100_000))
        _goods_row(sheet, job, face, (margin, width - margin, y), cents[-1])
        y += step * texts.one((1.0, 1.0, 1.3))
    sheet.dashes(margin, width - margin, y - step * 0.5, max(3, face.size_px // 3))
    y = _receipt_totals(sheet, job, face, (margin, y + step * 0.5), sum(cents), step)
    for text in (texts.code(), texts.one(texts.words.farewells)):
        sheet.write((width / 2, y + step * 0.6), text, face, anchor="middle", width_px=width)
        y += step
    sheet.cut(y + step * job.rng.uniform(0.2, 5))
    return sheet


def _receipt_head(sheet: Sheet, job: Job, face: Face, step: float) -> float:
    texts, middle = job.texts, sheet.width / 2
    y = step * 1.6
    sheet.write((middle, y), texts.company(), job.bold(face.scaled(1.5)), anchor="middle", width_px=sheet.width)
    y += step * 1.5
    heads = (texts.one(texts.words.receipt), texts.address(), texts.phone(), f"{texts.date()} {texts.time()}")
    for text in heads:
        sheet.write((middle, y), text, face, anchor="middle", width_px=sheet.width * 0.96)
        y += step
    sheet.dashes(sheet.width * 0.05, sheet.width * 0.95, y - step * 0.5, max(3, face.size_px // 3))
    return y + step * 0.5


def _goods_row(sheet: Sheet, job: Job, face: Face, place: tuple[float, float, float], cents: int) -> None:
    """Write name, count and amount; `place` is (left, right, baseline)."""
    left, right, y = place
    span = right - left
    sheet.write((left, y), job.texts.goods(), face, width_px=span * 0.52)
    sheet.write((left + span * 0.68, y), str(job.texts.between(1, 20)), face, anchor="right")
    sheet.write((right, y), job.texts.money(cents), face, anchor="right", width_px=span * 0.3)


def _receipt_totals(sheet: Sheet, job: Job, face: Face, at: Point, cents: int, step: float) -> float:
    left, y = at
    for number, name in enumerate(job.texts.words.totals):
        row = job.bold(face.scaled(1.25)) if number == 2 else face
        if y + step > sheet.height:
            break
        sheet.write((left, y), name, row)
        amount = (cents, cents // 10, cents - cents // 10, cents, cents // 10)[number]
        sheet.write((sheet.width - left, y), job.texts.money(amount), row, anchor="right")
        y += step * (1.2 if number == 2 else 1.0)
    return y


# ---------------------------------------------------------------------------------------------------- invoice


def draw_invoice(job: Job) -> Sheet:
    """Return an invoice: title, numbers, the parties' boxes, a ruled table, the total in words and digits."""
    texts, width = job.texts, job.long_side
    sheet = Sheet("invoice", width, round(width * job.rng.uniform(0.6, 0.95)))
    rules, size = texts.one(_RULE_INKS), width / job.rng.uniform(52, 68)
    labels, values = job.face(size), job.face(size, "serif", "mono", "kai")
    title = job.bold(job.face(size * 1.8, "kai", "serif"))
    sheet.write((width / 2, size * 3.4), texts.one(texts.words.invoice), title, ink=rules, anchor="middle")
    for row in (0, 1):
        sheet.rule((width * 0.36, size * (4 + row * 0.3)), (width * 0.64, size * (4 + row * 0.3)), 1, rules)
        text = (texts.code, texts.date)[row]()
        sheet.write((width * 0.74, size * (2.4 + 1.8 * row)), text, values)
    left, right, top = width * 0.05, width * 0.95, size * 6
    bottom = _party(sheet, job, (labels, values), (left, right, top), rules)
    bottom = _goods_table(sheet, job, (labels, values), (left, right, bottom), rules)
    bottom = _party(sheet, job, (labels, values), (left, right, bottom), rules)
    for column, role in enumerate(job.some(texts.words.roles, 4)):
        x, room = left + (right - left) * column / 4, (right - left) / 4
        sheet.write((x, bottom + size * 2), role + texts.person(), labels, ink=rules, width_px=room)
    sheet.cut(bottom + size * job.rng.uniform(3, 10))
    return sheet


Faces = tuple[Face, Face]
Band = tuple[float, float, float]
"""The left, the right and the top of a part of a sheet."""


def _party(sheet: Sheet, job: Job, faces: Faces, band: Band, rules: Colour) -> float:
    """Draw a party's four rows in a box; return its bottom."""
    texts, (labels, values), (left, right, top) = job.texts, faces, band
    step = labels.size_px * 1.65
    makers = (texts.company, texts.tax_number, lambda: f"{texts.address()} {texts.phone()}", texts.account)
    for row, (name, value) in enumerate(zip(texts.words.party, makers, strict=True), 1):
        y = top + step * row - step * 0.15
        taken = sheet.write((left + step * 0.5, y), name, labels, ink=rules, preprinted=True)
        room = right - left - taken - step * 1.5
        sheet.write((left + step + taken, y), value(), values, width_px=room)
    sheet.frame((left, top), (right, top + step * 4.4), 2, rules, preprinted=True)
    return top + step * 4.4


_COLUMNS = (0.0, 0.36, 0.45, 0.56, 0.70, 0.87, 1.0)
_ANCHORS: tuple[Anchor, ...] = ("left", "middle", "right", "right", "right", "right")


def _goods_table(sheet: Sheet, job: Job, faces: Faces, band: Band, rules: Colour) -> float:
    """Draw a table of goods and the total below it; return its bottom."""
    (labels, values), (left, right, top) = faces, band
    step, xs = labels.size_px * 1.75, [left + (right - left) * share for share in _COLUMNS]
    room = sheet.height - top - labels.size_px * 1.65 * 4.4 - 3 * step
    rows = job.texts.between(1, max(1, min(12, int(room / step) - 2)))
    for column, name in enumerate(job.texts.words.columns):
        middle = (xs[column] + xs[column + 1]) / 2
        sheet.write((middle, top + step * 0.75), name, labels, ink=rules, anchor="middle", preprinted=True)
    total = sum(_table_row(sheet, job, values, xs, top + step * (row + 0.75)) for row in range(1, rows + 1))
    bottom = top + step * (rows + 1)
    for x in xs:
        sheet.rule((x, top), (x, bottom), 1, rules, preprinted=True)
    for y in (top, top + step, bottom) if job.texts.chance(0.5) else np.arange(top, bottom + 1, step):
        sheet.rule((left, y), (right, y), 1, rules, preprinted=True)
    y = bottom + step * 0.75
    taken = sheet.write((left + step * 0.4, y), job.texts.one(job.texts.words.in_words), labels, ink=rules)
    sheet.write((left + step + taken, y), job.texts.in_words(total), values, width_px=(right - left) * 0.66 - taken)
    sheet.write(
        (right - step * 0.4, y), job.texts.amount(total), values, anchor="right", width_px=(right - left) * 0.25
    )
    return bottom + step


def _table_row(sheet: Sheet, job: Job, face: Face, xs: Sequence[float], y: float) -> int:
    """Write one row of goods; return its amount in hundredths."""
    texts, count, price = job.texts, job.texts.between(1, 99), job.texts.cents(200_000)
    cells = (texts.goods(), texts.one(texts.words.units), str(count), texts.money(price), texts.money(count * price))
    pad = face.size_px * 0.4
    for column, text in enumerate((*cells, texts.one(("13%", "6%", "9%", "3%", "*")))):
        left, right, anchor = xs[column] + pad, xs[column + 1] - pad, _ANCHORS[column]
        x = {"left": left, "middle": (left + right) / 2, "right": right}[anchor]
        sheet.write((x, y), text, face, anchor=anchor, width_px=right - left)
    return count * price


# ---------------------------------------------------------------------------------------------------- cheque


def draw_cheque(job: Job) -> Sheet:
    """Return a cheque: a fine pattern, bank and number, payee, the amount in words and in boxes."""
    texts, width = job.texts, round(job.long_side * job.rng.uniform(0.8, 1.0))
    sheet = Sheet("cheque", width, round(width * job.rng.uniform(0.40, 0.48)), job.tint())
    _guilloche(sheet, job)
    size = width / job.rng.uniform(38, 46)
    labels, values = job.face(size), job.face(size * 1.1, "kai", "serif")
    left, right, ink = width * 0.06, width * 0.94, texts.one(_RULE_INKS)
    title = f"{texts.one(texts.words.banks)} {texts.one(texts.words.cheque)}"
    sheet.write((left, size * 2.4), title, job.bold(labels.scaled(1.3)), ink=ink, width_px=width * 0.6, preprinted=True)
    sheet.write((right, size * 2.4), texts.code(), values, anchor="right", ink=(50, 50, 160))
    cents = texts.cents(100_000_000)
    rows = (
        (texts.one(texts.words.fields), texts.date()),
        (texts.words.party[0], texts.company()),
        (texts.one(texts.words.in_words), texts.in_words(cents)),
        (texts.words.fields[20], texts.goods()),
    )
    for row, (name, value) in enumerate(rows):
        y = size * (5 + 2.3 * row)
        taken = sheet.write((left, y), name, labels, ink=ink, preprinted=True)
        sheet.write((left + taken + size, y), value, values, width_px=right - left - taken - 2 * size)
        sheet.rule((left + taken, y + size * 0.4), (right, y + size * 0.4), 1, ink, preprinted=True)
    _digit_boxes(sheet, job, values, (right, size * 13.2), str(cents))
    code = f"{texts.digits(6)} {texts.digits(9)} {texts.digits(4)}"
    sheet.write((left, sheet.height - size), code, job.face(size, "mono"), width_px=width * 0.5)
    return sheet


def _guilloche(sheet: Sheet, job: Job) -> None:
    """Draw fine waves over the paper, pale enough to read over."""
    ink = tuple(max(0, int(channel) - 26) for channel in sheet.paper[0, 0])
    xs, period = np.arange(0, sheet.width, 4), job.rng.uniform(60, 160)
    for y in range(0, sheet.height, job.texts.between(9, 15)):
        waves = y + 8 * np.sin(xs / period * 6.28 + y / 40) + 5 * np.sin(xs / period * 2.3)
        points = np.stack([xs, waves], axis=1).astype(np.int32)
        cv2.polylines(sheet.paper, [points], False, ink, 1, cv2.LINE_AA)


def _digit_boxes(sheet: Sheet, job: Job, face: Face, corner: Point, digits: str) -> None:
    """Write digits one to a box, right-aligned; together they are one line."""
    side, (right, top) = round(face.size_px * 1.25), corner
    left = right - side * (len(digits) + 1)
    for box in range(len(digits) + 2):
        sheet.rule((left + side * box, top), (left + side * box, top + side), 1, (90, 90, 90), preprinted=True)
    for y in (top, top + side):
        sheet.rule((left, y), (right, y), 1, (90, 90, 90), preprinted=True)
    spread = job.spread(face, side)
    sheet.write((left + side * 0.3, top + side * 0.85), "¥" + digits, spread)


# ---------------------------------------------------------------------------------------------------- form


def draw_form(job: Job) -> Sheet:
    """Return a form: a title, fields in boxes, options to tick, a paragraph, and who signs."""
    texts, height = job.texts, job.long_side
    sheet = Sheet("form", round(height * 0.71), height, job.tint() if texts.chance(0.2) else (255, 255, 255))
    size = sheet.width / job.rng.uniform(36, 50)
    labels, values = job.face(size), job.face(size, "kai", "serif", "mono")
    left, right = sheet.width * 0.08, sheet.width * 0.92
    title = job.bold(labels.scaled(1.7))
    sheet.write((sheet.width / 2, size * 4), texts.one(texts.words.letter), title, anchor="middle", preprinted=True)
    bottom = _field_rows(sheet, job, (labels, values), (left, right, size * 6))
    bottom = _tick_rows(sheet, job, labels, (left, right, bottom + size * 2.5))
    bottom = job.paragraph(sheet, labels, (left, right, bottom + size), texts.between(2, 5))
    for column, role in enumerate(job.some(texts.words.roles, 3)):
        x = left + (right - left) * column / 3
        taken = sheet.write((x, bottom + size * 2), role, labels, preprinted=True)
        room = (right - left) / 3 - taken - size
        at = (x + taken + size * 0.3, bottom + size * 2)
        sheet.write(at, texts.person(), values, ink=(140, 50, 30), width_px=room)
    sheet.write((right, bottom + size * 5), texts.date(), values, anchor="right")
    sheet.cut(bottom + size * job.rng.uniform(6, 20))
    return sheet


def _field_rows(sheet: Sheet, job: Job, faces: Faces, band: Band) -> float:
    texts, (labels, values), (left, right, top) = job.texts, faces, band
    step, rows = labels.size_px * job.rng.uniform(2.0, 2.8), texts.between(5, 10)
    names, columns = job.some(texts.words.fields, 2 * rows), (0.0, 0.2, 0.5, 0.7, 1.0)
    xs = [left + (right - left) * share for share in columns]
    for row in range(rows):
        y, whole = top + step * (row + 0.66), texts.chance(0.25)
        for half in (0,) if whole else (0, 2):
            end = xs[4] if whole else xs[half + 2]
            sheet.write(
                (xs[half] + 6, y), names[2 * row + half // 2], labels, width_px=xs[1] - left - 8, preprinted=True
            )
            value = texts.address() if whole else job.value()
            sheet.write((xs[half + 1] + 6, y), value, values, width_px=end - xs[half + 1] - 10)
        for x in (*xs[:2], *(() if whole else xs[2:4]), xs[4]):
            sheet.rule((x, top + step * row), (x, top + step * (row + 1)), 1, preprinted=True)
        sheet.rule((left, top + step * row), (right, top + step * row), 1, preprinted=True)
    sheet.rule((left, top + step * rows), (right, top + step * rows), 1, preprinted=True)
    return top + step * rows


def _tick_rows(sheet: Sheet, job: Job, face: Face, band: Band) -> float:
    """Write options behind little boxes, some of them ticked; return the bottom."""
    (left, right, y), side = band, face.size_px * 0.8
    for column, option in enumerate(job.some(job.texts.words.options, 4)):
        x = left + (right - left) * column / 4
        sheet.frame((x, y - side), (x + side, y), 1, preprinted=True)
        if job.texts.chance(0.4):
            sheet.rule((x + side * 0.2, y - side * 0.5), (x + side * 0.45, y - side * 0.15), 2, (140, 50, 30))
            sheet.rule((x + side * 0.45, y - side * 0.15), (x + side, y - side * 1.1), 2, (140, 50, 30))
        sheet.write((x + side * 1.4, y), option, face, preprinted=True)
    return y + face.size_px

"""Draws the sample pages in samples/ and their labels: a receipt, an invoice form and a photographed notice.

Without a directory it also writes the head of the receipt, the page that a package tries itself with (agent/pack).

    python scripts/draw_samples.py [DIRECTORY]

Every name, number and address on the pages is invented. The boxes in labels.jsonl are those of the drawn ink, so they
are exact. Needs Pillow, numpy and the Noto CJK fonts (Debian package fonts-noto-cjk). The same fonts and the same
Pillow give the same files.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

Floats = npt.NDArray[np.float64]
Box = tuple[tuple[float, float], ...]
Colour = int | tuple[int, int, int]

FONTS = Path("/usr/share/fonts/opentype/noto")
SIMPLIFIED, TRADITIONAL, MONO = 2, 3, 7  # faces of one Noto CJK collection file
PACK = Path(__file__).parent.parent / "agent" / "pack"
HEAD_PX = 400
PHOTO_SIZE = (3000, 2200)
PHOTO_CORNERS = ((560.0, 2120.0), (222.0, 446.0), (2482.0, 184.0), (2712.0, 1606.0))
"""Where the notice's corners, clockwise from its top left, lie in the photo: a quarter turn and about 12 degrees."""


class Line(NamedTuple):
    """One drawn line of text and its four corners in reading direction, page pixels."""

    text: str
    box: Box


def font(size: int, face: int = SIMPLIFIED, *, bold: bool = False, serif: bool = False) -> ImageFont.FreeTypeFont:
    """Return a Noto CJK font of `size` pixels."""
    name = f"Noto{'Serif' if serif else 'Sans'}CJK-{'Bold' if bold else 'Regular'}.ttc"
    return ImageFont.truetype(str(FONTS / name), size, index=face)


class Sheet:
    """A page being drawn, and the lines of text on it so far."""

    def __init__(self, size: tuple[int, int], paper: Colour, mode: str = "RGB") -> None:
        self.image = Image.new(mode, size, paper)
        self.pen = ImageDraw.Draw(self.image)
        self.lines: list[Line] = []

    def write(
        self, at: tuple[float, float], text: str, face: ImageFont.FreeTypeFont, ink: Colour = 0, anchor: str = "ls"
    ) -> None:
        """Draw `text` with its `anchor` (Pillow's two letters) at a point, and remember its ink's box."""
        self.pen.text(at, text, font=face, fill=ink, anchor=anchor)
        left, top, right, bottom = self.pen.textbbox(at, text, font=face, anchor=anchor)
        self.lines.append(Line(text, ((left, top), (right, top), (right, bottom), (left, bottom))))


def grain(size: tuple[int, int], blur: tuple[float, float], rng: np.random.Generator) -> Floats:
    """Return float64 (height, width) noise with mean 0 and deviation 1, smoothed by `blur` pixels along x and y."""
    width, height = size
    small = (max(2, round(width / max(1.0, blur[0]))), max(2, round(height / max(1.0, blur[1]))))
    noise = Image.fromarray(rng.standard_normal((small[1], small[0])).astype(np.float32))
    field = np.asarray(noise.resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    return (field - field.mean()) / field.std()


def to_image(levels: Floats) -> Image.Image:
    """Return a picture of float levels 0..255, (height, width) grey or (height, width, 3) RGB."""
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def draw_receipt() -> Sheet:
    """Return the receipt: Chinese and English on thermal paper, 640 pixels wide."""
    sheet = Sheet((640, 1330), 255, mode="L")
    plain, small, large = font(25, MONO), font(21, MONO), font(44, SIMPLIFIED, bold=True)
    sheet.write((320, 100), "青石巷杂货店", large, anchor="ms")
    sheet.write((320, 146), "QINGSHI LANE GROCERY", font(27, MONO, bold=True), anchor="ms")
    sheet.write((320, 190), "示范市样本区青石巷12号", small, anchor="ms")
    sheet.write((320, 222), "Tel: 000-5550-0142", small, anchor="ms")
    _dashes(sheet, 248)
    for row, (name, value) in enumerate(
        [("单号 No.", "QS-20260307-0186"), ("日期 Date", "2026-03-07 18:42"), ("收银员 Cashier", "03 小禾")]
    ):
        sheet.write((44, 290 + 38 * row), name, plain)
        sheet.write((596, 290 + 38 * row), value, plain, anchor="rs")
    _dashes(sheet, 392)
    for x, text, anchor in [(44, "品名 Item", "ls"), (400, "数量", "rs"), (596, "金额", "rs")]:
        sheet.write((x, 432), text, font(25, MONO, bold=True), anchor=anchor)
    goods = [
        ("东北大米 Rice 5kg", "1", "39.90"),
        ("鲜牛奶 Milk 950ml", "2", "25.60"),
        ("红富士苹果 Apple", "1.36", "17.54"),
        ("全麦面包 Bread", "1", "12.80"),
        ("茉莉花茶 Tea 100g", "1", "28.00"),
        ("洗衣液 Detergent 2L", "1", "31.50"),
    ]
    for row, (name, count, amount) in enumerate(goods):
        y = 484 + 48 * row
        sheet.write((44, y), name, plain)
        sheet.write((400, y), count, plain, anchor="rs")
        sheet.write((596, y), amount, plain, anchor="rs")
    _dashes(sheet, 760)
    totals = [("小计 Subtotal", "155.34"), ("会员优惠 Discount", "-5.34"), ("合计 TOTAL", "150.00")]
    totals += [("现金 Cash", "200.00"), ("找零 Change", "50.00")]
    for row, (name, amount) in enumerate(totals):
        face = font(32, MONO, bold=True) if name.endswith("TOTAL") else plain
        sheet.write((44, 808 + 48 * row), name, face)
        sheet.write((596, 808 + 48 * row), amount, face, anchor="rs")
    _dashes(sheet, 1026)
    sheet.write((320, 1072), "谢谢惠顾 欢迎再来", font(29, SIMPLIFIED, bold=True), anchor="ms")
    sheet.write((320, 1112), "Thank you, see you again!", small, anchor="ms")
    _barcode(sheet, (120, 1146, 520, 1222))
    sheet.write((320, 1256), "2603070186", small, anchor="ms")
    return sheet


def _dashes(sheet: Sheet, y: int) -> None:
    """Draw a dashed rule across a receipt."""
    for x in range(44, 596, 16):
        sheet.pen.line((x, y, x + 8, y), fill=0, width=2)


def _barcode(sheet: Sheet, box: tuple[int, int, int, int]) -> None:
    """Draw bars that look like a bar code and mean nothing."""
    rng, x = np.random.default_rng(4), box[0]
    while x < box[2]:
        bar, gap = (int(n) for n in rng.integers(1, 4, size=2) * 2)
        sheet.pen.rectangle((x, box[1], min(x + bar, box[2]) - 1, box[3]), fill=0)
        x += bar + gap


def print_thermally(sheet: Sheet, rng: np.random.Generator) -> Image.Image:
    """Return a grey picture of the sheet as a worn thermal print head leaves it: soft, uneven, with faint columns."""
    ink = 1 - np.asarray(sheet.image.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float64) / 255
    strength = 0.80 + 0.05 * grain(sheet.image.size, (640, 90), rng) + 0.03 * grain(sheet.image.size, (8, 3), rng)
    strength[:, rng.integers(0, sheet.image.width, size=5)] *= 0.55
    paper = 236 + 3 * grain(sheet.image.size, (300, 400), rng) + 1.2 * grain(sheet.image.size, (2, 2), rng)
    crease = np.exp(-(((np.arange(sheet.image.height) - 742) / 3.0) ** 2))[:, None]
    levels = paper * (1 - np.clip(strength, 0.4, 0.95) * ink) - 14 * crease
    return to_image(np.rint(levels / 6) * 6)  # few grey levels: a third of the file size


def draw_form() -> Sheet:
    """Return the form: an A4 invoice at 150 dots per inch with a table, both Chinese scripts, English and a stamp."""
    sheet = Sheet((1240, 1754), (252, 252, 250))
    sheet.write((620, 128), "购销发票", font(56, bold=True, serif=True), (20, 20, 20), "ms")
    sheet.write((620, 180), "SALES INVOICE", font(30, serif=True), (20, 20, 20), "ms")
    sheet.pen.line((420, 200, 820, 200), fill=(150, 30, 30), width=3)
    sheet.pen.line((420, 207, 820, 207), fill=(150, 30, 30), width=1)
    _heading(sheet)
    bottom = _goods_table(sheet, top=470)
    _amount_row(sheet, bottom)
    _notes(sheet, top=bottom + 150)
    _stamp(sheet, centre=(958, 1540), radius=142)
    return sheet


def _heading(sheet: Sheet) -> None:
    """Write who sells to whom, in two columns under the title."""
    label, value = font(24, bold=True), font(24)
    rows = [
        (70, 276, "发票号码 No.:", "SI-2026-004817"),
        (760, 276, "开票日期 Date:", "2026年03月07日"),
        (70, 330, "购买方 Buyer:", "云杉文具示范商行"),
        (70, 384, "销售方 Seller:", "澄湖紙品貿易行 Clear Lake Paper"),
        (760, 330, "币种 Currency:", "CNY"),
        (760, 384, "页码 Page:", "1 / 1"),
    ]
    for x, y, name, text in rows:
        sheet.write((x, y), name, label, (40, 40, 70))
        face = font(24, TRADITIONAL) if "貿" in text else value
        sheet.write((x + (210 if x < 500 else 220), y), text, face, (15, 15, 15))
    for x, text, ticked in [(70, "现金 Cash", False), (300, "转账 Transfer", True), (570, "支票 Cheque", False)]:
        sheet.pen.rectangle((x, 414, x + 24, 438), outline=(60, 60, 60), width=2)
        if ticked:
            sheet.pen.line((x + 4, 426, x + 10, 434, x + 22, 410), fill=(20, 40, 150), width=4, joint="curve")
        sheet.write((x + 38, 436), text, font(22), (15, 15, 15))


GOODS = (
    ("1", "A4复印纸 Copy paper 80g", "箱", "12", "168.00", "2,016.00"),
    ("2", "签字笔 Gel pen 0.5mm", "盒", "40", "23.50", "940.00"),
    ("3", "文件夹 Ring binder", "个", "150", "8.80", "1,320.00"),
    ("4", "牛皮紙信封 Envelope B5", "包", "65", "15.20", "988.00"),
    ("5", "記事簿 Notebook 96 pages", "本", "200", "6.45", "1,290.00"),
    ("6", "计算器 Calculator 12-digit", "台", "8", "59.90", "479.20"),
    ("7", "訂書機 Stapler No.10", "個", "30", "18.60", "558.00"),
)


def _goods_table(sheet: Sheet, *, top: int) -> int:
    """Draw the ruled table of goods; return the y of its bottom rule."""
    columns, height = (70, 130, 580, 680, 800, 970, 1170), 62
    titles = ("序号", "货物名称 Description", "单位", "数量 Qty", "单价 Price", "金额 Amount")
    bottom = top + height * (len(GOODS) + 1)
    sheet.pen.rectangle((columns[0], top, columns[-1], top + height), fill=(232, 236, 244))
    for y in range(top, bottom + 1, height):
        sheet.pen.line((columns[0], y, columns[-1], y), fill=(70, 70, 90), width=2)
    for x in columns:
        sheet.pen.line((x, top, x, bottom), fill=(70, 70, 90), width=2)
    for column, title in enumerate(titles):
        middle = (columns[column] + columns[column + 1]) / 2
        sheet.write((middle, top + 40), title, font(22, bold=True), (30, 30, 50), "ms")
    for row, cells in enumerate(GOODS, 1):
        y = top + row * height + 40
        for column, cell in enumerate(cells):
            face = font(23, TRADITIONAL if row in (4, 5, 7) else SIMPLIFIED)
            left, right = columns[column], columns[column + 1]
            x, anchor = {1: (left + 14, "ls"), 4: (right - 14, "rs"), 5: (right - 14, "rs")}.get(
                column, ((left + right) / 2, "ms")
            )
            sheet.write((x, y), cell, face, (15, 15, 15), anchor)
    return bottom


def _amount_row(sheet: Sheet, top: int) -> None:
    """Draw the total, in Chinese capital figures and in digits, under the table."""
    sheet.pen.rectangle((70, top, 1170, top + 76), outline=(70, 70, 90), width=2)
    sheet.write((90, top + 48), "合计（大写）", font(24, bold=True), (30, 30, 50))
    sheet.write((270, top + 48), "柒仟伍佰玖拾壹元贰角整", font(26, serif=True), (15, 15, 15))
    sheet.write((720, top + 48), "合计 Total", font(24, bold=True), (30, 30, 50))
    sheet.write((1156, top + 49), "￥7,591.20", font(30, bold=True), (15, 15, 15), "rs")


def _notes(sheet: Sheet, *, top: int) -> None:
    """Write the notes in both scripts and English, and the row of signatures."""
    notes = [
        ("备注：货到后三十日内付清，逾期按日加收万分之五。", SIMPLIFIED),
        ("注意事項：貨物簽收後如有損壞，請於七日內與本行聯絡。", TRADITIONAL),
        ("應付款項請以轉帳方式繳納，並註明發票號碼。", TRADITIONAL),
        ("Payment is due within 30 days. Please quote the invoice number.", SIMPLIFIED),
        ("Goods remain the property of the seller until paid in full.", SIMPLIFIED),
    ]
    for row, (text, face) in enumerate(notes):
        sheet.write((70, top + 52 * row), text, font(24, face), (25, 25, 25))
    for x, title, name in [(70, "经办人", "Handled by"), (420, "复核", "Checked by"), (770, "签章", "Seal")]:
        sheet.write((x, 1540), title, font(24, bold=True), (30, 30, 50))
        sheet.write((x, 1576), name, font(20), (70, 70, 70))
        sheet.pen.line((x + 130, 1584, x + 330, 1584), fill=(70, 70, 90), width=2)
    sheet.write((620, 1694), "第一联 发票联 Copy 1 of 2", font(20), (90, 90, 90), "ms")


def _stamp(sheet: Sheet, *, centre: tuple[int, int], radius: int) -> None:
    """Press a red round stamp over the page; its curved text is no line, its straight text is one."""
    side = 2 * radius + 20
    mask = Image.new("L", (side, side), 0)
    pen, middle = ImageDraw.Draw(mask), side / 2
    pen.ellipse((10, 10, side - 10, side - 10), outline=225, width=8)
    star = [(0.34 if k % 2 == 0 else 0.13, math.pi * (k / 5 - 0.5)) for k in range(10)]
    pen.polygon([(middle + radius * r * math.cos(a), middle + radius * r * math.sin(a)) for r, a in star], fill=215)
    text = "澄湖纸品示范贸易行"
    for k, character in enumerate(text):
        degrees = (k - (len(text) - 1) / 2) * 26
        tile = Image.new("L", (side, side), 0)
        at = (middle, middle - radius * 0.74)
        ImageDraw.Draw(tile).text(at, character, font=font(36, bold=True, serif=True), fill=225, anchor="mm")
        mask = ImageChops.lighter(mask, tile.rotate(-degrees, Image.Resampling.BICUBIC))
    face, at, words = font(30, bold=True), (middle, middle + radius * 0.62), "发票专用章"
    pen = ImageDraw.Draw(mask)
    pen.text(at, words, font=face, fill=225, anchor="mm")
    left, top, right, bottom = pen.textbbox(at, words, font=face, anchor="mm")
    worn = 0.80 + 0.10 * grain((side, side), (14, 14), np.random.default_rng(2))
    mask = to_image(np.asarray(mask, dtype=np.float64) * np.clip(worn, 0.3, 1))
    corner = (centre[0] - side // 2, centre[1] - side // 2)
    # Ink is translucent: it darkens what it covers (multiply), so the print under it stays.
    red = ImageChops.multiply(
        sheet.image.crop((*corner, corner[0] + side, corner[1] + side)), Image.new("RGB", (side, side), (214, 32, 40))
    )
    sheet.image.paste(red, corner, mask)
    x, y = corner
    sheet.lines.append(
        Line(words, ((x + left, y + top), (x + right, y + top), (x + right, y + bottom), (x + left, y + bottom)))
    )


def draw_notice() -> Sheet:
    """Return the notice that gets photographed: a list of opening times and a short text, 1,500 x 2,120 pixels."""
    sheet = Sheet((1500, 2120), (250, 249, 244))
    sheet.pen.rectangle((50, 50, 1450, 2070), outline=(40, 90, 80), width=5)
    sheet.write((750, 190), "社区图书角借阅须知", font(86, bold=True), (20, 70, 62), "ms")
    sheet.write((750, 268), "COMMUNITY READING CORNER", font(50, bold=True), (20, 70, 62), "ms")
    sheet.pen.line((150, 310, 1350, 310), fill=(40, 90, 80), width=4)
    paragraphs = [
        "一、凭借书卡每人每次可借三册，期限二十一天。",
        "二、请爱护图书，勿在书页上涂写、折角。",
        "三、逾期归还者，每册每天收取0.20元。",
        "四、自习区请保持安静，手机调至静音。",
    ]
    for row, text in enumerate(paragraphs):
        sheet.write((130, 412 + 92 * row), text, font(50), (25, 25, 25))
    hours = [
        ("星期一", "Monday", "闭馆 Closed"),
        ("星期二至五", "Tue - Fri", "09:30 - 20:00"),
        ("星期六", "Saturday", "10:00 - 21:00"),
        ("星期日", "Sunday", "10:00 - 18:30"),
    ]
    sheet.write((130, 842), "开放时间 Opening hours", font(58, bold=True), (20, 70, 62))
    for row, cells in enumerate(hours):
        top = 890 + 96 * row
        sheet.pen.rectangle((130, top, 1370, top + 96), outline=(90, 120, 112), width=3)
        for x, cell in zip((160, 560, 920), cells, strict=True):
            sheet.write((x, top + 66), cell, font(50), (25, 25, 25))
    english = [
        "Up to three books per card, for 21 days.",
        "Please do not write in the books.",
        "Late returns cost 0.20 a day for each book.",
        "Keep your phone silent in the study area.",
    ]
    for row, text in enumerate(english):
        sheet.write((130, 1378 + 82 * row), text, font(48), (25, 25, 25))
    sheet.write((130, 1730), "繁體讀者請洽服務台，備有對照書目。", font(50, TRADITIONAL), (25, 25, 25))
    sheet.write((130, 1830), "服务电话 000-5550-0173", font(50, bold=True), (160, 40, 30))
    sheet.write((1370, 1960), "样本社区图书角", font(50), (25, 25, 25), "rs")
    sheet.write((1370, 2032), "2026年3月1日", font(46), (25, 25, 25), "rs")
    return sheet


def homography(source: Box, target: Box) -> Floats:
    """Return the 3 x 3 matrix that takes four source points (x, y) to four target points."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows, float), np.array(values, float)), 1.0).reshape(3, 3)


def photograph(sheet: Sheet, rng: np.random.Generator) -> tuple[Image.Image, list[Line]]:
    """Return a photo of the sheet on a table, askew, shaded, slightly out of focus and noisy; and its lines there."""
    width, height = sheet.image.size
    page: Box = ((0, 0), (width, 0), (width, height), (0, height))
    there = homography(page, PHOTO_CORNERS)
    back = np.linalg.inv(there)
    view = (back / back[2, 2]).ravel()[:8].tolist()
    laid = sheet.image.transform(PHOTO_SIZE, Image.Transform.PERSPECTIVE, view, Image.Resampling.BICUBIC)
    cover = Image.new("L", sheet.image.size, 255).transform(PHOTO_SIZE, Image.Transform.PERSPECTIVE, view)
    cover = cover.filter(ImageFilter.GaussianBlur(1))
    scene = to_image(_table_top(rng))
    under = ImageChops.offset(cover, 18, 26).filter(ImageFilter.GaussianBlur(22)).point(lambda level: level * 0.6)
    scene.paste((20, 14, 10), (0, 0), under)
    scene.paste(laid, (0, 0), cover)
    levels = np.asarray(scene.filter(ImageFilter.GaussianBlur(1.1)), dtype=np.float64)
    levels = levels * _light(rng)[..., None] * np.array([1.0, 0.965, 0.89])
    levels += 3.2 * rng.standard_normal(levels.shape[:2])[..., None] + 1.6 * rng.standard_normal(levels.shape)
    return to_image(levels), [Line(line.text, _carry(there, line.box)) for line in sheet.lines]


def _carry(matrix: Floats, box: Box) -> Box:
    """Return the corners of a box where the matrix takes them, to a tenth of a pixel."""
    points = np.column_stack([np.array(box, float), np.ones(4)]) @ matrix.T
    return tuple((round(float(x / w), 1), round(float(y / w), 1)) for x, y, w in points)


def _table_top(rng: np.random.Generator) -> Floats:
    """Return a wooden table, float64 (height, width, 3), RGB 0..255."""
    fibre = 0.6 * grain(PHOTO_SIZE, (500, 5), rng) + 0.5 * grain(PHOTO_SIZE, (1400, 34), rng)
    return np.array([128.0, 88.0, 58.0]) * (1 + 0.11 * fibre[..., None])


def _light(rng: np.random.Generator) -> Floats:
    """Return how bright each pixel is lit, float64 (height, width): a lamp on the left and a soft hand's shadow."""
    width, height = PHOTO_SIZE
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    lamp = 1.04 - 0.30 * np.hypot(x - 0.25, (y - 0.35) * 0.8) + 0.012 * grain(PHOTO_SIZE, (700, 700), rng)
    shade = Image.new("L", PHOTO_SIZE, 255)
    ImageDraw.Draw(shade).polygon([(1750, 2200), (2050, 1250), (2420, 1120), (2560, 1380), (2700, 2200)], fill=150)
    return lamp * np.asarray(shade.filter(ImageFilter.GaussianBlur(70)), dtype=np.float64) / 255


def save(directory: Path, name: str, image: Image.Image, lines: list[Line]) -> str:
    """Write one page and return its row of labels.jsonl."""
    if name.endswith(".jpg"):
        image.save(directory / name, quality=74, subsampling="4:2:0", optimize=True)
    else:
        image.save(directory / name, optimize=True)
    return json.dumps({"image": name, "lines": [line._asdict() for line in lines], "fields": {}}, ensure_ascii=False)


def receipt(rng: np.random.Generator) -> tuple[Image.Image, list[Line]]:
    """Return the receipt's picture and lines."""
    sheet = draw_receipt()
    return print_thermally(sheet, rng), sheet.lines


def form(_: np.random.Generator) -> tuple[Image.Image, list[Line]]:
    """Return the form's picture, in 64 colours, and its lines."""
    sheet = draw_form()
    return sheet.image.quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE), sheet.lines


def photo(rng: np.random.Generator) -> tuple[Image.Image, list[Line]]:
    """Return the photographed notice and its lines."""
    return photograph(draw_notice(), rng)


PAGES: dict[str, Callable[[np.random.Generator], tuple[Image.Image, list[Line]]]] = {
    "receipt.png": receipt,
    "form.png": form,
    "photo.jpg": photo,
}


def write_head(directory: Path, rows: list[str]) -> None:
    """Write the head of the receipt and its lines into the package's sources."""
    with Image.open(directory / "receipt.png") as page:
        page.crop((0, 0, page.width, HEAD_PX)).save(PACK / "sample.png", optimize=True)
    lines = next(row["lines"] for row in map(json.loads, rows) if row["image"] == "receipt.png")
    texts = [line["text"] for line in lines if max(y for _, y in line["box"]) < HEAD_PX]
    (PACK / "sample.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


def main() -> None:
    """Draw every page into the directory given, or samples/."""
    if not FONTS.is_dir():
        sys.exit(f"{FONTS} is missing: sudo apt-get install -y fonts-noto-cjk")
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "samples"
    directory.mkdir(parents=True, exist_ok=True)
    rows = [save(directory, name, *draw(np.random.default_rng(7))) for name, draw in PAGES.items()]
    (directory / "labels.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    if len(sys.argv) == 1:
        write_head(directory, rows)


if __name__ == "__main__":
    main()

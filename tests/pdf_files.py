"""PDFs written by hand: each test says byte for byte what is in its file."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image, ImageOps

A4 = (595, 842)


def pdf(objects: Sequence[bytes], *, trailer: bytes = b"", version: bytes = b"1.7") -> bytes:
    """Return a PDF of objects numbered from 1, the first of them its catalog."""
    out, places = bytearray(b"%PDF-" + version + b"\n"), []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    at = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, at)
    return bytes(out)


def stream(data: bytes, about: bytes = b"") -> bytes:
    return b"<<%s/Length %d>>\nstream\n%s\nendstream" % (about, len(data), data)


def document(*pages: Sequence[bytes], about: Sequence[bytes] | None = None) -> bytes:
    """Return a PDF of pages, each its content stream and the objects that it uses, by names O0, O1, ..."""
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b""]
    kids = []
    for number, (content, *used) in enumerate(pages):
        page = len(objects) + 1
        names = b"".join(b"/O%d %d 0 R" % (n, page + 2 + n) for n in range(len(used)))
        more = about[number] if about else b"/MediaBox[0 0 595 842]"
        resources = b"<</XObject<<%s>>/Font<</F <</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>" % names
        kids.append(b"%d 0 R" % page)
        objects += [b"<</Type/Page/Parent 2 0 R/Contents %d 0 R/Resources%s%s>>" % (page + 1, resources, more)]
        objects += [content, *used]
    objects[1] = b"<</Type/Pages/Kids[%s]/Count %d>>" % (b" ".join(kids), len(kids))
    return pdf(objects)


def whole(image: bytes, *, box: tuple[int, int] = A4, more: bytes = b"", turn: int = 0) -> bytes:
    """Return a PDF of one page that an image fills, with something drawn over it."""
    content = b"q %d 0 0 %d 0 0 cm /O0 Do Q\n" % box + more
    return document((stream(content), image), about=[b"/MediaBox[0 0 %d %d]/Rotate %d" % (*box, turn)])


def written(text: str, size: int = 24) -> bytes:
    """Return a page's content stream with a line of text."""
    return stream(b"BT /F %d Tf 72 700 Td (%s) Tj ET" % (size, text.encode()))


def image(picture: Image.Image, colours: bytes, bits: int, data: bytes, packing: bytes, more: bytes = b"") -> bytes:
    about = b"/Type/XObject/Subtype/Image/Width %d/Height %d/BitsPerComponent %d" % (*picture.size, bits)
    return stream(data, about + (b"/ColorSpace" + colours if colours else b"") + b"/Filter" + packing + more)


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def jpeg(picture: Image.Image, more: bytes = b"") -> bytes:
    colours = {"L": b"/DeviceGray", "RGB": b"/DeviceRGB", "CMYK": b"/DeviceCMYK"}[picture.mode]
    return image(picture, colours, 8, saved(picture, "JPEG", quality=95), b"/DCTDecode", more)


def jpeg_2000(picture: Image.Image) -> bytes:
    return image(picture, b"/DeviceGray", 8, saved(picture.convert("L"), "JPEG2000"), b"/JPXDecode")


def packed(picture: Image.Image, more: bytes = b"") -> bytes:
    """Return an image of plain samples, packed."""
    colours = {"1": b"/DeviceGray", "L": b"/DeviceGray", "RGB": b"/DeviceRGB"}[picture.mode]
    bits = 1 if picture.mode == "1" else 8
    return image(picture, colours, bits, zlib.compress(picture.tobytes()), b"/FlateDecode", more)


def mask(picture: Image.Image) -> bytes:
    """Return a stencil: what is black in a picture is painted."""
    data = zlib.compress(picture.convert("1").tobytes())
    return image(picture, b"", 1, data, b"/FlateDecode", b"/ImageMask true")


def _fax(picture: Image.Image) -> bytes:
    """Return a picture's rows in ITU-T T.6, black as 1."""
    data = saved(
        ImageOps.invert(picture.convert("L")).convert("1"), "TIFF", compression="group4", tiffinfo={278: picture.height}
    )
    with Image.open(io.BytesIO(data)) as stored:
        (at,), (size,) = stored.tag_v2[273], stored.tag_v2[279]
        if stored.tag_v2.get(266, 1) == 2:  # bits in reverse
            return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data[at : at + size])
    return data[at : at + size]


def fax(picture: Image.Image) -> bytes:
    about = b"/DecodeParms<</K -1/Columns %d/Rows %d/BlackIs1 false>>" % picture.size
    return image(picture, b"/DeviceGray", 1, _fax(picture), b"/CCITTFaxDecode", about)


def jbig2(picture: Image.Image) -> bytes:
    """Return a JBIG2 image: one page, one region in T.6 coding (ITU-T T.88, 7.4.6 and 7.4.8)."""
    width, height = picture.size
    page = struct.pack(">IIIIBH", width, height, 0, 0, 0, 0)
    region = struct.pack(">IIIIB", width, height, 0, 0, 0) + b"\x01" + _fax(picture)  # MMR
    parts = ((0, 48, page), (1, 38, region))
    data = b"".join(struct.pack(">IBBBI", n, kind, 0, 1, len(body)) + body for n, kind, body in parts)
    return image(picture, b"/DeviceGray", 1, data, b"/JBIG2Decode")

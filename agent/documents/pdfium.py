"""PDFium's C interface, the part of it that is used here, by ctypes.

The Python package around it takes 45 ms and 6 MB to import, for a process that lives for one page (DECISIONS).
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_uint, c_ulong, c_void_p
from typing import Any

TEXT, PATH, IMAGE, SHADING, FORM = range(1, 6)  # FPDF_PAGEOBJ_*
INVISIBLE = 3  # FPDF_TEXTRENDERMODE_INVISIBLE
LINK, POPUP = 2, 16  # FPDF_ANNOT_*: nothing is seen of them
GREY, BGR = 1, 2  # FPDFBitmap_*
DRAW_ANNOTATIONS = 1  # FPDF_ANNOT
PASSWORD, SECURITY = 4, 5  # FPDF_ERR_*
XFA = 2  # FORMTYPE_XFA_FULL

_GREY = (0, 1, 4)  # a mask has none
_DIRECT = (1, 2, 4, 5, 7)  # FPDF_COLORSPACE_*: device, calibrated and ICC-based grey and RGB


class Matrix(Structure):
    """FS_MATRIX."""

    _fields_ = [(name, c_float) for name in "abcdef"]


class Rectangle(Structure):
    """FS_RECTF, in points, y upwards."""

    _fields_ = [(name, c_float) for name in ("left", "top", "right", "bottom")]


class ImageData(Structure):
    """FPDF_IMAGEOBJ_METADATA."""

    _fields_ = [
        *((name, c_uint) for name in ("width", "height")),
        *((name, c_float) for name in ("horizontal_dpi", "vertical_dpi")),
        *((name, c_uint) for name in ("bits", "colours")),
        ("marked", c_int),
    ]


_P = c_void_p
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "FPDF_InitLibrary": (None, ()),
    "FPDF_LoadDocument": (_P, (c_char_p, c_char_p)),
    "FPDF_GetLastError": (c_ulong, ()),
    "FPDF_GetPageCount": (c_int, (_P,)),
    "FPDF_GetFormType": (c_int, (_P,)),
    "FPDFDoc_GetAttachmentCount": (c_int, (_P,)),
    "FPDF_LoadPage": (_P, (_P, c_int)),
    "FPDF_GetPageBoundingBox": (c_int, (_P, POINTER(Rectangle))),
    "FPDF_GetPageWidthF": (c_float, (_P,)),
    "FPDF_GetPageHeightF": (c_float, (_P,)),
    "FPDFPage_GetRotation": (c_int, (_P,)),
    "FPDFPage_CountObjects": (c_int, (_P,)),
    "FPDFPage_GetObject": (_P, (_P, c_int)),
    "FPDFFormObj_CountObjects": (c_int, (_P,)),
    "FPDFFormObj_GetObject": (_P, (_P, c_ulong)),
    "FPDFPageObj_GetType": (c_int, (_P,)),
    "FPDFPageObj_GetBounds": (c_int, (_P, *([POINTER(c_float)] * 4))),
    "FPDFPageObj_GetMatrix": (c_int, (_P, POINTER(Matrix))),
    "FPDFTextObj_GetTextRenderMode": (c_int, (_P,)),
    "FPDFImageObj_GetImagePixelSize": (c_int, (_P, POINTER(c_uint), POINTER(c_uint))),
    "FPDFImageObj_GetImageMetadata": (c_int, (_P, _P, POINTER(ImageData))),
    "FPDFImageObj_GetImageFilterCount": (c_int, (_P,)),
    "FPDFImageObj_GetImageFilter": (c_ulong, (_P, c_int, _P, c_ulong)),
    "FPDFImageObj_GetImageDataRaw": (c_ulong, (_P, _P, c_ulong)),
    "FPDFPage_GetAnnotCount": (c_int, (_P,)),
    "FPDFPage_GetAnnot": (_P, (_P, c_int)),
    "FPDFAnnot_GetSubtype": (c_int, (_P,)),
    "FPDFBitmap_CreateEx": (_P, (c_int, c_int, c_int, _P, c_int)),
    "FPDFBitmap_FillRect": (c_int, (_P, c_int, c_int, c_int, c_int, c_ulong)),
    "FPDF_RenderPageBitmap": (None, (_P, _P, *([c_int] * 6))),
}


def load(library: str) -> Any:
    """Return PDFium with the functions' types told.

    Raises:
        OSError: it is no library for this machine.
        AttributeError: it lacks a function.
    """
    pdfium = ctypes.CDLL(library)
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(pdfium, name)
        function.restype, function.argtypes = result, arguments
    pdfium.FPDF_InitLibrary()
    return pdfium


class Picture:
    """An image on a page."""

    def __init__(self, pdfium: Any, page: int, thing: int, outer: int) -> None:
        """Look at an image.

        Args:
            pdfium: of `load`.
            page: it is on.
            thing: the image.
            outer: what holds it on the page: a form, or the image itself.
        """
        self._pdfium, self._thing = pdfium, thing
        width, height = c_uint(), c_uint()
        pdfium.FPDFImageObj_GetImagePixelSize(thing, byref(width), byref(height))
        self.width, self.height = width.value, height.value
        self.left, self.bottom, self.right, self.top = bounds(pdfium, outer)
        self._data = ImageData()
        pdfium.FPDFImageObj_GetImageMetadata(thing, page, byref(self._data))
        self.bits = self._data.bits
        self.nested = thing != outer

    @property
    def channels(self) -> int:
        """Bytes of a pixel when it is unpacked; one bit becomes a byte."""
        return 1 if self.bits <= 8 else 3

    @property
    def unpacked_bytes(self) -> int:
        """Bytes of the whole image when it is unpacked."""
        return self.width * self.height * self.channels // (8 if self.bits == 1 else 1)

    @property
    def decoder_bytes(self) -> int:
        """Bytes that the decoder takes beside: that of JPEG 2000 holds every sample in 32 bits."""
        return 4 * self.width * self.height * self.channels if self.filter() == b"JPXDecode" else 0

    @property
    def wide(self) -> float:
        """Width on the page, in points."""
        return max(1e-3, self.right - self.left)

    @property
    def high(self) -> float:
        """Height on the page, in points."""
        return max(1e-3, self.top - self.bottom)

    def is_upright(self) -> bool:
        """Return whether it is neither turned nor mirrored on the page."""
        matrix = Matrix()
        self._pdfium.FPDFPageObj_GetMatrix(self._thing, byref(matrix))
        slant = max(abs(matrix.b), abs(matrix.c))
        return bool(matrix.a > 0 and matrix.d > 0 and slant < 1e-3 * min(matrix.a, matrix.d))

    def is_turned(self) -> bool:
        """Return whether its rows run along the page's height."""
        matrix = Matrix()
        self._pdfium.FPDFPageObj_GetMatrix(self._thing, byref(matrix))
        return bool(abs(matrix.b) > abs(matrix.a))

    def is_grey(self) -> bool:
        """Return whether it has no colours."""
        return self._data.colours in _GREY

    def finest(self) -> float:
        """Return its pixels per point on the page."""
        across, down = (self.high, self.wide) if self.is_turned() else (self.wide, self.high)
        return max(self.width / across, self.height / down)

    def is_jpeg(self) -> bool:
        """Return whether its data are a JPEG whose samples mean what they say."""
        if self._data.colours not in _DIRECT or self.bits not in (8, 24):
            return False
        return self._pdfium.FPDFImageObj_GetImageFilterCount(self._thing) == 1 and self.filter() == b"DCTDecode"

    def filter(self) -> bytes:
        """Return the name of what packed its data last; empty when nothing did."""
        count = self._pdfium.FPDFImageObj_GetImageFilterCount(self._thing)
        name = ctypes.create_string_buffer(32)
        self._pdfium.FPDFImageObj_GetImageFilter(self._thing, max(0, count - 1), name, 32)
        return name.value

    def raw_bytes(self) -> int:
        """Return how many bytes its data have, as they lie in the file."""
        return int(self._pdfium.FPDFImageObj_GetImageDataRaw(self._thing, None, 0))

    def copy_raw(self, target: Any, size: int) -> None:
        """Copy its data, as they lie in the file."""
        self._pdfium.FPDFImageObj_GetImageDataRaw(self._thing, target, size)


def bounds(pdfium: Any, thing: int) -> tuple[float, float, float, float]:
    """Return left, bottom, right and top of something on a page, in points."""
    sides = [c_float() for _ in range(4)]
    pdfium.FPDFPageObj_GetBounds(thing, *map(byref, sides))
    left, bottom, right, top = (side.value for side in sides)
    return left, bottom, right, top

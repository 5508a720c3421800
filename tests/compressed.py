"""What became of a model that was compressed, with nothing in it but what a test gives."""

import msgspec

from converters.compress import Compressed


def compressed(model: str, **given: object) -> Compressed:
    row = {"layers": 0, "kept": {}, "kernels": {}, "int8_weights": 0, "float_weights": 0, "twin": ""}
    row |= {"error": 0.0, "built": 0.0, "mismatch": 0.0, "errors": {}, "left": {}}
    return msgspec.convert({"model": model, **row, **given}, Compressed)

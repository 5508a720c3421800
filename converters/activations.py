"""Rewrites that recognise an activation function spelled out in elementary operators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from converters.graph import Graph, Links, attribute, become, names, only, result
from converters.passes import affine_of, make_scale, repeat


def fuse_hard_swish(graph: Graph) -> int:
    """Turn x * relu6(x + 3) / 6, divided anywhere, and x * hard_sigmoid(x) into `hard_swish`."""

    def attempt(op: Any, links: Links) -> bool:
        for x, gate in _factors(op):
            factor = _relu6_factor(links.producers, gate, x)
            if factor is not None:
                _become_scaled(graph, op, "hard_swish", x, 6.0 * factor, threshold=6.0, scale=6.0, offset=3.0)
                return True
        return False

    return repeat(graph, attempt)


def _factors(op: Any) -> list[tuple[str, str]]:
    """Return both orders of the operands of a multiplication."""
    x, y = only(op, "X"), only(op, "Y")
    return [(x, y), (y, x)] if op.type == "elementwise_mul" else []


def _relu6_factor(producers: Mapping[str, Any], gate: str, x: str) -> float | None:
    """Return c when `gate` is c * relu6(x + 3), else None."""
    op, factor = producers.get(gate), 1.0
    if op is not None and op.type == "hard_sigmoid":
        return 1 / 6 if only(op, "X") == x and _is_sixth(op) else None
    scaled = affine_of(op)
    if scaled is not None and scaled[1] == 0.0:
        op, factor = producers.get(only(op, "X")), scaled[0]
    if op is None or not _is_relu6(op):
        return None
    before = producers.get(only(op, "X"))
    return factor if affine_of(before) == (1.0, 3.0) and only(before, "X") == x else None


def _is_sixth(op: Any) -> bool:
    """Say whether a `hard_sigmoid` is relu6(x + 3) / 6; its own defaults are not."""
    return _near(attribute(op, "slope", 0.2), 1 / 6) and _near(attribute(op, "offset", 0.5), 0.5)


def _is_relu6(op: Any) -> bool:
    if op.type == "clip":
        fixed = not names(op, "Min") and not names(op, "Max")
        return fixed and (attribute(op, "min"), attribute(op, "max")) == (0.0, 6.0)
    return bool(op.type == "relu6" and attribute(op, "threshold", 6.0) == 6.0)


def fuse_gelu(graph: Graph) -> int:
    """Turn x * (1 + erf(x / sqrt 2)) times any constant into `gelu` and, where it is not one half, a `scale`."""

    def attempt(op: Any, links: Links) -> bool:
        for x, gate in _factors(op):
            base, factor = _unscaled(links.producers, x)
            half = _erf_factor(links.producers, gate, base)
            if half is not None:
                _become_scaled(graph, op, "gelu", base, 2.0 * half * factor, approximate=False)
                return True
        return False

    return repeat(graph, attempt)


def _unscaled(producers: Mapping[str, Any], x: str) -> tuple[str, float]:
    """Return (y, c) with x = c * y."""
    op = producers.get(x)
    affine = affine_of(op)
    return (only(op, "X"), affine[0]) if affine is not None and affine[1] == 0.0 else (x, 1.0)


def _erf_factor(producers: Mapping[str, Any], gate: str, x: str) -> float | None:
    """Return c when `gate` is c * (1 + erf(x / sqrt 2)), else None."""
    after = producers.get(gate)
    affine = affine_of(after)
    erf = producers.get(only(after, "X")) if affine is not None and affine[0] == affine[1] else None
    if affine is None or erf is None or erf.type != "erf":
        return None
    base, factor = _unscaled(producers, only(erf, "X"))
    return affine[0] if base == x and _near(factor, math.sqrt(0.5)) else None


def _near(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=1e-6)


def _become_scaled(graph: Graph, op: Any, kind: str, x: str, factor: float, **attributes: float | bool) -> None:
    """Let `op` be factor * kind(x); what only fed it is left to `drop_unused`."""
    out = result(op)
    if _near(factor, 1.0):
        become(op, kind, {"X": [x]}, {"Out": [out]}, **attributes)
        return
    plain = graph.add_variable(f"{out}.plain", graph.shape(out), like=out)
    first = graph.new_op(kind, {"X": [x]}, {"Out": [plain]}, **attributes)
    make_scale(op, plain, out, factor, 0.0)
    graph.replace(op, [first, op])

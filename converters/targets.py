"""What a bundle of each target is made of: runtime, file names, rewrites and the packages that make it."""

from __future__ import annotations

import msgspec

from converters.activations import fuse_gelu, fuse_hard_swish
from converters.enlarging import convolve_before_enlarging, shuffle_upsampling
from converters.gates import gate_residuals, pool_before_expanding
from converters.passes import (
    Pass,
    constant_reshapes,
    drop_identities,
    drop_unused,
    fold_batch_norm,
    fold_scale_into_consumer,
    fold_scale_into_producer,
    merge_scales,
    scalars_to_scale,
)
from converters.passes_int8 import convolve_last_matmul, part_hard_swish
from converters.passes_x86 import delay_shuffles, shuffle_transposed_convolutions, split_uneven_strides
from converters.pointwise import merge_pointwise

COMMON: tuple[Pass, ...] = (
    drop_identities,
    constant_reshapes,
    scalars_to_scale,
    fuse_hard_swish,
    fuse_gelu,
    drop_unused,
    fold_batch_norm,
    merge_scales,
    fold_scale_into_producer,
    fold_scale_into_consumer,
    gate_residuals,
    pool_before_expanding,
    merge_pointwise,
    drop_identities,
)
X86: tuple[Pass, ...] = (
    *COMMON,
    split_uneven_strides,
    convolve_before_enlarging,
    drop_unused,
    shuffle_upsampling,
    shuffle_transposed_convolutions,
    delay_shuffles,
)
INT8: tuple[Pass, ...] = (*COMMON, convolve_last_matmul)
"""Before scales are found: both machines get the same graph, and so the same integers."""
INT8_X86: tuple[Pass, ...] = (part_hard_swish,)
"""After that, for x86 alone."""


class Plan(msgspec.Struct, frozen=True):
    """How bundles of one target are made.

    Attributes:
        engine: the runtime they are for, a key of `agent.engines.ENGINES`.
        suffixes: of a model's files.
        passes: rewrites of the graph, in order.
        needs: packages to import.
    """

    engine: str
    suffixes: tuple[str, ...]
    passes: tuple[Pass, ...]
    needs: tuple[str, ...]


PLANS: dict[str, Plan] = {
    "x86_64": Plan("paddlelite", (".nb",), X86, ("paddle", "paddlelite")),
    "aarch64": Plan("paddlelite", (".nb",), COMMON, ("paddle", "paddlelite")),
    "portable": Plan("onnxruntime", (".onnx",), COMMON, ("paddle", "paddle2onnx", "onnxruntime")),
    "paddle": Plan("paddle", (".pdmodel", ".pdiparams"), COMMON, ("paddle",)),
}

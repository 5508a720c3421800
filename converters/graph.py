"""The Paddle inference graph: read it, rewrite it so that Paddle Lite runs it fast, write it back.

Every pass finds its pattern by operator type and by how tensors are connected, never by node name, and returns how
often it applied. A pass is an identity in exact arithmetic; `converters.export` proves each conversion by running
source and result on the same inputs.
"""

from __future__ import annotations

import functools
import importlib.util
import struct
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import ConversionError

MODEL_FILE = "inference.pdmodel"
PARAMS_FILE = "inference.pdiparams"

CONVOLUTIONS = ("conv2d", "depthwise_conv2d", "conv2d_transpose")

# framework.proto: VarType.Type and AttrType
_DTYPES = {2: np.dtype(np.int32), 3: np.dtype(np.int64), 5: np.dtype(np.float32)}
_ATTR_FIELDS = {0: "i", 1: "f", 2: "s", 3: "ints", 4: "floats", 5: "strings", 6: "b", 9: "l", 11: "longs"}
_ATTR_TYPES = {"i": 0, "f": 1, "s": 2, "ints": 3, "floats": 4, "strings": 5, "b": 6}


def schema() -> Any:
    """Return Paddle's protobuf module, loaded by its file: importing paddle takes a second and 300 MB.

    Raises:
        ConversionError: paddlepaddle is not installed.
    """
    found = importlib.util.find_spec("paddle")
    if found is None or not found.submodule_search_locations:
        raise ConversionError("paddlepaddle is not installed: pip install paddlepaddle==2.6.2")
    file = Path(found.submodule_search_locations[0], "base", "proto", "framework_pb2.py")
    return _load_module("paddle.base.proto.framework_pb2", file)


@functools.cache
def _load_module(name: str, file: Path) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConversionError(f"{file}: missing; pip install paddlepaddle==2.6.2")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Graph:
    """One block of Paddle operators and its parameters, held in memory and edited in place.

    Attributes:
        program: the `ProgramDesc` protobuf; edited directly because removing operators through Paddle's own
            `Block` interface crashes (paddlepaddle 2.6.2).
        params: parameter name to array.
    """

    def __init__(self, program: Any, params: dict[str, np.ndarray]) -> None:
        self.program = program
        self.params = params

    @classmethod
    def load(cls, directory: Path) -> Graph:
        """Read `inference.pdmodel` and `inference.pdiparams` of a directory.

        Raises:
            ConversionError: a file is missing, is not a Paddle inference model, or has more than one block.
        """
        from google.protobuf.message import DecodeError

        framework_pb2 = schema()

        program = framework_pb2.ProgramDesc()
        try:
            program.ParseFromString((directory / MODEL_FILE).read_bytes())
            if len(program.blocks) != 1 or not program.blocks[0].ops:
                raise ConversionError(f"{directory / MODEL_FILE}: expected one block of operators")
            raw = (directory / PARAMS_FILE).read_bytes()
        except OSError as error:
            raise ConversionError(
                f"{directory}: needs {MODEL_FILE} and {PARAMS_FILE} ({error.strerror}: {error.filename})"
            ) from error
        except DecodeError as error:
            raise ConversionError(f"{directory / MODEL_FILE}: not a Paddle inference program") from error
        names = sorted(v.name for v in program.blocks[0].vars if v.persistable and v.name not in ("feed", "fetch"))
        graph = cls(program, _read_params(raw, names, framework_pb2, directory / PARAMS_FILE))
        graph._check_single_assignment()
        return graph

    def save(self, directory: Path) -> None:
        """Write the graph as `inference.pdmodel` and `inference.pdiparams`; unused variables and parameters go."""
        framework_pb2 = schema()

        used = {name for op in self.ops for name in (*all_inputs(op), *all_outputs(op))} | {"feed", "fetch"}
        kept = [v for v in self.program.blocks[0].vars if v.name in used]
        del self.program.blocks[0].vars[:]
        self.program.blocks[0].vars.extend(kept)
        self.params = {name: value for name, value in self.params.items() if name in used}
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MODEL_FILE).write_bytes(self.program.SerializeToString())
        (directory / PARAMS_FILE).write_bytes(_write_params(self.params, framework_pb2))

    @property
    def ops(self) -> Any:
        """The operators in execution order (a protobuf list)."""
        return self.program.blocks[0].ops

    def shape(self, name: str) -> list[int]:
        """Return a variable's declared shape; -1 where it varies."""
        for var in self.program.blocks[0].vars:
            if var.name == name:
                return list(var.type.lod_tensor.tensor.dims)
        return []

    def inputs(self) -> list[str]:
        """Return the names of the graph's inputs, in order."""
        return [only(op, "Out", out=True) for op in self.ops if op.type == "feed"]

    def outputs(self) -> list[str]:
        """Return the names of the graph's outputs, in order."""
        return [only(op, "X") for op in self.ops if op.type == "fetch"]

    def producers(self) -> dict[str, Any]:
        """Return each variable's producing operator."""
        return {name: op for op in self.ops for name in all_outputs(op)}

    def consumers(self) -> dict[str, list[Any]]:
        """Return each variable's consuming operators, one entry per use."""
        table: dict[str, list[Any]] = defaultdict(list)
        for op in self.ops:
            for name in all_inputs(op):
                table[name].append(op)
        return table

    def add_param(self, name: str, value: np.ndarray) -> str:
        """Add a float32 parameter under a name that is not yet taken and return that name."""
        while name in self.params:
            name += "_"
        template = next(v for v in self.program.blocks[0].vars if v.name in self.params)
        var = self.program.blocks[0].vars.add()
        var.CopyFrom(template)
        var.name = name
        del var.type.lod_tensor.tensor.dims[:]
        var.type.lod_tensor.tensor.dims.extend(value.shape)
        self.params[name] = value.astype(np.float32)
        return name

    def replace_ops(self, kept: Iterable[Any]) -> None:
        """Make `kept` the operators of the graph."""
        copies = []
        for op in kept:
            copy = type(op)()
            copy.CopyFrom(op)
            copies.append(copy)
        del self.ops[:]
        self.ops.extend(copies)

    def remove(self, dead: Sequence[Any]) -> None:
        """Remove operators, told apart by identity of their first output."""
        names = {all_outputs(op)[0] for op in dead}
        self.replace_ops(op for op in self.ops if op.type in ("feed", "fetch") or all_outputs(op)[0] not in names)

    def rename_input(self, old: str, new: str) -> None:
        """Let every consumer of `old` read `new`."""
        for op in self.ops:
            for slot in op.inputs:
                slot.arguments[:] = [new if name == old else name for name in slot.arguments]

    def _check_single_assignment(self) -> None:
        seen: set[str] = set()
        for op in self.ops:
            for name in all_outputs(op):
                if name in seen and name != "fetch":
                    raise ConversionError(f"operator {op.type}: variable {name} is assigned twice; not supported")
                if name not in self.params:
                    seen.add(name)


# ------------------------------------------------------------------------------------------------- operators


def all_inputs(op: Any) -> list[str]:
    """Return every input name of an operator."""
    return [name for slot in op.inputs for name in slot.arguments]


def all_outputs(op: Any) -> list[str]:
    """Return every output name of an operator."""
    return [name for slot in op.outputs for name in slot.arguments]


def names(op: Any, slot: str, *, out: bool = False) -> list[str]:
    """Return the names in one input (or output) slot."""
    for entry in op.outputs if out else op.inputs:
        if entry.parameter == slot:
            return list(entry.arguments)
    return []


def only(op: Any, slot: str, *, out: bool = False) -> str:
    """Return the single name in a slot, or "" when there is not exactly one."""
    found = names(op, slot, out=out)
    return found[0] if len(found) == 1 else ""


def result(op: Any) -> str:
    """Return the name of an operator's main output."""
    return only(op, "Out", out=True) or only(op, "Output", out=True) or only(op, "Y", out=True)


def attribute(op: Any, name: str, default: Any = None) -> Any:
    """Return an attribute's value as a Python value."""
    for attr in op.attrs:
        if attr.name == name:
            value = getattr(attr, _ATTR_FIELDS[attr.type])
            return value if isinstance(value, (int, float, str, bool)) else list(value)
    return default


def set_attribute(op: Any, name: str, field: str, value: Any) -> None:
    """Set or add an attribute; `field` is the protobuf field (`i`, `f`, `b`, `ints` ...)."""
    for attr in list(op.attrs):
        if attr.name == name:
            op.attrs.remove(attr)
    attr = op.attrs.add()
    attr.name = name
    attr.type = _ATTR_TYPES[field]
    if field in ("ints", "floats", "strings"):
        getattr(attr, field).extend(value)
    else:
        setattr(attr, field, value)


def become(op: Any, kind: str, inputs: dict[str, list[str]], outputs: dict[str, list[str]]) -> None:
    """Turn an operator into another type in place, with the attributes every operator must carry.

    PaddleSlim's program clone fails with "Attribute op_role is not found" on operators without them.
    """
    op.type = kind
    del op.inputs[:], op.outputs[:], op.attrs[:]
    for table, slots in ((op.inputs, inputs), (op.outputs, outputs)):
        for parameter, arguments in slots.items():
            slot = table.add()
            slot.parameter = parameter
            slot.arguments.extend(arguments)
    set_attribute(op, "op_role", "i", 0)
    set_attribute(op, "op_role_var", "strings", [])
    set_attribute(op, "op_namescope", "s", "/")
    set_attribute(op, "op_device", "s", "")
    set_attribute(op, "with_quant_attr", "b", False)


def make_scale(op: Any, source: str, target: str, scale: float, bias: float) -> None:
    """Turn an operator into `target = scale * source + bias`."""
    become(op, "scale", {"X": [source], "ScaleTensor": []}, {"Out": [target]})
    set_attribute(op, "scale", "f", scale)
    set_attribute(op, "bias", "f", bias)
    set_attribute(op, "bias_after_scale", "b", True)


def affine_of(op: Any) -> tuple[float, float] | None:
    """Return (scale, bias) of a `scale` operator with constant values, or None."""
    if op.type != "scale" or names(op, "ScaleTensor"):
        return None
    scale, bias = attribute(op, "scale", 1.0), attribute(op, "bias", 0.0)
    return (scale, bias) if attribute(op, "bias_after_scale", True) else (scale, bias * scale)


# ---------------------------------------------------------------------------------------------------- passes


def drop_identities(graph: Graph) -> int:
    """Remove operators that do nothing at inference: `dropout` (upscale in train), `assign`, unit `scale`."""
    dead = [op for op in graph.ops if _is_identity(op) and result(op) not in graph.outputs()]
    for op in dead:
        graph.rename_input(result(op), only(op, "X"))
    graph.remove(dead)
    return len(dead)


def _is_identity(op: Any) -> bool:
    if op.type == "dropout":
        return attribute(op, "dropout_implementation") == "upscale_in_train" and bool(attribute(op, "is_test"))
    return op.type == "assign" or affine_of(op) == (1.0, 0.0)


def constant_reshapes(graph: Graph) -> int:
    """Let `reshape2` use its `shape` attribute where the shape tensors say the same thing.

    Exported attention blocks read one free dimension with shape + slice and rebuild it; the attribute already holds
    -1 there. Removes the operators that only fed the shape.
    """
    producers, changed = graph.producers(), 0
    for op in graph.ops:
        tensors = names(op, "ShapeTensor")
        wanted = attribute(op, "shape", [])
        if op.type != "reshape2" or not tensors or len(tensors) != len(wanted) or wanted.count(-1) != 1:
            continue
        constants = [_constant(producers.get(name)) for name in tensors]
        if all(c is None if w == -1 else c == w for c, w in zip(constants, wanted)) or all(
            w == -1 or c is None or c == w for c, w in zip(constants, wanted)
        ):
            for slot in op.inputs:
                if slot.parameter == "ShapeTensor":
                    del slot.arguments[:]
            changed += 1
    return changed + drop_unused(graph) * 0


def _constant(op: Any) -> int | None:
    """Return the value of a one-element `fill_constant`, or None."""
    if op is None or op.type != "fill_constant" or attribute(op, "shape") != [1]:
        return None
    return int(float(attribute(op, "str_value") or attribute(op, "value")))


def drop_unused(graph: Graph) -> int:
    """Remove operators whose results nobody reads."""
    total = 0
    while True:
        used = set(graph.outputs()) | {name for op in graph.ops for name in all_inputs(op)}
        dead = [op for op in graph.ops if op.type not in ("feed", "fetch") and not used & set(all_outputs(op))]
        if not dead:
            return total
        graph.remove(dead)
        total += len(dead)


def fold_batch_norm(graph: Graph) -> int:
    """Fold `batch_norm` into the convolution before it; the shift becomes a bias added per channel."""
    producers, consumers, count = graph.producers(), graph.consumers(), 0
    for op in graph.ops:
        if op.type != "batch_norm":
            continue
        source = only(op, "X")
        conv = producers.get(source)
        if conv is None or conv.type not in CONVOLUTIONS or len(consumers[source]) != 1 or names(conv, "Bias"):
            continue
        scale, shift = _batch_norm_affine(graph, op)
        _scale_filter(graph, conv, scale)
        _become_bias(graph, op, source, only(op, "Y", out=True), shift)
        count += 1
    return count


def _batch_norm_affine(graph: Graph, op: Any) -> tuple[np.ndarray, np.ndarray]:
    gamma, beta, mean, variance = (graph.params[only(op, slot)] for slot in ("Scale", "Bias", "Mean", "Variance"))
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + attribute(op, "epsilon"))
    return scale, beta - mean * scale


def _scale_filter(graph: Graph, conv: Any, scale: np.ndarray) -> None:
    """Multiply a convolution's filters by one number per output channel."""
    name = only(conv, "Filter")
    weights = graph.params[name].astype(np.float64)
    if conv.type == "conv2d_transpose":  # (in, out / groups, kh, kw)
        groups = attribute(conv, "groups", 1)
        split = weights.reshape(groups, -1, *weights.shape[1:]) * scale.reshape(groups, 1, -1, 1, 1)
        weights = split.reshape(weights.shape)
    else:
        weights = weights * scale.reshape(-1, 1, 1, 1)
    _replace_param(graph, conv, "Filter", weights)


def _replace_param(graph: Graph, op: Any, slot: str, value: np.ndarray) -> None:
    """Give an operator its own changed copy of a parameter, which others may share."""
    name = graph.add_param(only(op, slot) + ".folded", value)
    for entry in op.inputs:
        if entry.parameter == slot:
            entry.arguments[:] = [name]


def _become_bias(graph: Graph, op: Any, source: str, target: str, bias: np.ndarray) -> None:
    name = graph.add_param(target + ".bias", bias)
    become(op, "elementwise_add", {"X": [source], "Y": [name]}, {"Out": [target]})
    set_attribute(op, "axis", "i", 1)


def scalars_to_scale(graph: Graph) -> int:
    """Turn multiplication and addition by a one-element parameter into `scale`.

    Paddle Lite's x86 broadcast kernels spend most of PP-OCRv4's time on these (the learnable affine of LCNetV3).
    """
    count = 0
    for op in graph.ops:
        found = _scalar_operand(graph, op)
        if found is not None:
            source, value = found
            scale, bias = (value, 0.0) if op.type == "elementwise_mul" else (1.0, value)
            make_scale(op, source, result(op), scale, bias)
            count += 1
    return count


def _scalar_operand(graph: Graph, op: Any) -> tuple[str, float] | None:
    """Return (tensor, scalar) of an elementwise operator with a one-element parameter on either side."""
    if op.type not in ("elementwise_mul", "elementwise_add"):
        return None
    x, y = only(op, "X"), only(op, "Y")
    for tensor, param in ((x, y), (y, x)):
        if param in graph.params and graph.params[param].size == 1 and tensor not in graph.params:
            return tensor, float(graph.params[param].reshape(()))
    return None


def merge_scales(graph: Graph) -> int:
    """Merge a `scale` that follows a `scale` into one."""
    count = 0
    while True:
        producers, consumers = graph.producers(), graph.consumers()
        for op in graph.ops:
            outer, first = affine_of(op), producers.get(only(op, "X"))
            inner = affine_of(first) if first is not None else None
            if outer is None or inner is None or len(consumers[result(first)]) != 1:
                continue
            make_scale(op, only(first, "X"), result(op), outer[0] * inner[0], outer[0] * inner[1] + outer[1])
            graph.remove([first])
            count += 1
            break
        else:
            return count


def fold_scale_into_producer(graph: Graph) -> int:
    """Fold a `scale` into the convolution or matmul (with or without a bias) that feeds it."""
    count = 0
    while True:
        producers, consumers = graph.producers(), graph.consumers()
        for op in graph.ops:
            affine = affine_of(op)
            if affine is None or result(op) in graph.outputs():
                continue
            if _fold_back(graph, op, affine, producers, consumers):
                count += 1
                break
        else:
            return count


def _fold_back(graph: Graph, op: Any, affine: tuple[float, float], producers: Any, consumers: Any) -> bool:
    """Fold one `scale` into what is before it; True when that was possible."""
    scale, bias = affine
    source = only(op, "X")
    if len(consumers[source]) != 1:
        return False
    before = producers.get(source)
    add = None
    if before is not None and _bias_name(graph, before):
        add, before = before, producers.get(only(before, "X"))
        if before is None or len(consumers[only(add, "X")]) != 1:
            return False
    if before is None or not _has_weights(graph, before):
        return False
    _scale_weights(graph, before, scale)
    if add is not None:
        _replace_param(graph, add, "Y", graph.params[only(add, "Y")].astype(np.float64) * scale + bias)
        graph.rename_input(result(op), source)
        graph.remove([op])
    elif bias == 0.0:
        graph.rename_input(result(op), source)
        graph.remove([op])
    elif before.type in CONVOLUTIONS:
        _become_bias(graph, op, source, result(op), np.full(_output_channels(graph, before), bias))
    else:
        make_scale(op, source, result(op), 1.0, bias)
        return scale != 1.0
    return True


def _bias_name(graph: Graph, op: Any) -> str:
    """Return the parameter that an `elementwise_add` adds per channel, or ""."""
    name = only(op, "Y")
    return name if op.type == "elementwise_add" and name in graph.params and graph.params[name].ndim == 1 else ""


def _has_weights(graph: Graph, op: Any) -> bool:
    if op.type in CONVOLUTIONS:
        return not names(op, "Bias") and only(op, "Filter") in graph.params
    return op.type == "matmul_v2" and only(op, "Y") in graph.params


def _scale_weights(graph: Graph, op: Any, scale: float) -> None:
    slot = "Filter" if op.type in CONVOLUTIONS else "Y"
    _replace_param(graph, op, slot, graph.params[only(op, slot)].astype(np.float64) * scale)


def _output_channels(graph: Graph, conv: Any) -> int:
    shape = graph.params[only(conv, "Filter")].shape
    return int(shape[1] * attribute(conv, "groups", 1)) if conv.type == "conv2d_transpose" else int(shape[0])


def fold_scale_into_consumer(graph: Graph) -> int:
    """Fold a `scale` into the convolutions that read it.

    The factor always folds. The shift folds only where no zero padding is mixed in: a padded border is zero, not
    the shift. So a `scale` goes only when each consumer is an unpadded convolution, or its shift is zero.
    """
    count = 0
    while True:
        consumers = graph.consumers()
        for op in graph.ops:
            affine = affine_of(op)
            readers = consumers[result(op)] if affine is not None else []
            if not readers or result(op) in graph.outputs():
                continue
            if all(_takes_affine(graph, reader, affine[1], consumers) for reader in readers):
                for reader in readers:
                    _fold_forward(graph, reader, affine, consumers)
                graph.rename_input(result(op), only(op, "X"))
                graph.remove([op])
                count += 1
                break
        else:
            return count


def _takes_affine(graph: Graph, op: Any, bias: float, consumers: Any) -> bool:
    if op.type not in ("conv2d", "depthwise_conv2d") or names(op, "Bias"):
        return False
    if bias == 0.0:
        return True
    after = consumers[result(op)]
    return not any(attribute(op, "paddings")) and len(after) == 1 and bool(_bias_name(graph, after[0]))


def _fold_forward(graph: Graph, conv: Any, affine: tuple[float, float], consumers: Any) -> None:
    scale, bias = affine
    weights = graph.params[only(conv, "Filter")].astype(np.float64)
    if bias:
        add = consumers[result(conv)][0]
        shift = weights.sum(axis=(1, 2, 3)) * bias
        _replace_param(graph, add, "Y", graph.params[only(add, "Y")].astype(np.float64) + shift)
    _replace_param(graph, conv, "Filter", weights * scale)


def gate_residuals(graph: Graph) -> int:
    """Turn x + x * g into x * (g + 1) where g is a squeeze-and-excitation gate of one number per channel.

    One pass over the large tensor instead of two.
    """
    producers, consumers, count = graph.producers(), graph.consumers(), 0
    for op in graph.ops:
        x, y = only(op, "X"), only(op, "Y")
        mul = producers.get(y)
        if op.type != "elementwise_add" or mul is None or mul.type != "elementwise_mul" or len(consumers[y]) != 1:
            continue
        gate = only(mul, "Y")
        if only(mul, "X") != x or gate in graph.params or graph.shape(gate)[2:] != [1, 1]:
            continue
        plus_one = gate + ".plus_one"
        _copy_var(graph, gate, plus_one)
        make_scale(mul, gate, plus_one, 1.0, 1.0)
        become(op, "elementwise_mul", {"X": [x], "Y": [plus_one]}, {"Out": [result(op)]})
        set_attribute(op, "axis", "i", -1)
        count += 1
    return count


def _copy_var(graph: Graph, old: str, new: str) -> None:
    var = graph.program.blocks[0].vars.add()
    var.CopyFrom(next(v for v in graph.program.blocks[0].vars if v.name == old))
    var.name = new


def drop_final_softmax(graph: Graph) -> int:
    """Remove the softmax that only feeds the output: CTC needs the arg max, and the score of a few steps."""
    outputs = graph.outputs()
    dead = [op for op in graph.ops if op.type == "softmax" and result(op) in outputs]
    for op in dead:
        graph.rename_input(result(op), only(op, "X"))
    graph.remove(dead)
    return len(dead)


Pass = Callable[[Graph], int]

PASSES: tuple[Pass, ...] = (
    drop_identities,
    constant_reshapes,
    drop_unused,
    fold_batch_norm,
    scalars_to_scale,
    merge_scales,
    fold_scale_into_producer,
    fold_scale_into_consumer,
    gate_residuals,
)


def rewrite(graph: Graph, passes: Sequence[Pass] = PASSES) -> dict[str, int]:
    """Run the passes in order and return how often each applied."""
    return {p.__name__: p(graph) for p in passes}


# ------------------------------------------------------------------------------------------- parameter file


def _read_params(raw: bytes, order: list[str], schema: Any, path: Path) -> dict[str, np.ndarray]:
    """Parse a combined parameter file: one serialised LoDTensor per persistable variable, sorted by name.

    Layout of each (paddle/fluid/framework/lod_tensor.cc): u32 version, u64 LoD levels, u32 tensor version,
    i32 length, TensorDesc protobuf, raw data.
    """
    params, at = {}, 0
    try:
        for name in order:
            version, levels, tensor_version, length = struct.unpack_from("<IQIi", raw, at)
            if version or levels or tensor_version:
                raise ConversionError(f"{path}: parameter {name} has an unknown layout")
            at += 20
            desc = schema.VarType.TensorDesc()
            desc.ParseFromString(raw[at : at + length])
            at += length
            if desc.data_type not in _DTYPES:
                raise ConversionError(f"{path}: parameter {name} has data type {desc.data_type}, not float32 or int")
            dtype = _DTYPES[desc.data_type]
            count = int(np.prod(desc.dims, dtype=np.int64))
            params[name] = np.frombuffer(raw, dtype, count, at).reshape(tuple(desc.dims)).copy()
            at += count * dtype.itemsize
    except (struct.error, ValueError) as error:
        raise ConversionError(f"{path}: shorter than its program says, or damaged") from error
    if at != len(raw):
        raise ConversionError(f"{path}: holds {len(raw) - at} bytes more than its program says")
    return params


def _write_params(params: dict[str, np.ndarray], schema: Any) -> bytes:
    chunks = []
    numbers = {dtype: number for number, dtype in _DTYPES.items()}
    for name in sorted(params):
        value = np.ascontiguousarray(params[name])
        desc = schema.VarType.TensorDesc(data_type=numbers[value.dtype], dims=value.shape).SerializeToString()
        chunks.append(struct.pack("<IQIi", 0, 0, 0, len(desc)) + desc + value.tobytes())
    return b"".join(chunks)

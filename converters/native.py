"""The native tools: Paddle Lite's optimiser, paddle2onnx and the inference runtimes, each job in a process of its own.

A C++ check that fails aborts the process, and some runtimes print much: here the one becomes a ConversionError with
the last line that was said, and the other is kept quiet. It also makes memory that of one model and one runtime.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.engines import Engine, EngineSettings, Tensor, open_files
from agent.errors import AgentError, BundleError, ConfigError, ConversionError, EngineError, InputError
from converters import child
from converters.child import Progress
from converters.stages import ROOM, room

WARM_RUNS = 2
TIMED_RUNS = 7
TIMEOUT_S = 900
LITE_TARGETS = {"x86_64": "x86", "aarch64": "arm"}
_ROOT = Path(__file__).resolve().parents[1]


def _unseen(done: int, total: int) -> None:
    """Take how far a job is where nobody looks."""


def run(
    job: str, model: str = "", *, timeout_s: float = TIMEOUT_S, progress: Progress = _unseen, **arguments: object
) -> Any:
    """Run a job in a new process and return what it returned (anything JSON can hold).

    Args:
        job: a key of `JOBS`, or "module.function" of another module of the converters.
        model: what to call the model in an error.
        timeout_s: it must be done by then.
        progress: takes what the job says with `child.tell`.
        arguments: of the job.

    Raises:
        ConversionError: the process failed; the message ends with the last line it printed.
        ConfigError: there is no room for what it writes.
        AgentError: as the job itself has raised it.
    """
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "converters.native", job, json.dumps(arguments, default=str)]
    env = {**os.environ, "PYTHONPATH": path, "GLOG_minloglevel": "2"}
    places = [Path(str(arguments["out"])).parent] if "out" in arguments else []
    what = f"{job} {model}".rstrip()
    try:
        ended = child.run(command, env, timeout_s, progress, places)
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"{what}: not done after {timeout_s:g} s") from error
    if ended.status:
        raise _failed(what, ended)
    return json.loads(ended.out)


def _failed(what: str, ended: child.Ended) -> AgentError:
    """Return a job's own error, or one that says how its process died."""
    said = (ended.err.decode(errors="replace").strip().splitlines() or ["no message"])[-1].strip()
    if ended.status in _ERRORS:
        return _ERRORS[ended.status](said)
    if ended.full:
        return ConfigError(f"{what}: {ended.full[0]}: the disk is full: {ROOM}")
    if ended.status == -signal.SIGKILL:
        said = "killed from outside, as happens where memory runs out: close other programs and start again"
    how = f"signal {-ended.status}" if ended.status < 0 else f"status {ended.status}"
    return ConversionError(f"{what}: {said} ({how})")


_ERRORS: dict[int, type[AgentError]] = {
    error.code: error for error in (InputError, EngineError, BundleError, ConfigError, ConversionError)
}


# ------------------------------------------------------------------------------------------------ in the child


def build_lite(
    source: str, out: str, target: str, plan: bool, compacted: bool = False, sparse_from: float = 0.0
) -> None:
    """Write `out`.nb from a directory with a Paddle inference model; the same model gives the same bytes.

    Args:
        source: the directory.
        out: path without `.nb`.
        target: key of `LITE_TARGETS`.
        plan: with the rewritten graph's settings; else as `paddle_lite_opt` does by itself.
        compacted: written again by `storage.compact`.
        sparse_from: share of zeros from which a layer's filters are stored without them, on ARM; 0 for never.
    """
    from converters.nbfile import end_in_zeros
    from converters.storage import compact

    file = Path(f"{out}.nb")
    if plan and target == "x86_64":
        _build_with_memory_plan(source, out)
    else:
        _optimize(source, out, target, "naive_buffer", sparse_from)
    if compacted:
        compact(file)
    else:
        end_in_zeros(file)


def _optimize(source: str, out: str, target: str, kind: str, sparse_from: float) -> None:
    import paddlelite.lite as lite

    opt = lite.Opt()
    opt.set_model_file(f"{source}/inference.pdmodel")
    opt.set_param_file(f"{source}/inference.pdiparams")
    opt.set_valid_places(LITE_TARGETS[target])
    opt.set_model_type(kind)
    opt.set_optimize_out(out)
    if sparse_from:
        opt.set_sparse_model(True)
        opt.set_sparse_threshold(sparse_from)
    opt.run()


def _build_with_memory_plan(source: str, out: str) -> None:
    """Build for x86 with buffers reused.

    Paddle Lite reuses buffers only in `memory_optimize_pass`, which is bound to ARM and OpenCL. A place that no kernel
    satisfies makes the pass run while every kernel picked is x86: det at 640x640 takes 160 MB instead of 380.
    A plain ARM place gives wrong output without a word.
    """
    import paddlelite.lite as lite

    kind, precision = lite.TargetType, lite.PrecisionType
    config = lite.CxxConfig()
    config.set_model_file(f"{source}/inference.pdmodel")
    config.set_param_file(f"{source}/inference.pdiparams")
    config.set_valid_places(
        [
            lite.Place(kind.X86, precision.INT8),
            lite.Place(kind.X86, precision.FP32),
            lite.Place(kind.X86, precision.INT64),
            lite.Place(kind.Host, precision.FP32),
            lite.Place(kind.ARM, precision.FP64, lite.DataLayoutType.ImageNW),
        ]
    )
    lite.create_paddle_predictor(config).save_optimized_model(out)


def list_kernels(source: str, out: str, target: str, sparse_from: float = 0.0) -> list[str]:
    """Return the kernels Paddle Lite picks, as `operator/alias/target/precision/layout` with its numbers.

    `out` becomes a directory with the optimised program; the names are in an attribute of each operator. `sparse_from`
    is that of `build_lite`.
    """
    from converters.framework import schema
    from converters.graph import attribute

    _optimize(source, out, target, "protobuf", sparse_from)
    program = schema().ProgramDesc.FromString(Path(out, "model").read_bytes())
    return [str(attribute(op, "__@kernel_type_attr@__", op.type)) for op in program.blocks[0].ops]


def supported_operators(target: str) -> list[str]:
    """Return the operators Paddle Lite has a kernel for, on the target itself or on any host."""
    import paddlelite.lite as lite

    opt = lite.Opt()
    opt.set_valid_places(LITE_TARGETS[target])
    lines = _printed(opt.print_supported_ops).splitlines()
    head = next(line for line in lines if line.split()[:1] == ["OP_name"])
    columns = [head.index(word) + len(word) for word in head.split()[1:] if word != "kUnk"]
    return [line.split()[0] for line in lines if any(line[end - 1 : end] == "Y" for end in columns)]


def _printed(call: Callable[[], object]) -> str:
    """Return what a C++ function writes to standard output."""
    import tempfile

    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(file.fileno(), 1)
        call()
        os.dup2(kept, 1)
        file.seek(0)
        return file.read().decode("ascii", errors="replace")


def build_onnx(source: str, out: str) -> None:
    """Write an ONNX file from a directory with a Paddle inference model."""
    import paddle2onnx

    paddle2onnx.export(f"{source}/inference.pdmodel", f"{source}/inference.pdiparams", out, opset_version=13)


def infer(engine: str, files: list[str], shapes: list[list[int]], out: str) -> None:
    """Run a model once per shape on `sample_input`, loaded anew each time; outputs go to an `.npz` file in order."""
    outputs = []
    for shape in shapes:
        model = _open(engine, files)
        outputs.append(model.run(sample_input(shape)).copy())  # the engine may hand out its own buffer
        model.close()
    np.savez(out, *outputs)


def refer(source: str, shapes: list[list[int]], out: str) -> None:
    """Run a model as it stands, as `infer` does; operator by operator, with Paddle's plain executor.

    Paddle Inference fuses operators first, and has been seen to give other numbers than the model (`agent.engines`).
    """
    from converters.graph import Graph
    from converters.network import Network

    network = Network(Graph.load(Path(source)))
    np.savez(out, *[network.run(sample_input(shape)) for shape in shapes])


def measure(engine: str, files: list[str], shape: list[int], threads: int = 1) -> dict[str, float]:
    """Return the median time of a run in ms and the process's peak resident memory in MB."""
    model, x, times = _open(engine, files, threads), noise(shape), []
    for _ in range(WARM_RUNS + TIMED_RUNS):
        began = time.perf_counter()
        model.run(x)
        times.append(time.perf_counter() - began)
    return {"ms": statistics.median(times[WARM_RUNS:]) * 1e3, "resident_mb": peak_resident_mb()}


def _open(engine: str, files: list[str], threads: int = 1) -> Engine:
    return open_files(engine, tuple(Path(file) for file in files), EngineSettings(engine=engine, threads=threads))


def peak_resident_mb() -> float:
    """Return this process's peak resident memory in MB.

    Not from `getrusage`: its figure starts at that of the process that started this one (it survives exec).
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def sample_input(shape: Sequence[int]) -> Tensor:
    """Return a float32 input in -1..1, the same each time: noise with a line of drawn text, fainter in each next image.

    Without text a detector answers 0 everywhere and would hide a wrong rewrite. A page full of text would hide it too:
    there the runtimes differ among themselves by up to 1e-4 on the untouched model (float32, steep edges).
    """
    import cv2

    x, (height, width) = noise(shape), shape[2:]
    size = min(height, 48)
    line = np.full((size, min(width, 320)), 220, np.uint8)
    cv2.putText(line, "Total 42.50 EUR No. 17", (4, size * 3 // 4), cv2.FONT_HERSHEY_SIMPLEX, size / 40, 40, 2)
    x[:, :, :size, : line.shape[1]] = line / 127.5 - 1.0
    return x / np.arange(1, shape[0] + 1, dtype=np.float32)[:, None, None, None]


def noise(shape: Sequence[int]) -> Tensor:
    """Return float32 noise in -1..1, the same each time."""
    return np.random.default_rng(7).uniform(-1.0, 1.0, tuple(shape)).astype(np.float32)


JOBS: dict[str, Callable[..., Any]] = {
    job.__name__: job for job in (build_lite, list_kernels, supported_operators, build_onnx, infer, refer, measure)
}


def _elsewhere(job: str) -> Callable[..., Any]:
    module, function = job.split(".")
    found: Callable[..., Any] = getattr(importlib.import_module(f"converters.{module}"), function)
    return found


def main(job: str, arguments: str) -> None:
    """Do one job; its result is the only thing on standard output."""
    child.end_with_parent()
    answer = os.dup(1)
    os.dup2(2, 1)  # the native libraries print where they like
    given = json.loads(arguments)
    try:
        with room(given.get("out", job)):
            result = (JOBS.get(job) or _elsewhere(job))(**given)
    except AgentError as error:
        print(f"\n{' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(int(error.code))
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    os.write(answer, json.dumps(result).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])

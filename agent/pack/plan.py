"""What a package is made of, and which engine is in it. Whatever does not fit is said before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from agent.bundle import ModelBundle
from agent.config import AgentConfig, load
from agent.errors import PackageError

TARGETS = ("aarch64", "x86_64")
PYTHONS = ("3.10", "3.11")

Engine = Literal["onnxruntime", "paddlelite", "binding"]
NAMES: dict[Engine, str] = {
    "onnxruntime": "ONNX Runtime",
    "paddlelite": "Paddle Lite (Python package)",
    "binding": "Paddle Lite (native binding)",
}


class Order(msgspec.Struct, frozen=True):
    """What was asked for.

    Attributes:
        target: processor, as `platform.machine()` names it.
        python: "3.10" or "3.11".
        bundle: directory of the models.
        config: settings for a new box; None for the sample's.
        lite_lib: release archive of Paddle Lite's library; None for none.
        wheel: wheel of Paddle Lite's Python package; None for none.
    """

    target: str
    python: str
    bundle: Path
    config: Path | None = None
    lite_lib: Path | None = None
    wheel: Path | None = None


class Plan(msgspec.Struct, frozen=True):
    """What a package will be.

    Attributes:
        order: what was asked for.
        bundle: the verified models.
        engine: what runs them.
    """

    order: Order
    bundle: ModelBundle
    engine: Engine


def make(order: Order) -> Plan:
    """Return what the package will be.

    Raises:
        BundleError: the bundle is damaged, or for another processor.
        ConfigError: the settings are wrong.
        PackageError: no engine in the package could run the bundle.
    """
    bundle = ModelBundle.load(order.bundle, machine=order.target)
    engine = choose(order, set(bundle.manifest.det.files))
    if order.config is not None:
        load(order.config, AgentConfig, check_files=False)
    return Plan(order, bundle, engine)


def choose(order: Order, runs_on: set[str]) -> Engine:
    """Return the engine of a package.

    Args:
        order: what was asked for.
        runs_on: engines that the bundle has files for.

    Raises:
        PackageError: none of them can be in the package.
    """
    if order.lite_lib is not None and order.wheel is not None:
        raise PackageError("--lite-lib and --wheel are two ways to the same engine: name one")
    given = "--lite-lib" if order.lite_lib is not None else "--wheel" if order.wheel is not None else ""
    if "paddlelite" in runs_on:
        return _lite(order)
    if given:
        raise PackageError(
            f"{order.bundle}: not for Paddle Lite, so {given} has no use: convert --target {order.target}"
        )
    if "onnxruntime" not in runs_on:
        raise PackageError(f"{order.bundle}: for {' and '.join(sorted(runs_on))}: convert --target portable")
    return "onnxruntime"


def _lite(order: Order) -> Engine:
    """Return in which way Paddle Lite comes into the package."""
    if order.lite_lib is not None:
        return "binding"
    if order.wheel is not None:
        return "paddlelite"
    if order.target == "x86_64":
        return "paddlelite" if order.python == "3.10" else "binding"
    raise PackageError(
        f"{order.bundle}: for Paddle Lite, which has no package for {order.target}: name its C++ library with"
        " --lite-lib (inference_lite_lib.armlinux.armv8.gcc....tar.gz of its releases) or a wheel with --wheel, or"
        " take a portable bundle, which runs on ONNX Runtime: edge-ocr convert ... --target portable"
    )

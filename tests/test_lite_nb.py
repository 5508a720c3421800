"""What Paddle Lite would end the process over is told before it sees the file."""

from __future__ import annotations

import platform
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import EngineError
from agent.lite.nb import check_model
from converters import native
from scripts import write_selftest
from tests.small_graphs import small_recognizer

HERE = platform.machine()
SELFTEST = {name: (write_selftest.PLACE / f"selftest-{name}.nb").read_bytes() for name in ("x86_64", "aarch64")}


@pytest.mark.parametrize("machine", SELFTEST)
def test_model_for_this_processor_passes(machine):
    check_model(SELFTEST[machine], machine)


@pytest.mark.parametrize("model", ["det", "rec", "cls"])
def test_models_of_a_bundle_pass(bundle, model):
    check_model(bundle.path / f"{model}.nb", "x86_64")


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ("x86_64", "made for aarch64, this machine is x86_64: convert with --target x86_64"),
        ("riscv64", "made for aarch64, this machine is riscv64"),
    ],
)
def test_model_for_another_processor_is_told_by_it(machine, message):
    with pytest.raises(EngineError, match=message):
        check_model(SELFTEST["aarch64"], machine)


def test_every_shortened_model_is_refused(tmp_path):
    path = tmp_path / "short.nb"
    for length in range(len(SELFTEST[HERE])):
        path.write_bytes(SELFTEST[HERE][:length])
        with pytest.raises(EngineError, match=r"short\.nb: "):
            check_model(path, HERE)


@given(st.binary(max_size=300))
def test_bytes_of_no_model_are_refused(content):
    with pytest.raises(EngineError):
        check_model(content, HERE)


@given(st.integers(0, 25), st.integers(0, 255))
def test_a_changed_head_never_raises_anything_else(at, value):
    changed = bytearray(SELFTEST[HERE])
    changed[at] = value
    try:
        check_model(bytes(changed), HERE)
    except EngineError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (0, "<H", 1, "layout 1, not 2"),
        (18, "<Q", 1 << 60, f"a program of {1 << 60} bytes"),
        (18, "<Q", 0, "damaged"),
    ],
)
def test_refusal_says_what_is_wrong(at, form, value, message):
    changed = bytearray(SELFTEST[HERE])
    struct.pack_into(form, changed, at, value)
    with pytest.raises(EngineError, match=message):
        check_model(bytes(changed), HERE)


def test_number_of_parameters_is_bounded():
    changed = bytearray(SELFTEST[HERE])
    (length,) = struct.unpack_from("<Q", changed, 18)
    struct.pack_into("<H", changed, 26 + length + 6, 0xFFFF)
    with pytest.raises(EngineError, match="damaged"):
        check_model(bytes(changed), HERE)


def test_more_bytes_than_the_parts_take_are_refused():
    with pytest.raises(EngineError, match="where its parts take"):
        check_model(SELFTEST[HERE] + b"\0", HERE)


def test_missing_file_is_told(tmp_path):
    with pytest.raises(EngineError, match=r"gone\.nb: No such file"):
        check_model(tmp_path / "gone.nb", HERE)


def test_models_that_libraries_are_tried_with_are_those_of_the_script():
    made = write_selftest.models()
    assert {name: made[f"selftest-{name}.nb"] for name in SELFTEST} == SELFTEST
    assert max(map(len, SELFTEST.values())) < 4096


def test_models_for_arm_pass_for_arm(tmp_path):
    small_recognizer().save(tmp_path / "source")
    for target, other in (("aarch64", "x86_64"), ("x86_64", "aarch64")):
        how = {"source": tmp_path / "source", "out": tmp_path / target, "target": target, "plan": False}
        native.run("build_lite", **how)
        check_model(tmp_path / f"{target}.nb", target)
        with pytest.raises(EngineError, match=f"made for {target}"):
            check_model(tmp_path / f"{target}.nb", other)

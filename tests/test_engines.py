"""Every engine gives the same numbers whatever shapes it was given before, and none is imported unasked."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agent import engines
from agent.bundle import ModelBundle
from agent.engines import ENGINES, EngineSettings, choose_engine, open_engine, open_files
from agent.errors import BundleError, EngineError
from agent.lite.processor import is_amd_with_avx2
from tests.command import Ran, run, run_python
from tests.conftest import BUILD, built
from tests.lite_kit import both

BUNDLES = {
    "paddlelite": "ppocr-v4-x86_64-fp32",
    "onnxruntime": "ppocr-v4-portable-fp32",
    "paddle": "ppocr-v4-paddle-fp32",
}


NATIVE = "paddlelite by the native binding"


@pytest.fixture(scope="module", params=[*ENGINES, NATIVE])
def followed(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What one engine did with random shapes, in a process of its own."""
    name, env = request.param, None
    if name == NATIVE:
        name, env = "paddlelite", {**os.environ, "EDGE_OCR_LITE": str(request.getfixturevalue("lite_build"))}
    if name == "paddle" and not (BUILD / BUNDLES[name]).exists():
        pytest.skip("no bundle for Paddle Inference: edge-ocr convert models/ppocr-v4.toml --target paddle")
    bundle, portable = built(BUNDLES[name]), built(BUNDLES["onnxruntime"])
    ran = run((sys.executable, "-m", "tests.engine_contract", name, bundle, portable), env)
    assert ran.status == 0, ran.err
    assert "native binding is not used" not in ran.err
    return {"engine": name, **json.loads(ran.out.splitlines()[-1])}


@pytest.mark.parametrize("model", ["det", "rec", "cls"])
def test_any_sequence_of_shapes_gives_the_numbers_of_the_reference(followed, model):
    off, shape = followed[model]["worst"]
    assert off < 1e-4, f"{model} at {shape}"
    assert followed[model]["peak"] > 0.9  # there was something to find


@pytest.mark.parametrize("model", ["det", "rec", "cls"])
def test_outputs_outlive_later_runs_and_the_engine(followed, model):
    assert followed[model]["outputs_are_kept"]


def test_gpu_is_refused_with_advice_where_there_is_none(followed):
    if followed["engine"] == "paddle":
        assert followed["gpu"].startswith("EngineError: device = gpu: this paddlepaddle has no CUDA; install")


def test_unknown_engine_is_named_beside_the_known_ones(bundle):
    with pytest.raises(
        EngineError, match="engine 'tensorflow' is unknown; one of auto, paddlelite, onnxruntime, paddle"
    ):
        choose_engine(bundle, "tensorflow")


@pytest.mark.parametrize("wanted", ["onnxruntime", "paddle"])
def test_engine_that_the_bundle_is_not_for_is_refused(bundle, wanted):
    with pytest.raises(EngineError, match=f"holds no model for {wanted}, only for paddlelite"):
        open_engine(bundle, "det", EngineSettings(wanted))


def test_model_that_the_bundle_lacks_is_refused(portable):
    small = ModelBundle(
        portable.path, msgspec.structs.replace(portable.manifest, cls=None), portable.characters, portable.digest
    )
    with pytest.raises(BundleError, match="holds no cls model"):
        open_engine(small, "cls", EngineSettings())


def test_auto_takes_what_the_bundle_holds(bundle, portable):
    assert choose_engine(bundle, "auto") == "paddlelite"
    assert choose_engine(portable, "auto") == "onnxruntime"


def test_auto_prefers_paddle_lite(portable):
    assert choose_engine(both(portable), "auto") == "paddlelite"


def blocked(module: str, statement: str, bundle: Path) -> Ran:
    """Run a statement in an interpreter where a runtime is not installed."""
    return run_python(
        "import sys; from pathlib import Path\n"
        f"sys.modules[{module!r}] = None\n"
        "from agent.bundle import ModelBundle; from agent.errors import EngineError\n"
        "from agent.engines import EngineSettings, choose_engine, open_engine\n"
        "bundle = ModelBundle.load(Path(sys.argv[1]))\n"
        "try:\n"
        f"    print({statement})\n"
        "except EngineError as error:\n"
        "    print(error)\n",
        bundle,
    )


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("paddlelite", "pip install paddlelite==2.13rc0"),
        ("onnxruntime", "pip install onnxruntime"),
        ("paddle", "pip install paddlepaddle"),
    ],
)
def test_missing_runtime_is_an_error_that_names_what_to_install(name, advice):
    if not (BUILD / BUNDLES[name]).exists():
        pytest.skip(f"no bundle for {name}")
    bundle = built(BUNDLES[name])
    asked = blocked(name, f"open_engine(bundle, 'det', EngineSettings({name!r}))", bundle)
    chosen = blocked(name, "choose_engine(bundle, 'auto')", bundle)
    for ran in (asked, chosen):
        assert (ran.status, ran.err) == (0, "")
        assert ran.out.count("\n") == 1
    assert advice in asked.out
    assert f"{bundle}: runs on {name}, which is not installed: pip install" in chosen.out


def test_auto_takes_the_next_engine_where_the_first_is_missing(portable_path):
    imported = "__import__('tests.lite_kit').lite_kit.both(bundle)"
    assert blocked("paddlelite", f"choose_engine({imported}, 'auto')", portable_path).out == "onnxruntime\n"


def test_damaged_model_is_refused_in_one_line(tmp_path):
    (tmp_path / "det.onnx").write_bytes(os.urandom(1000))
    with pytest.raises(EngineError, match=r"^onnxruntime cannot load .*det\.onnx: ") as refusal:
        open_files("onnxruntime", (tmp_path / "det.onnx",), EngineSettings())
    assert "\n" not in str(refusal.value)


def opened(bundle: Path, env: dict[str, str]) -> str:
    """Return OMP_NUM_THREADS as Paddle Lite finds it at its first load."""
    ran = run_python(
        "import os, sys; from pathlib import Path\n"
        "from agent.bundle import ModelBundle; from agent.engines import EngineSettings, open_engine\n"
        "open_engine(ModelBundle.load(Path(sys.argv[1])), 'det', EngineSettings('paddlelite', threads=1))\n"
        "assert 'paddlelite' in sys.modules\n"
        "print(os.environ['OMP_NUM_THREADS'])",
        bundle,
        env=env,
    )
    return ran.out.strip() or ran.err


def test_paddle_lite_is_loaded_with_one_thread(bundle_path):
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    assert opened(bundle_path, clean) == "1"


@pytest.mark.parametrize("native", [False, True])
def test_paddle_lite_is_not_given_a_shape_that_it_dies_of(bundle_path, lite_build, native):
    ran = run_python(
        "import sys; from pathlib import Path; import numpy as np\n"
        "from agent.bundle import ModelBundle; from agent.engines import EngineSettings, open_engine\n"
        "from agent.errors import EngineError\n"
        "engine = open_engine(ModelBundle.load(Path(sys.argv[1])), 'det', EngineSettings('paddlelite'))\n"
        "for shape in ((3, 32, 32), (1, 4, 32, 32), (1, 3, 32, 32, 1), ()):\n"
        "    try: engine.run(np.zeros(shape, np.float32))\n"
        "    except EngineError as error: print(error)\n"
        "print(engine.run(np.zeros((1, 3, 32, 32), np.float32)).shape)\n",
        bundle_path,
        env={**os.environ, "EDGE_OCR_LITE": str(lite_build) if native else "off"},
    )
    assert ran.status == 0, ran.err
    *refused, shape = ran.out.splitlines()
    assert len(refused) == 4 and all("where (N, 3, H, W) is taken" in line for line in refused)
    assert shape == "(1, 1, 32, 32)"


@pytest.mark.parametrize("name", ["paddlelite", "onnxruntime"])
def test_one_thread_is_one_thread_whatever_the_environment_says(name):
    # Libraries may make more, but those must not compute anything: their processor time stays nought.
    ran = run_python(
        "import os, sys; from pathlib import Path; import numpy as np\n"
        "from agent.bundle import ModelBundle; from agent.engines import EngineSettings, open_engine\n"
        "def ticks():\n"
        "    tasks = {task: open(f'/proc/self/task/{task}/stat').read() for task in os.listdir('/proc/self/task')}\n"
        "    return {int(task): sum(map(int, text.rsplit(')', 1)[1].split()[11:13])) for task, text in tasks.items()}\n"
        "engine = open_engine(ModelBundle.load(Path(sys.argv[1])), 'det', EngineSettings(threads=1))\n"
        "engine.run(np.zeros((1, 3, 640, 640), np.float32))\n"
        "before = ticks()\n"
        "for _ in range(4): engine.run(np.zeros((1, 3, 640, 640), np.float32))\n"
        "for task, count in ticks().items(): print(task == os.getpid(), count - before.get(task, 0))\n",
        built(BUNDLES[name]),
        env={**os.environ, "OMP_NUM_THREADS": "4"},
    )
    ticks = [(main == "True", int(count)) for main, count in (row.split() for row in ran.out.splitlines())]
    (own,) = [count for main, count in ticks if main]
    assert own > 10, ran.err
    assert sum(count for main, count in ticks if not main) <= 1


@pytest.mark.parametrize(("machine", "passed"), [("aarch64", 3), ("x86_64", 1)])
def test_library_spreads_a_model_over_threads_on_arm_only(monkeypatch, machine, passed):
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(engines.binding, "open_library", lambda: SimpleNamespace(machine=machine))
    monkeypatch.setattr(engines.binding, "Predictor", lambda *_, **how: asked.append(how))
    loader = engines._Native(EngineSettings(threads=3, power_mode="high"))
    loader(Path("det.nb"))
    assert asked == [{"threads": passed, "power_mode": "high", "checked": True}]
    assert loader.uses_threads == (machine == "aarch64")


AMD = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9B14\nflags\t\t: fpu sse4_2 avx avx2 fma\n"


@pytest.mark.parametrize(
    ("cpuinfo", "is_amd"),
    [
        (AMD, True),
        (AMD.replace("avx2", "avx"), False),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), False),
        ("processor : 0\nBogoMIPS : 108.00\nFeatures : fp asimd\n", False),
        ("", False),
    ],
)
def test_amd_processors_that_can_take_the_faster_kernels_are_told(cpuinfo, is_amd):
    assert is_amd_with_avx2(cpuinfo) is is_amd

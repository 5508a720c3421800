"""Several processes give what one gives; a dead helper costs time and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.engines import EngineSettings
from agent.mate import Crew
from tests.command import ROOT, run


@pytest.fixture(scope="module")
def told(bundle_path: Path) -> dict[str, Any]:
    ran = run((sys.executable, "-m", "tests.crew_program", bundle_path))
    assert ran.status == 0, ran.err
    return json.loads(ran.out.splitlines()[-1]) | {"complaints": ran.err}


def test_one_thread_starts_no_process(told):
    assert (told["alone"]["size"], told["alone"]["helpers"]) == (1, 0)


def test_three_processes_give_what_one_gives(told):
    assert (told["three"]["size"], told["three"]["helpers"]) == (3, 2)
    assert told["three"]["results"] == told["again"]["results"] == told["alone"]["results"]


def test_results_are_there(told):
    maps, readings = told["alone"]["results"][:4], told["alone"]["results"][4:8]
    assert all(max(map(max, one)) > 128 for one in maps)
    assert any("青石巷" in text for text, _ in readings)


@pytest.mark.parametrize("when", ["one killed", "both killed"])
def test_killed_helpers_leave_their_work_to_the_others(told, when):
    assert told[when]["results"] == told["alone"]["results"]


def test_each_dead_helper_is_told_once(told):
    assert (told["one killed"]["left"], told["both killed"]["left"]) == (2, 1)
    assert told["complaints"].count("a second process died (status -9)") == 2


def test_memory_is_that_of_all_processes(told):
    assert told["three"]["resident_mb"] > told["three"]["own_mb"] + 60


def test_closing_leaves_no_process_behind(told):
    assert told["closed"]["helpers"] == 0


def test_engine_with_threads_of_its_own_needs_no_second_process(portable):
    crew = Crew(portable, EngineSettings(threads=2))
    assert crew.size == 1
    crew.close()


def test_helper_ends_with_its_master(bundle_path):
    code = (
        "import sys, time; from pathlib import Path; from agent.bundle import ModelBundle\n"
        "from agent.engines import EngineSettings; from agent.mate import Crew\n"
        "crew = Crew(ModelBundle.load(Path(sys.argv[1])), EngineSettings(threads=2)); print('up', flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, bundle_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as master:
        try:
            assert master.stdout.readline() == b"up\n"
            (helper,) = psutil.Process(master.pid).children()
        finally:
            master.kill()
        helper.wait(10)
        assert master.stderr.read() == b""

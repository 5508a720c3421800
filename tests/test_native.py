import os
import signal
import subprocess
import sys
import time

import pytest

from agent.errors import ConfigError, ConversionError, EngineError, InputError
from converters import child, native
from tests.command import ROOT, environment


class Jobs:
    """Jobs of a module of the converters' package that exists in the children only."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, source):
        """Make `jobs.job` a job that does this."""
        body = "\n".join(f"    {line}" for line in source.splitlines())
        head = "import os, sys, time, pathlib\nfrom agent import errors\nfrom converters import child\n"
        text = f"{head}\ndef job(**given):\n{body}\n"
        (self.folder / "jobs.py").write_text(text, encoding="utf-8")

    def run(self, source, **arguments):
        self.write(source)
        return native.run("jobs.job", "det", **arguments)


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(f"import converters\nconverters.__path__.append({str(tmp_path)!r})\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    return Jobs(tmp_path)


def test_a_job_returns_what_it_returned_whatever_it_prints(jobs):
    noise = "print('x' * 200_000); os.write(1, b'raw'); sys.stderr.write('y' * 200_000)\n"
    assert jobs.run(noise + "return {'given': given['a']}", a=[1, "二"]) == {"given": [1, "二"]}


def test_a_job_says_how_far_it_is(jobs):
    seen = []
    source = "return [item for item in child.counted('abc')]"
    assert jobs.run(source, progress=lambda *step: seen.append(step)) == ["a", "b", "c"]
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_steps_that_take_longer_and_longer_count_for_more(jobs):
    seen = []
    jobs.run("return list(child.counted('abc', grows=2))", progress=lambda *step: seen.append(step))
    assert seen == [(0, 14), (1, 14), (5, 14), (14, 14)]


def test_much_progress_does_not_stop_a_job(jobs):
    assert jobs.run("return [child.tell(i, 50_000) for i in range(50_000)][:1]") == [None]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_listener_that_fails_does_not_stop_a_job(jobs):
    def fail(done, total):
        raise ValueError("broken")

    assert jobs.run("return [child.tell(i, 50_000) for i in range(50_000)][:1]", progress=fail) == [None]


def test_a_job_that_nobody_listens_to_says_nothing():
    assert list(child.counted([1, 2])) == [1, 2]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (EngineError, "errors.EngineError('no font: apt install x')"),
        (InputError, "errors.InputError('no font: apt install x')"),
        (ConversionError, "errors.ConversionError('no font: apt install x')"),
        (ConfigError, "errors.ConfigError('no font: apt install x')"),
        (ConversionError, "errors.FrameError('why', 'no font: apt install x')"),
    ],
)
def test_an_error_of_the_project_arrives_as_it_was_raised(jobs, kind, error):
    with pytest.raises(kind, match=r"^no font: apt install x$"):
        jobs.run(f"sys.stderr.write('unfinished'); raise {error}")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise ValueError('odd\\nshape')", r"^jobs.job det: ValueError: odd shape \(status 1\)$"),
        ("raise KeyError('x')", r"^jobs.job det: KeyError: 'x' \(status 1\)$"),
        ("os.kill(os.getpid(), 11)", r"^jobs.job det: no message \(signal 11\)$"),
        ("os.kill(os.getpid(), 9)", r"^jobs.job det: killed from outside, .* memory runs out: .* \(signal 9\)$"),
    ],
)
def test_other_failures_name_the_job_and_the_last_line(jobs, source, said):
    with pytest.raises(ConversionError, match=said):
        jobs.run(source)


def test_a_job_that_takes_too_long_is_ended(jobs, tmp_path):
    note = tmp_path / "note"
    with pytest.raises(ConversionError, match=r"jobs\.job det: not done after 1\.5 s"):
        jobs.run("pathlib.Path(given['note']).write_text(str(os.getpid())); time.sleep(60)", note=note, timeout_s=1.5)
    assert not is_running(int(note.read_text()))


def test_a_full_disk_is_said_whether_python_notices_or_a_library_dies(jobs, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"^/some/file: No space left on device: make room"):
        jobs.run("raise OSError(28, 'No space left on device')", out="/some/file")
    monkeypatch.setattr(child, "_is_full", lambda place: place == tmp_path)
    with pytest.raises(ConfigError, match=rf"^jobs.job det: {tmp_path}: the disk is full: make room"):
        jobs.run("os.abort()", out=tmp_path / "det")
    with pytest.raises(ConversionError, match="signal 6"):
        jobs.run("os.abort()", out=tmp_path / "other" / "det")


def test_a_disk_is_full_when_next_to_nothing_is_free(tmp_path, monkeypatch):
    assert not child._is_full(tmp_path)
    assert not child._is_full(tmp_path / "none")
    usage = child.shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(child.shutil, "disk_usage", lambda place: usage)
    assert child._is_full(tmp_path)


def test_temporary_files_of_a_job_that_dies_are_removed(jobs):
    with pytest.raises(ConversionError) as caught:
        jobs.run("import tempfile; sys.stderr.write(tempfile.mkdtemp()); sys.stderr.flush(); os.kill(os.getpid(), 11)")
    made = str(caught.value).split()[2]
    assert "edge-ocr-" in made
    assert not os.path.exists(made)


# ------------------------------------------------------------------------------------------------ orphans


def is_running(pid):
    """Return whether a process exists and has not ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(found, timeout_s=30.0):
    """Return what a function returns once that is true."""
    end = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.02)
    return value


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_job_ends_with_the_process_that_waits_for_it(jobs, tmp_path, number):
    note = tmp_path / "note"
    jobs.write("pathlib.Path(given['note']).write_text(str(os.getpid())); time.sleep(60)")
    program = "import sys; from converters import native; native.run('jobs.job', note=sys.argv[1])"
    command = [sys.executable, "-c", program, str(note)]
    env = environment(tmp_path / "cache", PYTHONPATH=os.environ["PYTHONPATH"], TMPDIR=str(tmp_path))
    parent = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    job = int(wait_for(lambda: note.exists() and note.read_text()))
    assert is_running(job)
    parent.send_signal(number)  # to the parent alone, as a service manager does
    assert parent.wait(10) != 0
    wait_for(lambda: not is_running(job), 5.0)

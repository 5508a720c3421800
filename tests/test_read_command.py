"""`edge-ocr read`, run for real: what a user, a script and a pipe see."""

from __future__ import annotations

import difflib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image

from agent.errors import ExitCode
from tests import bad_inputs as bad
from tests.command import EDGE_OCR, ROOT, Ran, environment, run, run_python, run_watched
from tests.print_pages import a4, missing, photographed, save_large

SAMPLES = ROOT / "samples"
ROW_KEYS = {"schema", "image", "width", "height", "lines", "seconds", "timings_ms", "bundle", "direction"}
MODEL_START_MB = 150  # a process that has loaded the models and decoded nothing large stays below


@pytest.fixture(scope="session")
def env(cache: Path, bundle_path: Path) -> dict[str, str]:
    return environment(cache, EDGE_OCR_BUNDLE=str(bundle_path))


def read(env: dict[str, str], *arguments: str | Path, cwd: Path = ROOT) -> Ran:
    return run((*EDGE_OCR, "read", *arguments), env, cwd)


class Read(NamedTuple):
    """What a run over several pages gave, its peak memory, and the folder with overlays."""

    ran: Ran
    peak_mb: float
    overlays: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.ran.rows


@pytest.fixture(scope="module")
def samples(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Read:
    """What reading the samples gives."""
    out = tmp_path_factory.mktemp("out")
    overlays = out / "made" / "here"
    return Read(
        *run_watched((*EDGE_OCR, "read", "samples", "--json", "--overlay", overlays), env, out / "note"), overlays
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small page that is read quickly."""
    path = tmp_path_factory.mktemp("page") / "page.png"
    bad.page().save(path)
    return path


def texts(row: dict[str, Any]) -> list[str]:
    return [line["text"] for line in row["lines"]]


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two rows say the same, but for a few signs: tiles and runtimes make small differences."""
    a, b = ("".join("".join(texts(row)).split()) for row in (one, other))
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() > 0.97


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bad.BadInput, ...]]:
    directory = tmp_path_factory.mktemp("bad") / "inputs"
    yield bad.write_all(directory)
    bad.remove(directory)


@pytest.fixture(scope="module")
def everything(env: dict[str, str], inputs: tuple[bad.BadInput, ...], tmp_path_factory: pytest.TempPathFactory) -> Read:
    """All hostile inputs in one process, a writer waiting at the FIFO."""
    fifo = next(one.path for one in inputs if one.name == "fifo")
    note = tmp_path_factory.mktemp("note") / "note"
    code = "import sys; print('ready', flush=True); open(sys.argv[1], 'wb')"
    with subprocess.Popen([sys.executable, "-c", code, fifo], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout.readline() == b"ready\n"
            ran, peak_mb = run_watched((*EDGE_OCR, "read", "--json", "--", *(one.path for one in inputs)), env, note)
            assert writer.poll() is None, "the FIFO was opened"
        finally:
            writer.kill()
    return Read(ran, peak_mb, note)


@pytest.fixture
def row_of(everything: Read, inputs: tuple[bad.BadInput, ...]) -> dict[str, dict[str, Any]]:
    """The rows of the hostile inputs by their names."""
    return dict(zip((one.name for one in inputs), everything.rows, strict=True))


# -------------------------------------------------------------------------------------------------- samples


def test_samples_are_read(samples):
    assert (samples.ran.status, samples.ran.err) == (0, "")
    assert [row["image"] for row in samples.rows] == ["samples/form.png", "samples/photo.jpg", "samples/receipt.png"]


def test_rows_have_the_promised_fields(samples):
    for row in samples.rows:
        assert set(row) == ROW_KEYS
        assert row["schema"] == 1 and row["bundle"] == "ppocr-v4-1-x86_64-fp32"
        with Image.open(ROOT / row["image"]) as image:
            assert (row["width"], row["height"]) == image.size
        assert row["seconds"] > 0 and {"decode", "det", "rec"} <= set(row["timings_ms"])
        for line in row["lines"]:
            assert set(line) == {"text", "score", "quad", "box_score"}
            assert 0.5 <= line["score"] <= 1 and line["text"].strip()
            assert all(0 <= x <= row["width"] and 0 <= y <= row["height"] for x, y in line["quad"])
            assert len(line["quad"]) == 4


def test_labelled_lines_of_the_samples_are_found_where_they_are(samples):
    labels = [json.loads(row) for row in (SAMPLES / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = {Path(row["image"]).name: row for row in samples.rows}
    for page in labels:
        read_there = rows[page["image"]]["lines"]
        found = sum(any(_same(label, line) for line in read_there) for label in page["lines"])
        assert found >= 0.8 * len(page["lines"]), page["image"]


def _same(label: dict[str, Any], line: dict[str, Any]) -> bool:
    x, y = np.mean(label["box"], axis=0)
    inside = cv2.pointPolygonTest(np.array(line["quad"], np.float32), (float(x), float(y)), measureDist=False) >= 0
    return inside and "".join(label["text"].split()) == "".join(line["text"].split())


def test_receipt_is_read_from_its_top_with_prices_beside_their_items(samples):
    lines = texts(samples.rows[2])
    assert lines[0] == bad.TEXT
    milk = next(n for n, text in enumerate(lines) if "鲜牛奶" in text)
    assert lines[milk + 1 : milk + 3] == ["2", "25.60"]


def test_direction_of_a_turned_page_is_told(samples):
    assert [row["direction"] for row in samples.rows] == [0, 270, 0]


def test_overlays_are_drawn_into_a_folder_that_is_made(samples):
    assert sorted(path.name for path in samples.overlays.iterdir()) == [
        "form.png.boxes.jpg",
        "photo.jpg.boxes.jpg",
        "receipt.png.boxes.jpg",
    ]
    assert all(cv2.imread(str(path)) is not None for path in samples.overlays.iterdir())


def test_samples_take_no_more_memory_than_allowed(samples):
    assert samples.peak_mb <= 250


def test_text_is_plain_lines(env, page):
    ran = read(env, page)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines()[:2] == [bad.TEXT, "QINGSHI LANE GROCERY"]


def test_texts_of_several_files_have_headings(env, page):
    ran = read(env, "--text", page, page)
    lines = ran.out.splitlines()
    assert lines[:2] == [f"==> {page} <==", bad.TEXT]
    at = lines.index(f"==> {page} <==", 1)
    assert (lines[at - 1], lines[at + 1]) == ("", bad.TEXT)


def test_two_cores_read_what_one_reads(env, samples):
    ran = read(env, "samples/receipt.png", "--json", "--threads", "2", "--memory-mb", "400")
    assert (ran.status, ran.err) == (0, "")
    assert alike(ran.rows[0], samples.rows[2])


def test_portable_bundle_reads_the_same(env, samples, portable_path):
    ran = read(env, "samples/receipt.png", "--json", "--bundle", portable_path)
    assert (ran.status, ran.err) == (0, "")
    assert ran.rows[0]["bundle"] == "ppocr-v4-1-portable-fp32"
    assert alike(ran.rows[0], samples.rows[2])


# -------------------------------------------------------------------------------------------- hostile inputs


def test_every_input_gives_exactly_one_row(everything, inputs):
    assert len(everything.rows) == len(inputs)
    assert everything.ran.status == ExitCode.SOME_FAILED


@pytest.mark.parametrize("name", [case[0] for case in bad.CASES])
def test_input_is_answered_as_the_table_says(row_of, inputs, name):
    one, row = next(one for one in inputs if one.name == name), row_of[name]
    if one.skip:
        pytest.skip(one.skip)
    if one.expect == "refused":
        of_path = one.reason in ("missing", "special", "permission")
        assert row["reason"] == ("input" if of_path else one.reason)
        assert texts(row) == [] and row["width"] == 0
        return
    assert "error" not in row
    if one.expect == "blank":
        assert texts(row) == []
    else:
        assert texts(row)[0] == bad.TEXT
        assert (row["width"], row["height"]) == (380, 300)


def test_every_refusal_is_one_line_and_nothing_else_is_said(everything):
    refused = [row for row in everything.rows if "error" in row]
    assert everything.ran.err.splitlines() == [f"edge-ocr: {row['error']}" for row in refused]


def test_refusals_name_the_file(everything):
    for row in everything.rows:
        assert "error" not in row or row["error"].startswith(row["image"].replace("\n", "\\n"))


def test_many_inputs_take_no_more_memory_than_allowed(everything):
    assert everything.peak_mb <= 250


def test_folder_that_contains_itself_is_read_once(env, inputs):
    loop = next(one.path for one in inputs if one.name == "loop")
    (row,) = read(env, "--json", loop).rows
    assert row["image"] == str(loop / "page.png")


@pytest.mark.parametrize("name", ["bomb", "giant-jpeg"])
def test_bomb_is_refused_without_growing(env, inputs, tmp_path, name):
    path = next(one.path for one in inputs if one.name == name)
    ran, peak_mb = run_watched((*EDGE_OCR, "read", "--json", path), env, tmp_path / "note")
    assert ran.status == ExitCode.DATA
    assert peak_mb < MODEL_START_MB


# --------------------------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def scan() -> tuple[Image.Image, Any]:
    return a4(600)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a4_at_600_dpi_is_read_in_250_mb_small_print_and_all(env, tmp_path, scan, suffix):
    page, written = scan
    assert page.size == (4961, 7016)
    path = save_large(page, tmp_path / f"a4.{suffix}")
    ran, peak_mb = run_watched((*EDGE_OCR, "read", "--json", "--memory-mb", "250", path), env, tmp_path / "note")
    assert (ran.status, ran.err) == (0, "")
    assert (ran.rows[0]["width"], ran.rows[0]["height"]) == page.size
    assert missing(written, ran.rows) == []
    assert peak_mb <= 250


def test_photo_of_12_megapixels_is_read_in_250_mb_small_print_and_all(env, tmp_path):
    page, written = a4(300)
    path = tmp_path / "photo.jpg"
    cv2.imwrite(str(path), photographed(page, (3000, 4000)), [cv2.IMWRITE_JPEG_QUALITY, 90])
    ran, peak_mb = run_watched((*EDGE_OCR, "read", "--json", "--memory-mb", "250", path), env, tmp_path / "note")
    assert (ran.status, ran.err) == (0, "")
    assert missing(written, ran.rows) == []
    assert peak_mb <= 250


def test_page_beyond_the_budget_is_refused_with_the_budget_it_needs(env, tmp_path):
    header = bad.png_header(14_000, 14_000)
    (tmp_path / "a.png").write_bytes(header + bad.png_chunk(b"IDAT", b"") + bad.png_chunk(b"IEND", b""))
    ran = read(env, "--json", tmp_path / "a.png")
    assert ran.status == ExitCode.DATA
    assert ran.rows[0]["reason"] == "memory" and "raise --memory-mb or memory.limit_mb by" in ran.err


# --------------------------------------------------------------------------------------- pipes and processes


def test_results_stream_as_they_come(env, page):
    command = [*EDGE_OCR, "read", "--json", *[page] * 5]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, cwd=ROOT) as reading:
        first = json.loads(reading.stdout.readline())
        assert reading.poll() is None
        assert first["lines"]
        assert len(reading.stdout.readlines()) == 4
    assert reading.returncode == 0


@pytest.mark.parametrize("form", ["--json", "--text"])
def test_pipe_that_closes_early_ends_it_quietly(env, page, form):
    command = [*EDGE_OCR, "read", form, *[page] * 6]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=ROOT) as reading:
        assert reading.stdout.readline()
        reading.stdout.close()
        assert reading.stderr.read() == b""
    assert reading.returncode == 0


@pytest.mark.parametrize("threads", ["1", "2"])
def test_interrupt_ends_it_with_130_and_no_traceback(env, page, threads):
    command = [*EDGE_OCR, "read", "--json", "--memory-mb", "400", "--threads", threads, *[page] * 60]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=ROOT, start_new_session=True
    ) as reading:
        assert reading.stdout.readline()
        helpers = psutil.Process(reading.pid).children()
        assert len(helpers) == int(threads) - 1
        os.killpg(reading.pid, signal.SIGINT)  # as a terminal does
        assert b"Traceback" not in reading.stderr.read()
        assert reading.wait(10) == ExitCode.INTERRUPTED
        assert not [helper for helper in helpers if helper.is_running()]


def test_dead_second_process_costs_a_warning_and_no_page(env, page):
    command = [*EDGE_OCR, "read", "--json", "--memory-mb", "400", "--threads", "2", *[page] * 4]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=ROOT) as reading:
        first = json.loads(reading.stdout.readline())
        (helper,) = psutil.Process(reading.pid).children()
        helper.kill()
        rest = [json.loads(row) for row in reading.stdout.readlines()]
        assert b"Traceback" not in reading.stderr.read()
    assert reading.returncode == 0
    assert len(rest) == 3 and all(alike(row, first) for row in rest)


def test_closed_standard_error_is_no_matter(env, page):
    shut = 'exec 2>&-; exec "$@"'
    ran = run(("sh", "-c", shut, "sh", *EDGE_OCR, "read", page, "missing.png"), env)
    assert ran.status == ExitCode.SOME_FAILED
    assert bad.TEXT in ran.out


@pytest.mark.parametrize("threads", ["1", "2"])
def test_it_runs_from_anywhere(env, tmp_path, threads):
    # Also beside a folder that is called as its own package is.
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "__init__.py").write_text("raise SystemExit('another agent')")
    bad.page().save(tmp_path / "page.png")
    command = Path(sys.executable).with_name("edge-ocr")
    clean = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    ran = run((command, "read", "--memory-mb", "400", "--threads", threads, "page.png"), clean, tmp_path)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines()[0] == bad.TEXT


# ---------------------------------------------------------------------------------------------- exit statuses


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty.png").touch()
    return tmp_path / "empty.png"


def test_blank_page_is_a_result_without_lines(env, tmp_path):
    Image.new("L", (800, 600), 255).save(tmp_path / "a.png")
    ran = read(env, "--text", tmp_path / "a.png")
    assert (ran.status, ran.out.strip(), ran.err) == (0, "", "")


def test_some_unread_pages_are_status_1(env, page, empty):
    ran = read(env, "--json", empty, page)
    assert ran.status == ExitCode.SOME_FAILED == 1
    assert [("error" in row) for row in ran.rows] == [True, False]


def test_no_page_in_the_data_is_status_65(env, empty):
    assert read(env, empty).status == ExitCode.DATA == 65


def test_missing_file_is_status_66(env):
    ran = read(env, "missing.png")
    assert ran.status == ExitCode.NO_INPUT == 66
    assert ran.err == "edge-ocr: missing.png: No such file or directory\n"


def test_folder_without_pictures_is_status_66(env, tmp_path):
    (tmp_path / "notes.txt").touch()
    ran = read(env, tmp_path)
    assert ran.status == ExitCode.NO_INPUT
    assert ran.err == f"edge-ocr: no pictures below {tmp_path}\n"


def test_missing_bundle_is_status_74_with_advice(env, tmp_path):
    ran = read(env, "samples/receipt.png", "--bundle", tmp_path)
    assert ran.status == ExitCode.BUNDLE == 74
    assert ran.err.count("\n") == 1 and "make a bundle with `edge-ocr convert`" in ran.err


def test_unknown_engine_is_status_69(env):
    ran = read(env, "samples/receipt.png", "--engine", "tensorflow")
    assert ran.status == ExitCode.UNAVAILABLE == 69
    assert ran.err.count("\n") == 1


def test_too_small_a_limit_is_status_75_and_the_advised_one_suffices(env, page):
    ran = read(env, page, "--memory-mb", "100")
    assert ran.status == ExitCode.TEMPORARY == 75
    assert ran.err.count("\n") == 1
    advised = ran.err.split("give ")[1].split(" MB")[0]
    assert read(env, page, "--memory-mb", str(int(advised) + 3)).out.splitlines()[0] == bad.TEXT


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--memory-mb", "99", "a.png"),
        ("--threads", "0", "a.png"),
        ("--colour", "a.png"),
        ("--memory-mb", "x", "a.png"),
    ],
)
def test_wrong_options_are_status_2(env, arguments):
    ran = read(env, *arguments)
    assert (ran.status, ran.out) == (ExitCode.USAGE, "")
    assert "Usage: edge-ocr read" in ran.err


def test_overlay_folder_that_cannot_be_made_is_status_78(env, empty):
    ran = read(env, "samples/receipt.png", "--overlay", empty / "below")
    assert ran.status == ExitCode.CONFIG == 78
    assert ran.err.startswith("edge-ocr: --overlay ") and ran.err.count("\n") == 1


def test_defect_of_ours_is_status_70_and_not_that_of_pages(env, tmp_path):
    # A module that cannot be imported stands for anything unforeseen.
    (tmp_path / "cv2.py").write_text("raise RuntimeError('unforeseen')")
    ran = run((*EDGE_OCR, "read", "samples/receipt.png"), {**env, "PYTHONPATH": f"{tmp_path}:{env['PYTHONPATH']}"})
    assert ran.status == ExitCode.SOFTWARE == 70
    assert "unforeseen" in ran.err


def test_one_thread_is_one_thread(env):
    # numpy's OpenBLAS and OpenMP would have one for each core.
    code = (
        "import os, sys; from agent.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print(len(os.listdir('/proc/self/task')))"
    )
    free = {name: value for name, value in env.items() if name != "OPENBLAS_NUM_THREADS"}
    ran = run_python(code, "read", SAMPLES / "receipt.png", "--threads", "1", env=free)
    assert ran.out.splitlines()[-1] == "1"


def test_settings_of_an_agent_say_how_it_reads(env, tmp_path, portable_path):
    env = dict(env)
    settings = tmp_path / "agent.toml"
    del env["EDGE_OCR_BUNDLE"]

    def configured(limit_mb: int, min_score: float) -> Ran:
        settings.write_text(
            f'device = "box"\n[reader]\nbundle = "{portable_path}"\nmin_score = {min_score}\n'
            f"[memory]\nlimit_mb = {limit_mb}\n"
        )
        return read(env, "agent/pack/sample.png", "--json", "-c", settings)

    ran = configured(300, 0.55)
    assert [len(row["lines"]) for row in ran.rows] == [10], ran.err
    assert ran.rows[0]["bundle"].endswith("portable-fp32")
    assert len(configured(300, 0.999).rows[0]["lines"]) < 10
    ran = configured(128, 0.55)
    assert (ran.status, ran.out) == (75, "") and "a memory limit of 128 MB is too small" in ran.err

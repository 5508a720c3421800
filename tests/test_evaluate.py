import json
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import AgentError, ConfigError, EngineError, ExitCode, InputError
from converters import bench, evaluate
from converters.bench import Contest, Peer, bench_command, check_peers, find_sets
from converters.evaluate import Run, evaluate_command, figures, run_reader, table
from converters.peer import found_lines
from converters.scores import Line, Page, edits, fold, load_labels, score
from converters.tables import aligned
from tests.command import run_python

SQUARE = ((0.0, 0.0), (100.0, 0.0), (100.0, 20.0), (0.0, 20.0))


def at(x, y):
    return ((x - 1, y - 1), (x + 1, y - 1), (x + 1, y + 1), (x - 1, y + 1))


def one(label, *lines):
    """Score one page with one label against lines as read."""
    return score([Page("a", (label,))], {"a": Page("a", lines)})


# ------------------------------------------------------------------------------------------- scores


def test_case_width_and_spaces_do_not_count():
    assert fold(" ＡＢ c\t１ ") == "abc1"
    assert one(Line("Total ４２"), Line("TOTAL42")).char_f1 == 1.0


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("收银", "收很", 1), ("ab", "ba", 2)],
)
def test_edit_distances(a, b, distance):
    assert edits(a, b) == edits(b, a) == distance


def naive_edits(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(naive_edits(a[1:], b) + 1, naive_edits(a, b[1:]) + 1, naive_edits(a[1:], b[1:]) + (a[0] != b[0]))


@given(st.text("ab", max_size=5), st.text("ab", max_size=5))
def test_edit_distance_equals_its_definition(a, b):
    assert edits(a, b) == naive_edits(a, b)


def test_characters_count_as_often_as_they_stand_there_in_any_order():
    scores = one(Line("aab"), Line("ba"), Line("c"))
    assert scores.char_f1 == pytest.approx(2 * 2 / (3 + 3))


def test_characters_of_one_page_do_not_help_another():
    labels = [Page("a", (Line("x"),)), Page("b", (Line("y"),))]
    assert score(labels, {"a": Page("a", (Line("y"),)), "b": Page("b", (Line("x"),))}).char_f1 == 0.0


def test_a_line_is_found_inside_a_longer_one_but_not_across_two():
    assert one(Line("42.50"), Line("Total 42.50 EUR")).line_recall == 1.0
    assert one(Line("42.50"), Line("42."), Line("50")).line_recall == 0.0


def test_labels_without_text_count_nowhere():
    scores = one(Line("  ", box=SQUARE), Line("x"))
    assert (scores.line_recall, scores.car) == (0.0, None)


def test_text_in_a_box_is_joined_left_to_right_and_text_outside_is_not():
    lines = Line("cd", quad=at(80, 10)), Line("ab", quad=at(20, 10)), Line("zz", quad=at(20, 40))
    assert one(Line("abcd", box=SQUARE), *lines).car == 1.0


def test_car_is_one_less_the_edits_per_character_and_never_below_zero():
    assert one(Line("abcd", box=SQUARE), Line("abxd", quad=at(50, 10))).car == pytest.approx(0.75)
    assert one(Line("ab", box=SQUARE), Line("uvwxyz", quad=at(50, 10))).car == 0.0
    assert one(Line("ab", box=SQUARE)).car == 0.0


def test_a_missing_page_counts_as_empty_and_its_time_as_nothing():
    labels = [Page("a", (Line("xy"),)), Page("b", (Line("xy"),))]
    scores = score(labels, {"a": Page("a", (Line("xy"),), seconds=0.5)})
    assert (scores.missing, scores.images, scores.total_s) == (1, 2, 0.5)
    assert scores.char_f1 == pytest.approx(2 * 2 / (4 + 2))


def test_percentiles_are_of_the_sorted_times():
    labels = [Page(str(i)) for i in range(20)]
    scores = score(labels, {str(i): Page(str(i), seconds=float(19 - i)) for i in range(20)})
    assert (scores.p50_s, scores.p95_s, scores.total_s) == (10.0, 19.0, 190.0)


def test_labels_that_are_not_labels_are_named_by_line(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"image": "a.png", "lines": [{"text": "x", "box": null}]}\n\n{"lines": []}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"labels\.jsonl:3: not .*`image`"):
        load_labels(path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no labelled page"):
        load_labels(path)
    with pytest.raises(InputError, match="No such file"):
        load_labels(tmp_path / "none.jsonl")


# ------------------------------------------------------------------------------------------- runs


def program(code):
    return [sys.executable, "-c", code]


def test_a_run_keeps_rows_and_time():
    run = run_reader(program('for i in "ab": print(\'{"image": "%s", "lines": [], "seconds": 0.1}\' % i)'))
    assert [page.image for page in run.pages] == ["a", "b"]
    assert 0 < run.first_s < 30


def test_a_run_keeps_its_peak_memory():
    # In a process of its own: a child's peak begins at its parent's size, and pytest's is large.
    reader = 'x = bytearray(300 << 20); print(\'{"image": "a", "lines": [], "seconds": 0.1}\')'
    measure = "import sys; from converters.evaluate import run_reader; print(run_reader(sys.argv[1:]).peak_mb)"
    ran = run_python(measure, *program(reader))
    assert 300 < float(ran.out) < 400, ran.err


def test_a_reader_that_fails_is_an_error_with_its_last_line_and_its_status():
    with pytest.raises(AgentError, match=r"edge-ocr: no bundle \(status 74\)") as caught:
        run_reader(program("import sys; sys.stderr.write('noise\\nedge-ocr: no bundle\\n'); sys.exit(74)"))
    assert caught.value.code == ExitCode.BUNDLE


def test_a_reader_that_dies_is_an_error():
    with pytest.raises(AgentError, match=r"status -9"):
        run_reader(program("import os; os.kill(os.getpid(), 9)"))


def test_a_run_in_which_some_pages_failed_counts():
    assert run_reader(program("import sys; sys.exit(1)")).pages == ()


def test_a_page_with_an_error_is_missing(tmp_path):
    labels = [Page("a.png", (Line("x"),)), Page("b.png", (Line("x"),))]
    pages = Page(f"{tmp_path}/a.png", (Line("x"),), 0.5), Page(f"{tmp_path}/b.png", error="damaged")
    row = figures("reader", tmp_path / "labels.jsonl", labels, Run(pages, 1.0, 100.0))
    assert (row.scores.missing, row.pages_per_s) == (1, 2.0)
    assert "2 (-1)" in table([row])[1]


def test_columns_of_a_table_are_aligned():
    assert aligned([("a", "bb"), ("ccc", "d")]) == ["a    bb", "ccc  d"]


# ------------------------------------------------------------------------------------------- commands


def labelled(folder):
    folder.mkdir(parents=True)
    (folder / "labels.jsonl").write_text('{"image": "a.png", "lines": [{"text": "x"}]}\n', encoding="utf-8")
    return folder


def test_sets_are_a_folder_or_the_folders_in_it(tmp_path):
    labelled(tmp_path / "data" / "one")
    labelled(tmp_path / "data" / "two")
    assert list(find_sets(tmp_path / "data", [])) == ["one", "two"]
    assert list(find_sets(tmp_path / "data", ["two"])) == ["two"]
    assert list(find_sets(tmp_path / "data" / "one", [])) == ["one"]
    with pytest.raises(ConfigError, match=r"--sets three: not in .*one, two"):
        find_sets(tmp_path / "data", ["three"])
    with pytest.raises(InputError, match=r"labels\.jsonl"):
        find_sets(tmp_path, [])


def test_a_peer_that_is_not_installed_says_how_to_install_it(tmp_path):
    with pytest.raises(EngineError, match="run `make bench`, or use --no-peers"):
        check_peers([Peer("RapidOCR", "rapidocr", tmp_path / "bin" / "python")])


class Box:
    """What RapidOCR's newest answers."""

    boxes, txts, scores = [at(5, 5)], ["x"], [0.5]


class Blank:
    boxes = txts = scores = None


@pytest.mark.parametrize(
    ("package", "result", "texts"),
    [
        ("rapidocr", Box, ["x"]),
        ("rapidocr", Blank, []),
        ("rapidocr_onnxruntime", ([(at(5, 5), "x", "0.5")], [0.1]), ["x"]),
        ("rapidocr_onnxruntime", (None, None), []),
    ],
)
def test_both_answers_of_rapidocr_become_the_same_rows(package, result, texts):
    rows = found_lines(package, result)
    assert [row["text"] for row in rows] == texts
    assert all(row["score"] == 0.5 and row["quad"][0] == [4.0, 4.0] for row in rows)


def fake_read(images, seconds):
    rows = [json.dumps({"image": str(image), "lines": [{"text": "x"}], "seconds": seconds}) for image in images]
    return program(f"print({chr(10).join(rows)!r})")


@pytest.fixture
def fakes(monkeypatch):
    """Readers that answer at once: only what is done with the answers is tested here."""
    manifest = type("Bundle", (), {"label": "fake-1"})
    for module in (bench, evaluate):
        monkeypatch.setattr(module.ModelBundle, "load", lambda path: manifest)
        monkeypatch.setattr(module, "model_bytes", lambda bundle: (4_900_000, 10_900_000))
        monkeypatch.setattr(module, "read_command", lambda images, bundle, threads: fake_read(images, 0.25))


def test_evaluate_shows_bundles_side_by_side_and_writes_json(tmp_path, fakes):
    labels, out = labelled(tmp_path / "set") / "labels.jsonl", tmp_path / "out.json"
    arguments = [str(labels), "--bundle", "one", "--bundle", "two", "--json", str(out)]
    done = CliRunner().invoke(evaluate_command, arguments, catch_exceptions=False)
    assert [line.split()[0] for line in done.output.splitlines()] == ["reader", "one", "two"]
    assert [row["pages_per_s"] for row in msgspec.json.decode(out.read_bytes())] == [4.0, 4.0]


def test_bench_reads_each_set_with_everyone_in_turn(tmp_path, fakes, monkeypatch):
    labelled(tmp_path / "data" / "one")
    labelled(tmp_path / "data" / "two")
    order = []
    monkeypatch.setattr(bench, "check_peers", lambda peers: None)
    monkeypatch.setattr(
        bench, "model_times", lambda contest, peer: [bench.ModelTime("det", [1, 3, 8, 8], 1.0, 2.0, 0.5)]
    )
    monkeypatch.setattr(Peer, "command", lambda peer, *a: order.append(peer.name) or fake_read(a[4:], 0.5))
    out = tmp_path / "build" / "bench.json"
    done = CliRunner().invoke(
        bench_command, ["--data", str(tmp_path / "data"), "--output", str(out)], catch_exceptions=False
    )
    report = msgspec.json.decode(out.read_bytes())
    assert order[:4] == ["RapidOCR, PP-OCRv4", "RapidOCR, newest"] * 2
    assert [row["name"] for row in report["sets"]["two"]] == ["edge-ocr", "RapidOCR, PP-OCRv4", "RapidOCR, newest"]
    assert report["models"][0]["ratio"] == 0.5
    assert "0.50" in done.output


def test_bench_without_peers_needs_no_other_environment(tmp_path, fakes):
    labelled(tmp_path / "one")
    out = tmp_path / "bench.json"
    arguments = ["--data", str(tmp_path / "one"), "--no-peers", "--output", str(out)]
    CliRunner().invoke(bench_command, arguments, catch_exceptions=False)
    first = msgspec.json.decode(out.read_bytes())["first_result_s"]
    assert {name: list(times) for name, times in first.items()} == {"one": ["edge-ocr"]}


def test_a_contest_tells_the_peer_threads_warm_up_and_pictures():
    peer = Peer("RapidOCR", "rapidocr", Path("python"))
    command = Contest(Path("bundle"), 2, (peer,)).command("RapidOCR", [Path("a.png")], warm=True)
    assert command[2:] == ["read", "rapidocr", "2", "1", "a.png"]

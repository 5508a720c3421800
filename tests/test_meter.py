import io

import pytest

from converters.meter import LINE_EVERY_S, Meter, told_time


class Stream(io.StringIO):
    """A terminal, or a file."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


class Clock:
    """Time that passes when a test says so."""

    now = 0.0

    def __call__(self):
        return self.now


def shown(terminal, steps, rest_s=0.0, total=10):
    """Return what is written when a stage says at each of some seconds how much is done."""
    stream, clock = Stream(terminal), Clock()
    meter = Meter(stream, clock)
    meter.begin("round rec", rest_s)
    for clock.now, done in steps:
        meter.show(done, total)
    meter.end()
    return stream.getvalue()


def test_a_terminal_gets_one_line_that_is_written_anew_and_removed():
    text = shown(True, [(1, 0), (5, 2), (6, 3)])
    lines = text.split("\r\033[K")
    assert lines == ["", "round rec        20%       about 15 s left", "round rec        30%       about 10 s left", ""]
    assert "\n" not in text


def test_a_file_gets_a_line_now_and_then():
    text = shown(False, [(second, second // 10) for second in range(0, 100, 10)])
    assert LINE_EVERY_S == 30
    assert text.splitlines() == [
        "round rec        30%       about 1 min left",
        "round rec        60%       about 40 s left",
        "round rec        90%       about 10 s left",
    ]
    assert "\r" not in text


def test_a_short_stage_shows_nothing():
    assert shown(True, [(0, 0), (1, 5), (2.9, 10)]) == ""
    assert shown(False, [(0, 0), (15, 5), (29, 10)]) == ""


def test_loading_before_the_first_step_is_not_taken_for_work():
    assert "about 5 s left" in shown(True, [(60, 0), (61, 2)])


def test_what_all_stages_still_take_is_said_where_it_is_known():
    assert "about 15 s left, about 5 min for all stages" in shown(True, [(1, 0), (5, 2)], rest_s=300)


def test_nothing_is_said_of_a_time_before_anything_is_done():
    assert shown(True, [(0, 0), (60, 0)]) == ""


def test_a_terminal_that_is_gone_stops_nothing():
    stream, clock = Stream(True), Clock()
    meter = Meter(stream, clock)
    meter.begin("a", 0.0)
    meter.show(0, 10)
    stream.close()
    clock.now = 10.0
    meter.show(5, 10)
    meter.end()


def test_a_line_is_no_longer_than_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert shown(True, [(1, 0), (5, 2)]) == "\r\033[Kround rec        20\r\033[K"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "about 5 s"),
        (42, "about 40 s"),
        (57, "about 1 min"),
        (89, "about 1 min"),
        (1000, "about 17 min"),
        (9000, "about 2 h"),
    ],
)
def test_times_are_said_as_guesses(seconds, told):
    assert told_time(seconds) == told

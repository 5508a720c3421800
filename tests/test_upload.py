"""Files sent over HTTP: answered when they are read and kept, refused with a reason otherwise, never lost between."""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import socket
import sqlite3
import stat
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import health
from agent.config import AgentConfig
from agent.errors import ConfigError, FrameError
from agent.page import Frame, PageResult
from agent.source_config import UploadConfig
from agent.sources.upload import connection, front, listener, openapi
from agent.sources.upload.body import ENDINGS
from agent.sources.upload.source import UploadSource
from tests import pdf_files
from tests.broker import free_port
from tests.folder_programs import numbered_png
from tests.sources_contract import BentClock, SourceContract, drained
from tests.stub_worker import CRASHES, FAILS
from tests.upload_kit import (
    LONG_NUMBER,
    TOKEN,
    Desk,
    Later,
    NumberReader,
    Process,
    Reply,
    ask,
    connected,
    picture,
    raw,
    read,
    send,
    wait,
)

READING = health.WorkerState(pid=1, at_ms=0, started_ms=0)


class UploadRig:
    """An upload source without a worker: who sends a page is told soon that it is read later."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.clock = BentClock()
        self.source: UploadSource | None = None

    def open(self) -> UploadSource:
        if self.source is not None:
            self.source.close()
        config = UploadConfig(
            name="desk", listen=f"unix:{self.home}/socket", when_done="keep", timeout_s=0.05, max_per_minute=100_000
        )
        self.source = UploadSource(config, AgentConfig(device="a", state_dir=str(self.home)), self.clock)
        self.source.heed(READING)
        return self.source

    def put(self, number: int) -> None:
        assert read(f"unix:{self.home}/socket", numbered_png(number)).reason == "late"

    def settle(self) -> None:
        """A page is offered at once."""


@pytest.fixture
def rig(tmp_path):
    made = UploadRig(tmp_path)
    yield made
    if made.source is not None:
        made.source.close()


class TestContract(SourceContract):
    """Uploads are a source."""

    def test_closing_gives_every_descriptor_back(self, rig):
        rig.open().close()  # what the first start alone opens
        rig.source = None
        before = len(os.listdir("/proc/self/fd"))
        source = rig.open()
        rig.put(1)
        (capture,) = drained(source, rig)
        source.done(capture, FrameError("damaged", "damaged"))
        source.tidy()
        source.close()
        rig.source = None
        assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_watched_wakes_when_a_file_came(rig):
    source = rig.open()
    rig.put(1)
    assert select.select(source.filenos(), [], [], 0)[0]
    assert source.poll() is not None
    assert not select.select(source.filenos(), [], [], 0)[0]


@pytest.fixture
def made(tmp_path):
    """Return what makes a worker with some settings; all are ended after the test."""
    desks: list[Desk] = []

    def make(home: Path = tmp_path, **settings) -> Desk:
        desks.append(Desk(home, **settings).start())
        return desks[-1]

    yield make
    for desk in desks:
        desk.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A worker for tests that leave it as it was."""
    desk = Desk(tmp_path_factory.mktemp("shared"), max_mb=1).start()
    yield desk
    desk.stop()


# ------------------------------------------------------------------------------------------------ answers


def test_page_is_answered_as_it_is_kept(made, tmp_path):
    desk = made()
    reply = desk.read(picture(tmp_path, 7))
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    (row,) = desk.rows()
    assert reply.json == {"key": row["key"], "kept": True, "pages": [row]}
    assert [line["text"] for line in row["lines"]] == ["page-00000007", "Card **** **** **** ***0 123"]
    assert (row["source"], row["image"]) == ("desk", "upload.png")
    wait(lambda: desk.files() == [])


def test_whole_text_is_answered_where_that_is_set_and_masked_where_it_is_kept(made, tmp_path):
    desk = made(masked=False, when_done="keep")
    assert LONG_NUMBER in desk.read(picture(tmp_path, 7), idempotency_key="a").body.decode()
    assert LONG_NUMBER not in json.dumps(desk.rows())
    wait(lambda: "done/upload.png" in desk.files())


def test_page_that_is_not_to_be_kept_leaves_nothing(made, tmp_path):
    desk = made(when_done="keep")
    reply = desk.read(picture(tmp_path, 7), "/v1/read?store=0", idempotency_key="a")
    assert reply.json["kept"] is False
    assert reply.json["pages"][0]["lines"][0]["text"] == "page-00000007"
    wait(lambda: desk.files() == [])
    assert desk.rows() == []
    with desk.outbox() as outbox:
        assert outbox.intake(reply.json["key"]) is None
    assert desk.read(b"no picture", "/v1/read?store=0").status == 422
    wait(lambda: desk.files() == [])
    with closing(sqlite3.connect(desk.home / "state" / "outbox.db")) as database:
        assert database.execute("SELECT count(*) FROM intake").fetchone() == (0,)


def form(*parts: tuple[str, str, bytes]) -> bytes:
    """Return a form; parts with a file name are files."""
    told = b""
    for name, file, content in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
        told += f"--b\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return told + b"--b--\r\n"


FORM = {"content_type": "multipart/form-data; boundary=b"}


def test_file_of_a_form_is_read_and_known_by_its_name(shared, tmp_path):
    sent = form(("branch", "", b"7"), ("file", "../Scheck Müller.PNG", picture(tmp_path, 3)))
    (page,) = shared.read(sent, **FORM).json["pages"]
    assert (page["image"], page["lines"][0]["text"]) == ("Scheck Müller.PNG", "page-00000003")


@pytest.mark.parametrize("name", ["x.part", ".hidden", "..", "a" * 300, "a/b\\c.png", "~$x", "\x01.png", "nul\x00.png"])
def test_name_of_a_file_is_made_fit(shared, tmp_path, name):
    reply = shared.read(form(("file", name, picture(tmp_path, 3))), **FORM)
    assert reply.status == 200
    assert len(reply.json["pages"][0]["image"]) <= 100


@pytest.mark.parametrize("size", [1, 100, 100_000])
def test_body_in_chunks_is_read(shared, tmp_path, size):
    page = picture(tmp_path, 4)
    chunks = [page[at : at + size] for at in range(0, len(page), size)]
    assert (
        shared.read(iter(chunks), transfer_encoding="chunked").json["pages"][0]["lines"][0]["text"] == "page-00000004"
    )


def test_connection_serves_one_request_after_the_other(shared, tmp_path):
    with connected(shared.listen) as link:
        for number in range(3):
            headers = {"Content-Type": "image/png", "Authorization": f"Bearer {TOKEN}"}
            reply = send(link, "POST", "/v1/read", picture(tmp_path, number), headers)
            assert reply.json["pages"][0]["lines"][0]["text"] == f"page-{number:08x}"
            assert send(link, "GET", "/nothing", None, {}).status == 404


def test_body_is_asked_for_where_the_peer_waits_for_that(shared, tmp_path):
    page = picture(tmp_path, 5)
    head = f"POST /v1/read HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: image/png\r\n"
    host, _, port = shared.listen.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as peer:
        peer.sendall(f"{head}Expect: 100-continue\r\nContent-Length: {len(page)}\r\n\r\n".encode())
        assert peer.recv(100).startswith(b"HTTP/1.1 100 ")
        peer.sendall(page)
        assert peer.recv(12) == b"HTTP/1.1 200"


class PlainReader(NumberReader):
    """Reads any picture; refuses those whose number is in `fails`."""

    def __init__(self, *fails: int) -> None:
        super().__init__()
        self.fails = fails

    def read(self, frame: Frame) -> PageResult:
        self.count += 1
        if self.count in self.fails:
            raise FrameError("huge", "too large")
        return PageResult("", frame.width, frame.height, bundle="stub")


def three_pages() -> bytes:
    return pdf_files.document(*([pdf_files.written(f"page {number}")] for number in range(3)))


@pytest.fixture
def plain(tmp_path):
    """Return what makes a worker that reads any picture."""
    desks: list[Desk] = []

    def make(*fails: int, **settings) -> Desk:
        desks.append(Desk(tmp_path, **settings))
        desks[-1].reader = PlainReader(*fails)
        return desks[-1].start()

    yield make
    for desk in desks:
        desk.stop()


def test_document_is_answered_with_all_its_pages(plain):
    desk = plain()
    reply = desk.read(three_pages(), content_type="application/pdf")
    assert [(page["page"], page["pages"]) for page in reply.json["pages"]] == [(1, 3), (2, 3), (3, 3)]
    assert reply.json["pages"] == desk.rows()
    assert [page["key"] for page in desk.rows()] == [f"{reply.json['key']}:p{number}" for number in (1, 2, 3)]
    wait(lambda: desk.files() == [])


def test_document_that_is_not_to_be_kept_leaves_nothing(plain):
    desk = plain(when_done="keep")
    reply = desk.read(three_pages(), "/v1/read?store=0", content_type="application/pdf")
    assert (len(reply.json["pages"]), reply.json["kept"], desk.rows()) == (3, False, [])
    wait(lambda: desk.files() == [])


def test_page_of_a_document_that_is_refused_says_so_beside_the_others(plain):
    desk = plain(2)
    pages = desk.read(three_pages(), content_type="application/pdf").json["pages"]
    assert [page.get("reason") for page in pages] == [None, "huge", None]
    assert len(desk.rows()) == 2
    wait(lambda: "failed/upload.pdf" in desk.files())


def test_document_that_cannot_be_opened_is_refused(plain):
    reply = plain().read(b"%PDF-1.7\nnothing\n%%EOF\n", content_type="application/pdf")
    assert (reply.status, reply.reason) == (422, reply.reason)


def test_answer_of_a_document_that_is_not_known_any_more_is_read_again(plain, tmp_path):
    desk = plain()
    first = desk.read(three_pages(), content_type="application/pdf", idempotency_key="a")
    home = tmp_path / "state/sources/desk/.edge-ocr"
    wait(lambda: not list((home / "work").iterdir()))
    for path in (home / "answers").iterdir():
        path.unlink()
    again = desk.read(three_pages(), content_type="application/pdf", idempotency_key="a")
    assert [page["key"] for page in again.json["pages"]] == [page["key"] for page in first.json["pages"]]
    assert len(desk.rows()) == 3


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "reason"),
    [
        ("POST", "/v1/read", b"x", {"authorization": ""}, 401, "token"),
        ("POST", "/v1/read", b"x", {"authorization": "Bearer "}, 401, "token"),
        ("POST", "/v1/read", b"x", {"authorization": f"Bearer {TOKEN}x"}, 401, "token"),
        ("POST", "/v1/read", b"x", {"authorization": f"Basic {TOKEN}"}, 401, "token"),
        ("POST", "/v1/read", b"x", {"host": "evil.example"}, 403, "host"),
        ("GET", "/ping", None, {"host": "localhost.evil.example"}, 403, "host"),
        ("GET", "/", None, {}, 404, "path"),
        ("GET", "/v1/read/", None, {}, 404, "path"),
        ("POST", "/v1/read", b"x", {"content_type": "text/plain"}, 415, "kind"),
        ("POST", "/v1/read", b"x", {"content_type": ""}, 415, "kind"),
        ("POST", "/v1/read", b"x", {"content_encoding": "gzip"}, 415, "encoding"),
        ("POST", "/v1/read?store=2", b"x", {}, 400, "query"),
        ("POST", "/v1/read?stor=0", b"x", {}, 400, "query"),
        ("POST", "/v1/read?store=0&store=1", b"x", {}, 400, "query"),
        ("POST", "/v1/read", b"x", {"idempotency_key": ""}, 400, "key"),
        ("POST", "/v1/read", b"x", {"idempotency_key": "k" * 256}, 400, "key"),
        ("POST", "/v1/read", b"", {}, 400, "empty"),
        ("POST", "/v1/read", b"x", {"content_type": "multipart/form-data"}, 400, "form"),
        ("POST", "/v1/read", b"x", FORM, 400, "form"),
        ("POST", "/v1/read", form(("a", "", b"b")), FORM, 400, "form"),
        ("POST", "/v1/read", form(("a", "a.png", b"")), FORM, 400, "empty"),
        ("POST", "/v1/read", form(("a", "a.png", b"b"), ("c", "d.png", b"e")), FORM, 400, "form"),
        ("POST", "/v1/read", form(("a", "a.png", b"b"))[:-9], FORM, 400, "form"),
        ("POST", "/v1/read", form(("a", "", b"b" * 70_000), ("c", "d.png", b"e")), FORM, 413, "large"),
        ("POST", "/v1/read", b"x" * ((1 << 20) + 1), {}, 413, "large"),
        ("POST", "/v1/read", form(("a", "a.png", b"x" * ((1 << 20) + 1))), FORM, 413, "large"),
        ("POST", "/v1/read", b"no picture at all", {}, 422, "type"),
        ("POST", "/v1/read", numbered_png(1)[:-9], {}, 422, "truncated"),
        ("POST", "/v1/read", b"%PDF-1.4", {"content_type": "image/png"}, 422, None),
    ],
)
def test_request_is_refused_with_a_reason(shared, method, path, body, headers, status, reason):
    reply = ask(shared.listen, method, path, body, **{"content_type": "image/png", **headers})
    assert reply.status == status
    assert reply.reason == (reason or reply.reason)
    assert (status == 401) == ("www-authenticate" in reply.headers)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/read", "POST"), ("DELETE", "/v1/read", "POST"), ("POST", "/ping", "GET, HEAD")],
)
def test_other_methods_are_told_which_are_taken(shared, method, path, allowed):
    reply = ask(shared.listen, method, path)
    assert (reply.status, reply.reason, reply.headers["allow"]) == (405, "method", allowed)


HEAD = f"POST /v1/read HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: image/png\r\n"


def test_large_body_is_refused_before_any_of_it_came(shared):
    told = raw(shared.listen, f"{HEAD}Content-Length: {1 << 40}\r\n\r\n".encode())
    assert told.startswith(b"HTTP/1.1 413 ")
    told = raw(shared.listen, f"{HEAD}Expect: 100-continue\r\nContent-Length: {1 << 40}\r\n\r\n".encode())
    assert told.startswith(b"HTTP/1.1 413 ")


def test_body_that_grows_too_large_in_chunks_is_refused(shared):
    reply = shared.read(iter([b"x" * 65_536] * 20), transfer_encoding="chunked")
    assert (reply.status, reply.reason) == (413, "large")


@pytest.mark.parametrize(("before", "behind"), [(b"x" * 65_536, b""), (b"", b"x" * 65_536)])
def test_what_stands_around_the_parts_of_a_form_is_counted(shared, tmp_path, before, behind):
    sent = [before] * 20 + [form(("a", "a.png", picture(tmp_path, 1)))] + [behind] * 20
    reply = shared.read(iter([piece for piece in sent if piece]), transfer_encoding="chunked", **FORM)
    assert (reply.status, reply.reason) == (413, "large")


def test_body_that_never_pauses_has_no_more_time_either(made, monkeypatch):
    monkeypatch.setattr(connection, "BODY_S", 0.3)
    desk = made(max_mb=64)
    host, _, port = desk.listen.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as peer:
        peer.sendall(f"{HEAD}Content-Length: {60 << 20}\r\n\r\n".encode())
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < 5:
                peer.sendall(b"x" * 1000)
                time.sleep(0.0001)
        assert time.monotonic() - began < 4


def test_claim_that_cannot_be_filled_does_not_keep_its_key_busy(made, tmp_path, monkeypatch):
    desk, page, rename = made(), picture(tmp_path, 3), Path.rename
    monkeypatch.setattr(Path, "rename", Mock(side_effect=OSError(errno.ENOSPC, "full")))
    assert desk.read(page, idempotency_key="k").reason == "disk"
    monkeypatch.setattr(Path, "rename", rename)
    assert desk.read(page, idempotency_key="k").status == 200


def test_body_without_a_length_is_refused(shared):
    assert raw(shared.listen, f"{HEAD}Connection: close\r\n\r\n".encode()).startswith(b"HTTP/1.1 411 ")


def test_nobody_without_the_token_has_anything_written(shared, monkeypatch):
    monkeypatch.setattr(front, "receive", None)
    assert ask(shared.listen, "POST", "/v1/read", b"x" * 1000, authorization="Bearer x").status == 401


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # somebody tries TLS
        b"GET /ping\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: localhost\r\nA b: c\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /ping HTTP/1.1\r\n\r\n",
        HEAD.encode() + b"Transfer-Encoding: gzip\r\n\r\n",
        HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD.encode() + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nx",
        b"\0" * 100 + b"\r\n\r\n",
        b"\r\n" * 50 + b"x",
    ],
)
def test_what_is_no_request_is_refused(shared, garbage):
    host, _, port = shared.listen.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as peer:
        peer.sendall(garbage)
        peer.shutdown(socket.SHUT_WR)
        told = b"".join(iter(lambda: peer.recv(65_536), b""))
    assert not told or told.split()[1] in (b"400", b"413", b"501")
    assert ask(shared.listen, "GET", "/ping").status == 200


def test_header_without_end_is_refused(shared):
    assert raw(shared.listen, b"GET /ping HTTP/1.1\r\nA: " + b"x" * 20_000).startswith(b"HTTP/1.1 431 ")


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_random_bytes_end_nothing(shared, data):
    host, _, port = shared.listen.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as peer:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65_536):
            pass
    assert ask(shared.listen, "GET", "/ping").status == 200


def test_defect_on_a_page_is_told_and_the_next_is_read(shared, tmp_path):
    assert shared.read(picture(tmp_path, 1, FAILS)).reason == "defect"
    assert shared.read(picture(tmp_path, 2)).status == 200


def test_pages_of_the_web_may_not_ask_without_a_token(made):
    desk = made(token=None, anyone=True)
    assert desk.read(b"x", origin="https://evil.example").reason == "origin"
    assert ask(desk.listen, "POST", "/v1/read", b"x", content_type="image/png", authorization="").status == 422


def test_too_many_requests_are_told_when_to_come_again(made):
    desk = made(max_per_minute=6)
    assert desk.read(b"x").status == 422
    reply = desk.read(b"x")
    assert (reply.status, reply.reason) == (429, "many")
    assert 1 <= int(reply.headers["retry-after"]) <= 10
    assert ask(desk.listen, "GET", "/ping").status == 200


def test_paused_worker_refuses_and_keeps_nothing(made, tmp_path):
    desk = made()
    with desk.outbox() as outbox:
        outbox.set_paused(True)
    wait(lambda: ask(desk.listen, "GET", "/healthz").status == 503)
    reply = desk.read(picture(tmp_path, 1))
    assert (reply.status, reply.reason) == (503, "paused")
    assert int(reply.headers["retry-after"]) >= 1
    assert ask(desk.listen, "GET", "/healthz").json == {"ready": False, "reason": "paused", "waiting": 0}
    with desk.outbox() as outbox:
        outbox.set_paused(False)
    wait(lambda: ask(desk.listen, "GET", "/healthz").status == 200)
    assert desk.read(picture(tmp_path, 1)).status == 200


def test_more_files_than_may_wait_are_refused(made, tmp_path):
    desk = made(max_waiting=2)
    slow = [Later(lambda n=n: desk.read(picture(tmp_path, n, seconds=0.5))) for n in range(2)]
    wait(lambda: ask(desk.listen, "GET", "/healthz").json["waiting"] == 2)
    assert desk.read(picture(tmp_path, 9)).reason == "busy"
    assert [later.reply().status for later in slow] == [200, 200]


def test_file_that_is_not_read_in_time_is_read_all_the_same(made, tmp_path):
    desk = made(timeout_s=0.1)
    page = picture(tmp_path, 5, seconds=0.5)
    reply = desk.read(page, idempotency_key="a")
    assert (reply.status, reply.reason) == (504, "late")
    wait(lambda: len(desk.rows()) == 1)
    wait(lambda: desk.read(page, idempotency_key="a").status == 200)
    assert len(desk.rows()) == desk.reader.count == 1


def test_file_that_is_not_to_be_kept_and_not_read_in_time_is_not_read(made, tmp_path):
    desk = made(timeout_s=0.1)
    first = Later(lambda: desk.read(picture(tmp_path, 5, seconds=1.0)))
    wait(lambda: desk.reader.count == 1)
    assert desk.read(picture(tmp_path, 6), "/v1/read?store=0").reason == "late"
    assert first.reply().status == 504
    wait(lambda: len(desk.rows()) == 1 and desk.files() == [])
    assert desk.reader.count == 1


# ------------------------------------------------------------------------------------------------ who is slow


def test_header_and_body_that_do_not_come_are_not_waited_for(made, monkeypatch):
    monkeypatch.setattr(connection, "HEADER_S", 0.2)
    monkeypatch.setattr(connection, "BODY_S", 0.2)
    desk = made()
    assert raw(desk.listen, b"GET /ping HT").startswith(b"HTTP/1.1 408 ")
    assert raw(desk.listen, f"{HEAD}Content-Length: 9\r\n\r\nx".encode()).startswith(b"HTTP/1.1 408 ")


def test_connection_without_a_request_is_closed(made, monkeypatch):
    monkeypatch.setattr(connection, "IDLE_S", 0.2)
    assert raw(made().listen, b"") == b""


def test_bytes_that_drip_do_not_make_more_time(made, monkeypatch):
    monkeypatch.setattr(connection, "HEADER_S", 0.3)
    desk = made()
    host, _, port = desk.listen.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as peer:
        peer.settimeout(0.05)
        told = b""
        for byte in b"GET /ping HTTP/1.1\r\nX: " + b"y" * 100:
            peer.send(bytes((byte,)))
            try:
                told = peer.recv(100)
                break
            except TimeoutError:
                continue
    assert told.startswith(b"HTTP/1.1 408 ")


def test_more_connections_than_are_served_are_turned_away(made, monkeypatch):
    monkeypatch.setattr(connection, "IDLE_S", 1.0)
    desk = made(max_connections=2)
    host, _, port = desk.listen.rpartition(":")
    held = [socket.create_connection((host, int(port)), 10) for _ in range(2)]
    try:
        wait(lambda: raw(desk.listen, b"").startswith(b"HTTP/1.1 503 "))
    finally:
        for peer in held:
            peer.close()
    wait(lambda: ask(desk.listen, "GET", "/ping").status == 200)


def test_connections_take_little_of_what_the_worker_may_reserve(made):
    # Whole stacks count against RLIMIT_DATA, by which the worker keeps its limit.
    desk = made(max_connections=32)
    host, _, port = desk.listen.rpartition(":")
    before, held = _reserved_mb(), []
    try:
        for _ in range(32):
            held.append(socket.create_connection((host, int(port)), 10))
            held[-1].sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert held[-1].recv(100).startswith(b"HTTP/1.1 200 ")
        assert _reserved_mb() - before < 40
    finally:
        for peer in held:
            peer.close()


def _reserved_mb() -> float:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmData:"))


def test_who_has_gone_is_no_reason_not_to_read(made, tmp_path):
    desk = made()
    page = picture(tmp_path, 8, seconds=0.2)
    host, _, port = desk.listen.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as peer:
        peer.sendall(f"{HEAD}Content-Length: {len(page)}\r\n\r\n".encode() + page)
        wait(lambda: desk.reader.count == 1)
    wait(lambda: len(desk.rows()) == 1)


# ------------------------------------------------------------------------------------------------ the same again


def test_same_key_gives_the_same_answer_and_one_row(made, tmp_path):
    desk = made()
    page = picture(tmp_path, 5)
    first = desk.read(page, idempotency_key="cheque 1")
    again = desk.read(page, idempotency_key="cheque 1")
    assert (again.status, again.body) == (200, first.body)
    assert len(desk.rows()) == desk.reader.count == 1


def test_same_page_without_a_key_is_a_page_of_its_own_each_time(made, tmp_path):
    desk = made()
    page = picture(tmp_path, 5)
    assert desk.read(page).json["key"] != desk.read(page).json["key"]
    assert len(desk.rows()) == 2


def test_same_key_with_another_file_is_refused(made, tmp_path):
    desk = made()
    desk.read(picture(tmp_path, 5), idempotency_key="a")
    reply = desk.read(picture(tmp_path, 6), idempotency_key="a")
    assert (reply.status, reply.reason) == (422, "reused")
    assert len(desk.rows()) == 1


def test_same_key_while_the_first_is_read_waits_for_it(made, tmp_path):
    desk = made()
    page = picture(tmp_path, 5, seconds=0.5)
    laters = [Later(lambda: desk.read(page, idempotency_key="a")) for _ in range(4)]
    wait(lambda: desk.reader.count == 1)
    assert desk.read(picture(tmp_path, 6), idempotency_key="a").reason == "reused"
    assert len({later.reply().body for later in laters}) == 1
    assert len(desk.rows()) == desk.reader.count == 1


def test_refusal_is_the_same_again_too(made):
    desk = made()
    bodies = {desk.read(b"no picture", idempotency_key="a").body for _ in range(2)}
    assert len(bodies) == 1
    with desk.outbox() as outbox:
        assert outbox.stats().pending == 0


def test_answer_outlives_a_restart(made, tmp_path):
    desk = made()
    page = picture(tmp_path, 5)
    first = desk.read(page, idempotency_key="a")
    desk.stop()
    desk.start()
    assert desk.read(page, idempotency_key="a").body == first.body
    assert len(desk.rows()) == desk.reader.count == 1


@pytest.mark.parametrize("when_done", ["keep", "delete"])
def test_answer_that_is_not_known_any_more_is_read_again_and_kept_once(made, tmp_path, when_done):
    desk = made(repeat_s=0.0, when_done=when_done)
    page = picture(tmp_path, 5)
    first = desk.read(page, idempotency_key="a").json
    home = tmp_path / "state/sources/desk/.edge-ocr"
    wait(lambda: not list((home / "work").iterdir()))
    for path in (home / "answers").iterdir():
        path.unlink()
    again = desk.read(page, idempotency_key="a").json
    assert again["pages"][0]["lines"] == first["pages"][0]["lines"]
    assert (again["key"], again["pages"][0]["key"]) == (first["key"], first["key"])
    assert again["kept"] is True
    assert len(desk.rows()) == 1
    assert desk.reader.count == 2


def test_old_answers_are_forgotten(made, tmp_path):
    desk = made(repeat_s=0.0)
    desk.read(picture(tmp_path, 5), idempotency_key="a")
    source = next(iter(desk.worker._sources.values()))
    desk.stop()
    source._answers.tidy()
    assert list((tmp_path / "state/sources/desk/.edge-ocr/answers").iterdir()) == []


# ------------------------------------------------------------------------------------------------ restarts


@pytest.fixture
def process(tmp_path):
    made = Process(tmp_path)
    yield made
    made.end()


def test_page_of_a_killed_worker_is_read_by_the_next_and_answered_under_its_key(process, tmp_path):
    page = picture(tmp_path, 5, seconds=2.5)
    process.start()
    process.wait_ready()
    later = Later(lambda: read(process.listen, page, idempotency_key="a"))
    wait(lambda: ask(process.listen, "GET", "/healthz").json["waiting"] == 1)
    process.kill()
    assert not isinstance(later.end(), Reply)
    process.start()
    process.wait_ready()
    assert read(process.listen, picture(tmp_path, 6), idempotency_key="a").reason == "reused"
    assert read(process.listen, page, idempotency_key="a").json["pages"][0]["lines"][0]["text"] == "page-00000005"
    assert process.rows() == ["page-00000005"]


def test_page_that_ends_the_worker_is_put_aside_and_its_sender_told(tmp_path):
    process = Process(tmp_path, attempts=1)
    page = picture(tmp_path, 5, CRASHES)
    process.start()
    process.wait_ready()
    Later(lambda: read(process.listen, page, idempotency_key="a")).end()
    assert process.end() < 0
    process.start()
    process.wait_ready()
    assert read(process.listen, page, idempotency_key="a").reason == "crash"
    assert process.end() == 0


def test_page_at_hand_is_answered_and_others_refused_when_the_worker_ends(made, tmp_path):
    desk = made(when_done="keep")
    first = Later(lambda: desk.read(picture(tmp_path, 1, seconds=0.5)))
    wait(lambda: desk.reader.count == 1)
    second = Later(lambda: desk.read(picture(tmp_path, 2)))
    wait(lambda: ask(desk.listen, "GET", "/healthz").json["waiting"] == 2)
    desk.stop()
    assert first.reply().status == 200
    assert second.reply().reason == "stopping"
    assert desk.files() == ["done/upload.png"]  # what was refused is not read later
    assert len(desk.rows()) == 1


def test_file_that_was_promised_to_be_read_is_not_given_up_when_the_worker_ends(made, tmp_path):
    desk = made(timeout_s=0.1)
    first = Later(lambda: desk.read(picture(tmp_path, 1, seconds=0.5)))
    wait(lambda: desk.reader.count == 1)
    assert desk.read(picture(tmp_path, 2)).reason == "late"
    desk.stop()
    assert first.reply().status == 504
    desk.start()
    wait(lambda: len(desk.rows()) == 2)


def test_what_a_killed_worker_left_half_done_is_cleared_away(rig):
    home = rig.home / "sources" / "desk" / ".edge-ocr"
    (home / "incoming").mkdir(parents=True)
    (home / "incoming" / "x.part").write_bytes(b"half")
    (home / "work" / "once-1").mkdir(parents=True)
    (home / "work" / "once-1" / "a.png").write_bytes(numbered_png(1))
    (home / "work" / f"keyed-{'0' * 32}-{'0' * 16}").mkdir()
    source = rig.open()
    assert source.poll() is None
    assert [path for path in home.rglob("*") if path.is_file() and path.name not in ("lock", "age")] == []


# ------------------------------------------------------------------------------------------------ sockets


def test_unix_socket_is_for_its_owner_and_group_and_leaves_with_the_worker(made, tmp_path):
    path = tmp_path / "socket"
    desk = made(listen=f"unix:{path}", token=None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert desk.read(picture(tmp_path, 7), host="x").status == 200
    desk.stop()
    assert not path.exists()


def test_unix_socket_of_a_killed_worker_is_replaced_and_of_a_living_one_not(made, tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "socket"))
    desk = made(listen=f"unix:{tmp_path}/socket")
    assert ask(desk.listen, "GET", "/ping").status == 200
    with pytest.raises(ConfigError, match="Address already in use: end what listens there"):
        listener.open_socket(desk.source, has_token=True)
    (tmp_path / "file").write_text("x")
    config = UploadConfig(name="b", listen=f"unix:{tmp_path}/file")
    with pytest.raises(ConfigError, match="Address already in use"):
        listener.open_socket(config, has_token=True)


def test_port_that_is_taken_is_named(made):
    config = UploadConfig(name="b", listen=made().listen)
    with pytest.raises(ConfigError, match=r"source b: listen = '127.0.0.1:\d+': Address already in use"):
        listener.open_socket(config, has_token=True)


@pytest.mark.parametrize("listen", ["[::1]:{}", "localhost:{}"])
def test_other_names_of_this_machine_are_listened_on(made, tmp_path, listen):
    port = free_port()
    made(listen=listen.format(port))
    assert ask(listen.format(port), "GET", "/ping").status == 200


def test_socket_passed_by_systemd_is_taken(tmp_path):
    process = Process(tmp_path, "systemd")
    with socket.socket(socket.AF_UNIX) as passed:
        passed.bind(str(tmp_path / "socket"))
        passed.listen()
        process.start(passed)
        process.wait_ready(f"unix:{tmp_path}/socket")
        reply = read(f"unix:{tmp_path}/socket", picture(tmp_path, 7))
        assert reply.json["pages"][0]["lines"][0]["text"] == "page-00000007"
        assert process.end() == 0
    assert (tmp_path / "socket").exists()  # it is systemd's


@pytest.mark.parametrize(
    ("address", "anyone", "said"),
    [("127.0.0.1", "false", "is no unix socket: give `token`"), ("0.0.0.0", "true", "from other machines")],
)
def test_passed_socket_that_lets_others_ask_is_refused(tmp_path, address, anyone, said):
    process = Process(tmp_path, "systemd")
    settings = tmp_path / "agent.toml"
    settings.write_text(settings.read_text().replace("anyone = true", f"anyone = {anyone}"))
    with socket.socket() as passed:
        passed.bind((address, 0))
        process.start(passed)
        assert process._process.wait(30) != 0
    assert said in process.log()


def test_without_a_passed_socket_it_is_said_what_to_do(monkeypatch):
    with pytest.raises(ConfigError, match="no socket was passed; start the worker by a socket unit"):
        listener.open_socket(UploadConfig(name="a", listen="systemd"), has_token=True)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.setenv("LISTEN_FDNAMES", "b:c")
    with pytest.raises(ConfigError, match="none of the 2 sockets has FileDescriptorName=a"):
        listener.open_socket(UploadConfig(name="a", listen="systemd"), has_token=True)


# ------------------------------------------------------------------------------------------------ many


def test_many_at_once_are_each_answered_with_their_own(made, tmp_path):
    desk = made(max_waiting=40)
    laters = {n: Later(lambda n=n: desk.read(picture(tmp_path, n))) for n in range(20)}
    for number, later in laters.items():
        assert later.reply().json["pages"][0]["lines"][0]["text"] == f"page-{number:08x}"
    assert len(desk.rows()) == 20


def test_hundreds_of_pages_leave_memory_threads_and_descriptors_as_they_were(made, tmp_path):
    desk = made()
    page = picture(tmp_path, 1)

    def send_some(count: int) -> tuple[float, int, int]:
        for number in range(count):
            assert desk.read(page, idempotency_key=f"{count}-{number}").status == 200
        wait(lambda: threading.active_count() <= threads and not list(work.iterdir()))
        time.sleep(0.1)  # the last page's commit has its journal open
        return health.resident_mb(), threading.active_count(), len(os.listdir("/proc/self/fd"))

    work = tmp_path / "state/sources/desk/.edge-ocr/work"
    threads = threading.active_count()
    before = send_some(40)
    after = send_some(300)
    assert after[1:] == before[1:]
    assert after[0] - before[0] < 3.0


# ------------------------------------------------------------------------------------------------ looking at it


def test_it_says_that_it_is_there_without_a_token(shared):
    for path in ("/ping", "/healthz", "/metrics", "/v1/openapi.json"):
        assert ask(shared.listen, "GET", path, authorization="").status == 200
        head = ask(shared.listen, "HEAD", path, authorization="")
        assert (head.status, head.body) == (200, b"")
        assert int(head.headers["content-length"]) > 0
    assert ask(shared.listen, "GET", "/healthz").json == {"ready": True, "reason": "", "waiting": 0}


def test_before_the_models_are_loaded_it_is_not_ready(rig):
    source = rig.open()
    source._front._state = None
    assert read(f"unix:{rig.home}/socket", b"x").reason == "starting"


def test_metrics_count_pages_by_verdict_and_hold_no_text(made, tmp_path):
    from prometheus_client.parser import text_string_to_metric_families

    desk = made()
    desk.read(picture(tmp_path, 1))
    desk.read(b"no picture")
    reply = ask(desk.listen, "GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    samples = [s for family in text_string_to_metric_families(reply.body.decode()) for s in family.samples]
    found = {(s.name, *(s.labels[name] for name in sorted(s.labels, reverse=True))): s.value for s in samples}
    assert found["edge_ocr_upload_pages_total", "read", ""] == 1
    assert found["edge_ocr_upload_pages_total", "refused", "type"] == 1
    assert found["edge_ocr_requests_total", "200"] == 1
    assert found["edge_ocr_requests_total", "422"] == 1
    assert found["edge_ocr_page_seconds_count",] == found["edge_ocr_page_seconds_bucket", "+Inf"] == 1
    assert found["edge_ocr_resident_bytes",] > 1 << 20
    assert found["edge_ocr_reading",] == 1
    assert "page-0000" not in reply.body.decode()


def test_description_has_every_route_kind_and_status(shared):
    told = ask(shared.listen, "GET", "/v1/openapi.json").json
    source = next(iter(shared.worker._sources.values()))
    routes = {path: {method.lower() for method in methods} for path, methods in source._front._routes.items()}
    assert {path: set(methods) for path, methods in told["paths"].items()} == routes
    post = told["paths"]["/v1/read"]["post"]
    assert set(post["requestBody"]["content"]) == {*ENDINGS, "multipart/form-data"}
    assert {int(status) for status in post["responses"]} == {200, *openapi.READ_STATUSES}
    assert post["security"] == [{"token": []}]
    schemas = told["components"]["schemas"]
    used = {part.rpartition("/")[2] for part in _references(told)}
    assert used == set(schemas)


def _references(told: object) -> list[str]:
    if isinstance(told, dict):
        return [told["$ref"]] if "$ref" in told else [name for part in told.values() for name in _references(part)]
    return [name for part in told for name in _references(part)] if isinstance(told, list) else []


def test_what_was_read_is_not_in_the_log(made, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    desk = made(masked=False)
    desk.read(picture(tmp_path, 7))
    desk.read(b"no picture", idempotency_key="secret-key")
    assert "desk: 2 lines" in caplog.text
    for text in ("page-0000", "6222", TOKEN, "secret-key"):
        assert text not in caplog.text

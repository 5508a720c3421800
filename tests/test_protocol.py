"""Messages go to JSON and come back; what is no message is refused in one short line."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import protocol
from agent.errors import MessageError
from agent.page import PageResult, TextLine, to_json
from agent.protocol import (
    DEVICE_KINDS,
    DEVICE_PATTERN,
    LARGEST,
    MAX_RANGES,
    MAX_RESULT_BYTES,
    MAX_SMALL_BYTES,
    VERBS,
    Answer,
    CollectorState,
    Command,
    Event,
    Receipt,
    Refusal,
    ResultMessage,
    Resync,
    Status,
    collector_topic,
    decode,
    device_topic,
    encode,
    name_in,
    ranges,
    sha256,
)
from scripts import write_schema

EPOCH = "0123456789abcdef" * 2
PAGE = to_json(PageResult("a.png", 4, 3, (TextLine("字", 0.5, ((0, 0), (4, 0), (4, 3), (0, 3))),), bundle="b"))

names = st.from_regex(DEVICE_PATTERN, fullmatch=True)
epochs = st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
seqs = st.integers(1, LARGEST)
counts = st.integers(0, LARGEST)
floats = st.floats(0, 1e9)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
runs = st.lists(st.tuples(seqs, seqs).map(lambda pair: tuple(sorted(pair))), max_size=5).map(tuple)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-LARGEST, LARGEST)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
statuses = st.builds(
    Status,
    device=names,
    online=st.booleans(),
    session=counts,
    at_ms=counts,
    pending=counts,
    brokered=counts,
    dead=counts,
    oldest_s=floats,
    paused=st.booleans(),
    alarms=st.lists(texts, max_size=3).map(tuple),
    pages_per_minute=floats,
    bundle=texts,
    version=texts,
)
refusals = st.builds(Refusal, seq=seqs, reason=st.sampled_from(("conflict", "invalid")))
messages = st.one_of(
    st.builds(Resync, device=names, epoch=epochs, waiting=runs),
    st.builds(
        Receipt,
        collector=names,
        device=names,
        epoch=epochs,
        stored=runs,
        refused=st.lists(refusals, max_size=3).map(tuple),
    ),
    statuses,
    st.builds(
        Event,
        device=names,
        kind=st.sampled_from(("gap", "salvage", "alarm")),
        at_ms=counts,
        detail=texts,
        epoch=st.none() | epochs,
        rows=runs,
    ),
    st.builds(
        Command,
        id=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
        verb=st.sampled_from(VERBS),
        expires_ms=counts,
        argument=texts,
    ),
    st.builds(Answer, id=texts, ok=st.booleans(), detail=texts, status=statuses),
    st.builds(CollectorState, collector=names, online=st.booleans(), session=texts),
)  # fmt: skip


def row(result: bytes = PAGE, /, **changed: object) -> dict[str, object]:
    """Return a result message's fields, changed as told; a digest that is right unless it is given."""
    fields = {
        "device": "box-1",
        "epoch": EPOCH,
        "seq": 7,
        "sha256": sha256(result),
        "sent_ms": 2,
        "created_ms": 1,
        "historical": False,
        "result": msgspec.Raw(result),
        "schema": 1,
    }
    return {name: value for name, value in {**fields, **changed}.items() if value is not ...}


def refusal(kind: type, body: bytes) -> str:
    """Return why a payload is refused: one short line that can be printed."""
    with pytest.raises(MessageError) as refused:
        decode(kind, body)
    said = str(refused.value)
    assert said.isprintable()
    assert len(said) < 200
    assert refused.value.__cause__ is None
    return said


@given(messages)
def test_a_message_goes_to_json_and_back_unchanged(message):
    assert decode(type(message), encode(message)) == message


@given(messages)
def test_json_names_the_schema_and_is_what_any_reader_takes(message):
    read = json.loads(encode(message))
    assert read["schema"] == 1


@given(json_values, seqs, counts, st.booleans())
def test_a_result_goes_through_with_its_bytes_as_they_are(value, seq, at, historical):
    result = json.dumps(value, ensure_ascii=False, indent=1).encode()
    sent = ResultMessage(**row(result, seq=seq, created_ms=at, historical=historical))
    came = decode(ResultMessage, encode(sent))
    assert bytes(came.result) == result
    assert (came.device, came.epoch, came.seq, came.created_ms, came.historical) == (
        "box-1",
        EPOCH,
        seq,
        at,
        historical,
    )


@given(messages, st.sampled_from(("new", "neues Feld")), json_values)
def test_fields_added_later_are_ignored_but_in_commands(message, name, value):
    body = encode(message)[:-1] + msgspec.json.encode({name: value}).replace(b"{", b",", 1)
    if isinstance(message, Command):
        assert "not a Command" in refusal(Command, body)
    else:
        assert decode(type(message), body) == message


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_random_payloads_are_refused_and_nothing_else(body):
    for kind in (*write_schema.MESSAGES,):
        refusal(kind, body)


@given(messages, st.data())
def test_damaged_messages_are_refused_or_still_messages(message, data):
    body = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(type(message), bytes(body))
    except MessageError as error:
        assert str(error).isprintable()


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("kind", write_schema.MESSAGES)
@pytest.mark.parametrize("schema", [2, LARGEST])
def test_a_newer_schema_is_refused_by_its_number(kind, schema):
    body = b'{"schema": %d, "device": {"name": 1}, "what": [1, 2]}' % schema  # a newer form may differ in anything
    assert refusal(kind, body) == f"schema {schema} is newer than 1"


@pytest.mark.parametrize("schema", [b"0", b"-1", b"1.5", b'"1"', b"null", b"1" * 400, b"1" * 5000, b"1e400"])
def test_a_schema_that_is_no_number_of_one_is_refused(schema):
    assert refusal(Resync, b'{"schema": %b, "device": "a", "epoch": "%b", "waiting": []}' % (schema, EPOCH.encode()))


@pytest.mark.parametrize(
    ("kind", "limit"),
    [(kind, MAX_RESULT_BYTES if kind is ResultMessage else MAX_SMALL_BYTES) for kind in write_schema.MESSAGES],
)  # fmt: skip
def test_a_payload_that_is_too_large_is_refused_unread(kind, limit, monkeypatch):
    monkeypatch.setattr(protocol, "_decoder", None)
    assert refusal(kind, b" " * (limit + 1)) == f"{limit + 1} bytes are too many"


def test_a_result_of_the_largest_size_is_taken():
    around = len(msgspec.json.encode(row(b'""')))
    result = b'"' + b"a" * (MAX_RESULT_BYTES - around) + b'"'
    body = msgspec.json.encode(row(result))
    assert len(body) == MAX_RESULT_BYTES
    assert bytes(decode(ResultMessage, body).result) == result


@pytest.mark.parametrize("changed", [b'{"image": "b.png"}', PAGE + b" ", PAGE.replace(b"0.5", b"0.50")])
def test_a_result_with_another_digest_is_refused(changed):
    body = encode(ResultMessage(**row())).replace(PAGE, changed)
    if changed == PAGE + b" ":  # white space after a value is not the value's
        assert decode(ResultMessage, body)
    else:
        assert refusal(ResultMessage, body) == "the digest is not that of the result"


@pytest.mark.parametrize(
    "changed",
    [
        {"device": "box/1"},
        {"device": "box-1\n"},
        {"device": "+"},
        {"device": "#"},
        {"device": "$SYS"},
        {"device": ""},
        {"device": "a" * 65},
        {"device": "../a"},
        {"device": ".a"},
        {"device": "ｂox"},
        {"device": "a\0"},
        {"device": 1},
        {"device": ...},
        {"epoch": EPOCH + "\n"},
        {"epoch": EPOCH.upper()},
        {"epoch": EPOCH[1:]},
        {"epoch": None},
        {"seq": 0},
        {"seq": -1},
        {"seq": LARGEST + 1},
        {"seq": 1.5},
        {"seq": "7"},
        {"seq": True},
        {"seq": msgspec.Raw(b"9" * 400)},
        {"seq": msgspec.Raw(b"9" * 10_000)},
        {"seq": msgspec.Raw(b"NaN")},
        {"seq": msgspec.Raw(b"1e999")},
        {"sha256": "0" * 64 + "\n"},
        {"sha256": "0" * 63},
        {"sent_ms": -1},
        {"sent_ms": msgspec.Raw(b"Infinity")},
        {"created_ms": LARGEST + 1},
        {"historical": 0},
        {"historical": "false"},
        {"result": ...},
    ],
)
def test_a_result_message_with_a_wrong_field_is_refused(changed):
    refusal(ResultMessage, msgspec.json.encode(row(**changed)))


@pytest.mark.parametrize(
    "result",
    [b"NaN", b'{"a": ', b"", b"{} {}", b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000],
)
def test_a_result_that_is_no_json_or_too_deep_is_refused(result):
    refusal(ResultMessage, msgspec.json.encode(row(result)))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Command, {"id": "a", "verb": "reboot", "expires_ms": 1}),
        (Command, {"id": "a", "verb": "status\n", "expires_ms": 1}),
        (Command, {"id": "a\n", "verb": "status", "expires_ms": 1}),
        (Command, {"id": "", "verb": "status", "expires_ms": 1}),
        (Command, {"id": "a" * 65, "verb": "status", "expires_ms": 1}),
        (Command, {"id": "a", "verb": "status", "expires_ms": "1"}),
        (Command, {"id": "a", "verb": "status", "expires_ms": 1.5}),
        (Command, {"id": "a", "verb": "status"}),
        (Command, {"id": "a", "verb": "status", "expires_ms": 1, "argument": "x" * 201}),
        (Command, {"id": "a", "verb": "status", "expires_ms": 1, "sudo": True}),
        (Command, ["a", "status", 1]),
        (Status, {"device": "a", "online": 1, "session": 1, "at_ms": 1}),
        (Status, {"device": "a", "online": True, "session": -1, "at_ms": 1}),
        (Status, {"device": "a", "online": True, "session": 10**30, "at_ms": 1}),
        (Status, {"device": "a", "online": True, "session": 1, "at_ms": 1, "oldest_s": None}),
        (Event, {"device": "a", "kind": "party", "at_ms": 1}),
        (Event, {"device": "a", "kind": "gap", "at_ms": 1, "detail": "x" * 2001}),
        (Event, {"device": "a", "kind": "gap", "at_ms": 1, "rows": [[5, 4]]}),
        (Resync, {"device": "a", "epoch": EPOCH, "waiting": [[5, 4]]}),
        (Resync, {"device": "a", "epoch": EPOCH, "waiting": [[1]]}),
        (Resync, {"device": "a", "epoch": EPOCH, "waiting": [[1, 2, 3]]}),
        (Resync, {"device": "a", "epoch": EPOCH, "waiting": [[0, 1]]}),
        (Resync, {"device": "a", "epoch": EPOCH, "waiting": [[1, 2]] * (MAX_RANGES + 1)}),
        (Receipt, {"collector": "c", "device": "a", "epoch": EPOCH, "stored": [[1, 2], [9, 8]]}),
        (Receipt, {"collector": "c", "device": "a", "epoch": EPOCH, "refused": [{"seq": 1, "reason": "mood"}]}),
        (Receipt, {"collector": "c/d", "device": "a", "epoch": EPOCH}),
        (CollectorState, {"collector": "c", "online": True, "session": "x" * 65}),
    ],
)  # fmt: skip
def test_a_message_with_a_wrong_field_is_refused(kind, body):
    assert refusal(kind, msgspec.json.encode(body)).startswith(f"not a {kind.__name__}: ")


def test_a_refusal_cannot_forge_a_log_line():
    body = msgspec.json.encode({"id": "a", "verb": "x\n<3>all is lost\x1b[2J" + "y" * 5000, "expires_ms": 1})
    assert "\n" not in refusal(Command, body)
    body = msgspec.json.encode({"id": "a", "verb": "status", "expires_ms": 1, "x\r\n\u2028" + "y" * 5000: 1})
    refusal(Command, body)


@pytest.mark.parametrize("text", [b'"\\ud800"', b'"\xff"', b'"\xed\xa0\x80"'])
def test_text_that_is_no_unicode_is_refused(text):
    body = b'{"device": "a", "kind": "alarm", "at_ms": 1, "detail": %b}' % text
    refusal(Event, body)


# ------------------------------------------------------------------------------------------------ sizes


def test_the_largest_messages_that_are_sent_are_taken():
    most = tuple((LARGEST - 2 * i, LARGEST - 2 * i) for i in range(MAX_RANGES))
    refused = tuple(Refusal(seq=LARGEST - i, reason="conflict") for i in range(MAX_RANGES))
    name = "n" * 64
    for message in (
        Receipt(collector=name, device=name, epoch=EPOCH, stored=most, refused=refused),
        Resync(device=name, epoch=EPOCH, waiting=most),
        Event(device=name, kind="gap", at_ms=LARGEST, detail="\x01" * 2000, epoch=EPOCH, rows=most),
    ):
        assert decode(type(message), encode(message)) == message


# ------------------------------------------------------------------------------------------------ topics


@given(names, st.sampled_from(DEVICE_KINDS), st.sampled_from(("ocr/v1", "a", "a/b/c/d")))
def test_a_name_goes_into_a_topic_and_comes_back(name, kind, prefix):
    assert name_in(device_topic(prefix, name, kind), prefix) == name
    assert name_in(collector_topic(prefix, name), prefix) == name


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "ocr/v1",
        "ocr/v1/",
        "ocr/v1/devices/a",
        "ocr/v1/devices/a/result/more",
        "ocr/v1/devices//result",
        "ocr/v1/devices/+/result",
        "ocr/v1/devices/#",
        "ocr/v1/devices/a\n/result",
        "ocr/v1/devices/../result",
        "ocr/v1/devices/a/secret",
        "ocr/v1/devices/a/state",
        "ocr/v1/collectors/a/result",
        "ocr/v1/others/a/state",
        "ocr/v1x/devices/a/result",
        "ocr/v2/devices/a/result",
        "x/ocr/v1/devices/a/result",
        "/ocr/v1/devices/a/result",
    ],
)
def test_other_topics_are_refused(topic):
    with pytest.raises(MessageError, match="not a topic of this protocol"):
        name_in(topic, "ocr/v1")


def test_filters_for_all_have_the_form_of_topics():
    assert device_topic("ocr/v1", "+", "result") == "ocr/v1/devices/+/result"
    assert collector_topic("ocr/v1", "+") == "ocr/v1/collectors/+/state"


@given(st.text(max_size=70))
def test_a_name_has_nothing_that_a_topic_or_a_path_could_take_for_its_own(name):
    if re.match(DEVICE_PATTERN, name):
        assert not set(name) & set("/+#$\0\n\\ ")
        assert name not in (".", "..")
        assert name.isascii()


# ------------------------------------------------------------------------------------------------ runs


@given(st.lists(st.integers(1, 60)))
def test_runs_hold_exactly_the_numbers(numbers):
    made = ranges(numbers)
    assert [n for first, last in made for n in range(first, last + 1)] == sorted(set(numbers))
    assert all(later[0] > earlier[1] + 1 for earlier, later in pairwise(made))


def test_runs_of_nothing_are_none():
    assert ranges(()) == ()
    assert ranges(iter((3, 1, 2, 7))) == ((1, 3), (7, 7))


# ------------------------------------------------------------------------------------------------ schema


def test_the_shipped_schema_is_that_of_the_messages():
    assert write_schema.PLACE.read_text(encoding="utf-8") == write_schema.text(), "python -m scripts.write_schema"


@pytest.mark.parametrize("kind", [*write_schema.MESSAGES, PageResult])
def test_the_shipped_schema_knows_every_field(kind):
    part = json.loads(write_schema.PLACE.read_text(encoding="utf-8"))["$defs"][kind.__name__]
    assert set(part["properties"]) == set(kind.__struct_encode_fields__)
    assert part["description"]


def test_the_shipped_schema_says_nothing_that_only_python_knows():
    text = write_schema.PLACE.read_text(encoding="utf-8")
    assert "\\\\Z" not in text
    schema = json.loads(text)
    assert schema["$defs"]["ResultMessage"]["properties"]["result"]["allOf"] == [{"$ref": "#/$defs/PageResult"}]
    for reference in re.findall(r'"\$ref": "#/\$defs/(\w+)"', text):
        assert reference in schema["$defs"]
    for pattern in re.findall(r'"pattern": ("[^"]+")', text):
        assert re.compile(json.loads(pattern))

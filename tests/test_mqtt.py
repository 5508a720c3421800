"""The link against a real mosquitto: limits, acknowledgements, broken networks, and a reason for every refusal."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from agent.clock import Clock
from agent.config import BrokerConfig
from agent.errors import ConfigError, MessageError
from agent.mqtt import Acked, Event, Link, Message, Offline, Online, Session, Will, tls
from agent.mqtt import link as mqtt
from tests.broker import Authority, Broker, free_port
from tests.tcp_proxy import Proxy

WAIT_S = 15.0
E = TypeVar("E", bound=Event)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "strange-authority")


def plain(port: int, **more: object) -> BrokerConfig:
    return BrokerConfig(host="127.0.0.1", port=port, tls=False, **more)  # type: ignore[arg-type]


def quick(name: str, *filters: str, **more: object) -> Session:
    return Session(client_id=name, subscriptions=filters, retry_max_s=0.2, **more)  # type: ignore[arg-type]


class Ear:
    """Ticks a link and keeps what it says."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.heard: list[Event] = []

    def until(self, done: Callable[[], object], wait_s: float = WAIT_S) -> None:
        end = time.monotonic() + wait_s
        while not done():
            assert time.monotonic() < end, f"waited in vain; heard {self.heard[-5:]}"
            self.heard += self.link.tick(0.05)

    def next(self, kind: type[E]) -> E:
        """Return the next event of a kind, and forget it and those before it."""
        self.until(lambda: any(isinstance(event, kind) for event in self.heard))
        place = next(i for i, event in enumerate(self.heard) if isinstance(event, kind))
        found = self.heard[place]
        del self.heard[: place + 1]
        assert isinstance(found, kind)
        return found


@contextlib.contextmanager
def connected(config: BrokerConfig, session: Session, **more: object) -> Iterator[Ear]:
    ear = Ear(Link(config, session, **more))  # type: ignore[arg-type]
    try:
        yield ear
    finally:
        ear.link.close()


# ------------------------------------------------------------------------------------------------ messages


def test_message_comes_back_and_its_acknowledgement_too(broker):
    with connected(plain(broker.port), quick("echo", "echo/#")) as ear:
        assert ear.link.publish("echo/1", b"too early") is None
        assert ear.next(Online).denied == ()
        mid = ear.link.publish("echo/1", b"body")
        assert ear.next(Message).body == b"body"
        assert ear.next(Acked) == Acked(mid, 0)


def test_acknowledgement_says_when_nobody_listens(broker):
    with connected(plain(broker.port), quick("lonely")) as ear:
        ear.next(Online)
        mid = ear.link.publish("nobody/listens", b"")
        assert ear.next(Acked) == Acked(mid, 0x10)


def test_window_is_never_passed(tmp_path):
    with Broker(tmp_path, more="max_inflight_messages 3") as broker, Proxy(broker.port) as proxy:
        proxy.drop_pubacks = True
        with connected(plain(proxy.port), quick("window", window=10)) as ear:
            assert ear.next(Online).limits.window == 3
            sent = [ear.link.publish("t", b"") for _ in range(5)]
            assert (sent[3:], ear.link.room) == ([None, None], 0)
            ear.link.drop("test")  # so that the close does not wait for what never comes


def test_broker_limits_are_known_and_kept(tmp_path):
    limits = "max_packet_size 2000\nretain_available false\nmax_keepalive 20"
    with Broker(tmp_path, more=limits) as broker:
        will = Will("will", b"")
        with connected(plain(broker.port, keepalive_s=60), quick("limits"), will=lambda: will) as ear:
            limits = ear.next(Online).limits  # at the second attempt: a retained will is refused
            assert (limits.max_packet_bytes, limits.retain, limits.keepalive_s) == (2000, False, 20)
            with pytest.raises(MessageError, match="2000"):
                ear.link.publish("t", bytes(2000))
            mid = ear.link.publish("t", bytes(1900), retain=True)
            assert ear.next(Acked).mid == mid


def test_publish_without_right_is_refused_by_its_acknowledgement(tmp_path):
    (tmp_path / "acl").write_text("topic readwrite open/#\n")
    with (
        Broker(tmp_path / "b", more=f"acl_file {tmp_path / 'acl'}") as broker,
        connected(plain(broker.port), quick("acl")) as ear,
    ):
        ear.next(Online)
        ear.link.publish("closed", b"")
        assert ear.next(Acked).code == 0x87


def test_denied_subscriptions_are_named():
    """mosquitto 2.0 grants every subscription; other brokers do not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ear = Ear(Link(plain(server.getsockname()[1]), quick("denied", "yes/#", "no/#")))
        ear.link.retry_now()
        ear.heard += ear.link.tick(0.0)
        with server.accept()[0] as far:
            far.sendall(bytes.fromhex("2003000000"))
            ear.heard += ear.link.tick(0.2)
            far.sendall(bytes.fromhex("9005 0001 00 01 87"))
            assert ear.next(Online).denied == ("no/#",)
        ear.next(Offline)
        ear.link.close()


def test_message_is_delivered_again_until_it_is_acknowledged(broker):
    session = quick("keeper", "kept/#", manual_ack=True, expiry_s=60)
    with connected(plain(broker.port), session) as ear, connected(plain(broker.port), quick("giver")) as giver:
        ear.next(Online)
        giver.next(Online)
        giver.link.publish("kept/1", b"precious")
        giver.next(Acked)
        first = ear.next(Message)
        ear.link.drop("test")
        assert ear.next(Offline).reason == "test"
        assert ear.next(Online).limits.session_present
        ear.link.ack(first)  # of the connection before: passed over
        second = ear.next(Message)
        assert (second.body, second.mid == first.mid) == (b"precious", False)
        ear.link.ack(second)
        ear.link.drop("test")
        ear.next(Online)
        ear.until(lambda: True)
        for _ in range(5):
            ear.heard += ear.link.tick(0.05)
        assert not [event for event in ear.heard if isinstance(event, Message)]


def test_will_is_published_unless_the_end_was_planned(broker):
    def will() -> Will:
        return Will("wills/x", b"gone")

    with connected(plain(broker.port), quick("heir", "wills/#")) as heir:
        heir.next(Online)
        for planned in (True, False):
            ear = Ear(Link(plain(broker.port), quick("mortal"), will=will))
            ear.next(Online)
            if planned:
                ear.link.close()
            else:
                ear.link.drop("test")
                ear.next(Offline)
            for body in (b"end",) if planned else (b"gone", b"end"):
                if body == b"end":
                    heir.link.publish("wills/end", body)
                assert heir.next(Message).body == body


# ------------------------------------------------------------------------------------------------ networks


def test_link_comes_back_with_ids_never_used_before(tmp_path):
    with Broker(tmp_path) as broker, connected(plain(broker.port), quick("back")) as ear:
        ear.next(Online)
        first = [ear.link.publish("t", b"") for _ in range(3)]
        broker.kill()
        ear.next(Offline)
        assert (ear.link.online, ear.link.room, ear.link.publish("t", b"")) == (False, 0, None)
        assert "nothing listens" in ear.next(Offline).reason
        broker.start()
        ear.next(Online)
        again = [ear.link.publish("t", b"") for _ in range(3)]
        assert not set(first) & set(again)
        assert [ear.next(Acked).mid for _ in again] == again


def test_half_dead_links_are_noticed_within_twice_the_keep_alive(broker):
    """Nothing comes and nothing was sent; nothing comes back; pings are answered and messages are not."""
    reasons = {}
    with contextlib.ExitStack() as stack:
        ears = {}
        for name in ("idle", "sending", "one-way"):
            proxy = stack.enter_context(Proxy(broker.port))
            ears[name] = stack.enter_context(connected(plain(proxy.port, keepalive_s=1), quick(name)))
            ears[name].next(Online)
            proxy.black_hole, proxy.drop_pubacks = name != "one-way", name == "one-way"
            stack.callback(setattr, proxy, "black_hole", False)
        for name in ("sending", "one-way"):
            ears[name].link.publish("t", b"")
        began = time.monotonic()
        while len(reasons) < 3:
            for name, ear in ears.items():
                for event in ear.link.tick(0.01):
                    if isinstance(event, Offline):
                        reasons.setdefault(name, event.reason)
            assert time.monotonic() - began < WAIT_S
    assert reasons["idle"] == "the broker does not answer pings any more"
    assert reasons["one-way"] == "the broker has not acknowledged a message for 2 s"


def test_silent_server_is_given_up(monkeypatch):
    monkeypatch.setattr(mqtt, "ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ear = Ear(Link(plain(server.getsockname()[1]), quick("silence")))
        assert ear.next(Offline).reason.endswith("takes the connection and does not answer")
        ear.link.close()


@pytest.mark.parametrize("seed", range(12))
def test_garbage_from_the_other_side_ends_the_connection_only(seed):
    chance = random.Random(seed)
    connack = bytes.fromhex("200300000021") if seed % 2 else b""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ear = Ear(Link(plain(server.getsockname()[1]), quick("garbage")))
        ear.link.retry_now()
        ear.heard += ear.link.tick(0.0)
        with server.accept()[0] as far:
            far.sendall(connack[:5] + chance.randbytes(200))
            far.shutdown(socket.SHUT_WR)
            ear.next(Offline)
        ear.link.close()


def test_pauses_are_random_and_double_up_to_a_limit():
    class High(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    link = Link(plain(free_port()), Session(client_id="x", retry_max_s=6.0), chance=High())
    link.retry_now()
    pauses = []
    for _ in range(5):
        link._next_try = 0.0
        pauses += [event.retry_s for event in link.tick(0.0) if isinstance(event, Offline)]
    assert pauses == [1.0, 2.0, 4.0, 6.0, 6.0]
    link = Link(plain(free_port()), Session(client_id="x"))
    starts = {link._pause() for _ in range(100)}
    assert len(starts) == 100 and min(starts) >= 0 and max(starts) <= 1.0


def test_stable_connection_makes_pauses_short_again(monkeypatch, broker):
    monkeypatch.setattr(mqtt, "STABLE_S", 0.0)
    with connected(plain(broker.port), quick("stable")) as ear:
        ear.link._failures = 9
        ear.next(Online)
        ear.link.drop("test")
        ear.next(Offline)
        assert ear.link._failures == 1


def test_connections_leave_nothing_behind(tmp_path, authority, stranger):
    cert, key = map(str, stranger.issue("foreign", "client"))
    good = {"host": "localhost", "ca_file": str(authority.file)}
    with Broker(tmp_path, authority=authority, client_authority=authority.file) as broker:
        gc.collect()
        gc.disable()
        try:
            before = len(os.listdir("/proc/self/fd"))
            refused = BrokerConfig(port=broker.port, cert_file=cert, key_file=key, **good)
            for config in (refused, plain(broker.port), plain(free_port())):
                ear = Ear(Link(config, quick("again")))
                for _ in range(5):
                    ear.link.retry_now()
                    ear.next(Offline)
                ear.link.close()
            assert len(os.listdir("/proc/self/fd")) == before
        finally:
            gc.enable()


def test_two_clients_with_one_name_are_told(broker):
    """mosquitto 2.0 just closes the older connection: only that it goes on and on is a sign."""
    with connected(plain(broker.port), quick("twin")) as one, connected(plain(broker.port), quick("twin")) as two:
        for _ in range(4):
            one.next(Online)
            two.next(Online)
        assert "another machine named twin" in one.next(Offline).reason


def test_codes_of_a_disconnect_are_told():
    with socket.create_server(("127.0.0.1", 0)) as server:
        for code, said in ((0x8E, "two machines have one name"), (0x8B, "shut down"), (0xA1, "code 0xA1")):
            ear = Ear(Link(plain(server.getsockname()[1]), quick("told")))
            ear.link.retry_now()
            ear.heard += ear.link.tick(0.0)
            with server.accept()[0] as far:
                far.sendall(bytes.fromhex("2003000000") + bytes((0xE0, 1, code)))
                ended = ear.next(Offline)
            assert said in ended.reason and (ended.code, ended.refused) == (code, code == 0x8E)


# ------------------------------------------------------------------------------------------------- reasons


def refusal(config: BrokerConfig) -> Offline:
    """Return why the first attempt fails."""
    ear = Ear(Link(config, quick("device-7")))
    ended = ear.next(Offline)
    ear.link.close()
    assert "\n" not in ended.reason
    return ended


SERVER = {  # how the broker's certificate is, and what is said of it
    "expired": ({"days": (-20, -2)}, "has expired"),
    "early": ({"days": (2, 20)}, "is not valid yet; is this machine's clock right?"),
    "named": ({"names": "DNS:elsewhere.example"}, "is for another name than mqtt.host = localhost"),
}


@pytest.mark.parametrize("case", SERVER)
def test_reason_names_what_is_wrong_with_the_brokers_certificate(tmp_path, authority, case):
    how, said = SERVER[case]
    with Broker(tmp_path, server=authority.issue(case, **how)) as broker:
        ended = refusal(BrokerConfig(host="localhost", port=broker.port, ca_file=str(authority.file)))
        assert said in ended.reason and ended.refused


def test_reason_unknown_authority_and_wrong_address(tmp_path, authority, stranger):
    with Broker(tmp_path, server=authority.issue("by-name", names="DNS:localhost")) as broker:
        unknown = refusal(BrokerConfig(host="localhost", port=broker.port, ca_file=str(stranger.file)))
        assert "authority that is not in" in unknown.reason and str(stranger.file) in unknown.reason
        assert "not in the system's list" in refusal(BrokerConfig(host="localhost", port=broker.port)).reason
        other = refusal(BrokerConfig(host="127.0.0.1", port=broker.port, ca_file=str(authority.file)))
        assert "another address" in other.reason


def test_reason_client_certificate(tmp_path, authority, stranger):
    good = authority.issue("good", "client")
    cases = {
        "wants a certificate of this side": None,
        "mqtt.cert_file has expired": authority.issue("old", "client", days=(-9, -2)),
        "does not know the authority that signed mqtt.cert_file": stranger.issue("foreign", "client"),
        "it must be one for clients": authority.issue("misused", "server"),
    }
    with Broker(tmp_path, authority=authority, client_authority=authority.file) as broker:

        def config(pair: tuple[Path, Path] | None) -> BrokerConfig:
            cert, key = map(str, pair or ("", ""))
            return BrokerConfig(
                host="localhost", port=broker.port, ca_file=str(authority.file), cert_file=cert, key_file=key
            )

        for said, pair in cases.items():
            ended = refusal(config(pair))
            assert said in ended.reason and ended.refused
        with connected(config(good), quick("good")) as ear:
            ear.next(Online)
            assert {name: round(days) for name, days in ear.link.certificate_days().items()} == {
                "mqtt.cert_file": 30,
                "the broker's certificate": 30,
            }


def test_reason_files_of_this_side(tmp_path, authority):
    cert, key = authority.issue("mine", "client")
    _, other = authority.issue("other", "client")
    locked = tmp_path / "locked.key"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + key.read_text().split("\n", 1)[1])
    text = tmp_path / "text.pem"
    text.write_text("hello")

    def reason(ca: Path, cert: Path, key: Path) -> str:
        config = BrokerConfig(host="h", ca_file=str(ca), cert_file=str(cert), key_file=str(key))
        with pytest.raises(ConfigError) as caught:
            tls.make_context(config)
        return str(caught.value)

    assert "is not its key" in reason(authority.file, cert, other)
    pair = BrokerConfig(host="h", ca_file=str(authority.file), cert_file=str(cert), key_file=str(other))
    assert "is not its key" in refusal(pair).reason
    assert "mqtt.ca_file" in reason(text, cert, key) and "no PEM file" in reason(text, cert, key)
    assert "mqtt.cert_file" in reason(authority.file, text, key)
    assert "mqtt.key_file" in reason(authority.file, cert, tmp_path / "none")
    assert "mqtt.cert_file" in reason(authority.file, tmp_path / "none", key)


def test_key_with_a_password_is_refused_and_nobody_is_asked(tmp_path, authority):
    cert, key = authority.issue("secret", "client")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ("openssl", "pkcs8", "-topk8", "-in", key, "-out", locked, "-passout", "pass:12345"),
        check=True,
        capture_output=True,
    )
    config = BrokerConfig(host="h", ca_file=str(authority.file), cert_file=str(cert), key_file=str(locked))
    with pytest.raises(ConfigError, match="a service needs one without"):
        tls.make_context(config)


def test_reason_plain_and_tls_confused(tmp_path, broker, authority):
    with Broker(tmp_path, authority=authority) as secure:
        silent = refusal(plain(secure.port))
        assert "set mqtt.tls = true" in silent.reason and silent.refused
    confused = refusal(BrokerConfig(host="localhost", port=broker.port, ca_file=str(authority.file)))
    assert "mqtt.tls = false" in confused.reason and confused.refused


def test_reason_network(monkeypatch):
    assert "nothing listens at 127.0.0.1 port" in refusal(plain(free_port())).reason
    assert "cannot be resolved" in refusal(BrokerConfig(host="no-such-host.invalid", tls=False)).reason
    assert "is no host name" in refusal(BrokerConfig(host="a" * 64 + ".example", tls=False)).reason

    def never(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", never)
    assert "does not answer" in refusal(plain(1)).reason


def test_reason_password(tmp_path):
    with Broker(tmp_path, passwords={"device-7": "right"}) as broker:
        (tmp_path / "password").write_text("wrong\n")
        config = plain(broker.port, username="device-7", password=f"file:{tmp_path / 'password'}")
        ended = refusal(config)
        assert "mqtt.username and mqtt.password" in ended.reason or "does not authorize" in ended.reason
        assert ended.refused and "wrong" not in ended.reason
        (tmp_path / "password").write_text("right\n")
        with connected(config, quick("device-7")) as ear:
            ear.next(Online)
    gone = refusal(plain(1, username="device-7", password="file:/nowhere"))
    assert "file:/nowhere" in gone.reason and gone.refused


def test_reason_old_tls(tmp_path, authority):
    """mosquitto with OpenSSL 3 gives no TLS 1.1 any more: a server of Python's own does."""
    cert, key = authority.issue("old-server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with listening(context) as (port, _):
        ended = refusal(BrokerConfig(host="localhost", port=port, ca_file=str(authority.file)))
        assert "no TLS 1.2 or newer" in ended.reason and ended.refused


@contextlib.contextmanager
def listening(context: ssl.SSLContext) -> Iterator[tuple[int, list[bytes]]]:
    """A TLS server that takes one connection and keeps what it is sent."""
    got: list[bytes] = []

    def serve() -> None:
        with server.accept()[0] as raw, contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as far:
            got.append(far.recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], got
        thread.join(5)


def test_unverified_peer_gets_not_one_byte(authority, stranger):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*stranger.issue("in-the-middle"))
    with listening(context) as (port, got):
        refusal(BrokerConfig(host="localhost", port=port, ca_file=str(authority.file), username="u"))
    assert b"".join(got) == b""


def test_replaced_certificates_are_taken_without_a_restart(tmp_path, monkeypatch, authority, stranger):
    monkeypatch.setattr(mqtt, "LOOK_S", 0.1)
    ca = tmp_path / "ca.pem"
    shutil.copy(stranger.file, ca)
    with Broker(tmp_path / "b", authority=authority) as broker:
        session = Session(client_id="rotate", retry_max_s=3600.0)
        with connected(BrokerConfig(host="localhost", port=broker.port, ca_file=str(ca)), session) as ear:
            ear.link._failures = 20  # the next attempt would be in an hour
            ear.link._next_try = 0.0
            assert "authority that is not in" in ear.next(Offline).reason
            ca.write_text("half a file")
            for _ in range(4):
                ear.heard += ear.link.tick(0.05)
            shutil.copy(authority.file, ca)
            ear.next(Online)
            ca.write_text("half a file")
            for _ in range(4):
                ear.heard += ear.link.tick(0.05)
            assert ear.link.online  # which does not end a connection that works
            ca.write_text(authority.file.read_text() + "\n")
            assert ear.next(Offline).reason == "certificates were replaced"
            ear.next(Online)


def test_days_left_of_old_and_far_certificates(authority):
    now_s = Clock().wall_ms() / 1000
    for days in (-2, 20, 40 * 365):  # UTCTime and, from 2050, GeneralizedTime
        cert, _ = authority.issue(f"far{days}", "client", days=(-30, days))
        left = tls.days_left(str(cert), now_s)
        assert left is not None and abs(left - days) < 1e-2
    assert tls.days_left(__file__, now_s) is None

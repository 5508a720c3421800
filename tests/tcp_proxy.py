"""A TCP proxy that breaks connections the way networks do, and knows enough MQTT to choose the moment."""

from __future__ import annotations

import asyncio
import contextlib
import threading

PUBLISH, PUBACK = 3, 4


class Packets:
    """Cuts a stream into MQTT packets."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the packets that are complete now."""
        self._rest += data
        packets = []
        while (size := self._size()) and len(self._rest) >= size:
            packets.append(self._rest[:size])
            self._rest = self._rest[size:]
        return packets

    def _size(self) -> int:
        """Return the length of the first packet, head and all; 0 when it cannot be told yet."""
        length = shift = 0
        for position, byte in enumerate(self._rest[1:5], 2):
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return position + length
        return 0


def kind(packet: bytes) -> int:
    """Return the type of a packet, 0 for none."""
    return packet[0] >> 4 if packet else 0


class Proxy:
    """Forwards to a loopback port, from a thread of its own. Attributes may be changed at any time.

    Attributes:
        port: where it listens.
        black_hole: takes everything and forwards nothing, without a FIN.
        drop_pubacks: the broker's acknowledgements vanish.
        refuse: closes connections as soon as they are there.
        latency_s: forwards this much later.
        bytes_per_s: forwards no faster; 0 for no limit.
        cut_after: the connection is cut after so many more PUBLISH with QoS 1, which arrive but are not acknowledged.
        keep: whether to keep what clients send in `sent`.
        mqtt: False for TLS, which it cannot look into.
        connections: taken so far.
        publishes: with QoS 1, forwarded so far.
        cuts: connections cut so far.
        sent: all that clients sent.
    """

    def __init__(self, target: int, *, mqtt: bool = True) -> None:
        """Start to forward to a loopback port."""
        self.black_hole = self.drop_pubacks = self.refuse = self.keep = False
        self.latency_s = 0.0
        self.bytes_per_s = 0
        self.cut_after: int | None = None
        self.mqtt = mqtt
        self.connections = self.publishes = self.cuts = 0
        self.sent = bytearray()
        self.port = 0
        self._target = target
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def cut(self) -> None:
        """Reset all connections."""
        self._loop.call_soon_threadsafe(self._abort)

    def close(self) -> None:
        """End."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        self._abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.01)  # an aborted transport closes its socket in the loop's next rounds

    def _abort(self) -> None:
        self.cuts += len(self._open) // 2
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuse:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._open |= pair
        up = asyncio.create_task(self._pump(reader, far_writer, up=True))
        down = asyncio.create_task(self._pump(far_reader, writer, up=False))
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        for end in pair:
            end.transport.abort()
        self._open -= pair

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        packets = Packets()
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.keep and up:
                    self.sent += data
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                for packet in packets.feed(data) if self.mqtt else [data]:
                    await self._forward(packet, writer, up=up)
                    if self.bytes_per_s:
                        await asyncio.sleep(len(packet) / self.bytes_per_s)

    async def _forward(self, packet: bytes, writer: asyncio.StreamWriter, *, up: bool) -> None:
        while self.black_hole:
            await asyncio.sleep(0.05)
        cut = False
        if self.mqtt and up and kind(packet) == PUBLISH and packet[0] & 0x06:
            self.publishes += 1
            if self.cut_after is not None:
                self.cut_after -= 1
                cut = self.cut_after <= 0
        if self.mqtt and not up and kind(packet) == PUBACK and (self.drop_pubacks or self.cut_after == 0):
            return
        writer.write(packet)
        await writer.drain()
        if cut:
            await asyncio.sleep(0.05)  # it arrives; its acknowledgement does not
            self.cut_after = None
            self._abort()

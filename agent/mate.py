"""A second process that takes a share of a page's tiles and lines, so that one page uses two cores.

Paddle Lite's Python class holds the interpreter's lock while it runs, and its own threads bring nothing for models
this small (measured, DECISIONS), so a second core needs a second process. Pictures go over in a memory file that has
no name, results come back through a pipe; nothing touches the disk.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, ParamSpec, TypeVar

import msgspec
import numpy as np

from agent.bundle import ModelBundle, ModelName
from agent.engines import EngineSettings
from agent.errors import EngineError
from agent.memory import collect, keep_heap_small, resident_bytes, settle, trim
from agent.models import Models, Result
from agent.page import Pixels
from agent.recognize import Reading

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_LENGTH = struct.Struct("<Q")


class _Job(msgspec.Struct, frozen=True, array_like=True):
    """One picture for one model, its shape, and where its bytes begin in the shared memory; or "release"."""

    model: Literal["det", "rec", "cls", "release"]
    shape: tuple[int, ...] = ()
    offset: int = 0


class _Reply(msgspec.Struct, array_like=True):
    """A result on its way back: a map's bytes, a reading, or a share."""

    text_map: bytes | None = None
    reading: Reading | None = None
    share: float = 0.0


class Mate:
    """The near end: hands over work and takes results."""

    def __init__(self, bundle: ModelBundle, settings: EngineSettings) -> None:
        """Start the process and wait until its models are loaded.

        Raises:
            EngineError: it did not start.
        """
        self._memory = os.memfd_create("pictures", os.MFD_CLOEXEC)
        command = [sys.executable, "-m", "agent.mate", str(bundle.path.resolve()), settings.engine, str(self._memory)]
        self._process = subprocess.Popen(
            command,
            bufsize=0,
            cwd=Path(__file__).parent.parent,  # `-m` looks there first, and not into whatever folder the user is in
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._memory,),
        )
        assert self._process.stdout is not None
        self._out = io.BufferedReader(self._process.stdout)  # type: ignore[type-var]
        self._shapes: list[_Job] = []
        try:
            _receive(self._out)
        except EOFError as error:
            self.close()
            raise EngineError("the second process of --threads 2 did not start; its message is above") from error

    @property
    def status(self) -> int | None:
        """Exit status; negative for a signal, None while it runs."""
        return self._process.poll()

    @property
    def resident_bytes(self) -> int:
        """Resident memory of the process; 0 when it is gone."""
        return resident_bytes(self._process.pid)

    def start(self, model: ModelName, pictures: Sequence[Pixels]) -> None:
        """Hand over pictures for one model; the process works while the caller goes on.

        Raises:
            EOFError: the process is gone.
        """
        self._shapes = []
        offset = 0
        os.ftruncate(self._memory, 0)
        for picture in pictures:
            data = np.ascontiguousarray(picture)
            os.pwrite(self._memory, data.data, offset)
            self._shapes.append(_Job(model, picture.shape, offset))
            offset += data.nbytes
        self._send(msgspec.msgpack.encode(self._shapes))

    def finish(self) -> list[Result]:
        """Wait for the results of the pictures handed over, in their order.

        Raises:
            EOFError: the process has died.
        """
        replies = msgspec.msgpack.decode(_receive(self._out), type=list[_Reply])
        return [_unpack(reply, job) for reply, job in zip(replies, self._shapes, strict=True)]

    def release(self) -> None:
        """Let the process give its working memory back."""
        os.ftruncate(self._memory, 0)
        self._send(msgspec.msgpack.encode([_Job("release")]))
        _receive(self._out)

    def close(self) -> None:
        """End the process. Safe to call twice."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._out.close()
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_LENGTH.pack(len(message)) + message)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EOFError from error


def _unpack(reply: _Reply, job: _Job) -> Result:
    if reply.reading is not None:
        return reply.reading
    if reply.text_map is None:
        return reply.share
    return np.frombuffer(reply.text_map, np.uint8).reshape(job.shape[:2])


def _receive(stream: BinaryIO) -> bytes:
    """Return the next message; EOFError when the other end is gone."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    body = stream.read(length)
    if len(body) < length:
        raise EOFError
    return body


class Crew:
    """The models in this process, and mates where the engine does not use the cores itself."""

    def __init__(
        self, bundle: ModelBundle, settings: EngineSettings, progress: Callable[[], None] = lambda: None
    ) -> None:
        """Load the models, here and in the mates.

        Args:
            bundle: the models.
            settings: their engine.
            progress: called whenever a picture has been through a model.

        Raises:
            EngineError: no runtime for this bundle, or a mate did not start.
        """
        self._bundle = bundle
        self._settings = settings
        self._progress = progress
        self._models: Models | None = None
        self._mates: list[Mate] = []
        self._size = settings.threads  # processes wanted; a mate that died or was dismissed is not wanted again
        self.wake()

    def wake(self) -> Models:
        """Load the models that `rest` gave back, and start mates that are missing; returns the models of this process.

        Raises:
            EngineError: no runtime for this bundle, or a mate did not start.
        """
        if self._models is None:
            self._models = Models(self._bundle, self._settings)
        while not self._models.uses_threads and len(self._mates) < self._size - 1:
            self._mates.append(Mate(self._bundle, self._settings))
        return self._models

    def rest(self) -> None:
        """Give the models back, and end the mates, until they are needed again."""
        if self._models is not None:
            self.close()
            trim()

    @property
    def size(self) -> int:
        """Processes that run models, this one included."""
        return 1 + len(self._mates)

    @property
    def beside_bytes(self) -> int:
        """Resident memory of the mates."""
        return sum(mate.resident_bytes for mate in self._mates)

    @property
    def resident_bytes(self) -> int:
        """Resident memory of all processes."""
        return resident_bytes() + self.beside_bytes

    def dismiss(self) -> None:
        """End one of the mates, and its memory with it."""
        self._mates.pop().close()
        self._size -= 1

    def run(self, model: ModelName, pictures: Sequence[Pixels], costs: Sequence[int]) -> list[Result]:
        """Run a model over pictures, shared out among the processes; results in the same order.

        Each share is worked off by cost, which goes with the shape: a new shape rebuilds the predictor.
        """
        models = self.wake()
        order = sorted(range(len(pictures)), key=costs.__getitem__)
        own, *others = shares(order, costs, self.size)
        results: dict[int, Result] = {}
        busy = [(mate, share) for mate, share in zip(self._mates, others, strict=True) if share]
        try:
            for mate, share in busy:
                self._survive(mate, mate.start, model, [pictures[i] for i in share])
            for index in own:
                results[index] = models.run(model, pictures[index])
                self._progress()
            while busy:
                mate, share = busy[0]
                done = self._survive(mate, mate.finish) if mate in self._mates else None
                busy.pop(0)
                self._progress()
                results.update(zip(share, done or (), strict=False))
        except BaseException:
            self._abandon([mate for mate, _ in busy])
            raise
        for index in order:
            if index not in results:  # a mate died over it
                results[index] = models.run(model, pictures[index])
                self._progress()
        return [results[index] for index in range(len(pictures))]

    def release(self) -> None:
        """Give working memory back, everywhere."""
        if self._models is not None:
            self._models.release()
        trim()
        for mate in tuple(self._mates):
            self._survive(mate, mate.release)

    def close(self) -> None:
        """Give the models back and end the mates."""
        if self._models is not None:
            self._models.close()
        for mate in self._mates:
            mate.close()
        self._models, self._mates = None, []

    def _abandon(self, mates: Sequence[Mate]) -> None:
        """End mates whose answers nobody will read: they would be taken for those of the next page.

        The next `wake` starts others.
        """
        for mate in mates:
            if mate in self._mates:
                self._mates.remove(mate)
                mate.close()

    def _survive(self, mate: Mate, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Do something with a mate; when it has died go on without it."""
        try:
            return action(*args, **kwargs)
        except EOFError:
            _log.warning("a second process died (status %s); its share is done by the first", mate.status)
            self._mates.remove(mate)
            self._size -= 1
            mate.close()
            return None


def shares(order: Sequence[int], costs: Sequence[int], count: int) -> list[list[int]]:
    """Cut jobs, sorted by cost, into `count` runs of about the same total cost."""
    total, done = sum(costs), 0
    cut: list[list[int]] = [[] for _ in range(count)]
    for index in order:
        cut[min(count - 1, int(count * (done + costs[index] / 2) / max(1, total)))].append(index)
        done += costs[index]
    return cut


def serve(models: Models, memory_file: int, requests: BinaryIO, replies: BinaryIO) -> None:
    """Work until the near end closes its pipe."""
    replies.write(_LENGTH.pack(0))
    replies.flush()
    while True:
        try:
            jobs = msgspec.msgpack.decode(_receive(requests), type=list[_Job])
        except EOFError:
            return
        body = msgspec.msgpack.encode([_work(models, job, memory_file) for job in jobs])
        replies.write(_LENGTH.pack(len(body)) + body)
        replies.flush()


def _work(models: Models, job: _Job, memory_file: int) -> _Reply:
    if job.model == "release":
        models.release()
        collect()
        trim()
        return _Reply()
    raw = os.pread(memory_file, int(np.prod(job.shape)), job.offset)
    found = models.run(job.model, np.frombuffer(raw, np.uint8).reshape(job.shape))
    if isinstance(found, float):
        return _Reply(share=found)
    return _Reply(reading=found) if isinstance(found, Reading) else _Reply(text_map=found.tobytes())


def _main() -> None:
    path, engine, descriptor = sys.argv[1:4]
    # Control-C goes to the whole group: the near end decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_heap_small()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a native library prints must not mix with the replies
    models = Models(ModelBundle.load(Path(path)), EngineSettings(engine=engine))
    settle()
    serve(models, int(descriptor), sys.stdin.buffer, replies)


if __name__ == "__main__":
    _main()

"""`edge-ocr scan`: an order for the worker's scanner, and what came of it."""

from __future__ import annotations

import time
from pathlib import Path

from agent.config import AgentConfig
from agent.errors import ConfigError, InputError, ScannerError
from agent.health import running
from agent.source_config import ScannerConfig
from agent.sources.scanner.orders import Answer, Orders, orders_of

LOOK_S = 0.1


class Given:
    """An order that was given."""

    def __init__(self, source: str, name: str, orders: Orders, state_dir: Path) -> None:
        self.source = source
        self._name = name
        self._orders = orders
        self._state_dir = state_dir

    def wait(self) -> Answer:
        """Return what came of it. Who stops waiting takes back an order that was not begun.

        Raises:
            ScannerError: no worker runs that could carry it out.
        """
        try:
            while True:
                runs = running(self._state_dir, "worker")  # before the answer, which it may give at its end
                if (answer := self._orders.answer_to(self._name)) is not None:
                    return answer
                if not runs:
                    raise ScannerError(f"{self.source}: the worker has ended meanwhile; order again when it runs")
                time.sleep(LOOK_S)
        except BaseException:
            self._orders.withdraw(self._name)
            raise


def give(config: AgentConfig, name: str, pages: int) -> Given:
    """Order pages from a scanner.

    Args:
        config: the agent's settings.
        name: of the source; "" where there is only one.
        pages: at most so many; 0: one from the glass, and from a feeder all.

    Raises:
        ConfigError: there is no such source, or a name is needed.
        ScannerError: no worker runs that could carry it out.
        InputError: this user may not order.
    """
    names = [source.name for source in config.source if isinstance(source, ScannerConfig)]
    if not names:
        raise ConfigError('no [[source]] with type = "scanner" in the settings')
    if not name and len(names) > 1:
        raise ConfigError(f"there are several scanners; name one of: {', '.join(names)}")
    chosen = name or names[0]
    if chosen not in names:
        raise ConfigError(f"no scanner {chosen!r} in the settings; there is: {', '.join(names)}")
    state_dir = Path(config.state_dir)
    if not running(state_dir, "worker"):
        raise ScannerError(f"{state_dir}: no worker runs here; start `edge-ocr run`")
    orders = orders_of(state_dir, chosen)
    try:
        return Given(chosen, orders.give(pages), orders, state_dir)
    except OSError as error:
        raise InputError(f"{state_dir}: {error.strerror}: order as the user whom it belongs to, or as root") from error

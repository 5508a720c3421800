"""Opens what the settings name: sources, and the reader. What a kind needs is imported when one of it is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agent.clock import Clock
from agent.config import AgentConfig
from agent.memory import Budget
from agent.page import Frame, PageResult
from agent.source_config import CameraConfig, FolderConfig, ScannerConfig, SourceConfig, UploadConfig
from agent.sources import Source

if TYPE_CHECKING:
    from agent.reader import ReaderSettings


Progress = Callable[[], None]


class PageReader(Protocol):
    """What reads a frame."""

    budget: Budget

    def read(self, frame: Frame) -> PageResult:
        """Return the page of a frame."""

    @property
    def beside_bytes(self) -> int:
        """Resident memory of other processes that read."""

    def rest(self) -> None:
        """Give the models back until the next page."""

    def rebuild(self) -> None:
        """Load the models anew."""

    def close(self) -> None:
        """Give the models back."""


def open_sources(config: AgentConfig, clock: Clock, progress: Progress = lambda: None) -> list[Source]:
    """Return the configured sources; `progress` is called while one of them is busy for long.

    Raises:
        ConfigError: one of them cannot work; the message says what to do.
    """
    return [_OPENERS[type(source)](config, source, clock, progress) for source in config.source]


def _open_folder(config: AgentConfig, source: SourceConfig, clock: Clock, progress: Progress) -> Source:
    from agent.sources.folder.source import FolderSource

    assert isinstance(source, FolderConfig)
    return FolderSource(source, clock, config.documents, progress)


def _open_scanner(config: AgentConfig, source: SourceConfig, clock: Clock, progress: Progress) -> Source:
    from agent.sources.scanner.source import ScannerSource

    assert isinstance(source, ScannerConfig)
    return ScannerSource(source, Path(config.state_dir), clock)


def _open_upload(config: AgentConfig, source: SourceConfig, clock: Clock, progress: Progress) -> Source:
    from agent.sources.upload.source import UploadSource

    assert isinstance(source, UploadConfig)
    return UploadSource(source, config, clock)


def _open_camera(config: AgentConfig, source: SourceConfig, clock: Clock, progress: Progress) -> Source:
    from agent.sources.camera.source import CameraSource

    assert isinstance(source, CameraConfig)
    return CameraSource(source, Path(config.state_dir), clock)


_OPENERS: dict[type, Callable[[AgentConfig, SourceConfig, Clock, Progress], Source]] = {
    FolderConfig: _open_folder,
    ScannerConfig: _open_scanner,
    CameraConfig: _open_camera,
    UploadConfig: _open_upload,
}


def open_reader(config: AgentConfig, progress: Progress = lambda: None) -> tuple[PageReader, str]:
    """Load the configured models.

    Args:
        config: the settings.
        progress: called between the pieces of a page.

    Raises:
        BundleError: they cannot be trusted.
        EngineError: no runtime for them.
        BudgetError: they do not fit.
    """
    from agent import trial
    from agent.bundle import ModelBundle
    from agent.reader import Reader

    bundle = ModelBundle.load(Path(config.reader.bundle))
    settings = reader_settings(config)
    trial.ensure_tried(bundle, settings.engine)
    return Reader(bundle, settings, progress), bundle.label


def reader_settings(config: AgentConfig) -> ReaderSettings:
    """Return how an agent with these settings reads."""
    from agent.engines import EngineSettings
    from agent.reader import ReaderSettings

    engine = EngineSettings(config.reader.engine, config.reader.threads, power_mode=config.reader.power_mode)
    return ReaderSettings(config.memory.limit_mb, config.reader.min_score, engine=engine)

"""Models: pixels in, text probability or text out. Needs no vision package, so that a mate process stays small."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from agent import recognize
from agent.bundle import ModelBundle, ModelName
from agent.engines import EngineSettings, open_engine
from agent.page import Pixels

Tensor = npt.NDArray[np.float32]
Result = Pixels | recognize.Reading | float


def to_tensor(pixels: Pixels, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return float32 (1, 3, H, W) of (pixel / 255 - mean) / std for uint8 (H, W, 3) or grey (H, W)."""
    tensor = np.empty((1, 3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        plane = pixels[:, :, channel] if pixels.ndim == 3 else pixels
        np.multiply(plane, np.float32(1 / 255 / std[channel]), out=tensor[0, channel])
        tensor[0, channel] -= np.float32(mean[channel] / std[channel])
    return tensor


class Models:
    """The models of a bundle, loaded. Not safe for use by several threads at once."""

    def __init__(self, bundle: ModelBundle, settings: EngineSettings) -> None:
        """Load the models.

        Raises:
            EngineError: no runtime for this bundle.
        """
        self.bundle = bundle
        self._det = open_engine(bundle, "det", settings)
        self._rec = open_engine(bundle, "rec", settings)
        self._cls = open_engine(bundle, "cls", settings) if bundle.manifest.cls is not None else None

    @property
    def uses_threads(self) -> bool:
        """Whether the engine spreads one model over several threads itself."""
        return self._det.uses_threads

    def run(self, model: ModelName, pixels: Pixels) -> Result:
        """Run a model by name: "det" gives a map, "rec" a reading, "cls" the probability of being upside down."""
        if model == "det":
            return self.text_map(pixels)
        return self.reading(pixels) if model == "rec" else self.upside_down(pixels)

    def text_map(self, pixels: Pixels) -> Pixels:
        """Return the text probability of every pixel, uint8 (H, W), 255 is certain; sides as the detector needs."""
        spec = self.bundle.manifest.det
        output = self._det.run(to_tensor(pixels, spec.mean, spec.std))[0, 0]
        text_map: Pixels = (output * 255).astype(np.uint8)
        return text_map

    def reading(self, strip: Pixels) -> recognize.Reading:
        """Return the text of a line picture of the recogniser's height and a bucket's width."""
        spec = self.bundle.manifest.rec
        output = self._rec.run(to_tensor(strip, spec.mean, spec.std))[0]
        return recognize.decode(output, self.bundle.characters)

    def upside_down(self, strip: Pixels) -> float:
        """Return the probability that a line picture, of the classifier's size, stands on its head."""
        spec = self.bundle.manifest.cls
        if spec is None or self._cls is None:
            return 0.5
        return float(self._cls.run(to_tensor(strip, spec.mean, spec.std))[0, 1])

    def release(self) -> None:
        """Give working memory back until the next call."""
        for engine in (self._det, self._rec, self._cls):
            if engine is not None:
                engine.release()

    def close(self) -> None:
        """Give the models back."""
        for engine in (self._det, self._rec, self._cls):
            if engine is not None:
                engine.close()

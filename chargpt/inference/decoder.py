"""Read characters and choose the next ones: with compiled loops on a processor; with torch on other devices.

On a processor, torch, which takes seconds to load, is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol, Union

import numpy as np
from numba import config as numba_config
from numpy.typing import NDArray

from chargpt.inference.kernel import Cache, Floats, choose, extend, new_cache, prepare
from chargpt.model.config import GPTConfig
from chargpt.model.file import ModelFile

if TYPE_CHECKING:
    from chargpt.model.gpt import GPT

IDS = NDArray[np.int64]
Model = Union["GPT", ModelFile]
SMALL = 25_000_000  # parameters; a GPU's operations take longer to start than the loops need for a smaller model
ROWS = 4  # texts that are read together: their cache and the weights fit into the processor's


class Options(NamedTuple):
    """How to choose a character; see `kernel.choose`."""

    temperature: float
    top_k: int
    top_p: float


class Decoder(Protocol):
    """Reads a batch of texts of equal length, and chooses the next characters of each."""

    @property
    def length(self) -> int:
        """How many characters of each text have been read."""

    def extend(self, unread: IDS, uniform: NDArray[np.float64], options: Options) -> IDS:
        """Read unread (B, S); then choose a character of each text and read it, for each row of uniform (n, B).

        The last choices are not read. Returns the choices, (n, B); -1 where a prediction is not finite.
        """

    def forget(self) -> None:
        """Forget every character that was read."""


def place(model: ModelFile, device: str) -> Model:
    """The model for a value of `device` in params.yaml.

    `auto` takes the processor for a small model, which writes fastest there, and otherwise a GPU if there is one.
    Raises ChargptError if the device is not available.
    """
    if device == "cpu" or (device == "auto" and model.config.parameters <= SMALL):
        return model
    from chargpt.device import pick_device
    from chargpt.model.gpt import GPT

    return GPT.from_arrays(model.config, model.weights).to(pick_device(device)).eval()


def make_decoder(model: Model, batch_size: int) -> Decoder:
    """The decoder for the model's device."""
    if isinstance(model, ModelFile):
        return CompiledDecoder(model.config, model.weights, batch_size)
    if model.wte.weight.device.type == "cpu":
        return CompiledDecoder(model.config, model.arrays(), batch_size)
    return TorchDecoder(model, batch_size)


class TorchDecoder:
    """Runs the torch model itself, with its key/value cache, on any device."""

    def __init__(self, model: GPT, batch_size: int) -> None:
        from chargpt.model.gpt import KVCache

        self.model = model
        self.cache = KVCache(model, batch_size)

    @property
    def length(self) -> int:
        return self.cache.length

    def forget(self) -> None:
        self.cache.length = 0

    def extend(self, unread: IDS, uniform: NDArray[np.float64], options: Options) -> IDS:
        chosen = np.empty(uniform.shape, np.int64)
        for step, numbers in enumerate(uniform):
            chosen[step] = choose(self.read(unread), numbers, *options)
            if chosen[step].min() < 0:
                return chosen[: step + 1]
            unread = chosen[step][:, None]
        return chosen

    def read(self, idx: IDS) -> Floats:
        """Read idx (B, S) after the characters read before; return the next character's logits (B, V)."""
        import torch

        was_training = self.model.training
        self.model.eval()
        with torch.inference_mode():
            logits = self.model(torch.from_numpy(idx).to(self.model.wte.weight.device), self.cache)[:, -1]
        self.model.train(was_training)
        return logits.contiguous().cpu().numpy()


class CompiledDecoder:
    """Runs compiled loops on a copy of the weights. Threads share the texts, a few texts at a time."""

    def __init__(self, config: GPTConfig, weights: Mapping[str, Floats], batch_size: int) -> None:
        c = config
        self.weights, self.relu = prepare(c, weights), c.activation == "relu"
        threads = numba_config.NUMBA_NUM_THREADS
        rows = min(ROWS, -(-batch_size // threads))
        self.parts = [slice(first, min(first + rows, batch_size)) for first in range(0, batch_size, rows)]
        self.caches = [new_cache(c, part.stop - part.start) for part in self.parts]
        self.pool = ThreadPoolExecutor(min(threads, len(self.parts))) if len(self.parts) > 1 else None
        self.length = 0

    def forget(self) -> None:
        self.length = 0

    def extend(self, unread: IDS, uniform: NDArray[np.float64], options: Options) -> IDS:
        def work(part: slice, cache: Cache) -> IDS:
            texts, numbers = np.ascontiguousarray(unread[part]), np.ascontiguousarray(uniform[:, part])
            return extend(self.weights, self.relu, cache, texts, self.length, numbers, *options)

        run = map if self.pool is None else self.pool.map
        chosen = np.concatenate(list(run(work, self.parts, self.caches)), axis=1)
        self.length += unread.shape[1] + len(uniform) - 1
        return chosen

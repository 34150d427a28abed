"""Read characters and choose the next ones: with compiled loops on a CPU, with torch on other devices.

On a CPU, torch, which takes seconds to load, is not needed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple, Union

import numpy as np
from numba import config as numba_config
from numpy.typing import NDArray

from chargpt.inference.kernel import Cache, Floats, Weights, draw, extend, new_cache, prepare
from chargpt.model.config import GPTConfig
from chargpt.model.file import ModelFile

if TYPE_CHECKING:
    from chargpt.model.gpt import GPT

IDS = NDArray[np.int64]
SMALL = 25_000_000  # parameters; a GPU's operations take longer to start than the loops need for a smaller model
ROWS = 4  # texts that are read together: their cache and the weights fit into the CPU's cache


class PackedModel(NamedTuple):
    """A model whose weights are copied in the order in which the compiled loops read them."""

    config: GPTConfig
    weights: Weights


Model = Union["GPT", ModelFile, PackedModel]
Choice = tuple[float, int, float]  # temperature, top_k and top_p, as `kernel.draw` takes them


def place(model: ModelFile, device: str) -> Model:
    """The model for a value of `device` in params.yaml, prepared as by `pack`.

    `auto` takes the CPU for a small model, which generates fastest there, or without torch; otherwise a GPU if there is
    one.
    Raises ChargptError if the device is not available.
    """
    if device == "cpu" or (device == "auto" and (model.config.parameters <= SMALL or not find_spec("torch"))):
        return pack(model)
    from chargpt.device import pick_device
    from chargpt.model.gpt import GPT

    return pack(GPT.from_arrays(model.config, model.weights).to(pick_device(device)).eval())


def pack(model: Model) -> GPT | PackedModel:
    """Prepare a model once for several calls of `generate`. Later changes of its weights do not count.

    A model on another device than the CPU is returned as it is.
    """
    if isinstance(model, PackedModel) or (not isinstance(model, ModelFile) and model.wte.weight.device.type != "cpu"):
        return model
    weights = model.weights if isinstance(model, ModelFile) else model.arrays()
    return PackedModel(model.config, prepare(model.config, weights))


def make_decoder(model: Model, batch_size: int) -> TorchDecoder | CompiledDecoder:
    """The decoder for the model's device: reads a batch of texts of equal length, and chooses what follows each."""
    packed = pack(model)
    return CompiledDecoder(packed, batch_size) if isinstance(packed, PackedModel) else TorchDecoder(packed, batch_size)


class TorchDecoder:
    """Runs the torch model itself, with its key/value cache, on any device."""

    def __init__(self, model: GPT, batch_size: int) -> None:
        from chargpt.model.gpt import KVCache

        self.model = model
        self.cache = KVCache(model, batch_size)

    def extend(self, unread: IDS, start: int, uniform: NDArray[np.float64], choice: Choice) -> IDS:
        """Like `CompiledDecoder.extend`."""
        chosen, self.cache.length = np.empty(uniform.shape, np.int64), start
        for step, numbers in enumerate(uniform):
            chosen[step] = draw(self.read(unread), numbers, choice)
            unread = chosen[step][:, None].clip(0)  # after -1, anything will do
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
    """Runs compiled loops on packed weights. Threads share the texts, a few texts at a time."""

    def __init__(self, model: PackedModel, batch_size: int) -> None:
        self.weights, threads = model.weights, numba_config.NUMBA_NUM_THREADS
        rows = min(ROWS, -(-batch_size // threads))
        self.parts = [slice(first, min(first + rows, batch_size)) for first in range(0, batch_size, rows)]
        self.caches = [new_cache(model.config, part.stop - part.start) for part in self.parts]
        self.pool = ThreadPoolExecutor(min(threads, len(self.parts))) if len(self.parts) > 1 else None

    def extend(self, unread: IDS, start: int, uniform: NDArray[np.float64], choice: Choice) -> IDS:
        """Read unread (B, S) at positions start, start + 1, ... after the `start` characters read before.

        Then choose a character of each text and read it, for each row of uniform (n, B). The last choices are not read.
        Returns the choices, (n, B); -1 where a prediction is not finite.
        """

        def work(part: slice, cache: Cache) -> IDS:
            texts, numbers = np.ascontiguousarray(unread[part]), np.ascontiguousarray(uniform[:, part])
            return extend(self.weights, cache, texts, start, numbers, choice)

        return self.each_part(work)

    def each_part(self, work: Callable[[slice, Cache], IDS]) -> IDS:
        """What work(part of the batch, its cache) returns, (n, rows of the part) each, side by side."""
        run = map if self.pool is None else self.pool.map
        return np.concatenate(list(run(work, self.parts, self.caches)), axis=1)

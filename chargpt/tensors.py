"""Read and write safetensors files. A file is complete or absent. No other module imports that library."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError, escape
from chargpt.files import atomic_write, unique_keys

MAX_HEADER = 20_000_000  # bytes; a model with 1000 layers and every Unicode character needs 17 million
DTYPES = {"BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4"}
DTYPES |= {"U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8"}
FORMATS = {dtype: name for name, dtype in DTYPES.items()}
Layout = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]  # name -> dtype and shape, in the order of the data


def write_arrays(
    path: str | Path,
    dtype: np.dtype[Any],
    sizes: Mapping[str, int],
    chunks: Iterable[NDArray[Any]],
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write 1-D arrays of one dtype (uint8, uint16 or uint32) to a .safetensors file without holding them in memory.

    sizes: name -> number of elements. chunks: the elements of all arrays in this order, in pieces of any length.
    Raises ChargptError if the chunks have more or fewer elements than `sizes` says.
    """
    layout = {name: (dtype, (size,)) for name, size in sizes.items()}
    _write(path, metadata, layout, (chunk.astype(dtype, copy=False) for chunk in chunks))


def write_tensors(path: str | Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write arrays atomically. The same arrays and metadata give the same bytes."""
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # every array is aligned
    layout = {name: (tensors[name].dtype, tensors[name].shape) for name in names}
    _write(path, metadata, layout, (tensors[name] for name in names))


def _write(path: str | Path, metadata: Mapping[str, str], layout: Layout, chunks: Iterable[NDArray[Any]]) -> None:
    """Write the header for `layout`, then the chunks. Tensors of one dtype become the bytes that the library writes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        code = FORMATS[dtype.newbyteorder("<").str]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)  # the format aligns the data to 8 bytes
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(head)) + head)
        written = 0
        for chunk in chunks:
            written += file.write(chunk.astype(chunk.dtype.newbyteorder("<"), copy=False).tobytes())
        if written != end:
            raise ChargptError(f"{path}: the text changed while it was being read; run again")


class TensorFile:
    """An open safetensors file.

    metadata: its entries; none if the file has no metadata. shapes and formats: of each tensor, by name; a format is
    the file's name of a dtype, such as F32.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], start: int) -> None:
        tensors = {name: about for name, about in header.items() if name != "__metadata__"}
        self.metadata: dict[str, str] = header.get("__metadata__") or {}
        self.shapes: dict[str, list[int]] = {name: about["shape"] for name, about in tensors.items()}
        self.formats: dict[str, str] = {name: about["dtype"] for name, about in tensors.items()}
        self._offsets = {name: about["data_offsets"] for name, about in tensors.items()}
        self._bytes = np.memmap(path, np.uint8, mode="c")[start:]

    def array(self, name: str) -> NDArray[Any]:
        """A tensor, memory-mapped. What is written into it does not reach the file.

        Raises ChargptError if numpy has no such dtype.
        """
        if self.formats[name] not in DTYPES:
            raise ChargptError(f"{name} has the format {self.formats[name]}; expected one of {', '.join(DTYPES)}")
        first, last = self._offsets[name]
        array = np.asarray(self._bytes[first:last]).view(DTYPES[self.formats[name]]).reshape(self.shapes[name])
        return array if array.flags.aligned else array.copy()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every tensor, by name."""
        return {name: self.array(name) for name in self.shapes}


def open_tensors(path: str | Path) -> TensorFile:
    """Open a safetensors file to read it as memory-mapped arrays.

    Raises ChargptError if the file is missing, truncated or not a safetensors file; the message says which.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ChargptError(f"{path}: no such file; give the path of an existing file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = file.read(min(length, MAX_HEADER))
    try:
        if not 0 < length == len(head):
            raise ValueError("its header is empty, incomplete or too long")
        header = json.loads(head, object_pairs_hook=unique_keys)  # the library would accept a repeated name
        with safe_open(path, framework="np"):  # compares the header with the file's length
            pass
        return TensorFile(path, header, 8 + length)
    except (OSError, MemoryError) as error:  # a file larger than the address space
        raise ChargptError(
            f"{path}: cannot be mapped into memory ({escape(error)}); free some, or use a smaller model"
        ) from None
    except (ValueError, RecursionError, SafetensorError) as error:
        raise ChargptError(f"{path}: truncated or not a safetensors file ({escape(error)}); fetch it again") from None


def tensor_hash(tensors: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> str:
    """A checksum of tensors and of facts about them (JSON values): sha256, in hexadecimal.

    It covers the sha256 of each tensor's values, in the order of their names, and the facts as sorted JSON.
    Names, dtypes and shapes count only as far as the facts hold them.
    """
    arrays = (np.asarray(tensors[name], order="C") for name in sorted(tensors))
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock, so threads help
        digests = list(pool.map(lambda array: hashlib.sha256(array.data).digest(), arrays))
    return hashlib.sha256(b"".join(digests) + json.dumps(facts, sort_keys=True).encode()).hexdigest()


def is_finite(array: NDArray[np.floating]) -> bool:
    """Whether every value is finite.

    A finite sum proves it, and is fast to compute. Finite values can have an infinite sum: then each value is checked.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())

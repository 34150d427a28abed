"""Safetensors files: written in pieces or at once, opened, hashed."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chargpt import tensors
from chargpt.errors import ChargptError
from chargpt.tensors import is_finite, open_tensors, tensor_hash, write_arrays, write_tensors


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("sizes", [{"a": 5, "b": 2}, {"a": 0, "b": 7}, {"long name": 7}])
def test_arrays_are_written_in_chunks(tmp_path: Path, dtype: Any, sizes: dict[str, int]) -> None:
    """The pieces fall anywhere; another byte order or type becomes the file's."""
    values = np.array([1, 0, 255, 4, 5, 6, 7], np.dtype(dtype).newbyteorder(">"))
    write_arrays(tmp_path / "x", np.dtype(dtype), sizes, [values[:3].astype(np.int64), values[3:6], values[6:]])
    found = load_file(tmp_path / "x")
    assert {name: array.size for name, array in found.items()} == sizes
    assert np.concatenate([found[name] for name in sizes]).tolist() == values.tolist()
    assert {array.dtype for array in found.values()} == {np.dtype(dtype)}
    assert struct.unpack("<Q", (tmp_path / "x").read_bytes()[:8])[0] % 8 == 0, "the values are aligned"


@pytest.mark.parametrize("length", [0, 6, 8])
def test_arrays_of_another_length_are_not_written(tmp_path: Path, length: int) -> None:
    with pytest.raises(ChargptError, match="x: the text changed while it was being read; run again"):
        write_arrays(tmp_path / "x", np.dtype(np.uint8), {"a": 7}, [np.zeros(length, np.uint8)])
    assert not list(tmp_path.iterdir())


def safetensors_file(path: Path, header: str, body: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + body)
    return path


ENTRY = '{"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'


@pytest.mark.parametrize(
    "content",
    [b"", b"\x01", struct.pack("<Q", 9) + b"{", struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2**63) + b"{}"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ChargptError, match=r"x: truncated or not a safetensors file \(.*\); fetch it again"):
        open_tensors(tmp_path / "x")
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ChargptError, match=r": no such file; give the path of an existing file"):
            open_tensors(str(path))


def test_repeated_names_are_refused(tmp_path: Path) -> None:
    path = safetensors_file(tmp_path / "x", f'{{"a": {ENTRY}, "a": {ENTRY}}}', b"\x07")
    with pytest.raises(ChargptError, match=r"\(a key occurs twice\); fetch it again"):
        open_tensors(path)


def test_long_headers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = safetensors_file(tmp_path / "x", f'{{"a": {ENTRY}}}', b"\x07")
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    monkeypatch.setattr(tensors, "MAX_HEADER", length)
    assert open_tensors(path).array("a").tolist() == [7]
    monkeypatch.setattr(tensors, "MAX_HEADER", length - 1)
    with pytest.raises(ChargptError, match=r"\(its header is empty, incomplete or too long\); fetch"):
        open_tensors(path)


def test_dtypes_that_numpy_lacks_are_refused(tmp_path: Path) -> None:
    path = safetensors_file(tmp_path / "x", '{"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}', b"12")
    file = open_tensors(path)
    assert (file.formats, file.shapes) == ({"a": "BF16"}, {"a": [1]})
    with pytest.raises(ChargptError, match=r"^a has the format BF16; expected one of BOOL, "):
        file.array("a")


def test_changing_an_array_does_not_change_the_file(tmp_path: Path) -> None:
    """Also where the file does not align them."""
    header = '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}'
    for spaces in range(4):
        path = safetensors_file(tmp_path / "x", header + " " * spaces, struct.pack("<ffB", 1.5, -2, 7))
        arrays = open_tensors(path).arrays()
        assert arrays["a"].flags.aligned and arrays["a"].tolist() == [1.5, -2] and arrays["b"].tolist() == 7
        arrays["a"][:] = 0
        assert open_tensors(path).array("a").tolist() == [1.5, -2]


def test_a_file_too_large_to_map_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: object, **options: object) -> None:
        raise OSError("mmap\nfailed")

    path = safetensors_file(tmp_path / "x", f'{{"a": {ENTRY}}}', b"\x07")
    monkeypatch.setattr(np, "memmap", no_memory)
    with pytest.raises(ChargptError, match=r"x: cannot be mapped into memory \(mmap\\nfailed\)"):
        open_tensors(path)


def test_tensors_are_read_as_written(tmp_path: Path) -> None:
    """Of any dtype that numpy has, any memory order and byte order; in the same bytes for any order of names."""
    values = {name: np.arange(3).astype(dtype) for name, dtype in tensors.DTYPES.items()}
    values |= {"transposed": np.array([[2, 4], [3, 5]]).T, "scalar": np.array(1.5), "empty": np.zeros((0, 3))}
    values |= {"big-endian": np.array([1, 2], ">i4")}
    write_tensors(tmp_path / "x", values, {"key": "value", "other": "é"})
    write_tensors(tmp_path / "y", dict(reversed(values.items())), {"key": "value", "other": "é"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    file = open_tensors(tmp_path / "x")
    assert file.metadata == {"key": "value", "other": "é"}
    found = file.arrays()
    assert {name: (a.shape, a.tolist()) for name, a in found.items()} == {
        name: (a.shape, a.tolist()) for name, a in values.items()
    }
    assert all(found[name].dtype == values[name].dtype.newbyteorder("<") for name in values)
    assert {name: a.tolist() for name, a in load_file(tmp_path / "x").items()} == {
        name: a.tolist() for name, a in values.items()
    }


def test_tensors_are_written_as_the_library_writes_them(tmp_path: Path) -> None:
    values = {"b": np.array([[1, -2]], np.float32), "aé☃": np.zeros((2, 3), np.float32)}
    metadata = {"key": json.dumps({"é": '\n"\\'})}
    write_tensors(tmp_path / "x", values, metadata)
    save_file(values, tmp_path / "y", metadata=metadata)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_the_hash_covers_values_and_facts() -> None:
    """What is written here is what files of the first release hold; it must not change."""
    values = {"b": np.array([1, -2], np.float32), "a": np.array([[3]], np.uint8)}
    a, b = hashlib.sha256(b"\x03").digest(), hashlib.sha256(struct.pack("<2f", 1, -2)).digest()
    expected = hashlib.sha256(a + b + b'{"x": 1, "y": "\\u00e9"}').hexdigest()
    assert tensor_hash(values, {"y": "é", "x": 1}) == expected
    assert tensor_hash({}, {}) == hashlib.sha256(b"{}").hexdigest()
    assert tensor_hash(values, {"y": "é", "x": 2}) != expected
    assert tensor_hash(values | {"b": np.array([1, 2], np.float32)}, {"y": "é", "x": 1}) != expected


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([], True),
        ([0.0, -1.5], True),
        ([3e38, 3e38, -3e38], True),  # whose sum overflows
        ([1.0, float("nan")], False),
        ([float("inf"), 1.0], False),
        ([float("inf"), float("-inf")], False),
    ],
)
def test_finite_arrays_are_recognised(values: list[float], finite: bool) -> None:
    assert is_finite(np.array(values, np.float32)) is finite

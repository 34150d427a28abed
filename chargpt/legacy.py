"""The legacy text format: a directory of `<parameter>.txt` files, read as data from a stranger.

Each file is a line `# shape: [65, 64]`, then one float32 per line, row-major. The architecture is read off
names and shapes, except for what the files do not say: the dialect (see `chargpt.migration`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError, shown
from chargpt.files import read_json

MAX_REPORTED = 20  # problems named in one report; the rest is counted
MAX_FILES = 50_000  # a hundred layers of a hundred heads have fewer
MAX_SHAPE_LINE = 200  # bytes; `# shape: [1000000, 1000000]` has 27
MAX_VALUE_BYTES = 64  # per value, line end and blank lines included; Python writes at most 26
CHUNK_BYTES = 1 << 20
SHAPE = re.compile(rb"#\s*shape:\s*\[\s*(\d{1,9})\s*(?:,\s*(\d{1,9})\s*)?,?\s*\]\s*")
LAYER = re.compile(r"blocks\.(0|[1-9]\d{0,2})\.")  # as many layers as params.yaml allows
HEAD = re.compile(r"blocks\.\d+\.sa\.heads\.(0|[1-9]\d{0,3})\.")

Array = NDArray[np.float32]


@dataclass(frozen=True)
class LegacyWeights:
    """What a legacy directory holds.

    sizes: vocab_size, block_size, n_layer, n_head, n_embd, read off the files, and dropout (config.json's, else 0).
    tensors: GPT parameter name -> float32 array, exactly the values of the files.
    """

    sizes: dict[str, Any]
    tensors: dict[str, Array]

    @property
    def parameters(self) -> int:
        """Number of values."""
        return sum(t.size for t in self.tensors.values())


def read_legacy(weights_dir: str | Path, config_path: str | Path | None = None) -> LegacyWeights:
    """Read a legacy weights directory, and check it against its config.json where there is one.

    Raises ChargptError with every problem of the directory in one report: at most 20 lines, then a count.
    """
    folder = Path(weights_dir)
    problems: list[str] = []
    files = _list_files(folder, problems)
    shapes = {name: _read_shape(path, problems) for name, path in files.items()}
    sizes = _sizes(folder, {name: shape for name, shape in shapes.items() if shape}, problems)
    expected = _expected_shapes(sizes)
    problems += [f"{folder / name}.txt: missing" for name in expected.keys() - files.keys()]
    problems += [f"{_printable(files[name])}: no parameter of this model" for name in files.keys() - expected.keys()]
    for name in expected.keys() & files.keys():
        shape = shapes[name]
        if shape and shape != expected[name]:
            problems.append(f"{files[name]}: shape {list(shape)}, expected {list(expected[name])}")
    if config_path is not None:
        sizes |= _check_config(Path(config_path), sizes, problems)
    _raise(folder, problems)
    legacy = {}
    for name, shape in expected.items():
        try:
            legacy[name] = _read_values(files[name], shape, problems)
        except ChargptError as error:
            problems.append(str(error))
    _raise(folder, problems)
    return LegacyWeights(sizes, _rename(legacy, sizes))


def write_legacy(weights_dir: str | Path, tensors: dict[str, Array]) -> None:
    """Write named float32 arrays as the legacy system did."""
    folder = Path(weights_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in tensors.items():
        with (folder / f"{name}.txt").open("w", newline="\n") as file:
            file.write(f"# shape: {list(tensor.shape)}\n")
            file.writelines(f"{float(value)}\n" for value in tensor.flat)


def _raise(folder: Path, problems: list[str]) -> None:
    if not problems:
        return
    problems = sorted(set(problems))
    more = [f"and {len(problems) - MAX_REPORTED} more problems"] if len(problems) > MAX_REPORTED else []
    lines = problems[:MAX_REPORTED] + more
    raise ChargptError(f"{folder}: not migrated, nothing was written:\n  " + "\n  ".join(lines))


def _list_files(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Parameter name -> file, regular files only; hidden files (.gitignore, .DS_Store) are passed over."""
    if not folder.is_dir():
        raise ChargptError(f"{folder}: no such directory of legacy weights (one .txt file per parameter)")
    if (folder / "weights").is_dir() and not (folder / "lm_head.weight.txt").exists():
        raise ChargptError(f"{folder}: holds a directory `weights` instead of weights; pass {folder / 'weights'}")
    files = {}
    entries = list(islice(folder.iterdir(), MAX_FILES + 1))
    if len(entries) > MAX_FILES:
        raise ChargptError(f"{folder}: more than {MAX_FILES} files; no legacy model has so many parameters")
    for entry in sorted(entries):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() or not entry.is_file():
            problems.append(f"{_printable(entry)}: not a regular file (links are not followed)")
        elif entry.suffix != ".txt":
            problems.append(f"{_printable(entry)}: no parameter of this model")
        else:
            files[entry.stem] = entry
    if not files and not problems:
        raise ChargptError(f"{folder}: the directory has no .txt file; expected one per parameter")
    return files


def _printable(path: Path) -> str:
    """The path, with the start of its name, which is a stranger's."""
    return str(path.parent / shown(path.name, 100))


def _read_shape(path: Path, problems: list[str]) -> tuple[int, ...] | None:
    with path.open("rb") as file:
        line = file.readline(MAX_SHAPE_LINE)
    if not line.strip():
        problems.append(f"{_printable(path)}: line 1 is empty, expected a shape like `# shape: [65, 64]`")
        return None
    match = SHAPE.fullmatch(line.strip())
    if not match:
        problems.append(
            f"{_printable(path)}: line 1 is {line.strip()[:40]!r}, expected a shape like `# shape: [65, 64]`"
        )
        return None
    shape = tuple(int(size) for size in match.groups() if size)
    if 0 in shape:
        problems.append(f"{_printable(path)}: line 1: shape {list(shape)} has a size of 0")
        return None
    return shape


def _sizes(folder: Path, shapes: dict[str, tuple[int, ...]], problems: list[str]) -> dict[str, Any]:
    """The model's sizes, read off names and shapes."""
    embeddings = {}
    for name in ("token_embedding_table.weight", "position_embedding_table.weight"):
        shape = shapes.get(name, ())
        if len(shape) != 2:
            problems.append(f"{folder / name}.txt: missing or without a shape of two sizes; the model's sizes need it")
            _raise(folder, problems)
        embeddings[name] = shape
    (vocab_size, n_embd), (block_size, _) = embeddings.values()
    layers = {int(m[1]) for name in shapes if (m := LAYER.match(name))}
    heads = {int(m[1]) for name in shapes if (m := HEAD.match(name))}
    n_layer, n_head = max(layers, default=0) + 1, max(heads, default=0) + 1
    if n_layer * n_head > len(shapes):  # one stray name must not make millions of names expected
        problems.append(
            f"{folder}: names speak of {n_layer} layers of {n_head} heads, but there are {len(shapes)} files"
        )
        _raise(folder, problems)
    if n_embd % n_head:
        problems.append(f"{folder}: {n_head} attention heads do not divide the width {n_embd}")
        _raise(folder, problems)
    return {
        "vocab_size": vocab_size,
        "block_size": block_size,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
        "dropout": 0.0,
    }


def _expected_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Legacy parameter name -> shape, for a model of these sizes."""
    V, T, C, nh = (sizes[key] for key in ("vocab_size", "block_size", "n_embd", "n_head"))
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding_table.weight": (V, C),
        "position_embedding_table.weight": (T, C),
    }
    for i in range(sizes["n_layer"]):
        block = f"blocks.{i}"
        for h in range(nh):
            shapes |= {f"{block}.sa.heads.{h}.{part}.weight": (C // nh, C) for part in ("key", "query", "value")}
        shapes |= {f"{block}.sa.proj.weight": (C, C), f"{block}.sa.proj.bias": (C,)}
        shapes |= {f"{block}.ffwd.net.0.weight": (4 * C, C), f"{block}.ffwd.net.0.bias": (4 * C,)}
        shapes |= {f"{block}.ffwd.net.2.weight": (C, 4 * C), f"{block}.ffwd.net.2.bias": (C,)}
        shapes |= {f"{block}.{ln}.{part}": (C,) for ln in ("ln1", "ln2") for part in ("weight", "bias")}
    return shapes | {"ln_f.weight": (C,), "ln_f.bias": (C,), "lm_head.weight": (V, C), "lm_head.bias": (V,)}


def _read_values(path: Path, shape: tuple[int, ...], problems: list[str]) -> Array:
    """The file's values; a file too small or too large for its shape is refused before memory is taken for it."""
    count = int(np.prod(shape, dtype=object))
    size = path.stat().st_size
    if size < 2 * count or size > MAX_SHAPE_LINE + MAX_VALUE_BYTES * (count + 16):
        problems.append(f"{path}: {size} bytes cannot hold the {count} values of shape {list(shape)}")
        return np.empty(0, np.float32)
    values = np.empty(count, np.float32)
    found, line = 0, 2
    for chunk in _whole_lines(path):
        part = _parse(chunk)
        if part is None or not np.isfinite(part).all():
            problems.append(_first_bad_line(path, chunk, line))
            return np.empty(0, np.float32)
        if found + part.size > count:
            problems.append(f"{path}: more than the {count} values of shape {list(shape)}")
            return np.empty(0, np.float32)
        values[found : found + part.size] = part
        found += part.size
        line += chunk.count(b"\n")
    last = chunk.rpartition(b"\n")[2].split() if found == count else []
    if last and float(last[-1]) != float(values[-1]):  # written in full, a float32 reads back exactly
        problems.append(f"{path}: the last value, {shown(last[-1].decode(), 40)}, is cut off: the file is truncated")
    if found < count:
        problems.append(f"{path}: {found} values, expected {count} for shape {list(shape)}: the file is truncated")
    return values.reshape(shape) if found == count else np.empty(0, np.float32)


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The file after its first line, in pieces that end at a line end."""
    with path.open("rb") as file:
        file.readline(MAX_SHAPE_LINE)
        rest = b""
        while chunk := file.read(CHUNK_BYTES):
            head, newline, tail = chunk.rpartition(b"\n")
            if newline:
                yield rest + head + newline
                rest = tail
            else:
                rest += chunk
                if len(rest) > 2 * CHUNK_BYTES:
                    raise ChargptError(f"{path}: a line of more than {2 * CHUNK_BYTES} bytes is not one number")
        if rest:
            yield rest


def _parse(chunk: bytes) -> Array | None:
    """One number a line as float32, None if something is not. Parsed as double, which is exact for a float32."""
    if (b" " in chunk or b"\t" in chunk) and any(len(line.split()) > 1 for line in chunk.split(b"\n")):
        return None
    try:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            return np.array(chunk.split(), dtype=np.float64).astype(np.float32)
    except ValueError:
        return None


def _first_bad_line(path: Path, chunk: bytes, line: int) -> str:
    for number, text in enumerate(chunk.split(b"\n"), start=line):
        if text.strip():
            part = _parse(text)
            if part is None or part.size != 1:
                return f"{path}: line {number}: {text.strip()[:40]!r} is not one number"
            if not np.isfinite(part[0]):
                return f"{path}: line {number}: the value is {text.strip()[:40].decode()}: a diverged model"
    return f"{path}: not the numbers of a legacy parameter"


def refuse_link(path: Path) -> None:
    """Raise ChargptError for a link, which points to whatever the stranger chose who made the directory."""
    if path.is_symlink():
        raise ChargptError(f"{path}: a link, which is not followed; put in its place what it points to")


def _check_config(path: Path, sizes: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Compare a legacy config.json with the files' sizes; returns the dropout it holds."""
    refuse_link(path)
    config = read_json(path)
    for key in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
        if key in config and config[key] != sizes[key]:
            problems.append(f"{path}: {key} is {shown(config[key], 40)}, but the weights have {sizes[key]}")
    dropout = config.get("dropout", 0.0)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        problems.append(f"{path}: dropout is {shown(dropout, 40)}; it must be a number in [0, 1)")
        dropout = 0.0
    return {"dropout": float(dropout)}


def _rename(legacy: dict[str, Array], sizes: dict[str, Any]) -> dict[str, Array]:
    """Legacy names to GPT's: the heads' queries, keys and values fused into one matrix, in the order of heads."""
    tensors = {
        "wte.weight": legacy.pop("token_embedding_table.weight"),
        "wpe.weight": legacy.pop("position_embedding_table.weight"),
    }
    for i in range(sizes["n_layer"]):
        old, new = f"blocks.{i}", f"h.{i}"
        parts = [
            legacy.pop(f"{old}.sa.heads.{h}.{part}.weight")
            for part in ("query", "key", "value")
            for h in range(sizes["n_head"])
        ]
        tensors[f"{new}.attn.c_attn.weight"] = np.concatenate(parts)
        for part in ("weight", "bias"):
            tensors[f"{new}.attn.c_proj.{part}"] = legacy.pop(f"{old}.sa.proj.{part}")
            tensors[f"{new}.mlp.c_fc.{part}"] = legacy.pop(f"{old}.ffwd.net.0.{part}")
            tensors[f"{new}.mlp.c_proj.{part}"] = legacy.pop(f"{old}.ffwd.net.2.{part}")
            tensors[f"{new}.ln_1.{part}"] = legacy.pop(f"{old}.ln1.{part}")
            tensors[f"{new}.ln_2.{part}"] = legacy.pop(f"{old}.ln2.{part}")
    return tensors | legacy  # ln_f and lm_head keep their names

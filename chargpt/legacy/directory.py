"""Read a directory of legacy weights, with one file `<parameter>.txt` per parameter. It may come from a stranger.

The names and shapes of the parameters give the architecture. The files do not record the dialect (`dialect.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from chargpt.errors import ChargptError, escape
from chargpt.files import read_json, refuse_link
from chargpt.legacy.values import Array, printable, read_shape, read_values
from chargpt.text.vocab import Vocab

MAX_REPORTED = 20  # problems named in one report; the others are only counted
MAX_FILES = 50_000  # a model with 100 layers of 100 heads has fewer
LAYER = re.compile(r"blocks\.(0|[1-9]\d{0,2})\.")  # as many layers as params.yaml allows
HEAD = re.compile(r"blocks\.\d+\.sa\.heads\.(0|[1-9]\d{0,3})\.")


class DoesNotFitCorpus(ChargptError):
    """The weights do not fit the text: its vocabulary differs, or the losses on it do not show the dialect."""


@dataclass(frozen=True)
class LegacyWeights:
    """The content of a legacy directory.

    sizes: vocab_size, block_size, n_layer, n_head and n_embd, as the files have them; dropout, from config.json or 0.
    tensors: name of the parameter in `GPT` -> float32 array with exactly the values of the files.
    folder: the directory.
    """

    sizes: dict[str, Any]
    tensors: dict[str, Array]
    folder: Path = Path("weights")

    def require_vocab(self, vocab: Vocab) -> None:
        """Raise DoesNotFitCorpus if the model was trained on a text with another number of characters."""
        if self.sizes["vocab_size"] != len(vocab):
            raise DoesNotFitCorpus(
                f"{self.folder}: the weights know {self.sizes['vocab_size']} characters, the text has {len(vocab)}:"
                " pass the text that this model was trained on"
            )

    @property
    def parameters(self) -> int:
        """Number of values in all tensors."""
        return sum(t.size for t in self.tensors.values())


def read_legacy(weights_dir: str | Path, config_path: str | Path | None = None) -> LegacyWeights:
    """Read a directory of legacy weights, and compare it with its config.json if `config_path` is given.

    Raises ChargptError with all problems of the directory: at most 20 lines, then the number of the others.
    """
    folder = Path(weights_dir)
    problems: list[str] = []
    files = _list_files(folder, problems)
    shapes = {name: read_shape(path, problems) for name, path in files.items()}
    sizes = _sizes(folder, {name: shape for name, shape in shapes.items() if shape}, problems)
    expected = expected_shapes(sizes)
    problems += [
        f"{folder / name}.txt: missing; copy the whole directory again" for name in expected.keys() - files.keys()
    ]
    problems += [
        f"{printable(files[name])}: no parameter of this model; move it out of the directory"
        for name in files.keys() - expected.keys()
    ]
    for name in expected.keys() & files.keys():
        shape = shapes[name]
        if shape and shape != expected[name]:
            problems.append(
                f"{files[name]}: shape {list(shape)}, expected {list(expected[name])}; copy all files of one model"
            )
    if config_path is not None:
        sizes |= _check_config(Path(config_path), sizes, problems)
    _raise(folder, problems)
    legacy = {}
    for name, shape in expected.items():
        try:
            legacy[name] = read_values(files[name], shape, problems)
        except ChargptError as error:
            problems.append(str(error))
    _raise(folder, problems)
    return LegacyWeights(sizes, rename(legacy, sizes), folder)


def _raise(folder: Path, problems: list[str]) -> None:
    if not problems:
        return
    problems = sorted(set(problems))
    more = [f"and {len(problems) - MAX_REPORTED} more problems"] if len(problems) > MAX_REPORTED else []
    lines = problems[:MAX_REPORTED] + more
    raise ChargptError(f"{folder}: not migrated, nothing was written:", *(f"  {line}" for line in lines))


def _list_files(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Parameter name -> file, for regular files. Hidden files (.gitignore, .DS_Store) are ignored."""
    if not folder.is_dir():
        raise ChargptError(
            f"{folder}: no such directory of legacy weights (one .txt file per parameter); give its path"
        )
    if (folder / "weights").is_dir() and not (folder / "lm_head.weight.txt").exists():
        raise ChargptError(f"{folder}: holds a directory `weights` instead of weights; pass {folder / 'weights'}")
    files = {}
    entries = list(islice(folder.iterdir(), MAX_FILES + 1))
    if len(entries) > MAX_FILES:
        raise ChargptError(
            f"{folder}: more than {MAX_FILES} files; no legacy model has so many parameters; move the others out"
        )
    for entry in sorted(entries):
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() or not entry.is_file():
            problems.append(
                f"{printable(entry)}: not a regular file (links are not followed); replace it by a copy of its target"
            )
        elif entry.suffix != ".txt":
            problems.append(f"{printable(entry)}: no parameter of this model; move it out of the directory")
        else:
            files[entry.stem] = entry
    if not files and not problems:
        raise ChargptError(
            f"{folder}: the directory has no .txt file; expected one per parameter; give the path of one that has"
        )
    return files


def _sizes(folder: Path, shapes: dict[str, tuple[int, ...]], problems: list[str]) -> dict[str, Any]:
    """The sizes of the model, found from the names and shapes of its parameters."""
    embeddings = {}
    for name in ("token_embedding_table.weight", "position_embedding_table.weight"):
        shape = shapes.get(name, ())
        if len(shape) != 2:
            problems.append(
                f"{folder / name}.txt: missing or without a shape of two sizes; the model's sizes need it;"
                " copy it again"
            )
            _raise(folder, problems)
        embeddings[name] = shape
    (vocab_size, n_embd), (block_size, _) = embeddings.values()
    layers = {int(m[1]) for name in shapes if (m := LAYER.match(name))}
    heads = {int(m[1]) for name in shapes if (m := HEAD.match(name))}
    n_layer, n_head = max(layers, default=0) + 1, max(heads, default=0) + 1
    if n_layer * n_head > len(shapes):  # a single wrong name must not make millions of files expected
        problems.append(
            f"{folder}: the file names imply {n_layer} layers of {n_head} heads, but there are {len(shapes)} files;"
            " move wrongly named files out"
        )
        _raise(folder, problems)
    if n_embd % n_head:
        problems.append(
            f"{folder}: {n_head} attention heads do not divide the width {n_embd}; copy all files of one model"
        )
        _raise(folder, problems)
    return {
        "vocab_size": vocab_size,
        "block_size": block_size,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
        "dropout": 0.0,
    }


def expected_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
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


def _check_config(path: Path, sizes: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Compare a legacy config.json with the sizes of the weights; return the dropout that it holds."""
    refuse_link(path)
    config = read_json(path)
    for key in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
        if key in config and (type(config[key]) is bool or config[key] != sizes[key]):
            problems.append(
                f"{path}: {key} is {escape(config[key], 40)}, but the weights have {sizes[key]};"
                " pass the config.json of this model or none"
            )
    dropout = config.get("dropout", 0.0)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        problems.append(f"{path}: dropout is {escape(dropout, 40)}; it must be a number in [0, 1)")
        dropout = 0.0
    return {"dropout": float(dropout)}


def rename(legacy: dict[str, Array], sizes: dict[str, Any]) -> dict[str, Array]:
    """Give the legacy tensors the names that `GPT` uses; empties `legacy`.

    Each layer's queries, keys and values become one matrix: all heads' queries, then all keys, then all values.
    """
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

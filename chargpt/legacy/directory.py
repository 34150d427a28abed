"""Read a directory of legacy weights: one file `<parameter>.txt` per parameter. It is untrusted input.

The names and shapes of the parameters give the architecture. The files do not record the dialect (`dialect.py`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from chargpt.errors import ChargptError, escape
from chargpt.files import read_json, refuse_link
from chargpt.legacy.values import Array, printable, read_shape, read_values
from chargpt.model.config import GPTConfig
from chargpt.text.vocab import Vocab

AGAIN = "copy all files of the model again"
MAX_REPORTED = 20  # problems named in one report; the others are only counted
LAYER = re.compile(r"blocks\.(0|[1-9]\d{0,2})\.")  # as many layers as params.yaml allows
HEAD = re.compile(r"blocks\.\d+\.sa\.heads\.(0|[1-9]\d{0,3})\.")
PREFIX = re.compile(r"^(_orig_mod\.|module\.)+")  # of torch.compile and DistributedDataParallel
BUFFER = re.compile(r"blocks\.\d+\.sa\.heads\.\d+\.tril")  # the causal mask, which a state_dict holds too
PARAMETER = re.compile(r"^(?:h\.(\d+)\.)?(.*)\.(weight|bias)$")  # of `GPT`: layer, module, kind
RENAMED = {"wte": "token_embedding_table", "wpe": "position_embedding_table", "ln_1": "ln1", "ln_2": "ln2"}
RENAMED |= {"attn.c_proj": "sa.proj", "mlp.c_fc": "ffwd.net.0", "mlp.c_proj": "ffwd.net.2"}


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
        """Raise DoesNotFitCorpus if the text has another number of distinct characters than the model knows."""
        if self.sizes["vocab_size"] != len(vocab):
            found = f"the weights know {self.sizes['vocab_size']} characters, the text has {len(vocab)}"
            raise DoesNotFitCorpus(f"{self.folder}: {found}: pass the model's own text, its byte-order mark included")


def read_legacy(weights_dir: str | Path, config_path: str | Path | None = None) -> LegacyWeights:
    """Read a directory of legacy weights, and compare it with its config.json if `config_path` is given.

    Raises ChargptError with all problems of the directory: at most 20 lines, then the number of the others.
    """
    folder = Path(weights_dir)
    problems: list[str] = []
    files = _list_files(folder, problems)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, path in files.items():
        try:
            shapes[name] = read_shape(path)
        except ChargptError as error:
            problems.append(str(error))
    try:
        sizes = _sizes(files, shapes)
    except ChargptError as error:
        raise _refusal(folder, [*problems, f"{folder}: {error}; {AGAIN}"]) from None
    expected = expected_shapes(sizes)
    problems += [f"{folder / name}.txt: missing; {AGAIN}" for name in expected.keys() - files.keys()]
    unknown = "not a parameter of this model; move it out of the directory"
    problems += [f"{printable(path)}: {unknown}" for name, path in files.items() if name not in expected]
    for name, found in shapes.items():
        if found != expected.get(name, found):
            problems.append(f"{files[name]}: shape {list(found)}, expected {list(expected[name])}; {AGAIN}")
    if config_path is not None:
        sizes |= _check_config(Path(config_path), sizes, problems)
    legacy = {}
    for name, shape in [] if problems else expected.items():
        try:
            legacy[name] = read_values(files[name], shape)
        except ChargptError as error:
            problems.append(str(error))
    if problems:
        raise _refusal(folder, problems)
    return LegacyWeights(sizes, rename(legacy, sizes), folder)


def _refusal(folder: Path, problems: list[str]) -> ChargptError:
    """One error for all problems of a directory."""
    lines = sorted(set(problems))
    if len(lines) > MAX_REPORTED:
        lines[MAX_REPORTED:] = [f"and {len(lines) - MAX_REPORTED} more problems"]
    return ChargptError(f"{folder}: not migrated, nothing was written:", *(f"  {line}" for line in lines))


def _list_files(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Parameter name -> file, for regular files. Hidden files (.gitignore, .DS_Store) are ignored."""
    if not folder.is_dir():
        raise ChargptError(f"{folder}: no such directory of legacy weights; give a directory with a .txt per parameter")
    if (folder / "weights").is_dir() and not (folder / "lm_head.weight.txt").exists():
        raise ChargptError(f"{folder}: holds a directory `weights` instead of weights; pass {folder / 'weights'}")
    files = {}
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    if links := [entry for entry in entries if entry.is_symlink()]:
        found = f"{printable(links[0])}: is a symbolic link, one of {len(links)}, and links are not followed"
        raise ChargptError(f"{found}; if DVC made them, run: dvc unprotect {shlex.quote(str(folder))}")
    for entry in entries:
        if entry.suffix != ".txt" or not entry.is_file():
            problems.append(f"{printable(entry)}: not a regular .txt file; move it out of the directory")
        elif not BUFFER.fullmatch(name := PREFIX.sub("", entry.stem)):
            files[name] = entry
    if not files and not problems:
        raise ChargptError(f"{folder}: no .txt files; give a directory with one per parameter")
    return files


def _sizes(names: Collection[str], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The sizes of the model, from the names and shapes of its parameters. Raises ChargptError if they have none."""
    tokens, positions = (f"{RENAMED[name]}.weight" for name in ("wte", "wpe"))
    layers = {int(m[1]) for name in names if (m := LAYER.match(name))}
    heads = {int(m[1]) for name in names if (m := HEAD.match(name))}
    n_layer, n_head = max(layers, default=0) + 1, max(heads, default=0) + 1
    if any(len(shapes.get(name, ())) != 2 for name in (tokens, positions)):
        raise ChargptError(f"{tokens}.txt or {positions}.txt is missing or not a matrix")
    if n_layer * n_head > len(names):  # a single wrong name must not make millions of files expected
        raise ChargptError(f"the names of {len(names)} files imply {n_layer} layers of {n_head} heads")
    sizes: dict[str, Any] = {"vocab_size": shapes[tokens][0], "block_size": shapes[positions][0]}
    sizes |= {"n_layer": n_layer, "n_head": n_head, "n_embd": shapes[tokens][1], "dropout": 0.0}
    GPTConfig(**sizes)
    return sizes


def legacy_parts(sizes: dict[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    """The legacy parameters that each weight of `GPT` consists of, with their shapes: one, or those of all heads.

    The parts of c_attn are all heads' queries, then all keys, then all values.
    """
    parts = {}
    for name, shape in GPTConfig(**sizes).shapes().items():
        block, module, kind = PARAMETER.findall(name)[0]
        prefix = f"blocks.{block}." if block else ""
        names = [f"{prefix}{RENAMED.get(module, module)}.{kind}"]
        if module == "attn.c_attn":
            heads = product(("query", "key", "value"), range(sizes["n_head"]))
            names = [f"{prefix}sa.heads.{head}.{part}.weight" for part, head in heads]
        parts[name] = dict.fromkeys(names, (shape[0] // len(names), *shape[1:]))
    return parts


def expected_shapes(sizes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Legacy parameter name -> shape, for a model of these sizes."""
    return {part: shape for parts in legacy_parts(sizes).values() for part, shape in parts.items()}


def rename(legacy: dict[str, Array], sizes: dict[str, Any]) -> dict[str, Array]:
    """The tensors of `GPT`, made of the legacy ones. Empties `legacy`, so that memory holds few tensors twice."""
    tensors = {}
    for name, parts in legacy_parts(sizes).items():
        arrays = [legacy.pop(part) for part in parts]
        tensors[name] = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    return tensors


def _check_config(path: Path, sizes: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """Compare a legacy config.json with the sizes of the weights; return its dropout."""
    refuse_link(path)
    config = read_json(path)
    for key in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
        if key in config and (type(config[key]) is bool or config[key] != sizes[key]):
            differs = f"{key} is {escape(config[key], 40)}, but the weights have {sizes[key]}"
            problems.append(f"{path}: {differs}; pass the config.json of this model or none")
    dropout = config.get("dropout", 0.0)
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        problems.append(f"{path}: dropout is {escape(dropout, 40)}; it must be a number in [0, 1)")
        dropout = 0.0
    return {"dropout": float(dropout)}

"""Everything that determines the result of a run: parameters, code, data and environment.

A run reads them at its start and compares them at its end.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from chargpt.device import pick_dtype
from chargpt.errors import ChargptError

if TYPE_CHECKING:
    from chargpt.params import Params
    from chargpt.training.processes import World

# the keys that determine the weights; the train stage reads them, and the model file records them
TRAINING_KEYS = {
    *("init", "n_layer", "n_head", "n_embd", "block_size", "dropout"),
    *("seed", "device", "dtype", "compile", "batch_size", "max_iters", "max_epochs", "eval_interval"),
    *("optimizer", "lr", "warmup_iters", "final_lr_fraction"),
    *("weight_decay", "momentum", "beta1", "beta2", "grad_clip"),
}


def training_values(params: Params) -> dict[str, Any]:
    """The parameters that determine the weights, by key."""
    return params.model_dump(include=TRAINING_KEYS)


def environment_inputs(params: Params, world: World) -> dict[str, Any]:
    """What affects the result besides parameters, data and code, if only its last bits."""
    return {
        "torch": torch.__version__,
        "processes": world.size,
        "computed on": f"{world.device} in {pick_dtype(params.dtype, world.device)}",
    }


def read_inputs(values: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, str]:
    """Each value as JSON and the sha256 of each file, by name. Raises ChargptError if a file does not exist."""
    inputs = {f"parameter {key}": json.dumps(value) for key, value in sorted(values.items())}
    for name, path in files.items():
        if not path.is_file():
            raise ChargptError(f"{name}: no such file; run `dvc repro` to make it")
        with path.open("rb") as file:
            inputs[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return inputs


def check_unchanged(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise ChargptError if something was edited while training ran; the message names it.

    DVC records parameters and files as they are when a stage ends. After an edit, dvc.lock would therefore describe a
    model that was not trained (treeverse/dvc#11058).
    """
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise ChargptError(
            f"changed while training ran: {', '.join(changed)}; dvc.lock would describe a model that was not"
            " trained. Undo the change to keep this run's state, or run again to train with it"
        )


def code_files(entry: str | Path) -> dict[str, Path]:
    """The project's files that a stage's script imports, directly or through other files, and the script itself.

    entry: the script. Returns path from the project's root -> file. Imports under `if TYPE_CHECKING` do not count.
    dvc.yaml lists exactly these files as the code of a stage, some of them by their directory.
    """
    entry = Path(entry).resolve()
    root = entry.parents[1]
    found: dict[str, Path] = {}
    unread = [entry]
    while unread:
        path = unread.pop()
        name = path.relative_to(root).as_posix()
        if name not in found:
            found[name] = path
            modules = {path.parent.relative_to(root).as_posix().replace("/", ".")}
            modules |= set(_imported(ast.parse(path.read_text(encoding="utf-8"))))
            unread += [file for module in modules for file in _module_files(root, module)]
    return dict(sorted(found.items()))


def _imported(node: ast.AST) -> Iterator[str]:
    """Names of the imported modules, and of what is imported from them, because that may be a module too."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        children: Iterable[ast.AST] = node.orelse
    else:
        children = ast.iter_child_nodes(node)
    for child in children:
        yield from _imported(child)


def _module_files(root: Path, module: str) -> Iterator[Path]:
    """The files that run when a module of the project is imported: its own, and the __init__.py of each package."""
    parts = module.split(".")
    if parts[0] in ("chargpt", "stages"):
        packages = [root.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
        yield from (file for file in [*packages, root.joinpath(*parts).with_suffix(".py")] if file.is_file())

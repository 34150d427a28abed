"""Time and memory at the ends of the range: a text of 1 GB, a context of 4,096, a model of 100 million parameters.

    python benchmarks/scale.py [--gigabytes 1]

Every row is a process of its own: the stages as DVC runs them, and `chargpt generate`. The peak is the process's
largest resident size, pages of mapped files included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from chargpt.model.file import read_model

ROOT = Path(__file__).resolve().parents[1]
CHARACTERS = np.frombuffer(b"\n !,.:;'?-" + bytes(range(65, 91)) + bytes(range(97, 123)), np.uint8)
FEW_STEPS = {"max_iters": 20, "eval_interval": 20, "warmup_iters": 5}


def write_text(path: Path, size: int) -> None:
    """Random characters, frequent ones first, as many as `size`; in a process of its own.

    What this one takes would count as its children's: a process starts with the peak of the one it is forked from.
    """
    subprocess.run([sys.executable, __file__, "--write-text", path, str(size)], check=True)


def write_characters(path: Path, size: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        while size:
            ids = np.minimum(rng.geometric(0.06, min(size, 10_000_000)) - 1, len(CHARACTERS) - 1)
            file.write(CHARACTERS[ids].tobytes())
            size -= len(ids)


def write_params(folder: Path, **changes: Any) -> None:
    """The committed parameters with changes."""
    values = YAML(typ="safe").load((ROOT / "params.yaml").read_text()) | {"corpus": "text.txt"} | changes
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(values, file)


def measure(name: str, folder: Path, *command: str) -> None:
    """Run a command and print its time and its peak memory."""
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, stderr=subprocess.PIPE)
    assert process.stderr
    message = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{name}: {message}")
    print(f"| {name} | {time.perf_counter() - started:.1f} | {usage.ru_maxrss / 1024:,.0f} |", flush=True)


def save_large_model(path: Path) -> None:
    """GPT-2's smaller sizes with a vocabulary of characters and other head count: 100 million parameters."""
    import torch

    from chargpt.model.config import GPTConfig
    from chargpt.model.file import save_model
    from chargpt.model.gpt import GPT
    from chargpt.text.vocab import Vocab

    torch.manual_seed(0)
    vocab = Vocab(sorted(CHARACTERS.tobytes().decode()))
    model = GPT(GPTConfig(len(vocab), block_size=1024, n_layer=14, n_head=12, n_embd=768))
    save_model(path, model, vocab, {"parameters": sum(p.numel() for p in model.parameters())})


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory at the ends of the range.")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--save-large-model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write-text", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write_text:
        write_characters(Path(arguments.write_text[0]), int(arguments.write_text[1]))
        return
    if arguments.save_large_model:
        save_large_model(arguments.save_large_model)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| | seconds | peak MB |\n| --- | --- | --- |")
        measure("imports alone", folder, "-c", "import torch, chargpt.training.loop, chargpt.inference.sampling")
        size = int(arguments.gigabytes * 1e9)
        write_text(folder / "text.txt", size)
        about = f"{arguments.gigabytes:g} GB of text"
        write_params(folder, val_fraction=1e5 / size, **FEW_STEPS)
        measure(f"prepare {about}", folder, "-m", "stages", "prepare")
        measure(f"train on {about}, 20 steps and 2 evaluations of 100,000 characters", folder, "-m", "stages", "train")
        measure("evaluate 100,000 characters, with the report", folder, "-m", "stages", "evaluate")
        write_text(folder / "text.txt", 1_000_000)
        write_params(folder, block_size=4096, batch_size=4, **FEW_STEPS)
        measure("prepare 1 MB", folder, "-m", "stages", "prepare")
        for dtype in ("auto", "float32"):
            write_params(folder, block_size=4096, batch_size=4, dtype=dtype, **FEW_STEPS)
            measure(f"train with a context of 4,096, {dtype}, 20 steps of 4 windows", folder, "-m", "stages", "train")
        measure("evaluate 100,000 characters with a context of 4,096", folder, "-m", "stages", "evaluate")
        cli = ("-m", "chargpt")
        generate = (*cli, "generate", "--prompt", "A", "--seed", "0", "--output", "out.txt", "--model")
        model = "artifacts/model.safetensors"
        measure("generate 5,000 characters with it", folder, *generate, model, "--max-tokens", "5000")
        measure("make and save 100 million parameters", folder, __file__, "--save-large-model", "large.safetensors")
        load = "from chargpt.model.file import load_model; load_model('large.safetensors')"
        measure("load them, memory-mapped, hash checked", folder, "-c", load)
        measure("generate 1 character with them", folder, *generate, "large.safetensors", "--max-tokens", "1")
        measure("generate 500 characters with them", folder, *generate, "large.safetensors", "--max-tokens", "500")
        print(f"parameters: {read_model(folder / 'large.safetensors').config.parameters:,}")


if __name__ == "__main__":
    main()

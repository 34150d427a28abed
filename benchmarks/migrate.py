"""Migrating 10 million parameters: time beside numpy's parsing of the same numbers, memory, and what is gained.

    python benchmarks/migrate.py

Each measurement is a process of its own, started alternately; imports are done before the clock starts. numpy parses
what it finds in memory, file reading included, and does nothing else. Migrating reads, checks, writes, reads back,
compares and measures the loss on a validation text as long as the one that dialects are compared on; with the dialect
named, and with finding it. A longer validation text adds its own time, given as characters per second.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RUNS = 3
SIZES = {"vocab_size": 65, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384}
TEXT = "the quick brown fox jumps over the lazy dog " * 2273  # its characters do not matter, their number does


def make(folder: Path) -> None:
    """A legacy directory of random weights, and a text with as many different characters."""
    import numpy as np

    from chargpt.legacy.directory import expected_shapes
    from tests.legacy.reference import write_legacy

    rng = np.random.default_rng(0)
    shapes = expected_shapes(SIZES)
    write_legacy(folder / "weights", {name: rng.normal(0, 0.02, s).astype(np.float32) for name, s in shapes.items()})
    characters = [chr(200 + i) for i in range(SIZES["vocab_size"] - len(set(TEXT)))]
    (folder / "text.txt").write_text("".join(characters) + TEXT)


def parse(folder: Path) -> None:
    """Only the numbers: the least that any reader has to do."""
    import numpy as np

    for path in (folder / "weights").iterdir():
        with path.open("rb") as file:
            file.readline()
            np.array(file.read().split(), dtype=np.float64).astype(np.float32)


def migrate(folder: Path, dialect: str = "gelu-head") -> None:
    """What `chargpt migrate --dialect gelu-head` does."""
    from chargpt.legacy import migration
    from chargpt.legacy.directory import read_legacy
    from chargpt.text.corpus import scan_text
    from chargpt.text.tokens import read_tokens, write_tokens

    vocab, length = scan_text(folder / "text.txt")
    write_tokens(folder / "tokens", folder / "text.txt", vocab, length, 0.1)
    _, val = read_tokens(folder / "tokens", vocab)
    legacy = read_legacy(folder / "weights")
    migration.migrate(legacy, folder / "model.safetensors", vocab, val, dialect=dialect)


def migrate_auto(folder: Path) -> None:
    """What `chargpt migrate` does."""
    from chargpt.legacy import dialect, migration

    # random weights have no right dialect: all four are compared as at first, then any is taken
    dialect.CLEAR = -math.inf
    migration.choose_dialect = lambda *_: "gelu-head"
    migrate(folder, "auto")


def evaluate(folder: Path) -> None:
    """The loss on the validation text, which is part of migrating."""
    from chargpt.evaluation.loss import evaluate
    from chargpt.model.file import load_model
    from chargpt.text.tokens import read_tokens

    model, vocab = load_model(folder / "model.safetensors")
    evaluate(model, read_tokens(folder / "tokens", vocab)[1])


def load_text(folder: Path) -> None:
    """Text to a model by a reader like the legacy one: a Python float per line."""
    import torch

    from chargpt.legacy.dialect import build_model
    from chargpt.legacy.directory import LegacyWeights, rename
    from chargpt.legacy.values import SHAPE

    tensors = {}
    for path in (folder / "weights").iterdir():
        with path.open() as file:
            shape = SHAPE.fullmatch(file.readline().strip().encode())
            assert shape
            values = torch.tensor([float(line) for line in file if line.strip()])
            tensors[path.stem] = values.view([int(size) for size in shape.groups() if size]).numpy()
    build_model(LegacyWeights(SIZES, rename(tensors, SIZES)), "gelu-head")


def load_file(folder: Path) -> None:
    """The new file to a model, its hash checked."""
    from chargpt.model.file import load_model

    load_model(folder / "model.safetensors")


WAYS = {f.__name__: f for f in (parse, migrate, migrate_auto, evaluate, load_text, load_file)}


def measure(way: str, folder: Path) -> dict[str, Any]:
    """Seconds, and megabytes at the peak beyond what the imports take, of one process."""
    done = subprocess.run([sys.executable, __file__, "--one", way, str(folder)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        import torch

        torch.zeros(64, 64) @ torch.zeros(64, 64)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        WAYS[sys.argv[2]](Path(sys.argv[3]))
        seconds = time.perf_counter() - started
        print(json.dumps({"s": seconds, "mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(RUNS):
            for way, results in runs.items():
                results.append(measure(way, folder))
        text_mb = sum(p.stat().st_size for p in (folder / "weights").iterdir()) / 1e6
        file_mb = (folder / "model.safetensors").stat().st_size / 1e6
    seconds = {way: statistics.median(r["s"] for r in results) for way, results in runs.items()}
    print(f"{'':<24}{'seconds':>10}{'peak MB beyond imports':>26}")
    for way, results in runs.items():
        print(f"{way:<24}{seconds[way]:>10.3f}{max(r['mb'] for r in results):>26.0f}")
    for way in ("migrate", "migrate_auto"):
        print(f"{way} takes {seconds[way] / seconds['parse']:.2f} times as long as parsing")
        peak = max(r["mb"] for r in runs[way])
        print(f"    at {peak * 1.048576 / file_mb:.2f} times the model's size in memory ({file_mb:.1f} MB)")
    print(f"a longer text adds {len(TEXT) * 0.1 / seconds['evaluate']:,.0f} characters of validation per second")
    print(f"text {text_mb:.1f} MB, safetensors {file_mb:.1f} MB: {1 - file_mb / text_mb:.0%} smaller")
    print(f"loads {seconds['load_text'] / seconds['load_file']:.0f} times as fast")


if __name__ == "__main__":
    main()

"""Encoding speed and memory of `prepare`, beside the dictionary look-up per character that it replaces.

    python benchmarks/prepare.py TEXT

TEXT is repeated to 20 MB and 400 MB. Each measurement is a process of its own; ours runs on both sizes, the
dictionary way on the small one, as it would need some 15 GB for the large one.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNS = 5


def ours(corpus: Path) -> None:
    """What the prepare stage does: vocabulary, then token ids to a file."""
    from chargpt.text.corpus import scan_text
    from chargpt.text.tokens import write_tokens

    vocab, length = scan_text(corpus)
    write_tokens(corpus.with_suffix(".safetensors"), corpus, vocab, length, 0.1)


def dictionary(corpus: Path) -> None:
    """What the legacy system did: a dictionary look-up per character, into a tensor."""
    import torch

    text = corpus.read_text(encoding="utf-8")
    stoi = {c: i for i, c in enumerate(sorted(set(text)))}
    torch.tensor([stoi[c] for c in text], dtype=torch.long)


def measure(way: str, corpus: Path) -> tuple[float, float]:
    """Seconds for the work itself (imports are done before) and peak memory in MB, of one process."""
    done = subprocess.run([sys.executable, __file__, "--one", way, str(corpus)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    seconds, megabytes = done.stdout.split()
    return float(seconds), float(megabytes)


def main() -> None:
    if sys.argv[1] == "--one":
        import safetensors.torch  # noqa: F401
        import torch

        import chargpt.text.tokens  # noqa: F401

        torch.set_num_threads(1)
        started = time.perf_counter()
        {"ours": ours, "dictionary": dictionary}[sys.argv[2]](Path(sys.argv[3]))
        print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    text = Path(sys.argv[1]).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.txt", Path(folder) / "large.txt"
        for path, megabytes in ((small, 20), (large, 400)):
            with path.open("wb") as file:
                while file.tell() < megabytes * 1_000_000:
                    file.write(text)
        print(f"{'way':<12}{'MB of text':>12}{'ms per MB':>12}{'peak MB':>10}")
        figures = {}
        # alternating, so that a drift of the machine's speed meets both
        for _ in range(RUNS):
            for way, path in (("ours", small), ("dictionary", small)):
                figures.setdefault((way, path), []).append(measure(way, path))
        figures["ours", large] = [measure("ours", large)]
        for (way, path), runs in figures.items():
            size = path.stat().st_size / 1e6
            per_mb = statistics.median(s for s, _ in runs) / size * 1000
            print(f"{way:<12}{size:>12.0f}{per_mb:>12.2f}{max(m for _, m in runs):>10.0f}")
        ratios = [b[0] / a[0] for a, b in zip(figures["ours", small], figures["dictionary", small], strict=True)]
        print(f"the dictionary way takes {statistics.median(ratios):.1f} times as long (median of {RUNS} pairs)")


if __name__ == "__main__":
    main()

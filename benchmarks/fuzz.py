"""Coverage-guided fuzzing of what reads strangers' files, with the inputs and the checks of tests/fuzzing.py.

    pip install atheris            # for Python 3.11, on Linux; neither the project nor its tests need it
    python benchmarks/fuzz.py model --seconds 1800
    python benchmarks/fuzz.py legacy|params|text --seconds 1800 --seed 1 --folder fuzz

The corpus grows in FOLDER/TARGET/corpus, from where the next run goes on. It does not stop at a finding: each input
that shows another one is kept in FOLDER/TARGET/findings. For `python -m tests.fuzzing TARGET FILE` to try again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OWN_MUTATIONS = 0.85  # the rest are libFuzzer's
FROM_VALID = 0.4  # of our own; most of a corpus is broken, and what is broken twice rarely gets far


def fuzz(name: str, seconds: int, seed: int, folder: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    sys.path.insert(0, str(ROOT))
    with atheris.instrument_imports(include=["chargpt", "ruamel.yaml", "json"]):
        import chargpt.files
        import chargpt.legacy.migration
        import chargpt.model.file
        import chargpt.params
        import chargpt.project.overrides
        import chargpt.project.params_file
        import chargpt.text.tokens
        import chargpt.text.vocab  # noqa: F401
    from tests import fuzzing

    target = fuzzing.TARGETS[name]
    seeds = target.seeds()
    corpus, findings = folder / name / "corpus", folder / name / "findings"
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(exist_ok=True)
    for data in seeds:
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    fuzzing.prepare()
    found: dict[str, int] = {}
    slowest, accepted, executions, started = (0.0, b""), 0, 0, time.time()
    temporary = Path(tempfile.mkdtemp(prefix="fuzz-"))
    last = 0.0

    def one(data: bytes) -> None:
        nonlocal slowest, accepted, executions, last
        executions += 1
        began = time.process_time()
        try:
            accepted += fuzzing.check(target, data, temporary) == ""
        except fuzzing.Finding as error:
            kind = re.sub(r"\(.*|\d+", "", str(error).split(": ")[0] + str(error).partition(": ")[2][:40])
            if kind not in found:
                path = findings / hashlib.sha1(data).hexdigest()[:12]
                path.write_bytes(data)
                print(f"FINDING {path}: {error}", flush=True)
            found[kind] = found.get(kind, 0) + 1
        slowest = max(slowest, (time.process_time() - began, data))
        if time.time() - last > 5:
            last = time.time()
            report()

    def report() -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        (folder / name / "slowest").write_bytes(slowest[1])
        cpu, rate = (usage.ru_utime + usage.ru_stime) / 60, executions / (time.time() - started)
        print(
            f"SUMMARY {name}: {executions} executions ({accepted} accepted), {rate:.0f}/s, {cpu:.1f} CPU minutes,"
            f" {len(found)} findings, peak {usage.ru_maxrss / 1024:.0f} MB,"
            f" slowest {slowest[0]:.2f} s ({len(slowest[1])} bytes)",
            flush=True,
        )

    def mutate(data: bytes, max_size: int, mutation_seed: int) -> bytes:
        rng = random.Random(mutation_seed)
        if rng.random() > OWN_MUTATIONS:
            return atheris.Mutate(data, max_size)
        if rng.random() < FROM_VALID:
            data = rng.choice(seeds)
        for _ in range(rng.choice([1, 1, 2, 4])):
            data = target.mutate(data, rng)
        return data[:max_size]

    options = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={target.max_bytes}", "-timeout=60"]
    options += ["-rss_limit_mb=8000", "-len_control=0", "-reload=0", "-print_final_stats=0"]
    options += [f"-artifact_prefix={findings}{os.sep}"]  # where libFuzzer itself puts what hangs or kills it
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=["model", "legacy", "params", "text"])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "chargpt-fuzz")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        fuzz(args.target, args.seconds, args.seed, args.folder)
    # libFuzzer reports coverage on its standard error only
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    child = subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, env=environment)
    summary, coverage = "no summary", "?"
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("SUMMARY "):
            summary = line.removeprefix("SUMMARY ").strip()
        elif found := re.search(r"cov: (\d+) ft: (\d+) corp: (\d+)", line):
            coverage = "{} edges, {} features, {} inputs".format(*found.groups())
        elif not line.startswith(("INFO:", "\tNEW", "Instrumenting")):
            print(line, end="", flush=True)
    print(f"{summary}; coverage {coverage}")
    sys.exit(child.wait())


if __name__ == "__main__":
    main()

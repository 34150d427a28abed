"""How many small wrong changes to the core and to training the unit tests notice: mutation testing.

    pip install mutmut==3.8.1 && python benchmarks/mutants.py --count 300 --seed 1

mutmut's operators make the changes, called mutants: another operator, number, string or argument, an argument less,
None for a value. Two are added: a call that is not made, and a condition that is negated. A random sample of all
mutants of chargpt/*.py and chargpt/training/*.py is drawn, the same for the same seed. Each is tried in a temporary
copy of the project, with the unit tests that run the changed lines, as coverage.py saw them, the quickest first (of the
tests that do their work in other processes, those in the file that is named after the module). A mutant is killed if a
test fails, or takes much longer than it should. Each survivor is printed at once, and a table of scores at the end.

Mutants that only change words do not count and are left out: docstrings, annotations (other than those that pydantic
reads), texts of errors and assertions, and imports for type checkers.

mutmut's own runner changes functions in memory. Here a mutant is written to its file instead, so that constants,
decorated functions and classes change too, and a fork of a process that has loaded torch tests it. For Linux and
macOS. 300 mutants take about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coverage
import libcst as cst
import libcst.matchers as m
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).resolve().parents[1]
UNITS = "vocab data model evaluation sampling decoder checkpoint tensors files params errors optimizers"
UNITS += " training schedule state world device numerics download"
PATIENCE = 5  # times as long as the tests took without a change, and PATIENCE_S more: then a mutant hangs
PATIENCE_S = 10
ADDRESS_SPACE = 8_000_000_000  # bytes that a mutant may take beyond what is there
CONTEXT = 30  # characters around a change
OPTIONS = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:randomly", "--hypothesis-seed=0", "--tb=line"]
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]


# mutants


def not_called(node: cst.Expr) -> Iterable[cst.CSTNode]:
    """`f(x)` becomes `pass`."""
    if isinstance(node.value, cst.Call):
        yield cst.Pass()


def negated(node: cst.If | cst.While) -> Iterable[cst.CSTNode]:
    """`if x` becomes `if not (x)`."""
    inner = node.test.with_changes(lpar=[cst.LeftParen(), *node.test.lpar], rpar=[*node.test.rpar, cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), inner))


OPERATORS: list[tuple[Any, Callable[[Any], Iterable[cst.CSTNode]]]]
OPERATORS = [*mutation_operators, (cst.Expr, not_called), ((cst.If, cst.While), negated)]

WORDS = m.Import() | m.ImportFrom() | m.If(test=m.Name("TYPE_CHECKING"))
WORDS |= m.SimpleStatementLine(body=[m.Expr(m.SimpleString() | m.ConcatenatedString())])
TYPE = m.Annotation() | m.Subscript(m.Name("Literal"))
TEXT = m.Raise() | m.Assert()
SCHEMA = m.ClassDef(bases=[m.Arg(m.Name("BaseModel"))])


class Sites(cst.CSTVisitor):
    """Collects the nodes of a module that may change, each with the lines that run if it does."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, module: cst.Module) -> None:
        super().__init__()
        self.found: list[tuple[cst.CSTNode, range]] = []
        self.around: list[cst.CSTNode] = []
        raised = {name.value for error in m.findall(module, m.Raise()) for name in m.findall(error, m.Name())}
        quoted = m.Name(m.MatchIfTrue(lambda name: name.isupper() and name in raised))
        self.words = WORDS | m.Assign(targets=[m.AssignTarget(quoted)], value=m.SimpleString())

    def on_visit(self, node: cst.CSTNode) -> bool:
        if m.matches(node, self.words) or (m.matches(node, TYPE) and not self.inside(SCHEMA)):
            return False
        self.around.append(node)
        if not (isinstance(node, cst.SimpleString) and self.inside(TEXT)):
            self.found.append((node, self.lines(node)))
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        if self.around[-1] is node:
            self.around.pop()

    def inside(self, kind: m.BaseMatcherNode) -> bool:
        return any(m.matches(node, kind) for node in self.around)

    def lines(self, node: cst.CSTNode) -> range:
        """Of the simple statement around the node, else of the node, of a condition without what it guards."""
        statement = next((n for n in self.around if isinstance(n, cst.SimpleStatementLine)), node)
        where = self.get_metadata(PositionProvider, getattr(statement, "test", statement))
        return range(where.start.line, where.end.line + 1)


@dataclass(frozen=True)
class Mutant:
    """One change of a file, in a statement that spans `lines`."""

    file: str
    lines: range
    code: str
    place: str
    diff: str


def draw(files: list[str], count: int, seed: int) -> Iterator[Mutant]:
    """Mutants of the files in random order, no two the same, `count` at most."""
    modules = {file: MetadataWrapper(cst.parse_module((ROOT / file).read_text(encoding="utf-8"))) for file in files}
    candidates = []
    for file, wrapper in modules.items():
        sites = Sites(wrapper.module)
        wrapper.visit(sites)
        for node, lines in sites.found:
            for kind, operator in OPERATORS:
                if isinstance(node, kind):
                    candidates += [(file, lines, node, changed) for changed in operator(node)]
    print(f"{len(candidates)} mutants of {len(files)} files", flush=True)
    random.Random(seed).shuffle(candidates)
    seen = set()
    for file, lines, node, changed in candidates:
        if len(seen) == count:
            return
        before = modules[file].module
        code = before.deep_replace(node, changed).code  # type: ignore[union-attr]
        if code != before.code and code not in seen and is_python(code):
            seen.add(code)
            yield Mutant(file, lines, code, *place_and_diff(file, before.code, code))


def is_python(code: str) -> bool:
    try:
        compile(code, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def place_and_diff(file: str, before: str, after: str) -> tuple[str, str]:
    """`file:line`, and the change in one line: `- old  + new`, with a little of what is around it."""
    old, new = before.splitlines(), after.splitlines()
    start = common(old, new)
    end = common(old[start:][::-1], new[start:][::-1])
    removed, added = (" ".join(line.strip() for line in lines[start : len(lines) - end]) for lines in (old, new))
    same = common(removed, added)
    left = max(0, same - CONTEXT)
    right = max(0, common(removed[same:][::-1], added[same:][::-1]) - CONTEXT)
    cut = [("..." if left else "") + x[left : len(x) - right] + ("..." if right else "") for x in (removed, added)]
    return f"{file}:{start + 1}", f"- {cut[0]}  + {cut[1]}"


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many elements at the start are the same."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


# tests


class Watcher:
    """A pytest plugin that notes which tests run which lines, and how long each takes."""

    def __init__(self, package: Path) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.coverage = coverage.Coverage(data_file=None, source=[str(package)], config_file=False)
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[object]:
        self.coverage.switch_context(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def tests_by_line(self, project: Path) -> dict[str, dict[str, list[str]]]:
        """For each file and line the tests that run it; "" stands for what every import runs."""
        self.coverage.stop()
        data = self.coverage.get_data()
        files = {file: Path(file).relative_to(project).as_posix() for file in data.measured_files()}
        return {
            name: {str(line): tests for line, tests in data.contexts_by_lineno(file).items()}
            for file, name in files.items()
        }


class Selection:
    """A pytest plugin that runs these tests only, in this order."""

    def __init__(self, tests: list[str]) -> None:
        self.order = {test: number for number, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda item: self.order[item.nodeid])


class Lane:
    """A copy of the project in which one mutant at a time is tried, by a fork of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.project = folder, folder / "project"
        others = shutil.ignore_patterns(".git", ".dvc", ".venv", ".hypothesis", "*cache*", "artifacts")
        shutil.copytree(ROOT, self.project, ignore=others)
        self.mutant: Mutant | None = None
        self.original = ""  # what it stands for in the file
        self.process, self.deadline = 0, 0.0
        self.written = 0

    def load_libraries(self) -> None:
        """Import what the tests import, then forget what is the project's own: each fork imports that from its copy."""
        sys.path.insert(0, str(self.project))
        for file in test_files(self.project):
            importlib.import_module(f"tests.{Path(file).stem}")
        sys.path.remove(str(self.project))
        for name in list(sys.modules):
            if name.partition(".")[0] in ("chargpt", "stages", "tests"):
                del sys.modules[name]

    def watch(self) -> tuple[dict[str, float], dict[str, dict[str, list[str]]]]:
        """Seconds of each test, and the tests that run each line. Ends this program if a test fails."""

        def run() -> int:
            watcher = Watcher(self.project / "chargpt")
            status = self.pytest(test_files(self.project), watcher)
            found = [watcher.seconds, watcher.tests_by_line(self.project)]
            (self.folder / "watched.json").write_text(json.dumps(found))
            return status

        self.fork(run)
        if os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1]):
            sys.exit(f"tests fail without any change:\n{(self.folder / 'log').read_text()}")
        return tuple(json.loads((self.folder / "watched.json").read_text()))

    def begin(self, mutant: Mutant, tests: list[str], seconds: float) -> None:
        """Start to try a mutant with tests that take so many seconds."""
        self.mutant = mutant
        self.original = (self.project / mutant.file).read_text(encoding="utf-8")
        self.write(mutant.file, mutant.code)
        self.deadline = time.monotonic() + PATIENCE * seconds + PATIENCE_S
        self.fork(lambda: self.pytest({test.partition("::")[0] for test in tests}, Selection(tests), "-x"))

    def verdict(self) -> bool | None:
        """Whether the mutant was killed, once that is known; the copy is then as it was."""
        late = time.monotonic() > self.deadline
        if late:
            os.killpg(self.process, signal.SIGKILL)
        process, status = os.waitpid(self.process, 0 if late else os.WNOHANG)
        if not process:
            return None
        with suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)  # what the tests started
        assert self.mutant
        self.write(self.mutant.file, self.original)
        return os.waitstatus_to_exitcode(status) not in (0, pytest.ExitCode.NO_TESTS_COLLECTED)

    def write(self, file: str, code: str) -> None:
        """Each content with a time of its own, by which Python tells that compiled code is of another."""
        (self.project / file).write_text(code, encoding="utf-8")
        self.written += 1
        os.utime(self.project / file, (self.written, self.written))

    def fork(self, run: Callable[[], int]) -> None:
        """Run in a new process, which ends with the status that is returned."""
        self.process = os.fork()
        if self.process:
            return
        status = 1
        try:
            os.setsid()
            log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(log, stream)
            limit_memory()
            os.chdir(self.project)
            sys.path.insert(0, str(self.project))
            status = run()
        finally:
            os._exit(status)

    def pytest(self, files: Iterable[str], plugin: object, *options: str) -> int:
        shutil.rmtree(self.project / ".hypothesis", ignore_errors=True)  # the examples that failed before
        folder = f"--basetemp={self.folder / 'tmp'}"
        return int(pytest.main([*OPTIONS, *options, folder, *sorted(files)], plugins=[plugin]))


def test_files(project: Path) -> list[str]:
    return [name for unit in UNITS.split() if (project / (name := f"tests/test_{unit}.py")).is_file()]


def limit_memory() -> None:
    """A mutant that allocates without end fails, and does not take the machine's memory."""
    with suppress(OSError, ValueError):
        present = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (present + ADDRESS_SPACE,) * 2)


def try_all(mutants: list[Mutant], lanes: list[Lane]) -> Iterator[tuple[Mutant, bool]]:
    """Each mutant, and whether it was killed."""
    lanes[0].load_libraries()
    seconds, tests_by_line = lanes[0].watch()
    quickest = sorted(seconds, key=lambda test: seconds[test])
    seen = {test for lines in tests_by_line.values() for tests in lines.values() for test in tests}
    print(f"{len(seconds)} tests, {sum(seconds.values()):.0f} s", flush=True)
    waiting, running, free = mutants[::-1], [], list(lanes)
    while waiting or running:
        while waiting and free:
            mutant = waiting.pop()
            lines = tests_by_line.get(mutant.file, {})
            reached = {test for line in mutant.lines for test in lines.get(str(line), [])}
            own = f"tests/test_{Path(mutant.file).stem}.py::"
            reached |= {test for test in seconds if test.startswith(own) and test not in seen}  # it starts processes
            tests = [test for test in quickest if test in reached or "" in reached]
            if not tests:
                yield mutant, False
                continue
            lane = free.pop()
            lane.begin(mutant, tests, sum(seconds[test] for test in tests))
            running.append(lane)
        for lane in list(running):
            killed = lane.verdict()
            if killed is not None:
                assert lane.mutant
                yield lane.mutant, killed
                running.remove(lane)
                free.append(lane)
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--count", type=int, default=300, help="mutants to try")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="mutants to try at once")
    parser.add_argument("--only", default="", help="of files whose path holds this")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}  # a fork of a process with threads may hang
    paths = sorted([*ROOT.glob("chargpt/*.py"), *ROOT.glob("chargpt/training/*.py")])
    files = [path.relative_to(ROOT).as_posix() for path in paths if path.name not in ("__main__.py", "__init__.py")]
    mutants = list(draw([file for file in files if args.only in file], args.count, args.seed))
    tried, killed = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for mutant, dead in try_all(mutants, [Lane(Path(folder, str(number))) for number in range(args.jobs)]):
            tried[mutant.file] += 1
            killed[mutant.file] += dead
            if not dead:
                print(f"survived: {mutant.place}  {mutant.diff}", flush=True)
    print(f"{'module':32} mutants  killed  score")
    for file in [*sorted(tried), "all"]:
        count, dead = (tried.total(), killed.total()) if file == "all" else (tried[file], killed[file])
        print(f"{file:32} {count:7} {dead:7} {dead / max(1, count):6.0%}")


if __name__ == "__main__":
    main()

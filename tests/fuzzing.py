"""Hostile files for the four readers, and what a reader must never do; for tests/test_fuzz.py and benchmarks/fuzz.py.

An input is bytes. A target writes it into an empty folder as the files that its reader takes, and changes it in ways
that keep enough structure for the deeper checks to be reached: a model file's header is parsed, changed and written
again, its sha256 made to fit.

    python -m tests.fuzzing TARGET --examples N --seed S    # random inputs, always the same
    python -m tests.fuzzing TARGET FILE...                  # these inputs
"""

from __future__ import annotations

import argparse
import codecs
import ctypes
import hashlib
import json
import math
import os
import random
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chargpt.errors import ChargptError
from chargpt.inference.sampling import generate
from chargpt.legacy import values
from chargpt.legacy.dialect import build_model
from chargpt.legacy.directory import expected_shapes, read_legacy
from chargpt.model.config import GPTConfig
from chargpt.model.file import load_model, save_model
from chargpt.model.gpt import GPT
from chargpt.project.overrides import legacy_settings
from chargpt.project.params_file import load_params
from chargpt.text import corpus as texts
from chargpt.text.corpus import read_text, scan_text
from chargpt.text.tokens import read_tokens, write_tokens
from chargpt.text.vocab import Vocab
from tests.legacy_reference import write_legacy
from tests.pipeline import ROOT

MAX_SECONDS = 5.0  # of the processor, so that a busy machine is no finding
# Resident memory that a reader may take, above what the process had: for its buffers, and per byte of the files.
MAX_MEMORY_BASE, MAX_MEMORY_PER_BYTE = 64_000_000, 40
MAX_ADDRESS_SPACE = 8_000_000_000  # more than any reader maps; an allocation beyond it fails at once
MAX_LINE = 1000  # characters of one line of a report
MAX_LINES = 22


class Finding(AssertionError):
    """A reader did what it must not do."""


@dataclass(frozen=True)
class Target:
    """One reader, and the inputs it is tried on.

    seeds: valid inputs. write: puts an input into an empty folder. read: the reader; its result goes to `use`,
    which holds what was accepted to its promises. mutate: another input near the given one. max_bytes: of an input.
    """

    seeds: Callable[[], list[bytes]]
    write: Callable[[bytes, Path], None]
    read: Callable[[Path], Any]
    use: Callable[[Path, Any], None]
    mutate: Callable[[bytes, random.Random], bytes]
    max_bytes: int


# what a reader must not do

EXECUTES = re.compile(
    r"exec|compile|import|code\.__new__|function\.__new__|marshal\.|pickle\.|ctypes\.|socket\.|subprocess\.|urllib\."
    r"|os\.(system|exec|fork|forkpty|posix_spawn|spawn|startfile|kill)"
)
CHANGES_FILES = re.compile(r"(os\.(remove|rename|mkdir|rmdir|link|symlink|truncate|chmod|chown|utime)|shutil\..*)$")
_watched: Path | None = None  # the folder of the reader at work
_noticed: list[str] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event == "open":
        path, mode, flags = args
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else "r" not in (mode or "r")
        if writes and not str(path).startswith(str(_watched)):
            _noticed.append(f"opened {path!r} for writing")
    elif EXECUTES.match(event) or (CHANGES_FILES.match(event) and not str(args[0]).startswith(str(_watched))):
        _noticed.append(f"{event} {str(args)[:200]}")


@contextmanager
def _watching(folder: Path) -> Iterator[None]:
    """Notes what code run inside executes or writes elsewhere. Everything it imports must be imported before."""
    global _watched
    _noticed.clear()
    _watched = folder
    try:
        yield
    finally:
        _watched = None


def prepare() -> None:
    """Before the first `check` of a process: watch, limit memory, and load what readers load at their first use."""
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):  # which json tries on bytes
        codecs.lookup(encoding)
    sys.addaudithook(_audit)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for target in TARGETS.values():
            for data in target.seeds():
                _clear(Path(folder))
                target.write(data, Path(folder))
                target.use(Path(folder), target.read(Path(folder)))
    if Path("/proc/self/statm").exists():
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MAX_ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def check(target: Target, data: bytes, folder: Path) -> str:
    """Give an input to a reader: "" if it was accepted, else the message. Raises Finding.

    folder: emptied first, and left with the files.
    """
    _clear(folder)
    target.write(data, folder)
    before = _listing(folder)
    size = sum(before.values())
    result, message = None, None
    memory, started = _memory_now(), time.process_time()
    with warnings.catch_warnings(record=True) as caught, _watching(folder):
        warnings.simplefilter("always")
        try:
            result = target.read(folder)
        except ChargptError as error:
            first, *others = error.args
            message = "\n".join([first, *(line if line.startswith("  ") else f"error: {line}" for line in others)])
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise Finding(f"{type(error).__name__} at {_place(error)}: {str(error)[:200]}") from error
    seconds, memory = time.process_time() - started, _memory_peak() - memory
    if seconds > MAX_SECONDS:
        raise Finding(f"slow: more than {MAX_SECONDS} s ({seconds:.1f} s)")
    if memory > MAX_MEMORY_BASE + MAX_MEMORY_PER_BYTE * size:
        raise Finding(f"memory: more than allowed ({memory / 1e6:.0f} MB for {size} bytes)")
    if _noticed:
        raise Finding(f"executed or wrote: {_noticed[0]}")
    if caught:
        raise Finding(f"warned: {caught[0].category.__name__}")
    if _listing(folder).keys() - before.keys() - {"tokens.safetensors"}:
        raise Finding(f"left files: {sorted(_listing(folder).keys() - before.keys())}")
    if message is not None:
        _check_message(message, folder)
        return message
    try:
        target.use(folder, result)
    except Finding:
        raise
    except Exception as error:
        raise Finding(f"accepted, but: {type(error).__name__} at {_place(error)}: {str(error)[:200]}") from error
    return ""


def _check_message(message: str, folder: Path) -> None:
    """One line for each problem, of bounded length, that names the file (or the key, of texts too short to split)."""
    lines = message.split("\n")
    if len(lines) > MAX_LINES or max(map(len, lines)) > MAX_LINE:
        raise Finding(f"message: {len(lines)} lines of up to {max(map(len, lines))} characters ({message[:80]!r})")
    if not lines[0].startswith(str(folder)) and "val_fraction=" not in lines[0]:
        raise Finding(f"message: does not name the file ({message[:80]!r})")
    for line in lines[1:]:
        if not re.match(rf"(  |error: ){re.escape(str(folder))}|  and \d+ more problems", line):
            raise Finding(f"message: a line break from the file ({message[:200]!r})")


def _place(error: BaseException) -> str:
    """The innermost line of ours in a traceback, by which findings are told apart."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}chargpt{os.sep}" in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"


def _clear(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _listing(folder: Path) -> dict[str, int]:
    """Every file below the folder and its size."""
    found = {}
    for root, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(root, name)
            found[os.fsdecode(os.path.relpath(path, os.fsencode(folder)))] = os.lstat(path).st_size
    return found


def _memory_now() -> int:
    """Resident memory in bytes; what `_memory_peak` returns starts again from here, where the system can do that."""
    with suppress(OSError, AttributeError):  # what is free already would hide what is taken
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _memory_peak()


def _memory_peak() -> int:
    with suppress(OSError):
        return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# changes that know nothing of the format, and values that readers have stumbled over

INTEGERS = [0, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 255, 256, 2**31 - 1, 2**31, 2**32, 2**53, 10**12]
INTEGERS += [2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**400, 10**4299]
STRINGS = [
    "",
    "a",
    "b",
    "ab",
    "a\nb",
    "\n" * 50,
    "\x00",
    "\r",
    "\x1b[31m",
    "\u2028",
    "\ud800",
    "\U0001f600",
    "x" * 3000,
]
VALUES = [None, True, False, 0.5, -0.0, 1e308, float("nan"), float("inf"), [], {}, [[]], {"a": 1}, "@deep"]
NUMBERS = [b"0", b"-0.0", b"1e38", b"4e38", b"1e400", b"nan", b"-inf", b"1_0", b"0x1p3", b"1e-46", b"1" * 400, b"+.5"]
SPACES = [b" ", b"\t", b"\n", b"\r", b"\r\n", b"\x0b", b"\x0c", b"\x00", b"\xc2\xa0", b"\xff", b"\xef\xbb\xbf", b"\n\n"]


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert or repeat something anywhere."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice([1, 1, 2, 4, 8, 40, 400]))
    kind = rng.randrange(7)
    if kind == 0 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + data[end:]
    if kind == 2:
        return data[:at] + data[at:end] * rng.choice([2, 3, 10, 100]) + data[end:]
    if kind == 3:
        return data[:at]
    if kind == 4:
        return data[:at] + rng.choice(SPACES + NUMBERS) + data[at:]
    if kind == 5:
        return data[:at] + rng.randbytes(rng.choice([1, 2, 8])) + data[end:]
    other = rng.randrange(len(data) + 1)
    return data[:at] + data[other : other + end - at] + data[end:]


def some_value(rng: random.Random) -> Any:
    """A value for JSON that is seldom the right one; `@deep` becomes a deep one in `dump`."""
    kind = rng.randrange(4)
    return rng.choice(INTEGERS) if kind < 2 else rng.choice(STRINGS) if kind == 2 else rng.choice(VALUES)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one thing in it replaced, removed, added, renamed or swapped."""
    value = json.loads(json.dumps(value))
    holders: list[Any] = []

    def collect(node: Any) -> None:
        if isinstance(node, (dict, list)) and node:
            holders.append(node)
            for child in node.values() if isinstance(node, dict) else node:
                collect(child)

    collect(value)
    if not holders or rng.random() < 0.03:
        return some_value(rng)
    node = rng.choice(holders)
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key, other = rng.choice(keys), rng.choice(keys)
    kind = rng.randrange(8)
    if kind < 4:
        node[key] = some_value(rng)
    elif kind == 4:
        node[key] = node[other]
    elif kind == 5:
        del node[key]
    elif isinstance(node, list):
        node.insert(key, node[other] if kind == 6 else some_value(rng))
    elif kind == 6:
        node[rng.choice(STRINGS)] = some_value(rng)
    else:
        node[rng.choice(STRINGS)] = node.pop(key)
    return value


def dump(value: Any, rng: random.Random, **options: Any) -> str:
    """JSON, now and then with every key twice, or with lists within lists almost as deep as Python can go."""
    text = json.dumps(value, **options)
    if '"@deep"' in text:
        depth = rng.choice([20, 200, 980, 985, 988, 990, 995, 3000])
        text = text.replace('"@deep"', rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth]))
    if isinstance(value, dict) and value and rng.random() < 0.03:
        text = text[:-1] + "," + json.dumps(mutate_json(value, rng) or {"a": 1}).lstrip("{[")
    return text


# texts: the first byte sets the size of the pieces a text is read in, the second val_fraction


def text_seeds() -> list[bytes]:
    samples = [
        "abc\r\nd\re\n" * 5,
        "\ufeffé☃\U0001f600" * 5,
        "\ufeff" * 40,
        "ab" * 20,
        "\x00\x85\u2028\ud7ff\ue000" * 5,
    ]
    samples.append("".join(map(chr, range(300))))
    return [bytes([size, 25]) + text.encode() for text, size in zip(samples, (3, 2, 1, 0, 5, 255), strict=True)]


def text_write(data: bytes, folder: Path) -> None:
    (folder / "settings").write_bytes(data[:2].ljust(2, b"\x19"))
    (folder / "text.txt").write_bytes(data[2:])


def text_read(folder: Path) -> tuple[Vocab, int, float]:
    size, fraction = (folder / "settings").read_bytes()
    texts.CHUNK_BYTES = 1 << 18 if size == 255 else 1 + size
    val_fraction = (fraction + 1) / 257
    vocab, length = scan_text(folder / "text.txt")
    write_tokens(folder / "tokens.safetensors", folder / "text.txt", vocab, length, val_fraction)
    return vocab, length, val_fraction


def text_use(folder: Path, result: tuple[Vocab, int, float]) -> None:
    """What Python makes of the text."""
    vocab, length, val_fraction = result
    expected = (folder / "text.txt").read_bytes().decode("utf-8").removeprefix("\ufeff")
    expected = expected.replace("\r\n", "\n").replace("\r", "\n")
    train, val = read_tokens(folder / "tokens.safetensors", vocab)
    if vocab.decode(train) + vocab.decode(val) != expected or length != len(expected):
        raise Finding("accepted, but: other characters than Python reads")
    if not -0.001 < len(val) - val_fraction * length < 1.001:  # products of floats have errors
        raise Finding("accepted, but: split elsewhere")
    if "".join(read_text(folder / "text.txt")) != expected:
        raise Finding("accepted, but: read otherwise the second time")


def text_mutate(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        at = rng.randrange(2, max(3, len(data)))
        character = rng.choice(["é", "☃", "\U0001f600", "\ufeff", "\r", "\r\n", "\u0800", "\uffff", "\U0010ffff"])
        odd = rng.choice([b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xf0\x9f\x98", character.encode()])
        return data[:at] + odd * rng.choice([1, 1, 2, 20]) + data[at:]
    return mutate_bytes(data, rng)


# params.yaml

LINE = re.compile(rb"^([\w]+):[^\n]*$", re.MULTILINE)


def fragments(text: str) -> list[str]:
    """The parts between double spaces or line ends; `~n` stands for a line break."""
    return [part.replace("~n", "\n") for part in re.split("  +|\n", text.strip())]


YAML_VALUES = fragments(r"""
1e-5  off  ~  0x1F  0o17  010  1_000  .5  5.  .inf  -.NaN  1e400  2020-01-01  null  12:30  true  1.0  '3'  -0  +3  1e6
auto  cpu  cuda:99  cuda:1000  cpu~n  2147483648  !!int ''  !!int x  !!float 1  !!bool maybe  !!binary AAAA  !!binary x
!!timestamp x  !!set {a, b}  !!omap [a: 1]  !!omap [a: *a]  !!pairs [a: 1, a: 2]  !!null ''  !!str 3  !!seq []  !!map {}
!!python/object/apply:os.system [id]  !!python/name:os.system  !local x  !<tag:x> y  &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
&b [*a, *a, *a, *a, *a, *a, *a]  [*b, *b, *b, *b, *b, *b]  &a [*a]  &c {<<: *c}  &d {k: 1}  {<<: [*d, *d, *d, *d]}
&e {<<: [*d, *d], j: 2}  {<<: [*e, *e, *e]}  &f 1  *f  *a  *no  "\ud800"  "\U0001f600"  "\UFFFFFFFF"  "\x0"  "a\nb"
'it''s'  "  '  |~n a~n b  >-~n a  |9~n a  [  {  ]  [[[[  {a: {b: {c: d}}}  - a  ? a  : b  %YAML 1.1  a: b: c  # x  @  `
""")
YAML_VALUES += ["", "\t", "\\", "cuda:\u0661", "!" + "x" * 2000, "9" * 4300, "9" * 4301, "0x" + "f" * 4000]
YAML_VALUES += ["0b" + "1" * 20_000, "1." + "0" * 5000, "1e" + "9" * 400, "-" * 50, "x" * 2000]
YAML_LINES = fragments(r"""
%YAML 1.1~n---  %YAML 1.2~n---  %TAG ! tag:x,2000:~n---  ---  ...  - 1  ? [a, b]~n: c  ? {a: b}~n: c  [a, b]: c
? !!set {a}~n: 1  "\ud800": 1  "a\nb": 1  "a\rb": 1  <<: {lr: 1}  <<: [*a]  &k lr: 1  *k : 2  1: 2  1.5: 2  true: 1
null: 1  ~: 1  : 1  2020-01-01: 1  !!binary AAAA: 1  a: &a [1, 1]  a: &a 1  lr: 1  'lr': 1  Lr: 1  learning_rate: 3e-4
batchsize: 8  lr : 0.1  lr:0.1
""")
YAML_LINES += [" lr: 0.1", "\tlr: 1", "\ufefflr: 1", "\u2028", "\x85", "\x07", "\ufffe", "? 0x" + "f" * 4000 + "\n: 1"]
YAML_LINES += ["x" * 1000 + ": 1", "x" * 1100 + ": 1"]
REPEATED = fragments(r"[  {a:  -  ?  &a  !!str  a:~n  #~n  ---~n  a,  \x41  *a,  !  '  [a, {a: b},  |~n")
REPEATED += [" ", '"', "\n", "\t"]


def params_seeds() -> list[bytes]:
    text = (ROOT / "params.yaml").read_bytes()
    return [text, b"\n".join(match[0].split(b" #")[0].rstrip() for match in LINE.finditer(text)) + b"\n"]


def params_write(data: bytes, folder: Path) -> None:
    (folder / "params.yaml").write_bytes(data)


def params_read(folder: Path) -> Any:
    return load_params(folder / "params.yaml")


def params_use(folder: Path, params: Any) -> None:
    if params.n_embd % params.n_head or not 0 <= params.dropout < 1 or not 0 < params.lr <= 10 or not params.prompt:
        raise Finding(f"accepted, but: {params}")
    GPTConfig(1, params.block_size, params.n_layer, params.n_head, params.n_embd, params.dropout)


def params_mutate(data: bytes, rng: random.Random) -> bytes:
    lines = list(LINE.finditer(data))
    kind = rng.randrange(10)
    if kind < 2 or not lines:
        return mutate_bytes(data, rng)
    match, other = rng.choice(lines), rng.choice(lines)
    start, end = match.span()
    key, value = match[1], str(rng.choice(INTEGERS[:-1])) if rng.random() < 0.2 else rng.choice(YAML_VALUES)
    if kind < 6:
        return data[:start] + key + b": " + value.encode() + data[end:]
    if kind == 6:
        return data[:start] + rng.choice(YAML_LINES).encode() + b"\n" + data[rng.choice([start, end]) :]
    if kind == 7:
        return data[:start] + rng.choice([b"", other[0], other[1] + match[0][len(key) :]]) + data[end:]
    if kind == 8:
        new = f"{rng.choice('abcdefgh')}: {value}\n".encode()
        return data[:start] + new + data[start:]
    repeated = (rng.choice(REPEATED) + rng.choice(["", " "])) * rng.choice([10, 100, 1000, 10_000])
    prefix = rng.choice(["", "x: ", "x: '", 'x: "', "x: [", "x: {", "x: |\n "])
    return data[:start] + (prefix + repeated)[:60_000].encode() + b"\n" + data[start:]


# legacy directories: name, \x1f, content, \x1e; a name that starts with / is a link to the content, or a directory


def legacy_seeds() -> list[bytes]:
    seeds = []
    for n_layer, n_head, n_embd in ((1, 1, 2), (1, 2, 4), (2, 1, 1)):
        sizes = {"vocab_size": 3, "block_size": 2, "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
        rng = np.random.default_rng(n_embd)
        with tempfile.TemporaryDirectory() as folder:
            shapes = expected_shapes(sizes)
            write_legacy(folder, {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
            files = [(os.fsencode(path.name), path.read_bytes()) for path in sorted(Path(folder).iterdir())]
        config = sizes | {"dropout": 0.1, "learning_rate": 0.001, "batch_size": 4, "max_iters": 9, "device": "cpu"}
        seeds.append(pack([*files, (b"config.json", json.dumps(config).encode())]))
    return seeds


def pack(files: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x1e".join(name + b"\x1f" + content for name, content in files)


def unpack(data: bytes) -> list[tuple[bytes, bytes]]:
    parts = (entry.partition(b"\x1f") for entry in data.split(b"\x1e"))
    return [(name, content) for name, _, content in parts]


def legacy_write(data: bytes, folder: Path) -> None:
    weights = folder / "weights"
    weights.mkdir()
    for name, content in unpack(data):
        path = os.path.join(os.fsencode(weights), name.replace(b"/", b"").replace(b"\x00", b"")[:200] or b"_")
        if name == b"config.json":
            (folder / "config.json").write_bytes(content)
        elif os.path.lexists(path) or name.strip(b"/") in (b".", b".."):
            continue
        elif name.startswith(b"//"):
            os.mkdir(path)
        elif name.startswith(b"/"):
            os.symlink(content.replace(b"\x00", b"")[:100] or b"x", path)
        else:
            with open(path, "wb") as file:
                file.write(content)


def legacy_read(folder: Path) -> Any:
    size = sum(path.stat().st_size for path in folder.rglob("*.txt") if path.is_file())
    values.CHUNK_BYTES = 1 << 20 if size > 100_000 else 64  # small files too must reach past a piece
    config = folder / "config.json" if (folder / "config.json").exists() else None
    weights = read_legacy(folder / "weights", config)
    if config:
        legacy_settings(config)
    return weights


def legacy_use(folder: Path, weights: Any) -> None:
    model = build_model(weights, "relu-embedding")
    if any(not np.isfinite(t).all() for t in weights.tensors.values()):
        raise Finding("accepted, but: values that are not finite")
    with torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.int64))


def legacy_mutate(data: bytes, rng: random.Random) -> bytes:
    files = unpack(data)
    i, other = rng.randrange(len(files)), rng.randrange(len(files))
    if rng.random() < 0.2:
        i = next((i for i, (name, _) in enumerate(files) if name == b"config.json"), i)
    name, content = files[i]
    kind = rng.randrange(12)
    if name == b"config.json" and kind < 8:
        with suppress(ValueError, RecursionError):
            content = dump(mutate_json(json.loads(content), rng), rng).encode()
        files[i] = (name, content)
    elif kind < 3:
        lines = content.split(b"\n")
        at = rng.randrange(len(lines))
        lines[at] = rng.choice(
            [*NUMBERS, *SPACES, lines[at] * 2, lines[at] + b" ", b" " + lines[at], lines[at][:-1], b""]
        )
        files[i] = (name, b"\n".join(lines))
    elif kind == 3:
        sizes = ", ".join(str(rng.choice(INTEGERS[:-3])) for _ in range(rng.choice([0, 1, 1, 2, 2, 3])))
        files[i] = (name, f"# shape: [{sizes}]".encode() + content[content.find(b"\n") :])
    elif kind == 4:
        new = rng.choice(
            [b"lm_head.weight.txt", b"blocks.1.sa.heads.9999.key.weight.txt", b".hidden", b"a\nb.txt", b"x.bin"]
        )
        new = rng.choice(
            [new, b"/" + name, b"//" + name, b"\xff.txt", name.replace(b"0", b"1"), name[:-4], name.upper()]
        )
        files[i] = (new, content)
    elif kind == 5:
        files[i] = (name, files[other][1])
    elif kind == 6:
        files.append((mutate_bytes(name, rng), content))
    elif kind == 7:
        files = files[:i] + files[i + 1 :] or files
    elif kind == 8:
        files[i] = (name, content + rng.choice(SPACES + NUMBERS) * rng.choice([1, 1, 2, 50, 2000]))
    elif kind == 9:
        return mutate_bytes(data, rng)
    else:
        files[i] = (name, mutate_bytes(content, rng))
    return pack(files)


# model files

DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I32": 4, "U32": 4, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "C64": 8}
DTYPES |= {"f32": 4, "F\n32": 4, "F" * 3000: 4}  # name -> bytes; these are none


def model_seeds() -> list[bytes]:
    seeds = []
    for config in (
        GPTConfig(3, 2, 1, 1, 2),
        GPTConfig(2, 3, 2, 2, 4, 0.1, "relu", "embedding"),
        GPTConfig(1, 1, 1, 1, 1),
    ):
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            save_model(f"{folder}/m", GPT(config), Vocab("\na☃"[: config.vocab_size]), {"lr": 0.1})
            seeds.append(Path(folder, "m").read_bytes())
    return seeds


def model_write(data: bytes, folder: Path) -> None:
    (folder / "m.safetensors").write_bytes(data)


def model_read(folder: Path) -> Any:
    return load_model(folder / "m.safetensors")


def model_use(folder: Path, result: tuple[GPT, Vocab]) -> None:
    model, vocab = result
    with torch.no_grad():
        model(torch.zeros(1, 1, dtype=torch.int64))
    try:
        ids = generate(model, torch.zeros(1, 1, dtype=torch.int64), 1)
    except ChargptError as error:  # finite weights may still overflow on the way
        if "not finite" not in str(error):
            raise
    else:
        vocab.decode(ids[0])


def split_model(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, metadata and tensor bytes of a model file; ValueError or the like if it is none."""
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["chargpt"]), data[8 + size :]


def join_model(header: str, body: bytes, aligned: bool = True) -> bytes:
    raw = header.encode("utf-8", "surrogatepass")
    raw += b" " * (-len(raw) % 8 if aligned else 0)
    return struct.pack("<Q", len(raw)) + raw + body


def fit_offsets(header: dict[str, Any], body: bytes) -> bytes:
    """The tensors' bytes one after another, cut or filled to what dtype and shape say, and the offsets to fit."""
    fitted = b""
    for name, entry in header.items():
        if name != "__metadata__":
            size = DTYPES[entry["dtype"]] * math.prod(entry["shape"])
            start = entry["data_offsets"][0]
            if not 0 <= size < 10_000:
                raise ValueError(size)
            entry["data_offsets"] = [len(fitted), len(fitted) + size]
            fitted += body[start : start + size].ljust(size, b"\x00")
    return fitted


def fit_sha256(header: dict[str, Any], metadata: dict[str, Any], body: bytes) -> None:
    """Make the checksum right, so that what is wrong elsewhere is not hidden behind it."""
    names = sorted(header.keys() - {"__metadata__"})
    parts = [hashlib.sha256(body[slice(*header[name]["data_offsets"])]).digest() for name in names]
    facts = {key: value for key, value in metadata.items() if key != "sha256"}
    metadata["sha256"] = hashlib.sha256(b"".join(parts) + json.dumps(facts, sort_keys=True).encode()).hexdigest()


def model_mutate(data: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(20)
    if kind == 0:
        return mutate_bytes(data, rng)
    if kind == 1:
        return struct.pack("<Q", rng.choice(INTEGERS) % 2**64) + data[8:]
    try:
        header, metadata, body = split_model(data)
        tensors = [name for name in header if name != "__metadata__"]
        name, other = rng.choice(tensors), rng.choice(tensors)
        entry = header[name]
        fits, fitted = rng.random() < 0.8, rng.random() < 0.6
        if kind < 9:
            part = rng.choice(["config", "config", "vocab", "params", "all"])
            if part == "all":
                metadata = mutate_json(metadata, rng)
            elif part == "vocab" and rng.random() < 0.5:
                metadata["vocab"] = rng.choice([list(metadata["vocab"]), mutate_json(list(metadata["vocab"]), rng)])
            else:
                metadata[part] = mutate_json({part: metadata[part]}, rng)[part]
        elif kind == 9:
            entry["dtype"] = rng.choice(list(DTYPES))
        elif kind == 10:
            entry["shape"] = mutate_json({"shape": entry["shape"]}, rng)["shape"]
        elif kind == 11:
            entry["data_offsets"] = rng.choice(
                [header[other]["data_offsets"], [rng.choice(INTEGERS), rng.choice(INTEGERS)]]
            )
        elif kind == 12:
            header[rng.choice([*STRINGS, other, name + "\n"])] = header.pop(name)
        elif kind == 13:
            header = mutate_json(header, rng)
        elif kind == 14:
            body = mutate_bytes(body, rng)
        elif kind == 15:
            at = rng.randrange(len(body) // 4) * 4
            value = rng.choice([float("nan"), float("inf"), 3e38, -3e38, 1e-45, 0.0])
            body = body[:at] + struct.pack("<f", value) + body[at + 4 :]
        elif kind == 16:
            entry["shape"] = [size * rng.choice([1, 2]) for size in entry["shape"]]
            body += body
            entry["data_offsets"] = [0, 4 * math.prod(entry["shape"])]
        elif kind == 17:
            del header[rng.choice(list(header))]
        elif kind == 18:
            metadata["config"][rng.choice(["n_head", "n_layer", "n_embd"])] = rng.choice([1, 2, 4, *INTEGERS])
        else:
            return join_model(dump(header, rng) + rng.choice(["", "x", "\n" * 100, "{}"]), body, rng.random() < 0.5)
        with suppress(Exception):
            if fitted:
                body = fit_offsets(header, body)
        with suppress(Exception):
            if fits:
                fit_sha256(header, metadata, body)
        with suppress(Exception):
            header["__metadata__"] = dict(header["__metadata__"], chargpt=dump(metadata, rng))
        return join_model(dump(header, rng), body, rng.random() < 0.95)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, struct.error, OverflowError):
        return mutate_bytes(data, rng)


TARGETS = {
    "model": Target(model_seeds, model_write, model_read, model_use, model_mutate, 200_000),
    "legacy": Target(legacy_seeds, legacy_write, legacy_read, legacy_use, legacy_mutate, 50_000),
    "params": Target(params_seeds, params_write, params_read, params_use, params_mutate, 110_000),
    "text": Target(text_seeds, text_write, text_read, text_use, text_mutate, 20_000),
}


def examples(target: Target, count: int, seed: int) -> Iterator[bytes]:
    """The same inputs for the same seed: valid ones with one to eight changes."""
    seeds = target.seeds()
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        data = rng.choice(seeds)
        for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
            data = target.mutate(data, rng)[: target.max_bytes]
        yield data


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    target = TARGETS[args.target]
    prepare()
    inputs: Iterator[bytes] = (path.read_bytes() for path in args.files)
    if args.examples:
        inputs = examples(target, args.examples, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        for data in inputs:
            try:
                outcome = check(target, data, Path(folder)).replace(folder, "DIR")
            except Finding as error:
                outcome = f"FINDING {error}"
            print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()

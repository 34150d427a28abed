"""Untrusted input: model files, legacy directories, params.yaml and texts are accepted, or refused in clear lines.

Whatever a file holds, a reader executes nothing, writes nowhere else, and takes bounded time and memory.
`pytest -m fuzz --hypothesis-profile=long` tries many more examples, other ones each time.
"""

from __future__ import annotations

import codecs
import copy
import ctypes
import json
import math
import os
import pickle
import re
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargpt.errors import ChargptError
from chargpt.inference.sampling import generate
from chargpt.legacy.dialect import build_model
from chargpt.legacy.directory import LegacyWeights, expected_shapes, read_legacy
from chargpt.model.config import GPTConfig
from chargpt.model.file import load_model, save_model
from chargpt.model.gpt import GPT
from chargpt.params import Params
from chargpt.project.overrides import legacy_settings
from chargpt.project.params_file import load_params
from chargpt.tensors import DTYPES, tensor_hash
from chargpt.text.corpus import scan_text
from chargpt.text.tokens import read_tokens, write_tokens
from chargpt.text.vocab import Vocab
from chargpt.training.schedule import resolve
from tests.legacy.reference import write_legacy
from tests.pipeline import ROOT

pytestmark = [pytest.mark.fuzz, pytest.mark.skipif(sys.platform != "linux", reason="memory is watched in /proc")]

MAX_SECONDS = 5.0  # of CPU time, so that a busy machine fails no test
MAX_MEMORY, MAX_MEMORY_PER_BYTE = 64_000_000, 40  # that a reader may take in all, and per byte of its files
EXECUTES = r"exec|compile|import|code\.__new__|function\.__new__|marshal\.|pickle\.|ctypes\.|socket\.|subprocess\."
EXECUTES += r"|urllib\.|os\.(system|exec|fork|forkpty|posix_spawn|spawn|startfile|kill)"
CHANGES = r"shutil\.|os\.(remove|rename|mkdir|rmdir|link|symlink|truncate|chmod|chown|utime)"


@dataclass
class Watch:
    """What Python's audit events tell while a reader works in `folder`."""

    folder: Path | None = None
    loading: bool = False
    seen: str = ""

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder or self.loading:
            return
        outside = not f"{arguments[0] if arguments else ''}{os.sep}".startswith(f"{self.folder}{os.sep}")
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_RDWR | os.O_WRONLY)
        if re.match(EXECUTES, event) or (outside and (writes or re.match(CHANGES, event))):
            self.seen = self.seen or f"{event} {str(arguments)[:200]}"


WATCH = Watch()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, with everything loaded that readers load at their first use."""
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):  # json tries these on bytes
        codecs.lookup(encoding)
    sys.addaudithook(WATCH)
    made = tmp_path_factory.mktemp("untrusted")
    for target in (MODEL, LEGACY, PARAMS, TEXT):
        WATCH.loading = True
        check(target, target.valid, made)
        WATCH.loading = False
        assert check(target, target.valid, made) == ""
    return made


@dataclass(frozen=True)
class Target:
    """A reader. read: takes the folder that `valid` or a changed `valid` was written into, and returns what it read.

    use: holds the result to what the reader promises. A value is bytes, None for a directory, or text: a link's target.
    """

    valid: dict[str, Any]
    read: Callable[[Path], Any]
    use: Callable[[Path, Any], object]


def check(target: Target, files: dict[str, Any], folder: Path) -> str:
    """Write the files and read them: the lines of the refusal, or "" if they are accepted."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if content is None else None
        path.symlink_to(content) if isinstance(content, str) else None
        path.write_bytes(content) if isinstance(content, bytes) else None
    before = set(folder.rglob("*"))
    result, refusal = None, None
    memory, started = peak_memory(reset=True), time.process_time()
    WATCH.folder, WATCH.seen = folder, ""
    try:
        result = target.read(folder)
    except ChargptError as error:
        refusal = error
    finally:
        WATCH.folder = None
    seconds, memory = time.process_time() - started, peak_memory() - memory
    assert not WATCH.seen, f"executed or wrote: {WATCH.seen}"
    assert seconds < MAX_SECONDS, f"slow: {seconds} s"
    size = sum(len(content or "") for content in files.values())
    assert memory < MAX_MEMORY + MAX_MEMORY_PER_BYTE * size, f"memory: {memory} bytes for {size}"
    assert {path.name for path in set(folder.rglob("*")) - before} <= {"tokens.safetensors"}, "left files"
    if not refusal:
        target.use(folder, result)
        return ""
    lines = list(map(str, refusal.args))
    assert str(folder) in lines[0] or "val_fraction=" in lines[0], f"does not name the file: {lines}"
    assert len(lines) <= 22 and all(len(line) <= 1000 and line.isprintable() for line in lines), f"unclear: {lines}"
    return "\n".join(lines)


def peak_memory(reset: bool = False) -> int:
    """The largest resident memory in bytes, since the last reset."""
    if reset:
        ctypes.CDLL(None).malloc_trim(0)  # free memory that is kept would hide what is taken
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


def refuse(message: str) -> None:
    raise ChargptError(message)


@pytest.mark.parametrize(
    ("read", "finding"),
    [
        (lambda folder: {}["x"], "'x'"),
        (lambda folder: eval("1 + 1"), "executed or wrote: (compile|exec)"),
        (lambda folder: pickle.loads(b"cos\nsystem\n."), "executed or wrote: pickle"),
        (lambda folder: Path(f"{folder}-x").write_text("x"), "executed or wrote: open"),
        (lambda folder: (folder / "x").write_text("x"), "left files"),
        (lambda folder: sum(range(20_000_000)), "slow"),
        (lambda folder: np.ones(10_000_000), "memory"),
        (lambda folder: refuse(f"{folder}: a\nb"), "unclear"),
        (lambda folder: refuse("wrong"), "does not name the file"),
    ],
)
def test_the_check_notices_a_bad_reader(
    folder: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any], finding: str
) -> None:
    monkeypatch.setattr("tests.test_untrusted_input.MAX_SECONDS", 0.1 if finding == "slow" else 5.0)
    with pytest.raises((AssertionError, KeyError), match=finding):
        check(Target({}, read, lambda folder, result: None), {}, folder)


# changes of valid files

NUMBERS = [0, -1, 1, 2, 3, 8, 255, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e308]
TEXTS = ["", "a", "a\nb", "\n" * 50, "\x00", "\x1b[31m", "\u2028", "\ud800", "\U0001f600", "x" * 3000]
VALUES = [*NUMBERS, *TEXTS, math.nan, math.inf, True, None, [], {}, [[]], {"a": 1}]
ODD = rb"-0.0 1e38 4e38 1e400 nan -inf 1_0 0x1p3 1e-46 1" + b"1" * 400 + b" +.5 \xff \xef\xbb\xbf \xed\xa0\x80 \xc0\x80"
ODD += b" \xf4\x90\x80\x80 \xf0\x9f\x98 \xc2\xa0 " + "é☃\U0001f600\uffff".encode()
ODD_BYTES = [*ODD.split(b" "), b"", b" ", b"\t", b"\n\n", b"\r", b"\r\n", b"\x0b", b"\x00"]


@st.composite
def edited_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """One to four times: something is cut, replaced, inserted or repeated."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.sampled_from([0, 1, 2, 8, 40, 400, len(data)])))
        data = data[:at] + draw(st.sampled_from([*ODD_BYTES, data[at:end] * 20]) | st.binary(max_size=8)) + data[end:]
    return data[:50_000]


@st.composite
def edited_json(draw: st.DrawFn, value: Any) -> Any:
    """A copy in which up to three values are replaced, removed or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        node, holder, key = value, {}, ""
        while isinstance(node, (dict, list)) and node and (node is value or draw(st.booleans())):
            holder, keys = node, list(node) if isinstance(node, dict) else range(len(node))
            key, other = draw(st.sampled_from(keys)), draw(st.sampled_from(keys))
            node = holder[key]
        if not holder:
            break
        holder[key] = copy.deepcopy(draw(st.sampled_from([*VALUES, holder[other]])))
        if draw(st.integers(0, 3)) == 0:
            moved = holder.pop(key)
            if isinstance(holder, dict) and draw(st.booleans()):
                holder[draw(st.sampled_from(TEXTS))] = moved
    return value


def examples(count: int) -> Callable[[Any], Any]:
    """So many times the profile's number of examples."""
    return settings(max_examples=count * settings.default.max_examples, suppress_health_check=list(HealthCheck))


# model files


@dataclass
class Parts:
    """A model file taken apart."""

    header: dict[str, Any]
    metadata: dict[str, Any]
    body: bytes

    @staticmethod
    def of(config: GPTConfig) -> Parts:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            save_model(f"{folder}/m", GPT(config), Vocab("\na☃"[: config.vocab_size]), {"lr": 0.1})
            data = Path(folder, "m").read_bytes()
        (size,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + size])
        return Parts(header, json.loads(header["__metadata__"]["chargpt"]), data[8 + size :])

    def fit_offsets(self) -> None:
        """Put the tensors one after another, each as long as its dtype and shape say."""
        body = b""
        for name, about in self.header.items():
            if name != "__metadata__":
                size = np.dtype(DTYPES[about["dtype"]]).itemsize * math.prod(about["shape"])
                start, about["data_offsets"] = about["data_offsets"][0], [len(body), len(body) + size]
                body += self.body[start : start + size].ljust(min(size, 10_000), b"\x00")
        self.body = body

    def fit_sha256(self) -> None:
        """Make the checksum right, so that it hides nothing else that is wrong."""
        facts = {key: value for key, value in self.metadata.items() if key != "sha256"}
        tensors = {}
        for name, about in self.header.items():
            if name != "__metadata__":
                flat = np.frombuffer(self.body[slice(*about["data_offsets"])], DTYPES[about["dtype"]])
                tensors[name] = flat.reshape(about["shape"])
        self.metadata["sha256"] = tensor_hash(tensors, facts)

    def join(self) -> bytes:
        with suppress(Exception):  # a changed header may have no place for them
            self.header["__metadata__"]["chargpt"] = json.dumps(self.metadata)
        return join(json.dumps(self.header), self.body)


def join(header: str, body: bytes = b"") -> bytes:
    """A safetensors file."""
    raw = header.encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + body


def use_model(folder: Path, result: tuple[GPT, Vocab]) -> None:
    model, vocab = result
    try:
        vocab.decode(generate(model, torch.zeros(1, 1, dtype=torch.int64), 1)[0])
    except ChargptError as error:  # finite weights may still overflow on the way
        assert "not finite" in str(error)


SMALL, LARGER = Parts.of(GPTConfig(3, 2, 1, 1, 2)), Parts.of(GPTConfig(2, 3, 2, 2, 4, 0.1, "relu", "embedding"))
MODEL = Target({"m": SMALL.join()}, lambda folder: load_model(folder / "m"), use_model)


@st.composite
def model_files(draw: st.DrawFn) -> bytes:
    parts = copy.deepcopy(draw(st.sampled_from([SMALL, LARGER])))
    where = draw(st.sampled_from(["metadata", "metadata", "header", "tensor", "tensor", "body", "bytes"]))
    if where == "bytes":
        return draw(edited_bytes(parts.join()))
    if where == "metadata":
        parts.metadata = draw(edited_json(parts.metadata))
    elif where == "header":
        parts.header = draw(edited_json(parts.header))
    elif where == "tensor":
        about = parts.header[draw(st.sampled_from(sorted(parts.header.keys() - {"__metadata__"})))]
        about["dtype"] = draw(st.sampled_from(["F32", "F32", "F16", "BF16", "F64", "I32", "U8", "F8_E4M3", "x\n"]))
        about["shape"] = draw(st.just(about["shape"]) | st.lists(st.integers(0, 4)) | edited_json(about["shape"]))
        about["data_offsets"] = draw(st.just(about["data_offsets"]) | edited_json(about["data_offsets"]))
    else:
        at = 4 * draw(st.integers(0, len(parts.body) // 4 - 1))
        parts.body = parts.body[:at] + struct.pack("<f", draw(st.floats(width=32))) + parts.body[at + 4 :]
    for fit in (parts.fit_offsets, parts.fit_sha256):
        if draw(st.booleans()):
            with suppress(Exception):  # what has no size stays as it is
                fit()
    return parts.join()


@examples(8)
@given(model_files())
def test_changed_model_files(folder: Path, data: bytes) -> None:
    check(MODEL, {"m": data}, folder)


def model_with(name: str = "ln_f.bias", config: Any = None, **change: Any) -> bytes:
    """The valid model with changes of a tensor's entry and of the config, and a true sha256."""
    parts = copy.deepcopy(SMALL)
    parts.header[name] = parts.header["ln_f.bias"] | change
    parts.metadata["config"] |= config or {}
    with suppress(Exception):
        parts.fit_sha256()
    return parts.join()


def metadata_with(old: str, new: str) -> bytes:
    """The model with a change in the text of its metadata."""
    parts = copy.deepcopy(SMALL)
    parts.header["__metadata__"]["chargpt"] = json.dumps(parts.metadata).replace(old, new, 1)
    return join(json.dumps(parts.header), parts.body)


BROKEN, OTHER_SHA256 = "truncated or not a safetensors file", "does not match its own sha256"
NOT_OURS = "`chargpt` is not the JSON that chargpt writes"
MANY = dict.fromkeys(map(str, range(500_000)), "")
CHARACTERS = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
MODELS: dict[str, tuple[Callable[[], bytes], str]] = {
    "offsets of 16 EiB": (lambda: model_with(data_offsets=[0, 2**64]), BROKEN),
    "shape of 2**64 values": (lambda: model_with(shape=[2**63, 2]), BROKEN),
    "header in UTF-32": (lambda: struct.pack("<Q", 160) + "{}".ljust(40).encode("utf-32-be"), BROKEN),
    "header nested deep": (lambda: join('{"a":' + "[" * 10_000_000), BROKEN),
    "header too long": (lambda: join("{}" + " " * 20_000_000), "incomplete or too long"),
    "header of many keys": (lambda: join('{"__metadata__": ' + json.dumps(MANY) + "}"), "without the metadata key"),
    "shape of ten thousand": (lambda: model_with(shape=[2] + [1] * 10_000), r"ln_f\.bias is F32 \[2(, 1){19},"),
    "dtype unknown": (lambda: model_with(dtype="F\n" * 10_000), r"unknown variant `(F\\n)+"),
    "name of line breaks": (lambda: model_with("a\n" * 50, shape=[0], data_offsets=[0, 0]), r"\(1\): (a\\n){50}"),
    "metadata not text": (lambda: join('{"__metadata__": {"chargpt": 1}}'), BROKEN),
    "metadata huge": (lambda: metadata_with("0.1", "[" + "[]," * 1_000_000 + "0]"), OTHER_SHA256),
    "config of line breaks": (lambda: model_with(config={"a\n" * 50: 1}), r"argument '(a\\n){50}'"),
    "all of Unicode": (lambda: metadata_with(r"\na\u2603", json.dumps(CHARACTERS)[1:-1]), "has 1112064 characters"),
}  # fmt: skip


@pytest.mark.parametrize("depth", [*range(800, 1000, 3), 100_000])  # the deepest that json reads is one of these
def test_nested_metadata(folder: Path, depth: int) -> None:
    for key, value in (("lr", "0.1"), ("n_head", "1")):
        data = metadata_with(f'"{key}": {value}', f'"{key}": {"[" * depth}{"]" * depth}')
        assert re.search(f"{NOT_OURS}|{OTHER_SHA256}|n_head is", check(MODEL, {"m": data}, folder))


# legacy directories


def legacy_directory(n_layer: int, n_head: int, n_embd: int) -> dict[str, Any]:
    config = {"vocab_size": 3, "block_size": 2, "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    with tempfile.TemporaryDirectory() as folder:
        write_legacy(folder, {name: np.ones(shape, np.float32) / 3 for name, shape in expected_shapes(config).items()})
        files: dict[str, Any] = {f"weights/{path.name}": path.read_bytes() for path in Path(folder).iterdir()}
    config |= {"dropout": 0.1, "learning_rate": 0.001, "batch_size": 4, "max_iters": 9, "device": "cpu"}
    return {"config.json": json.dumps(config).encode()} | files


def load_legacy(folder: Path) -> LegacyWeights:
    config = folder / "config.json" if (folder / "config.json").exists() else None
    weights = read_legacy(folder / "weights", config)
    if config:
        legacy_settings(config)
    return weights


def use_legacy(folder: Path, weights: LegacyWeights) -> None:
    assert all(np.isfinite(tensor).all() for tensor in weights.tensors.values())
    with torch.no_grad():
        build_model(weights, "relu-embedding")(torch.zeros(1, 1, dtype=torch.int64))


ONE_HEAD, TWO_HEADS = legacy_directory(1, 1, 2), legacy_directory(1, 2, 4)
LEGACY = Target(ONE_HEAD, load_legacy, use_legacy)
NAMES = ["lm_head.weight.txt", ".hidden", "a\nb.txt", "\udcff" * 60, "x.bin", "X" * 120, "blocks.1.sa.heads.9999.key"]


@st.composite
def legacy_directories(draw: st.DrawFn) -> dict[str, Any]:
    files = dict(draw(st.sampled_from([ONE_HEAD, TWO_HEADS])))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(files)) | st.just("config.json"))
        content = files.pop(name, b"{}")
        rows = content.split(b"\n") if isinstance(content, bytes) else [b""]
        at = draw(st.integers(0, len(rows) - 1))
        kind = draw(st.sampled_from(["bytes", "line", "shape", "json", "name", "kind", "remove"]))
        if kind == "name":
            name = "weights/" + draw(st.sampled_from(NAMES))
        elif kind == "kind":
            content = draw(st.sampled_from([None, "/etc/passwd", "..", "lm_head.bias.txt"]))
        elif kind == "json":
            name, content = "config.json", json.dumps(draw(edited_json(json.loads(ONE_HEAD["config.json"])))).encode()
        elif kind == "bytes":
            content = draw(edited_bytes(b"\n".join(rows)))
        elif kind == "shape":
            sizes = draw(st.lists(st.sampled_from(NUMBERS[:14]), max_size=3))
            content = b"\n".join([f"# shape: {sizes}".encode(), *rows[1:]])
        elif kind == "line":
            changed = draw(st.sampled_from([*ODD_BYTES, rows[at] * 2, rows[at] + b" ", rows[at][:-1]]))
            content = b"\n".join([*rows[:at], changed, *rows[at + 1 :]])
        if kind != "remove":
            files[name] = content
    return {"weights/.keep": b""} | files


@examples(6)
@given(legacy_directories())
def test_changed_legacy_directories(folder: Path, files: dict[str, Any]) -> None:
    check(LEGACY, files, folder)


def weights(name: str, content: bytes) -> dict[str, Any]:
    return {f"weights/{name}.txt": content}


WPE = "position_embedding_table.weight"
DIRECTORIES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "blanks behind the last line": (lambda: weights("ln_f.bias", b"# shape: [2]\n1.0\n2.0\n  "), ""),
    "name of bytes": (lambda: {"weights/" + "\udcff" * 200: b""}, r"weights/(\\udcff){100}: not a regular .txt file"),
    "config nested deep": (lambda: {"config.json": b'{"n_head": ' + b"[" * 800 + b"]" * 800 + b"}"}, r"is \[{40}, but"),
    "rate of 400 digits": (lambda: {"config.json": b'{"learning_rate": 1%s}' % (b"0" * 400)}, r"lr is 10+\.\.\.0+; it"),
    "many values": (lambda: weights(WPE, b"# shape: [500000, 2]\n" + b"10\n" * 10**6) | {"config.json": b"{}"}, ""),
    "thousands of layers": (lambda: weights("blocks.1000.ln1.bias", b"# shape: [2]\n1\n2\n"), "not a parameter of"),
}  # fmt: skip


# params.yaml


def use_params(folder: Path, params: Params) -> None:
    chosen = resolve(params, 1000, 0.0)
    assert 0 <= chosen.dropout < 1 and 0 < chosen.lr <= 10 and chosen.prompt
    with suppress(ChargptError):  # one of n_embd and n_head is given, and does not fit the other
        GPTConfig(1, chosen.block_size, chosen.n_layer, chosen.n_head, chosen.n_embd, chosen.dropout)


FLAT = "".join(f"{line}\n" for line in re.findall(r"(?m)^\w+: [^#\n]*", (ROOT / "params.yaml").read_text()))
PARAMS = Target({"params.yaml": FLAT.encode()}, lambda folder: load_params(folder / "params.yaml"), use_params)
VALUES_OF_YAML = r"""1e-5|off|~|0x1F|0o17|010|1_000|.5|5.|.inf|-.NaN|1e400|2020-01-01|null|12:30|true|'3'|-0|+3|cuda:99
!!int ''|!!int x|!!float 1|!!bool maybe|!!binary AAAA|!!binary x|!!timestamp x|!!set {a, b}|!!omap [a: 1]|!!omap [a: *a]
!!pairs [a: 1, a: 2]|!!null ''|!!str 3|!!seq []|!!map {}|!!python/object/apply:os.system [id]|!!python/name:os.system
!local x|!<tag:x> y|&a [1, 1, 1, 1]|&b [*a, *a]|[*b, *b]|&a [*a]|&c {<<: *c}|&d {k: 1}|{<<: [*d, *d]}|&f 1|*f|*no|"\x0"
"\ud800"|"\UFFFFFFFF"|"a\nb"|'|"|>-|[|{|]|[[[[|{a: {b: {c: d}}}|- a|? a|: b|a: b: c|# x|@|`|%"""
LINES_OF_YAML = r"""%YAML 1.1|%YAML 1.2|%TAG ! tag:x,2000:|---|...|- 1|? [a, b]|? {a: b}|[a, b]: c|? !!set {a}
"\ud800": 1|<<: [*a]|"a\nb": 1|<<: {lr: 1}|&k lr: 1|*k : 2|1: 2|1.5: 2|true: 1|null: 1|~: 1|: 1|2020-01-01: 1
!!binary AAAA: 1|a: &a [1]|lr: 1|Lr: 1|learning_rate: 3e-4|lr : 0.1|lr:0.1| lr: 0.1"""
LONG = ["9" * 4301, "0x" + "f" * 4000, "0b" + "1" * 9000, "1." + "0" * 5000, "1e" + "9" * 400, "x" * 2000, "\\"]
LONG += ["\t", "\u2028\x07"]
YAML_VALUES, YAML_LINES = (x.replace("\n", "|").split("|") for x in (VALUES_OF_YAML, LINES_OF_YAML))
REPEATED = [*"[!'- ", "{a: ", "- ", "? ", "&a ", "!!str ", "a:\n", "#\n", "---\n", "a, ", r"\x41", "*a, ", "|\n"]


@st.composite
def params_files(draw: st.DrawFn) -> bytes:
    rows = FLAT.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(rows) - 1))
        key, value = rows[at].partition(":")[0], st.sampled_from([*YAML_VALUES, *LONG, *NUMBERS[:14]])
        start = st.sampled_from(["", "x: ", "x: '", 'x: "', "x: [", "x: |\n "])
        many = st.sampled_from(REPEATED), st.sampled_from([10, 300])  # far deeper nesting crashes DVC
        other = st.sampled_from([*YAML_LINES, *rows, ""]) | st.builds(lambda x, y, n: x + y * n, start, *many)
        row = draw(st.builds(lambda x, key=key: f"{key}: {x}", value) | other)
        rows[at : at + draw(st.integers(0, 1))] = [row]
    data = "\n".join(rows).encode()
    return draw(edited_bytes(data)) if draw(st.integers(0, 4)) == 0 else data


@examples(4)
@given(params_files())
def test_changed_params(folder: Path, data: bytes) -> None:
    check(PARAMS, {"params.yaml": data}, folder)


YAMLS: dict[str, tuple[Callable[[], str], str]] = {
    "YAML 1.1": (lambda: "%YAML 1.1\n---\n" + re.sub(r"\nlr: \S+", "\nlr: 2e-2", FLAT), ""),
    "half a character": (lambda: FLAT + r'"\ud800": 1', "found invalid Unicode character escape code"),
    "key of 4800 digits": (lambda: FLAT + f"? 0x{'f' * 4000}\n: 1", "unknown key 'a number too long to show'"),
    "thousands of keys": (lambda: FLAT + "".join(f"eval_{i}:\n" for i in range(4000)), "and 3992 more problems"),
    "a command": (lambda: FLAT + "x: !!python/object/apply:os.system [id]", "could not determine a constructor"),
}  # fmt: skip


# texts


def load_text(folder: Path) -> tuple[Vocab, int]:
    vocab, length = scan_text(folder / "text.txt")
    write_tokens(folder / "tokens.safetensors", folder / "text.txt", vocab, length, 0.1)
    return vocab, length


def use_text(folder: Path, result: tuple[Vocab, int]) -> None:
    vocab, length = result
    assert sum(map(len, read_tokens(folder / "tokens.safetensors", vocab))) == length


TEXT = Target({"text.txt": b"text" * 20}, load_text, use_text)


HOSTILE: list[tuple[Target, str, dict[str, tuple[Callable[[], Any], str]]]] = [
    (MODEL, "m", MODELS),
    (LEGACY, "", DIRECTORIES),
    (PARAMS, "params.yaml", YAMLS),
    (TEXT, "text.txt", {"all of Unicode": (CHARACTERS.encode, "")}),
]


@pytest.mark.parametrize(
    ("target", "file", "make", "expected"),
    [pytest.param(t, file, *case, id=name) for t, file, cases in HOSTILE for name, case in cases.items()],
)
def test_hostile_files(folder: Path, target: Target, file: str, make: Callable[[], Any], expected: str) -> None:
    made = make()
    data = made.encode() if isinstance(made, str) else made
    refusal = check(target, {file: data} if file else ONE_HEAD | data, folder)
    assert re.search(expected, refusal) if expected else not refusal, refusal

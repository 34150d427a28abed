"""Files from strangers: what the readers refuse and how, and a minute of random ones. benchmarks/fuzz.py goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chargpt.errors import ChargptError
from chargpt.model.file import load_model
from tests import fuzzing
from tests.conftest import Shared
from tests.fuzzing import TARGETS, fit_sha256, join_model, pack, split_model, unpack
from tests.pipeline import ROOT

pytestmark = [pytest.mark.fuzz, pytest.mark.skipif(sys.platform != "linux", reason="memory is watched in /proc")]


def run(target: str, folder: Path, *arguments: str | Path) -> list[str]:
    """What `python -m tests.fuzzing` says of each input, run where anything written would be seen."""
    (folder / "cwd").mkdir()
    (folder / "tmp").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzzing", target, *map(str, arguments)],
        cwd=folder / "cwd",
        env=environment,
        capture_output=True,
        text=True,
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"died at input {len(outcomes)}: {done.stderr[-2000:]}"
    assert done.stderr == ""
    left = {path.name for path in [*(folder / "cwd").iterdir(), *(folder / "tmp").iterdir()]}
    assert left <= {".ses"}  # ONNX Runtime makes that when it is imported
    return outcomes


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def fail(error: Exception) -> None:
    raise error


BAD_READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "crashes": (lambda folder: {}["x"], "KeyError"),
    "evaluates": (lambda folder: eval("1 + 1"), "executed or wrote: (compile|exec)"),
    "unpickles": (lambda folder: pickle.loads(b"cos\nsystem\n."), "executed or wrote: pickle"),
    "runs": (lambda folder: os.system("true"), "executed or wrote: os.system"),
    "writes": (lambda folder: Path("elsewhere").write_text("x"), "executed or wrote: opened"),
    "makes": (lambda folder: os.mkdir("made"), "executed or wrote: os.mkdir"),
    "leaves": (lambda folder: (folder / "x").write_text("x"), "left files"),
    "is slow": (lambda folder: burn(1.1), "slow"),
    "is large": (lambda folder: np.ones(10_000_000), "memory"),
    "warns": (lambda folder: warnings.warn("x", stacklevel=1), "warned: UserWarning"),
    "says too much": (lambda folder: fail(ChargptError(f"{folder}: {'x' * 2000}")), "message: 1 lines"),
    "says where not": (lambda folder: fail(ChargptError("wrong")), "message: does not name"),
    "quotes line breaks": (lambda folder: fail(ChargptError(f"{folder}: a\nb")), "message: a line break"),
}


def report_bad_readers() -> None:
    fuzzing.prepare()
    fuzzing.MAX_SECONDS = 1.0
    for name, (read, _) in BAD_READERS.items():
        target = dataclasses.replace(TARGETS["params"], read=read, use=lambda folder, result: None)
        folder = Path(name)
        folder.mkdir()
        with pytest.raises(fuzzing.Finding) as finding:
            fuzzing.check(target, b"x", folder.resolve())
        print(json.dumps(str(finding.value)))


def test_the_checks_see_what_they_are_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from tests.test_fuzz import report_bad_readers as report; report()"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    for (name, (_, expected)), finding in zip(BAD_READERS.items(), said, strict=True):
        assert re.match(expected, finding), (name, finding)


# examples, and of how many kinds the answers must be at least: inputs that all fail the same check prove nothing
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("target", "examples", "kinds"),
    [("model", 2500, 40), ("legacy", 2000, 200), ("params", 1000, 100), ("text", 5000, 4)],
)
def test_random_files(tmp_path: Path, target: str, examples: int, kinds: int) -> None:
    outcomes = run(target, tmp_path, "--examples", str(examples), "--seed", "1")
    assert len(outcomes) == examples
    assert not [outcome for outcome in outcomes if outcome.startswith("FINDING")]
    assert outcomes.count("") > examples // 50  # accepted
    found = Counter(re.sub(r"[\d.]+|'.*|b'.*|\(.*", "", outcome) for outcome in outcomes)
    assert len(found) >= kinds, found


# model files


def model(
    header: Callable[[dict[str, Any]], object] = lambda _: None,
    metadata: Callable[[dict[str, Any]], object] = lambda _: None,
    body: Callable[[bytes], bytes] = lambda body: body,
) -> bytes:
    """A valid small model (3 characters, context 2, 1 layer, 1 head, 2 wide) with changes that its sha256 knows of."""
    head, about, data = split_model(TARGETS["model"].seeds()[0])
    data = body(data)
    metadata(about)
    fit_sha256(head, about, data)
    head["__metadata__"]["chargpt"] = json.dumps(about)
    header(head)
    return join_model(json.dumps(head), data)


def with_text(old: str, new: str) -> bytes:
    """The model with a change in the text of its metadata."""
    text = json.dumps(split_model(TARGETS["model"].seeds()[0])[1]).replace(old, new, 1)
    return model(lambda head: head["__metadata__"].update(chargpt=text))


def twice(name: str, **change: Any) -> bytes:
    """The model with a header that has a key twice, the first time changed."""
    head, _, data = split_model(TARGETS["model"].seeds()[0])
    return join_model("{" + json.dumps({name: head[name] | change})[1:-1] + "," + json.dumps(head)[1:], data)


def config(**change: Any) -> bytes:
    return model(metadata=lambda about: about["config"].update(change))


def bias(**change: Any) -> bytes:
    return model(lambda head: head["ln_f.bias"].update(change))


def layers(count: int) -> bytes:
    """As many entries as so many layers have, all empty, behind the embeddings."""
    head, about, data = split_model(model())
    about["config"] |= {"n_layer": count}
    head = {name: head[name] for name in ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight")}
    end = 0
    for entry in head.values():
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        entry["data_offsets"], end = [end, end + size], end + size
    head |= {str(i): {"dtype": "U8", "shape": [0], "data_offsets": [end, end]} for i in range(11 * count)}
    return join_model(json.dumps({"__metadata__": {"chargpt": json.dumps(about)}} | head), data[:end])


def refused(reason: str, remedy: str = "use a file that chargpt wrote, or fetch it again") -> str:
    """The message about a model file; a regular expression, as the reason is."""
    return rf"DIR/m\.safetensors: {reason}; {remedy}"


def broken(reason: str) -> str:
    """The message about a file that is no safetensors file, for reasons of ours, of json or of the library."""
    return refused(rf"truncated or not a safetensors file \({reason}\)", "fetch or make it again")


def damaged(reason: str) -> str:
    return refused(f"the file's architecture or vocabulary is damaged: {reason}")


def unreadable(reason: str) -> str:
    return broken(f"Error while deserializing header: {reason}")


TOO_LONG, TWICE = broken("its header would be too long"), broken("a key occurs twice")
BAD_OFFSET, BAD_SHAPE = (
    unreadable("invalid offset for tensor `.*`"),
    unreadable("invalid shape, data type, or offset.*"),
)
NOT_COVERED = unreadable("incomplete metadata, file not fully covered")
NOT_OURS = refused("the metadata key `chargpt` is not the JSON that chargpt writes")
OTHER_SHA256 = refused("the content does not match its own sha256: damaged in transfer", "fetch it again")
VALID = TARGETS["model"].seeds()[0]
DEPTHS = (950, *range(980, 990))  # the deepest that json reads is one of these, if Python limits it to 1000 calls

MODELS = {
    "valid": (model, ""),
    # lengths that lie
    "header-2^63": (lambda: struct.pack("<Q", 2**63) + VALID[8:], TOO_LONG),
    "header-2^64-1": (lambda: struct.pack("<Q", 2**64 - 1) + VALID[8:], TOO_LONG),
    "header-past-the-end": (lambda: struct.pack("<Q", len(VALID)) + VALID[8:], broken("'utf-8' codec can't .*")),
    "header-cut": (lambda: struct.pack("<Q", 100) + VALID[8:], broken("Unterminated string .*")),
    "header-utf-32": (
        lambda: struct.pack("<Q", 4 * 40) + json.dumps({"a": 1}).ljust(40).encode("utf-32-be") + bytes(8),
        unreadable("invalid JSON in header: .*"),
    ),
    "header-of-nothing": (lambda: struct.pack("<Q", 0) + VALID[8:], broken("Expecting value: .*")),
    "header-not-aligned": (
        lambda: join_model(json.dumps(split_model(VALID)[0]) + " ", split_model(VALID)[2], False),
        "",
    ),
    # offsets, shapes and dtypes that do not fit
    "offsets-overlap": (lambda: bias(data_offsets=[0, 8]), BAD_OFFSET),
    "offsets-leave-the-file": (lambda: bias(data_offsets=[10**6, 10**6 + 8]), BAD_OFFSET),
    "offsets-2^63": (lambda: bias(data_offsets=[2**63, 2**63 + 8]), BAD_OFFSET),
    "offsets-2^64": (lambda: bias(data_offsets=[0, 2**64]), unreadable("invalid JSON in header: invalid type: .*")),
    "offsets-backwards": (lambda: bias(data_offsets=[8, 0]), BAD_OFFSET),
    "offsets-negative": (lambda: bias(data_offsets=[-8, 0]), unreadable("invalid JSON in header: invalid value: .*")),
    "bytes-behind-the-tensors": (lambda: model(body=lambda body: body + bytes(8)), NOT_COVERED),
    "shape-2^63": (lambda: bias(shape=[2**63, 2]), unreadable("overflow computing buffer size .*")),
    "shape-0-times-2^64-1": (lambda: bias(shape=[0, 2**64 - 1]), BAD_SHAPE),
    "shape-too-large": (lambda: bias(shape=[3]), BAD_SHAPE),
    "shape-of-ten-thousand": (
        lambda: bias(shape=[2] + [1] * 10_000),
        refused(r"ln_f\.bias is F32 \[2(, 1){19},, expected F32 \[2\]"),
    ),
    "dtype-too-small": (lambda: bias(dtype="F16"), BAD_SHAPE),
    "dtype-of-that-size": (lambda: bias(dtype="I32"), refused(r"ln_f\.bias is I32 \[2\], expected F32 \[2\]")),
    "dtype-unknown": (
        lambda: bias(dtype="F\n" * 10_000),
        unreadable(r"invalid JSON in header: unknown variant `(F\\n)+F?"),
    ),
    "name-with-line-breaks": (
        lambda: model(
            lambda head: head.update({"a\n" * 50: head["ln_f.bias"] | {"shape": [0], "data_offsets": [0, 0]}})
        ),
        refused(r"unexpected tensors: (a\\n){30}"),
    ),
    "values-not-finite": (
        lambda: model(body=lambda body: struct.pack("<f", float("nan")) + body[4:]),
        refused(
            r"h\.0\.attn\.c_attn\.weight holds nan or infinite values: the weights of a diverged model",
            "use another model",
        ),
    ),
    # keys that are there twice
    "tensor-twice": (lambda: twice("ln_f.bias"), TWICE),
    "tensor-twice-other-place": (lambda: twice("ln_f.bias", data_offsets=[2**63, 2**63]), TWICE),
    "metadata-twice": (lambda: twice("__metadata__", chargpt="{}"), TWICE),
    "config-twice": (lambda: with_text("{", '{"config": {}, '), NOT_OURS),
    "size-twice": (lambda: with_text('"n_embd"', '"n_embd": 2, "n_embd"'), NOT_OURS),
    # metadata
    "metadata-not-json": (lambda: with_text("{", "{'"), NOT_OURS),
    "metadata-a-number": (
        lambda: model(lambda head: head.update(__metadata__={"chargpt": 1})),
        unreadable("invalid JSON in header: .*"),
    ),
    "metadata-deep": (lambda: with_text('"lr": 0.1', '"lr": ' + "[" * 100_000 + "]" * 100_000), NOT_OURS),
    **{
        f"metadata-{depth}-deep": (
            lambda n=depth: with_text('"lr": 0.1', '"lr": ' + "[" * n + "]" * n),
            f"{OTHER_SHA256}|{NOT_OURS}" if depth > 950 else OTHER_SHA256,
        )
        for depth in DEPTHS
    },
    **{
        f"config-{depth}-deep": (
            lambda n=depth: with_text('"n_head": 1', '"n_head": ' + "[" * n + "]" * n),
            damaged(r"n_head is \[{190}") + (f"|{NOT_OURS}" if depth > 950 else ""),
        )
        for depth in DEPTHS
    },
    "metadata-huge": (lambda: with_text('"lr": 0.1', '"lr": [' + "[]," * 1_000_000 + "0]"), OTHER_SHA256),
    "metadata-of-mappings": (lambda: with_text('"lr": 0.1', '"lr": [' + '{"":0},' * 400_000 + "0]"), OTHER_SHA256),
    "header-deep": (lambda: join_model('{"a":' + "[" * 10_000_000, b""), broken("maximum recursion depth .*")),
    "header-huge": (
        lambda: join_model('{"a":{"shape":[' + "0," * 4_000_000 + "0]}}", b""),
        unreadable("invalid JSON in header: .*"),
    ),
    "header-too-huge": (lambda: join_model("{}" + " " * 20_000_000, b""), TOO_LONG),
    "header-of-keys": (
        lambda: join_model(json.dumps({"__metadata__": {str(i): "" for i in range(500_000)}}), b""),
        refused("a safetensors file without the metadata key `chargpt`: not a chargpt model"),
    ),
    "version-of-4000-digits": (
        lambda: with_text('"format_version": 1', '"format_version": ' + "9" * 4000),
        r"DIR/m\.safetensors: format version 9{20} is newer than 1: update chargpt to read it",
    ),
    "size-of-4000-digits": (
        lambda: config(vocab_size=10**4000),
        refused("vocab_size is 10{19}, but the vocabulary has 3 characters"),
    ),
    "layers-of-4000-digits": (
        lambda: config(n_layer=10**4000),
        refused("missing tensors: its 10{19} layers are not all there"),
    ),
    "config-with-line-breaks": (lambda: config(**{"a\n" * 50: 1}), damaged(r"GPTConfig.*argument '(a\\n){50}'")),
    # vocabularies
    "vocab-a-list": (
        lambda: model(metadata=lambda about: about.update(vocab=["\n", "a", "ab"])),
        damaged("vocab is not text"),
    ),
    "vocab-a-mapping": (
        lambda: model(metadata=lambda about: about.update(vocab=dict.fromkeys("\na☃"))),
        damaged("vocab is not text"),
    ),
    "vocab-repeats": (
        lambda: model(metadata=lambda about: about.update(vocab="aab")),
        damaged("the vocabulary's characters are not distinct.*"),
    ),
    "vocab-half-a-character": (
        lambda: model(metadata=lambda about: about.update(vocab="\na\ud800")),
        damaged(r"vocabulary entry '\\ud800' is not a single character"),
    ),
    "vocab-empty": (
        lambda: model(metadata=lambda about: about.update(vocab="")),
        damaged("a vocabulary needs at least one character"),
    ),
    "vocab-of-everything": (
        lambda: model(metadata=lambda about: about.update(vocab="".join(map(chr, range(0xE000, 0x110000))))),
        refused("vocab_size is 3, but the vocabulary has 1056768 characters"),
    ),
    # configs that would allocate a terabyte
    "terabyte-of-width": (
        lambda: config(n_embd=2**20),
        refused(r"wte\.weight has shape \[3, 2\], expected \[3, 1048576\]"),
    ),
    "terabyte-of-context": (
        lambda: config(block_size=2**40),
        refused(r"wpe\.weight has shape \[2, 2\], expected \[1099511627776, 2\]"),
    ),
    "terabyte-of-layers": (
        lambda: config(n_layer=2**40),
        refused("missing tensors: its 1099511627776 layers are not all there"),
    ),
    "terabyte-of-width-in-an-embedding": (
        lambda: model(
            lambda head: head.update(
                {n: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in ("wte.weight", "wpe.weight")}
            ),
            lambda about: about["config"].update(n_embd=2**62),
        ),
        NOT_COVERED,  # a hole where they were
    ),
    "thousands-of-layers": (
        lambda: layers(5000),
        refused("the model has 5000 layers; chargpt reads at most 1000", "use a smaller model"),
    ),
}

# legacy directories

LEGACY = TARGETS["legacy"].seeds()[0]


def directory(changes: dict[bytes, bytes]) -> bytes:
    """A valid small directory (3 characters, context 2, 1 layer, 1 head, 2 wide) and its config.json, changed."""
    return pack(list((dict(unpack(LEGACY)) | changes).items()))


def legacy_config(**change: Any) -> bytes:
    config = json.loads(dict(unpack(LEGACY))[b"config.json"]) | change
    return directory({b"config.json": json.dumps(config).encode()})


BIAS = b"ln_f.bias.txt"
NOT_MIGRATED = "DIR/weights: not migrated, nothing was written:\n  DIR/"
NO_PARAMETER = ": no parameter of this model; move it out of the directory"
OTHER_CONFIG = "but the weights have 1; pass the config.json of this model or none"
DIRECTORIES = {
    "valid": (lambda: LEGACY, ""),
    "spaces-behind-the-last-line": (lambda: directory({BIAS: b"# shape: [2]\n1.0\n2.0\n  "}), ""),
    "carriage-returns": (lambda: directory({BIAS: b"# shape: [2]\n1.0\r2.0"}), ""),
    "name-with-a-line-break": (
        lambda: directory({b"a\nb.txt": b"# shape: [1]\n1\n"}),
        NOT_MIGRATED + r"weights/a\\nb\.txt" + NO_PARAMETER,
    ),
    "name-of-bytes": (
        lambda: directory({b"\xff" * 200: b""}),
        NOT_MIGRATED + r"weights/(\\udcff){100}" + NO_PARAMETER,
    ),
    "config-with-line-breaks": (
        lambda: legacy_config(n_head="1\n" * 50),
        NOT_MIGRATED + r"config\.json: n_head is (1\\n){20}, " + OTHER_CONFIG,
    ),
    "dropout-with-line-breaks": (
        lambda: legacy_config(dropout="1\n" * 50),
        NOT_MIGRATED + r"config\.json: dropout is (1\\n){20}; it must be a number in \[0, 1\)",
    ),
    "config-just-not-too-deep": (
        lambda: directory({b"config.json": b'{"n_head": ' + b"[" * 950 + b"]" * 950 + b"}"}),
        NOT_MIGRATED + r"config\.json: n_head is \[{40}, " + OTHER_CONFIG,
    ),
    "config-larger-than-is-read": (
        lambda: directory({b"config.json": b"[" + b"1," * 100_000}),
        r"DIR/config\.json: not valid JSON: Expecting ',' delimiter: .*; correct it or make it again",
    ),
    "rate-of-400-digits": (
        lambda: legacy_config(learning_rate=10**400),
        r"DIR/config\.json: lr is 10+\.\.\.0+; it must be a number, > 0, <= 10",
    ),
    "more-values-than-its-shape": (
        lambda: directory({BIAS: b"# shape: [2]\n" + b"1\n" * 1_000_000}),
        NOT_MIGRATED + r"weights/ln_f\.bias\.txt: 2000013 bytes cannot hold the 2 values of shape \[2\]; copy it again",
    ),
    "a-million-values": (
        lambda: directory(
            {
                b"position_embedding_table.weight.txt": b"# shape: [500000, 2]\n" + b"10\n" * 1_000_000,
                b"config.json": b"{}",
            }
        ),
        "",
    ),
    "values-of-a-thousand-digits": (
        lambda: directory({b"lm_head.weight.txt": b"# shape: [3, 2]\n" + b"0" * 1000 + b"1\n" * 6}),
        NOT_MIGRATED + r"weights/lm_head\.weight\.txt: a line of more than 128 bytes is not one number; copy it again",
    ),
    "thousands-of-layers": (
        lambda: directory({b"blocks.1000.ln1.bias.txt": b"# shape: [2]\n1\n2\n"}),
        NOT_MIGRATED + r"weights/blocks\.1000\.ln1\.bias\.txt" + NO_PARAMETER,
    ),
}

# params.yaml

PARAMS = TARGETS["params"].seeds()[1].decode()


def lines(*added: str) -> bytes:
    return (PARAMS + "\n".join(added) + "\n").encode("utf-8", "surrogatepass")


def bomb(form: str, head: str = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]") -> bytes:
    """Ten of ten of ten ..., nine times."""
    return lines(
        head,
        *(f"a{i}: &a{i} " + form.format(", ".join([f"*a{i - 1}"] * 10)) for i in range(1, 10)),
        "x: !!omap [y: *a9]",
    )


ANCHOR = r"DIR/params\.yaml: line \d+: an anchor \(&\) on a list or mapping; write its values out"
PLAIN = "; write one `key: value` a line, or type: git checkout DIR/params.yaml"
DEEP = r"DIR/params\.yaml: line \d+: lists or mappings are nested more than 10 deep" + PLAIN


def no_yaml(reason: str) -> str:
    return r"DIR/params\.yaml: line \d+: not valid YAML: " + reason + PLAIN


def unknown(key: str) -> str:
    return rf"DIR/params\.yaml: unknown key {key}: the keys are corpus, .*, top_p"


YAMLS = {
    "valid": (lambda: PARAMS.encode(), ""),
    "list-bomb": (lambda: bomb("[{}]"), ANCHOR),
    "merge-bomb": (lambda: bomb("{{<<: [{}], k: 1}}", "a0: &a0 {j: 1}"), ANCHOR),
    "anchor-on-itself": (lambda: lines("a: &a [*a]"), ANCHOR),
    "anchor-on-a-number": (
        lambda: PARAMS.replace("\nlr: ", "\nlr: &a ").replace("grad_clip: 1.0", "grad_clip: *a").encode(),
        "",
    ),
    "anchor-twice": (
        lambda: PARAMS.replace("beta1: 0.9", "beta1: &a 0.9").replace("beta2: 0.95", "beta2: &a 0.95").encode(),
        no_yaml("second occurrence"),
    ),
    "yaml-1.1": (lambda: b"%YAML 1.1\n---\n" + re.sub(r"\nlr: \S+", "\nlr: 2e-2", PARAMS).encode(), ""),
    "key-half-a-character": (lambda: lines('"\\ud800": 1'), no_yaml("found invalid Unicode character escape code")),
    "key-of-4800-digits": (lambda: lines("? 0x" + "f" * 4000, ": 1"), unknown("'a number too long to show'")),
    "key-of-500-letters": (lambda: lines("k" * 500 + ": 1"), unknown(r"'k{27}\.\.\.k{28}'")),
    "thousands-of-keys": (
        lambda: lines(*(f"eval_{i}:" for i in range(4000))),
        r"(?:(?:error: )?DIR/params\.yaml: unknown key eval_\d: did you mean \w+\?\n){8}"
        r"error: DIR/params\.yaml: and 3992 more problems",
    ),
    "tag-of-40000-letters": (
        lambda: lines("x: !" + "t" * 40_000 + " 1"),
        no_yaml("could not determine a constructor for the tag '!t+"),
    ),
    "alias-of-40000-letters": (lambda: lines("x: *" + "t" * 40_000), no_yaml("found undefined alias")),
    "deep": (lambda: lines("x: " + "[" * 40_000), DEEP),
    "deep-with-an-anchor": (lambda: lines("y: &a 1", "x: " + "{a: " * 10_000), DEEP),
    "deep-blocks": (lambda: lines("x:", "- " * 20_000 + "1"), DEEP),
    "wide": (lambda: lines("x: [" + "1," * 24_000 + "]"), unknown("x")),
    "executes": (
        lambda: lines("x: !!python/object/apply:os.system [id]"),
        no_yaml(r"could not determine a constructor for the tag 'tag:yaml\.org,2002:python/object/apply:os\.system'"),
    ),
}

# texts

TEXTS = {
    "valid": (lambda: b"\xff\x19" + b"text" * 10, ""),
    "every-character": (
        lambda: b"\xff\x19" + "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)])).encode(),
        "",
    ),
    "ten-megabytes-of-one": (lambda: b"\xff\x19" + b"a" * 10_000_000, ""),
    "nothing-but-marks": (
        lambda: b"\x00\x19" + b"\xef\xbb\xbf",
        r"DIR/text\.txt: the text is empty; it needs at least a few thousand characters to learn from",
    ),
    "last-character-cut": (
        lambda: b"\x02\x19" + b"text" * 10 + b"\xf0\x9f\x98",
        r"DIR/text\.txt: byte 40 \(0xf0\) is not UTF-8; save the text as UTF-8",
    ),
}

NAMED: dict[str, dict[str, tuple[Callable[[], bytes], str]]]
NAMED = {"model": MODELS, "legacy": DIRECTORIES, "params": YAMLS, "text": TEXTS}


@pytest.fixture(scope="module")
def outcomes(shared: Shared) -> dict[str, dict[str, str]]:
    """What the readers say of the named files, by kind and name; all of one kind are read by one process."""

    def fill(folder: Path) -> None:
        said = {}
        for target, cases in NAMED.items():
            (folder / target).mkdir()
            paths = [folder / target / name for name in cases]
            for path, (make, _) in zip(paths, cases.values(), strict=True):
                path.write_bytes(make())
            said[target] = dict(zip(cases, run(target, folder / target, *paths), strict=True))
        (folder / "said.json").write_text(json.dumps(said))

    found: dict[str, dict[str, str]] = json.loads((shared("named-files", fill) / "said.json").read_text())
    return found


@pytest.mark.parametrize(("target", "name"), [(target, name) for target, cases in NAMED.items() for name in cases])
def test_named_file(outcomes: dict[str, dict[str, str]], target: str, name: str) -> None:
    assert re.fullmatch(NAMED[target][name][1], outcomes[target][name]), outcomes[target][name]


@pytest.mark.parametrize("width", [2**30, 2**33, 2**40])
def test_a_sparse_giant(tmp_path: Path, width: int) -> None:
    """Embeddings of gigabytes that take no space on the disk, so wide that the rest of the model has no size."""
    head, about, _ = split_model(VALID)
    about["config"] |= {"n_embd": width, "vocab_size": 1, "block_size": 1}
    about["vocab"] = "a"
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [8 * width, 8 * width]}
    header = {name: empty for name in head} | {"__metadata__": {"chargpt": json.dumps(about)}}
    for i, name in enumerate(("wte.weight", "wpe.weight")):
        header[name] = {"dtype": "F32", "shape": [1, width], "data_offsets": [4 * width * i, 4 * width * (i + 1)]}
    path = tmp_path / "m"
    path.write_bytes(join_model(json.dumps(header), b""))
    os.truncate(path, path.stat().st_size + 8 * width)
    with pytest.raises(ChargptError, match=r"h\.0\.attn\.c_attn\.weight has shape|cannot be mapped into memory"):
        load_model(path)

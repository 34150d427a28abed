from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from chargpt.errors import ChargptError
from chargpt.model.config import GPTConfig
from chargpt.model.file import FORMAT_VERSION, load_model, read_model, save_model
from chargpt.model.gpt import GPT
from chargpt.tensors import open_tensors, tensor_hash
from chargpt.text.vocab import Vocab
from tests.conftest import random_model


@pytest.fixture
def path(tmp_path: Path, model: GPT, vocab: Vocab) -> Path:
    save_model(tmp_path / "model.safetensors", model, vocab, {"lr": 0.1})
    return tmp_path / "model.safetensors"


@settings(max_examples=20)
@given(
    st.sets(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["gelu", "relu"]),
    st.sampled_from(["head", "embedding"]),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    characters: set[str],
    block_size: int,
    n_layer: int,
    n_head: int,
    activation: Any,
    attention_scale: Any,
) -> None:
    config = GPTConfig(len(characters), block_size, n_layer, n_head, 4 * n_head, 0.1, activation, attention_scale)
    folder = tmp_path_factory.mktemp("round")
    model, vocab = random_model(config), Vocab(sorted(characters))
    for name in "ab":
        save_model(folder / name, model, vocab, {"seed": 1, "lr": 0.5})
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    loaded, loaded_vocab = load_model(folder / "a")
    assert loaded_vocab == vocab
    assert loaded.config == config
    assert not loaded.training
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in model.state_dict().items())
    idx = torch.zeros(1, block_size, dtype=torch.int64)
    # a last bit depends on where in memory weights lie
    assert torch.allclose(loaded(idx), model(idx), rtol=1e-5, atol=1e-6)


def facts_of(path: Path) -> dict[str, Any]:
    """The JSON of the file's one metadata key."""
    metadata = open_tensors(path).metadata
    assert list(metadata) == ["chargpt"]
    return json.loads(metadata["chargpt"])


def test_training_parameters_and_metrics_are_read(path: Path) -> None:
    """Metrics that another program wrote are read; chargpt writes none."""
    file = read_model(path)
    assert (file.params, file.metrics, file.format_version) == ({"lr": 0.1}, {}, FORMAT_VERSION)
    resign(path, metadata=lambda facts: facts.update(metrics={"val_loss": 1.5}))
    assert read_model(path).metrics == {"val_loss": 1.5}


def test_damaged_files_are_refused(path: Path) -> None:
    """Truncated anywhere, or with a flipped bit."""
    content = path.read_bytes()
    for keep in (4, 100, len(content) // 2, -1):
        path.write_bytes(content[:keep])
        with pytest.raises(ChargptError, match="truncated or not a safetensors file"):
            load_model(path)
    path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    with pytest.raises(ChargptError, match="does not match its own sha256"):
        load_model(path)


def rewrite(
    path: Path,
    tensors: Callable[[dict[str, Any]], None] = lambda _: None,
    metadata: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """Change a file's tensors and metadata; its checksum stays."""
    contents, about = load_file(path), facts_of(path)
    tensors(contents)
    metadata(about)
    save_file(contents, path, metadata={"chargpt": json.dumps(about)})


def resign(path: Path, **changes: Callable[[dict[str, Any]], None]) -> None:
    """Like `rewrite`, and make the checksum right again."""
    rewrite(path, **changes)

    def sign(about: dict[str, Any]) -> None:
        del about["sha256"]
        about["sha256"] = tensor_hash(open_tensors(path).arrays(), about)

    rewrite(path, metadata=sign)


NOT_OURS = "the metadata key `chargpt` is not the JSON that chargpt writes; use a file that chargpt wrote"
DAMAGED, OTHER_SHA256 = "architecture or vocabulary is damaged: ", "does not match its own sha256"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "format version 2 is newer than 1; update chargpt"),
        ({"format_version": 10**30}, f"format version {'1' + '0' * 19} is newer than 1; update chargpt"),
        *[({"format_version": version}, NOT_OURS) for version in ("1", 0, -1, 1.0, True, None)],
        *[(change, NOT_OURS) for change in ({"metrics": 1}, {"params": [1]})],
        ({"vocab": "abc"}, f"{DAMAGED}the vocabulary has 3 characters, but vocab_size is 14; use a file that"),
        ({"vocab": "zyx"}, f"{DAMAGED}the .* not distinct and in .*; use a file that"),
        ({"vocab": [1]}, f"{DAMAGED}vocabulary entry '1' is not a single character"),
        ({"vocab": 1}, f"{DAMAGED}.* not iterable"),
        ({"config": {}}, f"{DAMAGED}.* missing 5 required"),
        ({"config": None}, DAMAGED),
        ({"config": {"other": 1}}, f"{DAMAGED}.*'other'"),
        *[({key: {"a": 7}}, OTHER_SHA256) for key in ("sha256", "params", "metrics", "more")],
    ],
)
def test_wrong_metadata_is_refused(path: Path, change: dict[str, Any], message: str) -> None:
    rewrite(path, metadata=lambda about: about.update(change))
    with pytest.raises(ChargptError, match=message) as error:
        load_model(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["config", "vocab", "params", "format_version", "sha256"])
def test_missing_metadata_is_refused(path: Path, key: str) -> None:
    rewrite(path, metadata=lambda about: about.pop(key))
    expected = {"config": f"{DAMAGED}'config'", "vocab": f"{DAMAGED}'vocab'", "sha256": OTHER_SHA256}
    with pytest.raises(ChargptError, match=expected.get(key, NOT_OURS)):
        load_model(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_layer", 1001, "1001 layers exceed 1000; use a smaller model"),
        ("n_layer", 10**40, f"{'1' + '0' * 19} layers exceed 1000"),
        ("n_layer", 1000, r"missing or unexpected tensors \(10978\): h\.10\.attn\.c_attn\.weight, .*; use a file"),
        ("n_layer", 1, r"missing or unexpected tensors \(11\): h\.1\.attn\.c_attn\.weight, .*; use a file"),
        ("n_embd", 2**40, r"wte\.weight is F32 \[14, 8\], expected F32 \[14, 1099511627776\]; use a file that"),
        ("n_embd", 10**90, rf"wte\.weight is F32 \[14, 8\], expected F32 \[14, 1{'0' * 54}; use a file that"),
        ("block_size", 2**62, r"wpe\.weight is F32 \[8, 8\], expected F32 \[4611686018427387904, 8\]"),
        ("vocab_size", 2**62, "the vocabulary has 14 characters, but vocab_size is 4611686018427387904; use a file"),
        ("dropout", "x", "dropout is 'x'"),
        ("n_head", 3, "n_embd=8 is not a multiple of n_head=3"),
    ],
)
def test_wrong_architectures_are_refused(path: Path, key: str, value: Any, message: str) -> None:
    rewrite(path, metadata=lambda about: about["config"].update({key: value}))
    with pytest.raises(ChargptError, match=message):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ln_f.bias": None}, r"missing or unexpected tensors \(1\): ln_f.bias; use a file that chargpt wrote"),
        ({"wte.weight": None, "x": torch.zeros(1)}, r"missing or unexpected tensors \(2\): wte.weight, x; use"),
        ({"x" * 300: torch.zeros(1)}, rf"missing or unexpected tensors \(1\): {'x' * 200}; use"),
        ({"ln_f.bias": torch.zeros(9)}, r"ln_f.bias is F32 \[9\], expected F32 \[8\]; use"),
        ({"ln_f.bias": torch.zeros(8).half()}, r"ln_f.bias is F16 \[8\], expected F32 \[8\]"),
        ({"ln_f.bias": torch.zeros([1] * 40)}, rf"ln_f.bias is F32 \[{'1, ' * 19}1,, expected F32 \[8\]"),
        ({"h.0.attn.c_attn.weight": torch.zeros(8, 8)}, r"c_attn.weight .*, expected F32 \[24, 8\]"),
    ],
)
def test_wrong_tensors_are_refused(path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    def replace(tensors: dict[str, Any]) -> None:
        tensors |= change
        for name in [name for name, tensor in tensors.items() if tensor is None]:
            del tensors[name]

    rewrite(path, tensors=replace)
    with pytest.raises(ChargptError, match=message):
        load_model(path)


@pytest.mark.parametrize(
    "raw", ["", "[]", "{}", "{", "[" * 100_000, "nan", '{"format_version": 1, "params": {}, "format_version": 1}']
)
def test_metadata_of_other_programs_is_refused(tmp_path: Path, raw: str) -> None:
    for key, message in (("chargpt", "not the JSON that chargpt writes"), ("x", "without the metadata key `chargpt`")):
        save_file({"a": torch.zeros(1)}, tmp_path / "m", metadata={key: raw})
        with pytest.raises(ChargptError, match=message):
            load_model(tmp_path / "m")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_model_is_not_loaded(path: Path, value: float) -> None:
    resign(path, tensors=lambda contents: contents["h.1.ln_2.bias"].fill_(value))
    with pytest.raises(
        ChargptError, match=r"h\.1\.ln_2\.bias holds nan or infinite values: the model diverged; use another model"
    ):
        load_model(path)


def test_the_file_format_does_not_change(path: Path, model: GPT, vocab: Vocab) -> None:
    """What other programs read, and later releases of this one."""
    about = facts_of(path)
    assert about.pop("sha256") == tensor_hash({name: t.numpy() for name, t in load_file(path).items()}, about)
    architecture = {"vocab_size": 14, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8, "dropout": 0.0}
    assert about == {
        "format_version": 1,
        "config": architecture | {"activation": "gelu", "attention_scale": "head"},
        "vocab": "".join(vocab.itos),
        "text": {"seen_once": 0, "length": 1_000_000},
        "params": {"lr": 0.1},
    }
    raw = open_tensors(path).metadata["chargpt"]
    assert raw == json.dumps(json.loads(raw), sort_keys=True)
    tensors = load_file(path)
    assert tensors.keys() == model.state_dict().keys()
    assert {t.dtype for t in tensors.values()} == {torch.float32}


def test_weights_are_saved_in_float32_and_loaded_to_a_device(tmp_path: Path, model: GPT, vocab: Vocab) -> None:
    save_model(tmp_path / "m", model.to(torch.float64), vocab)
    loaded, _ = load_model(tmp_path / "m", "meta")
    assert all((p.dtype, p.is_meta) == (torch.float32, True) for p in loaded.parameters())
    assert read_model(tmp_path / "m").params == {}


def test_a_diverged_model_is_not_saved(tmp_path: Path, model: GPT, vocab: Vocab) -> None:
    model.ln_f.bias.data[3] = float("nan")
    with pytest.raises(ChargptError, match=r"not written: ln_f\.bias holds nan"):
        save_model(tmp_path / "m", model, vocab)
    assert not list(tmp_path.iterdir())

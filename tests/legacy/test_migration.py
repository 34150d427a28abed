from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chargpt.errors import ChargptError
from chargpt.evaluation.loss import evaluate
from chargpt.inference.sampling import Sampling, generate
from chargpt.legacy import dialect as dialects
from chargpt.legacy import values
from chargpt.legacy.dialect import DoesNotFitCorpus, Evidence, build_model, choose_dialect, weigh_dialects
from chargpt.legacy.directory import LegacyWeights, read_legacy
from chargpt.legacy.migration import migrate
from chargpt.model.config import DIALECTS, GPTConfig
from chargpt.model.file import load_model
from chargpt.model.gpt import GPT
from chargpt.text.vocab import Vocab
from tests.conftest import chargpt
from tests.legacy.reference import LegacyModel, write_legacy
from tests.pipeline import ROOT

VOCAB = Vocab(sorted("\n \"'abc\U0001f600"))


def legacy_model(dialect: str, V: int = 8, n_head: int = 2, n_layer: int = 2) -> LegacyModel:
    """A random legacy model in which dialects differ a lot."""
    torch.manual_seed(0)
    model = LegacyModel(V, 8, 4 * n_head, n_head, n_layer, dialect)
    for name, p in model.named_parameters():
        if "ln" not in name:  # feed-forward inputs around 1, where ReLU and GELU differ most, and strong outputs
            torch.nn.init.normal_(p, std=0.3 if "net.0" in name else 1.0 if "net.2" in name else 0.6)
    return model


def save(model: LegacyModel, folder: Path) -> Path:
    write_legacy(folder, {name: t.numpy() for name, t in model.state_dict().items()})
    return folder


def text_of(model: LegacyModel, n: int) -> np.ndarray:
    """Ids drawn from the model itself: the text on which it is the best possible predictor."""
    torch.manual_seed(1)
    idx = torch.zeros(50, 1, dtype=torch.int64)
    with torch.no_grad():
        while idx.numel() < n:
            start = (idx.size(1) - 1) // 8 * 8  # of the evaluation window that the next character is predicted in
            idx = torch.cat([idx, torch.multinomial(model(idx[:, start:])[:, -1].softmax(-1), 1)], 1)
    return idx.flatten().numpy().astype(np.uint8)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("n_head", "n_layer"), [(1, 1), (2, 2), (3, 1)])
def test_a_migrated_model_computes_the_same_function(tmp_path: Path, dialect: str, n_head: int, n_layer: int) -> None:
    reference = legacy_model(dialect, n_head=n_head, n_layer=n_layer)
    ids = text_of(reference, 8000)
    found = migrate(read_legacy(save(reference, tmp_path / "w")), tmp_path / "m.safetensors", VOCAB, ids)
    dialect = dialect if n_head > 1 else dialect.replace("embedding", "head")  # the same function then
    assert found.dialect == dialect
    assert found.max_parameter_error == 0.0
    assert found.parameters == sum(p.numel() for p in reference.parameters())
    assert found.evidence and len(found.evidence.losses) == (4 if n_head > 1 else 2)
    assert found.evidence.lead >= 4
    model, vocab = load_model(tmp_path / "m.safetensors")
    assert vocab == VOCAB
    assert found.val_loss == evaluate(model, ids)
    idx = torch.from_numpy(ids[:64].astype(np.int64)).view(8, 8)
    double = reference.double()
    torch.testing.assert_close(model(idx).double(), double(idx), rtol=0, atol=1e-5)
    assert np.array_equal(generate(model, idx[:, :2], 6, Sampling(temperature=0)), double.greedy(idx[:, :2], 6))


def test_the_committed_legacy_model_computes_the_same_function() -> None:
    """Stored logits of the model in data/legacy, from the independent reference, for one short input."""
    weights = read_legacy(ROOT / "data/legacy/weights", ROOT / "data/legacy/config.json")
    assert weights.sizes["n_head"] == 3
    model = build_model(weights, "relu-embedding")
    idx = torch.tensor([[18, 47, 56, 57, 58, 1]])  # "First "
    state = {}
    for path in (ROOT / "data/legacy/weights").iterdir():
        shape, *values = path.read_text().splitlines()
        state[path.stem] = torch.tensor([float(v) for v in values]).view(json.loads(shape.split(":")[1]))
    reference = LegacyModel(65, 32, 24, 3, 2, "relu-embedding").double()
    reference.load_state_dict(state)
    torch.testing.assert_close(model(idx).double(), reference(idx), rtol=0, atol=1e-5)
    assert sum(p.stat().st_size for p in (ROOT / "data/legacy").rglob("*")) <= 400_000


def test_a_state_dict_that_was_dumped_whole_is_read(tmp_path: Path) -> None:
    """With the masks of the heads, prefixes of torch's wrappers, and the byte-order marks that PowerShell writes."""
    model = legacy_model("relu-embedding")
    expected = read_legacy(save(model, tmp_path / "plain")).tensors
    folder = save(model, tmp_path / "dumped")
    for path in list(folder.iterdir()):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        path.rename(folder / f"_orig_mod.module.{path.name}")
    for head in range(2):
        (folder / f"_orig_mod.module.blocks.0.sa.heads.{head}.tril.txt").write_text("# shape: [1]\n1.0\n")
    found = read_legacy(folder).tensors
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_the_vocabulary_counts_a_byte_order_mark(tmp_path: Path) -> None:
    """As the legacy scripts did, for example with the texts of Project Gutenberg."""
    vocab, reference = Vocab(sorted((*VOCAB.itos, "\ufeff"))), legacy_model("relu-embedding", V=9)
    (tmp_path / "text.txt").write_bytes(("\ufeff" + vocab.decode(text_of(reference, 8000))).encode())
    save(reference, tmp_path / "w")
    options = ["--weights-dir", "w", "--corpus", "text.txt", "--dialect", "relu-embedding"]
    done = chargpt("migrate", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_model(tmp_path / "model.safetensors")[1] == vocab


@pytest.mark.parametrize("form", ["{!r}", "{:.17g}", "{:e}", " {!r} "])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_numbers_in_any_usual_form_are_read(tmp_path: Path, newline: str, form: str) -> None:
    """To the last bit: -0.0 stays -0.0. Lines may be empty."""
    numbers = np.array([-0.0, 1e-45, 3e38, -0.1], np.float32)
    lines = ["# shape: [2, 2]", "", *(form.format(float(number)) for number in numbers), ""]
    (tmp_path / "x.txt").write_bytes(newline.join(lines).encode())
    assert values.read_values(tmp_path / "x.txt", (2, 2)).tobytes() == numbers.tobytes()


def line(number: int, new: str) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        lines = path.read_text().splitlines()
        lines[number - 1] = new
        path.write_text("\n".join(lines))

    return change


def linked(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


BIAS, HEAD, TOKENS = "ln_f.bias", "lm_head.weight", "token_embedding_table.weight"
HACK = "# shape: [__import__('os').mkdir('hacked')]"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (BIAS, Path.unlink, r"ln_f\.bias\.txt: missing"),
        ("extra.weight", lambda p: p.write_text("# shape: [1]\n1.0\n"), "extra.weight.txt: not a parameter"),
        (BIAS, lambda p: p.write_bytes(b""), "ln_f.bias.txt: line 1 is '', expected a shape like `# shape"),
        (HEAD, lambda p: p.write_bytes(p.read_bytes()[:500]), "lm_head.weight.txt: .*(truncated|hold)"),
        (BIAS, lambda p: p.write_bytes(p.read_bytes() + b"1.0\n"), "more than the 8 values"),
        (HEAD, lambda p: p.write_bytes(p.read_bytes()[:-1]), "no line end after the last value"),
        (
            HEAD,
            lambda p: p.write_bytes(p.read_bytes()[:-6]),
            "no line end after the last value, .*, which may be cut off",
        ),
        *[
            (BIAS, line(4, text), f"line 4: '{text}' is not one finite number; .* earlier one if the model diverged")
            for text in ("abc", "1_0", "1.0 2.0", "nan", "-inf", "1e60")
        ],
        *[(BIAS, line(1, text), "expected a shape like") for text in (HACK, "# shape: [-8]", "# shape: [0]", "1.0")],
        (BIAS, line(1, "# shape: [7]"), r"shape \[7\], expected \[8\]"),
        (HEAD, line(1, "# shape: [1000000, 1000000]"), r"shape \[1000000, 1000000\], expected"),
        (TOKENS, line(1, "# shape: [999999999, 8]"), "cannot hold|expected"),
        (BIAS, linked, "a symbolic link, one of 1, .*; if DVC made them, run: dvc unprotect "),
        ("pipe", os.mkfifo, r"pipe\.txt: not a regular .txt file"),
        (BIAS, lambda p: os.truncate(p, 2_000_000_000), "2000000000 bytes cannot hold the 8 values"),
        ("blocks.900.sa.heads.900.key.weight", lambda p: p.write_text("# shape: [1]\n1\n"), "901 layers of 901"),
        (TOKENS, Path.unlink, "token_embedding_table.weight.txt or position_.* is missing or not a matrix"),
    ],
)
def test_damaged_directories_are_refused(
    tmp_path: Path, name: str, change: Callable[[Path], object], message: str
) -> None:
    folder = save(legacy_model("relu-head"), tmp_path / "w")
    change(folder / f"{name}.txt")
    with pytest.raises(ChargptError) as error:
        read_legacy(folder)
    assert re.search(message, str(error.value)), str(error.value)
    assert len(error.value.args) <= 22
    assert not (tmp_path / "hacked").exists() and not Path("hacked").exists()


def test_a_report_has_at_most_22_lines(tmp_path: Path) -> None:
    folder = save(legacy_model("relu-head"), tmp_path / "w")
    for path in sorted(folder.iterdir())[:25]:
        path.unlink()
    for i in range(10_000):
        (folder / f"stray{i}.bin").touch()
    with pytest.raises(ChargptError, match=r"and 10005 more problems") as error:
        read_legacy(folder)
    assert len(str(error.value).splitlines()) == 22


def test_rubbish_after_megabytes_of_blanks_is_found(tmp_path: Path) -> None:
    vectors = np.zeros((65, 2000), np.float32)  # large enough for megabytes of white space
    write_legacy(tmp_path, {"lm_head.weight": vectors})
    path = tmp_path / "lm_head.weight.txt"
    path.write_bytes(path.read_bytes() + b" " * 5_000_000 + b"rubbish\n")
    with pytest.raises(ChargptError, match=r"lm_head\.weight\.txt: line 130002: 'rubbish' is not one finite number"):
        values.read_values(path, vectors.shape)


def test_the_config_must_agree_with_the_weights(tmp_path: Path) -> None:
    folder = save(legacy_model("relu-head"), tmp_path / "w")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"n_embd": 8, "n_head": 4, "n_layer": 7, "dropout": 0.2}))
    with pytest.raises(ChargptError) as error:
        read_legacy(folder, config)
    assert "n_head is 4, but the weights have 2" in str(error.value)
    assert "n_layer is 7, but the weights have 2" in str(error.value)
    config.write_text(json.dumps({"n_embd": 8, "dropout": 0.2}))
    assert read_legacy(folder, config).sizes["dropout"] == 0.2
    for bad in ("{", "[]", '{"dropout": 7}', '{"n_layer": true}'):
        config.write_text(bad)
        with pytest.raises(ChargptError, match=r"config\.json"):
            read_legacy(folder, config)


def test_other_texts_are_refused(tmp_path: Path) -> None:
    reference = legacy_model("relu-head")
    folder = save(reference, tmp_path / "w")
    output = tmp_path / "m"
    ids = text_of(reference, 2000)
    with pytest.raises(DoesNotFitCorpus, match="the weights know 8 characters, the text has 2"):
        read_legacy(folder).require_vocab(Vocab("ab"))
    with pytest.raises(DoesNotFitCorpus, match="no dialect is better than the text's character frequencies"):
        migrate(read_legacy(folder), output, VOCAB, ids[::-1].copy() // 2)
    assert not output.exists()


@pytest.mark.parametrize(
    ("dialect", "message"),
    [
        ("auto", "the loss is infinite: a diverged model; use an earlier one"),
        ("relu-head", "w: the validation loss is (nan|inf): a diverged model; use"),
    ],
)
def test_a_diverged_model_is_refused(tmp_path: Path, dialect: str, message: str) -> None:
    """Its weights are finite, but its loss is not."""
    reference = legacy_model("relu-head")
    ids = text_of(reference, 2000)
    with torch.no_grad():
        reference.lm_head.weight.fill_(3e38)
    with pytest.raises(ChargptError, match=message):
        migrate(read_legacy(save(reference, tmp_path / "w")), tmp_path / "m", VOCAB, ids, dialect=dialect)
    assert not (tmp_path / "m").exists()


def test_unclear_dialects_are_refused() -> None:
    losses = dict.fromkeys(DIALECTS, 4.17) | {"relu-head": 4.13}
    with pytest.raises(DoesNotFitCorpus, match="character frequencies"):
        choose_dialect(Evidence(losses, 9.0, 1000, 3.3, 2.4))
    with pytest.raises(DoesNotFitCorpus, match=r"too close .*; 3\.9 standard errors .*--dialect"):
        choose_dialect(Evidence(losses, 3.9, 1000, 4.2, 2.4))
    assert choose_dialect(Evidence(losses, 4.0, 1000, 4.2, 2.4)) == "relu-head"
    close = losses | {"relu-head": 4.15}
    with pytest.raises(DoesNotFitCorpus, match=r"is undertrained: .*--dialect"):
        choose_dialect(Evidence(close, 40.0, 1000, 4.2, 4.15))
    assert choose_dialect(Evidence(close, 4.0, 1000, 4.2, 4.151)) == "relu-head"
    with pytest.raises(DoesNotFitCorpus, match=r"is undertrained: .*; 0\.003 nats are needed"):
        choose_dialect(Evidence(losses | {"relu-head": 4.168}, 40.0, 1000, 4.2, 4.19))


def test_more_text_is_read_until_the_dialect_is_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the validation part, then the training part, each time as much again; then it is refused."""
    monkeypatch.setattr(dialects, "FIRST", 320)
    reference = legacy_model("relu-head")
    for name, p in reference.named_parameters():
        if "net.0" in name:
            p.data *= 0.05  # near 0, the curves of ReLU and GELU are close
    weights = read_legacy(save(reference, tmp_path / "w"))
    ids = text_of(reference, 40_000)
    val, train = ids[:800], ids[800:]
    short = weigh_dialects(weights, [val])
    assert short.characters == 800
    with pytest.raises(DoesNotFitCorpus, match=r"800 characters\); 4 standard errors are needed"):
        migrate(read_legacy(tmp_path / "w"), tmp_path / "m", VOCAB, val)
    found = weigh_dialects(weights, [val, train])
    assert found.characters in [800 * 2**i for i in range(1, 6)]
    assert choose_dialect(found) == "relu-head"
    again = migrate(read_legacy(tmp_path / "w"), tmp_path / "m", VOCAB, val, train_ids=train)
    assert again.evidence == found
    assert again.record()["dialect_evidence"] == {
        "characters": found.characters,
        "standard_errors": round(found.lead, 1),
    }


def test_the_lead_is_a_paired_t_statistic() -> None:
    rng = np.random.default_rng(0)
    best, extra = rng.normal(80, 20, 400), rng.normal(0.5, 2, 400)
    expected = extra.mean() / (extra.std(ddof=1) / 20)
    assert dialects._lead(best, best + extra) == pytest.approx(expected)
    assert dialects._lead(best, best) == 0
    assert dialects._lead(best, np.where(extra > 4, np.inf, best)) == np.inf
    assert dialects._lead(best[:29], best[:29] + 1) == 0
    assert dialects._lead(best, best + 1) > 1e6


def test_a_named_dialect_is_taken(tmp_path: Path) -> None:
    reference = legacy_model("relu-head")
    weights, ids = read_legacy(save(reference, tmp_path / "w")), text_of(reference, 500)
    found = migrate(weights, tmp_path / "m", VOCAB, ids, dialect="gelu-embedding")
    assert (found.dialect, found.evidence) == ("gelu-embedding", None)
    model, _ = load_model(tmp_path / "m")
    assert (model.config.activation, model.config.attention_scale) == ("gelu", "embedding")


def test_the_losses_of_frequencies_and_pairs() -> None:
    ids = np.array([0, 0, 1, 1, 4, 4], np.uint8)
    expected = F.cross_entropy(torch.zeros(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])).item()
    after = [np.log(2), np.log(2), np.log(2), np.log(2), 0]  # 0 or 1 after 0, 1 or 4 after 1, 4 after 4
    weights = LegacyWeights(
        dict(vocab_size=5, block_size=8, n_layer=1, n_head=1, n_embd=4, dropout=0.0),
        {name: t.numpy() for name, t in GPT(GPTConfig(5, 8, 1, 1, 4)).state_dict().items()},
    )
    found = weigh_dialects(weights, [ids])
    assert (found.from_frequencies, found.from_pairs) == pytest.approx((expected, np.mean(after)))

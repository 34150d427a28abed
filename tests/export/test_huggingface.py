from __future__ import annotations

import filecmp
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chargpt.errors import ChargptError
from chargpt.export.huggingface import export
from chargpt.model.config import GPTConfig
from chargpt.text.vocab import Vocab
from tests.conftest import model_file, random_model

transformers = pytest.importorskip("transformers")
huggingface_hub = pytest.importorskip("huggingface_hub")
VOCAB = Vocab(sorted("\n \"'!abc\u00e9\U0001f600"))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("scale", ["head", "embedding"])
@pytest.mark.parametrize("n_embd", [6, 12])  # narrower and wider than the vocabulary of 10
def test_transformers_computes_the_same_logits(tmp_path: Path, activation: Any, scale: Any, n_embd: int) -> None:
    model = random_model(GPTConfig(10, 8, 2, 3, n_embd, 0.1, activation, scale))
    export(model_file(model, VOCAB), tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert type(theirs).__name__ == "GPT2LMHeadModel"
    idx = torch.randint(0, 10, (4, 8), generator=torch.Generator().manual_seed(0))
    logits = theirs(idx).logits
    torch.testing.assert_close(logits[..., :10], model(idx), rtol=0, atol=1e-4)
    assert logits.shape[-1] == 13, "the characters, and three special tokens"
    assert logits[..., 10:].max() < -1e4


def test_tokenizer_round_trip_and_pipeline(tmp_path: Path) -> None:
    model = random_model(GPTConfig(10, 8, 1, 2, 8))
    export(model_file(model, VOCAB), tmp_path / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "".join(VOCAB.itos) * 2 + " ab  \n\n'a"
    assert tokenizer(text)["input_ids"] == VOCAB.encode(text)
    assert tokenizer.decode(VOCAB.encode(text)) == text
    speak = transformers.pipeline("text-generation", model=str(tmp_path / "hf"))
    assert speak("ab", max_new_tokens=3, do_sample=False)[0]["generated_text"].startswith("ab")
    with pytest.raises(Exception, match="Missing"):
        tokenizer("\u2603")


def test_a_pipeline_without_options_and_a_batch_of_unequal_prompts(tmp_path: Path) -> None:
    export(model_file(random_model(GPTConfig(10, 16, 2, 2, 8)), VOCAB), tmp_path / "hf")
    (made,) = transformers.pipeline("text-generation", model=str(tmp_path / "hf"))("ab")
    assert len(made["generated_text"]) == 16
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")

    def continued(*prompts: str) -> list[str]:
        batch = tokenizer(list(prompts), padding=True, return_tensors="pt")
        assert set(batch) == {"input_ids", "attention_mask"}
        made = model.generate(**batch, do_sample=False, max_new_tokens=8)
        return list(tokenizer.batch_decode(made, skip_special_tokens=True))

    prompts = ("a", "bc!ab", "ab\n")
    assert continued(*prompts) == [text for prompt in prompts for text in continued(prompt)]


def test_export_reports_head_sizes_that_vllm_refuses(tmp_path: Path) -> None:
    assert export(model_file(random_model(GPTConfig(10, 8, 1, 2, 64)), VOCAB), tmp_path / "a") == ""
    wide = export(model_file(random_model(GPTConfig(10, 8, 1, 4, 8)), VOCAB), tmp_path / "b")
    assert "its heads are stored with 3 units; vLLM takes 32, 64" in wide


def test_export_is_reproducible_and_replaces_only_exports(tmp_path: Path) -> None:
    model = random_model(GPTConfig(10, 8, 1, 2, 8))
    for name in "abb":  # into "b" twice
        export(model_file(model, VOCAB), tmp_path / name)
    names = sorted(p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*.*"))
    assert len(names) == 7
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False) == (names, [], [])
    (tmp_path / "b/.cache/huggingface").mkdir(parents=True)  # what huggingface_hub leaves there
    (tmp_path / "b/.cache/huggingface/a.lock").touch()
    export(model_file(model, VOCAB), tmp_path / "b")
    (tmp_path / "mine").mkdir()
    for name in ("thesis.txt", "config.json"):
        (tmp_path / "mine" / name).touch()
    with pytest.raises(ChargptError, match="is neither an earlier export nor an empty directory"):
        export(model_file(model, VOCAB), tmp_path / "mine")
    assert {p.name: p.stat().st_size for p in (tmp_path / "mine").iterdir()} == {"thesis.txt": 0, "config.json": 0}
    (tmp_path / "b/onnx/model.onnx").unlink()
    (tmp_path / "b/onnx").rmdir()
    (tmp_path / "b/onnx").symlink_to(tmp_path / "mine")
    with pytest.raises(ChargptError, match="is neither an earlier export nor an empty directory"):
        export(model_file(model, VOCAB), tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "mine"]


def test_model_card(tmp_path: Path) -> None:
    model = random_model(GPTConfig(10, 8, 1, 2, 8))
    export(replace(model_file(model, VOCAB), params={"lr": 0.02}), tmp_path / "hf", {"val_loss": 1.25})
    card = (tmp_path / "hf/README.md").read_text(encoding="utf-8")
    read = huggingface_hub.ModelCard.load(tmp_path / "hf/README.md").data  # as the Hub reads it
    assert (read.library_name, read.pipeline_tag) == ("transformers", "text-generation")
    rows = ("| `lr` | `0.02` |", "| `val_loss` | `1.25` |", "| `n_embd` | `8` |")
    for words in (*rows, "may be 8 characters long", "\U0001f600"):
        assert words in card
    snippet = card.split("```python\n")[1].split("```")[0].replace("PATH OF THIS DIRECTORY", str(tmp_path / "hf"))
    exec(snippet, {})


def test_model_card_escapes_untrusted_text(tmp_path: Path) -> None:
    """What a model file says of itself ends no code, cell or line of the card."""
    odd = "`<img src=x>` | \n[a](javascript:b) \x9b31m\u202e\u2028\x7f"
    vocab = Vocab(sorted(set("\n`\x7f\x9b\u2028\u202eab|<")))
    model = model_file(random_model(GPTConfig(10, 8, 1, 2, 8)), vocab)
    export(replace(model, params={odd: odd}), tmp_path / "hf")
    card = (tmp_path / "hf/README.md").read_text(encoding="utf-8")
    assert all(c.isprintable() or c == "\n" for c in card)
    row = next(line for line in card.splitlines() if "javascript" in line)
    assert (row.count("|"), row.count("`")) == (3, 4)
    assert card.count("```") == 4


def test_a_new_export_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also into an empty directory, and through a link to one."""
    model = random_model(GPTConfig(10, 8, 1, 2, 8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    for output in (tmp_path / "new", tmp_path / "empty", tmp_path / "link"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                export(model_file(model, VOCAB), output)
        assert not output.exists() or not list(output.iterdir())
        export(model_file(model, VOCAB), output)
        assert len(list(output.iterdir())) == 7
    assert (tmp_path / "link").is_symlink() and not list(tmp_path.glob(".chargpt*"))


def test_weights_that_overflow_in_the_layout_are_refused(tmp_path: Path) -> None:
    model = random_model(GPTConfig(10, 8, 1, 2, 16, attention_scale="head"))
    model.h[0].attn.c_attn.weight.data.fill_(3e38)
    model.h[0].ln_1.weight.data.fill_(3e38)
    model.lm_head.weight.data.fill_(0)  # its bias needs a wider layout
    model.ln_f.weight.data.fill_(3.4e38)
    model.wte.weight.data[0] = 3.4e38
    model.wte.weight.data[0, 0] = -3.4e38
    with pytest.raises(ChargptError, match=r"hf: not written: transformer.* is not finite in GPT-2's layout"):
        export(model_file(model, VOCAB), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()

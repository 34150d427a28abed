"""The page in which a model writes, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chargpt.errors import ChargptError
from chargpt.export import play
from chargpt.export.play import save_page
from chargpt.inference.sampling import Sampling, generate
from chargpt.model.config import GPTConfig
from chargpt.model.gpt import GPT
from chargpt.text.vocab import Vocab
from tests.conftest import model_file, random_model
from tests.evaluation.test_page import browser  # noqa: F401

VOCAB = Vocab(sorted("\n \"'!<>/abcs\u00e9\U0001f600"))


@pytest.fixture(params=[("gelu", "head"), ("relu", "embedding")], ids=str)
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(GPTConfig(len(VOCAB), 32, 2, 2, 16, 0.0, *request.param))


@pytest.fixture(params=[1000, 375])
def tab(request: pytest.FixtureRequest, browser: Any, model: GPT, tmp_path: Path) -> Iterator[Any]:  # noqa: F811
    save_page(model_file(model, VOCAB), tmp_path / "play.html")
    tab = browser.new_page(viewport={"width": request.param, "height": 800})
    said: list[str] = []
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("request", lambda asked: said.append(asked.url) if not asked.url.startswith("file:") else None)
    tab.goto((tmp_path / "play.html").as_uri())
    finished(tab)
    yield tab
    assert said == []
    tab.close()


def finished(tab: Any) -> str:
    tab.locator("#write", has_text="Write").wait_for()
    return str(tab.locator("#text").text_content())


def write(tab: Any, beginning: str, count: int, temperature: float = 0) -> str:
    tab.fill("#beginning", beginning)
    tab.fill("#count", str(count))
    tab.locator("#temperature").evaluate(f"slider => slider.value = {temperature}")
    tab.click("#write")
    return finished(tab)


@pytest.mark.browser
@pytest.mark.parametrize("beginning", ["a", "</s> \"\U0001f600\u00e9'", "abc <a!>\n" * 5])  # the last: past the context
def test_the_page_generates_the_same_text(tab: Any, model: GPT, beginning: str) -> None:
    ids = generate(model, torch.tensor([VOCAB.encode(beginning)]), 100, Sampling(temperature=0))
    assert write(tab, beginning, 100) == VOCAB.decode(ids[0].tolist())


@pytest.mark.browser
def test_the_page_computes_the_same_logits(tab: Any, model: GPT) -> None:
    text = "abc \u00e9 \U0001f600 <s>\n"
    write(tab, text, 1)
    ours = model(torch.tensor([VOCAB.encode(text)]))[0]
    theirs = torch.tensor(tab.evaluate("logits.map(row => [...row])"))[: len(text)]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


@pytest.mark.browser
def test_controls_of_the_page(tab: Any) -> None:
    first = write(tab, "ab", 60, temperature=1)
    assert write(tab, "ab", 60, temperature=1) == first, "same seed, same text"
    tab.click("#again")
    assert finished(tab) != first
    assert tab.locator("#text span.given").count() == 2
    tab.locator("#text span").nth(10).click()
    choices = tab.locator("#choices button")
    assert choices.count() in (6, 7)
    box = tab.locator("#choices").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= tab.viewport_size["width"]
    before = finished(tab)
    choices.nth(2).click()
    after = finished(tab)
    assert (before[:10], len(after)) == (after[:10], 10 + 1 + 60)
    assert tab.evaluate("document.documentElement.scrollWidth") <= tab.viewport_size["width"]
    assert len(write(tab, "ab", -3)) == 3
    assert tab.locator("#count").input_value() == "1", "the nearest that can be"
    tab.fill("#beginning", "abc " * 10_000)
    tab.click("#write")
    tab.click("#write")
    assert len(finished(tab)) < 40_000, "a long beginning can be stopped while the model reads it"
    tab.fill("#beginning", "a\u2603")
    tab.click("#write")
    assert tab.locator("#problem").text_content() == "The model does not know the character \u2603"


def test_the_page_is_reproducible_and_small(tmp_path: Path, model: GPT) -> None:
    for name in "ab":
        save_page(model_file(model, VOCAB), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert (tmp_path / "a").stat().st_size < 1.34 * weights + 25_000


def test_a_model_too_large_for_a_page_is_refused(tmp_path: Path, model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "MAX_BYTES", 1000)
    with pytest.raises(ChargptError, match=r"the weights exceed 0\.001 MB"):
        save_page(model_file(model, VOCAB), tmp_path / "play.html")
    assert not list(tmp_path.iterdir())

"""Where the loss comes from, against brute force, and the page about a model, in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chargpt.errors import ChargptError
from chargpt.evaluation.analysis import Analysis, analyse
from chargpt.evaluation.curve import Row, read_curve
from chargpt.evaluation.loss import evaluate
from chargpt.evaluation.page import make_report
from chargpt.evaluation.surprise import SHOWN, text_page, visible
from chargpt.inference.facade import LanguageModel
from chargpt.model.config import GPTConfig
from chargpt.model.gpt import GPT
from chargpt.text.vocab import Vocab
from tests.conftest import model_file, random_model

CURVE = [Row(0, 3.0, 3.1, 0.0), Row(5, 2.5, 2.6, 0.1), Row(10, 2.0, 2.2, 0.0)]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def ids(vocab: Vocab) -> Any:
    return np.random.default_rng(0).integers(0, len(vocab), 45).astype(np.uint8)  # 5 windows and a partial one


def test_analysis_matches_a_plain_computation(model: GPT, vocab: Vocab, ids: Any) -> None:
    found = analyse(model, ids)
    assert found.val_loss == pytest.approx(evaluate(model, ids), abs=1e-12)
    losses: list[tuple[int, int, float]] = []
    for start in range(0, 44, 8):
        window = torch.from_numpy(ids[start : start + 9].astype(np.int64))
        with torch.no_grad():
            nats = F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="none")
        losses += [
            (i + 1, int(target), loss) for i, (target, loss) in enumerate(zip(window[1:], nats.tolist(), strict=True))
        ]
    assert len(losses) == 44
    positions = dict(found.positions())
    for seen in range(1, 9):
        mine = [loss for position, _, loss in losses if position == seen]
        assert positions[seen] == pytest.approx(sum(mine) / len(mine), abs=1e-5)
    hardest = found.hardest(vocab)
    assert [nats for *_, nats in hardest] == sorted((nats for *_, nats in hardest), reverse=True)
    assert sum(count for _, count, _ in hardest) <= 44
    for name, count, nats in hardest:
        mine = [loss for _, target, loss in losses if visible(vocab.itos[target]) == name]
        assert (len(mine), nats) == (count, pytest.approx(sum(mine) / count, abs=1e-5))


def test_rare_characters_are_left_out_of_the_hardest(vocab: Vocab) -> None:
    counts = np.full(len(vocab), 1000)
    counts[3] = 2
    found = Analysis(np.ones(4), np.ones(4, np.int64), counts * np.arange(len(vocab)) / 10, counts)
    names = [name for name, *_ in found.hardest(vocab)]
    assert visible(vocab.itos[3]) not in names and names[0] == visible(vocab.itos[-1])


@pytest.mark.parametrize(
    ("character", "name"), [("\n", "⏎"), (" ", "␣"), ("a", "a"), ("\u0301", "◌\u0301"), ("\x00", "U+0000")]
)
def test_visible_forms_of_characters(character: str, name: str) -> None:
    assert visible(character) == name


def page(characters: str, previous: Any = None) -> str:
    """A page about a random model whose texts hold the characters."""
    vocab = Vocab(sorted(set(characters)))
    model = random_model(GPTConfig(len(vocab), block_size=8, n_layer=1, n_head=1, n_embd=8))
    ids = np.array(vocab.encode(characters + characters), np.uint8)
    return make_report(model_file(model, vocab), ids, ids, CURVE, previous).page


HOSTILE = "\n\t\x00\x1b <>&'\"$\\`{}%\u202e\u200b\u0301\ud7ff\ufeffé漢\U0001f600"


def test_the_page_escapes_its_texts_and_is_the_same_each_time() -> None:
    text = page(HOSTILE)
    assert text == page(HOSTILE)
    for forbidden in ("<script", "http://", "https://", "\x00", "\x1b", "\u202e"):
        assert forbidden not in text, forbidden
    body = re.sub(r"<[^>]*>", "", text[text.index("<body>") :])
    assert "<" not in body and ">" not in body
    for shown in ("&lt;", "&amp;", "U+202E", "漢"):
        assert shown in body


def test_a_page_about_a_text_has_the_bits_of_its_lines(model: GPT, vocab: Vocab) -> None:
    """As many lines as a browser can show."""
    language = LanguageModel(model_file(model, vocab))
    lines = ["abc", "", HOSTILE.replace("\n", ""), *["a" * 1000] * 30]
    text = text_page(language, lines)
    shown = re.sub(r"<[^>]*>", "", text[text.index('class="text surprise"') :]).splitlines()
    for line, row in zip(lines, filter(str.strip, shown), strict=False):
        assert row.removeprefix('class="text surprise">').split()[0] == f"{language.score(line).bits[0]:.0f}"
    assert "U+202E" in text and "Metrics" not in text and "\u202e" not in text
    assert 0.9 * SHOWN < sum(map(len, shown)) < 1.1 * SHOWN


def test_a_matplotlibrc_does_not_change_the_page() -> None:
    plain = page("abc")
    odd = {
        "lines.linewidth": 4,
        "axes.facecolor": "pink",
        "font.sans-serif": ["DejaVu Serif"],
        "svg.image_inline": False,
    }
    with matplotlib.rc_context(odd):
        assert page("abc") == plain


def test_the_page_compares_with_an_earlier_version() -> None:
    text = page("abc", ("chargpt@v1.0.0", {"val_loss": 0.5, "perplexity": 1e6}))
    assert "chargpt@v1.0.0" in text and 'class="worse"' in text and 'class="better"' in text
    assert "chargpt@" not in page("abc") and "change" not in page("abc")


def test_a_damaged_curve_is_refused(tmp_path: Path) -> None:
    curve = tmp_path / "curves.tsv"
    with pytest.raises(ChargptError, match="no such file"):
        read_curve(curve)
    head = "step\ttrain_loss\tval_loss\tlr\n"
    for wrong in ("step\tlr\n1\t2\n", head + "0\tnan\t1\t1\n", head + "0\t1\t1e308\t1\n", head + "1" * 200_000 + "\n"):
        curve.write_text(wrong)
        with pytest.raises(ChargptError, match="not a training curve"):
            read_curve(curve)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("NO BROWSER: the report was not opened; install Chromium to test it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_in_a_browser(browser: Any, tmp_path: Path, width: int) -> None:
    path = tmp_path / "report.html"
    path.write_text(page("\n" + HOSTILE[4:] + "the quick brown fox jumps over the lazy dog"), encoding="utf-8")
    tab = browser.new_page(viewport={"width": width, "height": 800}, java_script_enabled=True)
    noise: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: noise.append(message.text))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(path.as_uri())
    assert noise == [] and requests == [path.as_uri()]  # nothing from anywhere else
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
    assert tab.evaluate("document.images.length") == 4
    about = "getComputedStyle(document.querySelectorAll('.surprise span')[9], '::after').content"
    assert tab.evaluate(about) == "none"
    character = tab.locator(".surprise span").nth(9)
    character.hover()
    assert "expected:" in tab.evaluate(about) and "bits" in tab.evaluate(about)
    colours = tab.evaluate(
        "[...document.querySelectorAll('.surprise span')].map(s => getComputedStyle(s).backgroundColor)"
    )
    assert len(set(colours)) > 2
    tab.close()

"""What scores are good for: the system that a log line is from, alerts among normal lines, misspelt words.

    python benchmarks/unusual.py LOGHUB [systems alerts typos] [--words FILE] [--codespell FILE] [-S KEY=VALUE]...

LOGHUB: a folder with the sixteen *_2k.log of logpai/loghub. FILE: a list of words (Debian's wamerican), and codespell's
dictionary.txt. Models are trained as the stages train them, with the values of params.yaml and `documents: lines`.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from texts import changes, fit, split

from chargpt.inference.facade import LanguageModel
from chargpt.params import Params
from chargpt.project.params_file import load_params

LEARNT, ASKED, PAIRS = 250, 250, 3000  # lines of each system, lines of each, and pairs of words


def model_of(lines: list[str], params: Params) -> LanguageModel:
    """A model of a list of lines."""
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return LanguageModel(fit(params, *split(file, params))[0])


def bits(model: LanguageModel, lines: list[str]) -> NDArray[np.float64]:
    """How surprising each line is, with its end."""
    return model.score([line + "\n" for line in lines]).bits


def systems(folder: Path, params: Params) -> str:
    """The share of lines that are least surprising to the model of their own system."""
    models, lines, right = [], [], []
    for i, file in enumerate(sorted(folder.glob("*_2k.log"))):
        own = file.read_text(encoding="utf-8", errors="replace").splitlines()
        random.Random(1337).shuffle(own)
        models.append(model_of(own[:LEARNT], params))
        lines += own[LEARNT : LEARNT + ASKED]
        right += [i] * ASKED
    scores = np.stack([bits(model, lines) for model in models])
    return f"{np.mean(scores.argmin(0) == right):.2%} of {len(lines)} lines, {len(models)} systems"


def alerts(folder: Path, params: Params) -> str:
    """The area under the curve: the chance that an alert is more surprising than a normal line."""
    lines = (folder / "BGL_2k.log").read_text(encoding="utf-8").splitlines()
    labels, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    half = len(lines) // 2
    model = model_of([text for label, text in zip(labels[:half], texts[:half], strict=True) if label == "-"], params)
    found, alert = bits(model, list(texts[half:])), np.array([label != "-" for label in labels[half:]])
    above = found[alert][:, None] - found[~alert]
    return f"{((above > 0) + 0.5 * (above == 0)).mean():.3f} for {alert.sum()} alerts among {half} lines"


def typos(words: Path, codespell: Path, params: Params) -> str:
    """The share of pairs of which the misspelt word is the more surprising one."""
    lines = (line.split("->") for line in codespell.read_text(encoding="utf-8").splitlines())
    pairs = [(wrong, right) for wrong, right in lines if right.isalpha() and wrong.isalpha()]
    pairs = random.Random(1337).sample(pairs, PAIRS)
    model = model_of(words.read_text(encoding="utf-8").split(), params)
    wrong, right = (bits(model, list(side)) for side in zip(*pairs, strict=True))
    return f"{np.mean(wrong > right):.2%} of {PAIRS} pairs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tasks", nargs="*", default=["systems", "alerts", "typos"])
    parser.add_argument("--words", type=Path, default=Path("/usr/share/dict/words"))
    parser.add_argument("--codespell", type=Path, default=Path("dictionary.txt"))
    parser.add_argument("-S", action="append", default=[], dest="set", metavar="KEY=VALUE")
    options = parser.parse_args()
    params = load_params().model_copy(update={"documents": "lines"} | changes(options.set))
    for task in options.tasks:
        if task == "typos":
            print(task, typos(options.words, options.codespell, params), flush=True)
        else:
            print(task, {"systems": systems, "alerts": alerts}[task](options.folder, params), flush=True)


if __name__ == "__main__":
    main()

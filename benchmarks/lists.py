"""Lists of things, beside their specialists: names, molecules, tunes and names of 18 languages.

    pip install rdkit && python benchmarks/lists.py FOLDER [LIST]... [--seeds 3] [-S KEY=VALUE]...

FOLDER has names.txt (karpathy/makemore), smiles.txt (the column of deepchem's HIV.csv), nottingham.abc
(jukedeck/nottingham-dataset) and names18.tsv (label, tab, name: spro/practical-pytorch). LIST is names, split by the
hash of each name as the pipeline splits it; makemore, split as makemore.py does it; smiles, tunes or languages. Losses
are nats per character, ends included; an n-gram is counted on the same training part.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from texts import changes, fit, ids_of, split

from chargpt.evaluation.baselines import ngram_bits
from chargpt.inference.facade import LanguageModel
from chargpt.inference.sampling import Sampling
from chargpt.params import Params
from chargpt.project.params_file import load_params
from chargpt.text.documents import Documents, read_documents
from chargpt.text.tokens import Split
from chargpt.text.vocab import Vocab

FILES = {"smiles": "smiles.txt", "tunes": "nottingham.abc", "languages": "names18.tsv"}
SEED, TEST = 3407, 1000  # makemore.py's
NOTE = re.compile(r"(?:[_^=]*[A-Ga-g][,']*|[zx])(\d*)(/*)(\d*)|\((\d)|([<>]+)")


def makemore(file: Path) -> tuple[Vocab, Split, Split]:
    """The names as makemore.py splits them."""
    names = file.read_text().split()
    torch.manual_seed(SEED)
    order = torch.randperm(len(names)).tolist()
    vocab = Vocab(["\n", *sorted(set("".join(names)))])

    def part(chosen: Iterable[int]) -> Documents:
        documents = [names[i] + "\n" for i in chosen]
        ends = 1 + np.cumsum([len(document) for document in documents])
        return Documents(vocab.encode_array("\n" + "".join(documents)), ends)

    return vocab, part(order[:-TEST]), part(order[-TEST:])


def bar_lengths(text: str, unit: Fraction) -> Iterator[Fraction]:
    """The length of each bar of a tune in ABC, in whole notes."""
    text = re.sub(r'"[^"]*"|\{[^}]*\}|![^!]*!|\\\n?|(?m:^[A-Za-z]:.*$)|(?m:%.*$)', "", text)
    for bar in re.split(r"[|:]+\]?|\[(?=[|\d])", text):
        total, tuplet, broken, last = Fraction(0), [0, Fraction(1)], Fraction(1), Fraction(0)
        bar = re.sub(
            r"\[([_^=]*[A-Ga-g][,']*[\d/]*)[^\]]*\]", r"\1", re.sub(r"^\s*\d", "", bar)
        )  # a chord's first note
        for times, slashes, over, n, arrows in NOTE.findall(bar):
            if n:
                tuplet = [int(n), Fraction(2 if n in "369" else 3, int(n)) if n != "2" else Fraction(3, 2)]
            elif arrows:
                change = Fraction(1, 2 ** len(arrows))
                total += last * ((1 - change) if arrows[0] == ">" else (change - 1))
                broken = change if arrows[0] == ">" else 2 - change
            else:
                last = unit * int(times or 1) / (int(over or 2) if slashes else 1)
                last *= broken * (tuplet[1] if tuplet[0] else 1)
                total, broken, tuplet[0] = total + last, Fraction(1), max(0, tuplet[0] - 1)
        if total:
            yield total


def is_tune(text: str) -> bool:
    """Whether a tune in ABC has a key, a metre, and closed bars of the metre's length.

    The first and the last bar and those at repeats may be parts that complete each other; a change of metre within the
    tune is followed.
    """
    fields = dict(re.findall(r"(?m)^([LMK]):\s*(\S+)", text))
    if set("MK") - set(fields) or not re.search(r"[|\]]\s*$", text):
        return False
    body = text[re.search(r"(?m)^K:.*\n?", text).end() :]  # type: ignore[union-attr]
    metre, good, bars = fields["M"], 0, 0
    metre = re.search(r"(?m)^M:\s*(\S+)", text).group(1)  # type: ignore[union-attr]
    for part in re.split(r"(?m)(?=^M:)", body):
        metre = (re.match(r"M:\s*(\S+)", part) or [0, metre])[1]
        try:
            length = Fraction({"C": "4/4", "C|": "2/2"}.get(metre, metre))
            unit = Fraction(fields["L"]) if "L" in fields else Fraction(1, 8 if length >= Fraction(3, 4) else 16)
        except (ValueError, ZeroDivisionError):
            return False
        for section in re.split(r"(?m)^P:.*|:\|+:?|\|+:|::|\|\||\|\]|\[\d|\|\s*\d", part):
            inner = list(bar_lengths(section, unit))[1:-1]
            bars, good = bars + len(inner), good + sum(bar == length for bar in inner)
    return bars == good and bars > 0


def sample(model: LanguageModel, number: int, temperature: float = 1.0) -> list[str]:
    """Documents, as `chargpt generate --documents` writes them."""
    return list(islice(model.documents(sampling=Sampling(temperature), seed=1337), number))


def judge(name: str, model: LanguageModel, params: Params, file: Path, val: Split) -> str:
    """What a model of a list can do, in words."""
    known = {document.strip("\n") for document in read_documents(file, params.documents)}
    if name == "languages":
        lines = model.vocab.decode(ids_of(val).tolist()).split("\n")[1:-1]
        labels = sorted({line.partition("\t")[0] for line in known})
        asked = [f"{label}\t{line.partition(chr(9))[2]}\n" for line in lines for label in labels]
        bits = model.score(asked).bits.reshape(len(lines), len(labels))
        right = [labels[i] == line.partition("\t")[0] for i, line in zip(bits.argmin(1), lines, strict=True)]
        return f"{np.mean(right):.1%} of {len(lines)} names get the right language"
    if name == "tunes":
        tunes = sample(model, 200, 0.8)
        real = np.mean([is_tune(tune) for tune in known])
        return f"{np.mean([is_tune(tune) for tune in tunes]):.1%} of 200 tunes are whole; {real:.1%} of the corpus"
    made = sample(model, 10_000 if name == "smiles" else 1000)
    valid = made
    if name == "smiles":
        from rdkit import Chem, RDLogger

        RDLogger.DisableLog("rdApp.*")
        valid = [text for text in made if Chem.MolFromSmiles(text) is not None]
    new = len(set(valid) - known) / len(set(valid))
    return f"{len(valid) / len(made):.1%} valid, {len(set(valid)) / len(valid):.1%} unique, {new:.1%} new"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("lists", nargs="*", default=["names", "makemore", *FILES])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-S", action="append", default=[], dest="set", metavar="KEY=VALUE")
    options = parser.parse_args()
    for name in options.lists:
        kind = "paragraphs" if name == "tunes" else "lines"
        params = load_params().model_copy(update={"documents": kind} | changes(options.set))
        file = options.folder / FILES.get(name, "names.txt")
        vocab, train, val = makemore(file) if name == "makemore" else split(file, params)
        ngram = ngram_bits(ids_of(train), ids_of(val), len(vocab)) * math.log(2)
        print(f"{name}: {len(ids_of(train)):,} characters to train on; n-gram {ngram:.3f}", flush=True)
        for seed in range(1337, 1337 + options.seeds):
            found, chosen, rows, seconds = fit(params.model_copy(update={"seed": seed}), vocab, train, val)
            best = min(row.val_loss for row in rows)
            about = judge(name, LanguageModel(found), chosen, file, val)
            print(f"  {chosen.init}, seed {seed}: {best:.4f} in {seconds:.0f} s; {about}", flush=True)


if __name__ == "__main__":
    main()

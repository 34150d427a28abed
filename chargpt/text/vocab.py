"""The vocabulary: the characters that a model knows, and their ids."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError

UNKNOWN_LENGTH = 1_000_000  # model files of the first release do not say how long their text is
UNICODE = 0x110000 - 0x800  # characters: code points that are not surrogates


class Vocab:
    """The characters that a model knows. A character's id is its position among them, from 0.

    characters: at least one; distinct single characters in code-point order. seen_once, length: how many of them occur
    only once in the text that they come from, and how long it is; they tell how likely an unknown character is.
    Raises ChargptError if they are anything else.
    """

    def __init__(self, characters: Iterable[str], seen_once: int = 0, length: int = UNKNOWN_LENGTH) -> None:
        self.itos: tuple[str, ...] = tuple(characters)
        if not self.itos:
            raise ChargptError("a vocabulary needs at least one character")
        for c in self.itos:
            if not isinstance(c, str) or len(c) != 1 or "\ud800" <= c <= "\udfff":
                raise ChargptError(f"vocabulary entry {str(c)[:20]!r} is not a single character")
        if any(a >= b for a, b in zip(self.itos, self.itos[1:], strict=False)):
            raise ChargptError("the vocabulary's characters are not distinct and in code-point order")
        if type(seen_once) is not int or type(length) is not int or not 0 <= seen_once <= length < 2**63 or not length:
            raise ChargptError(f"{seen_once!r} of {length!r} characters occur once: not a count of a text")
        self.seen_once, self.length = seen_once, length
        self._table: NDArray[np.unsignedinteger] | None = None  # code point -> id; built at the first use

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest unsigned integer type that holds every id."""
        return np.min_scalar_type(len(self.itos) - 1)

    def encode(self, text: str) -> list[int]:
        """The ids of the text's characters, each in [0, len(self)).

        Raises ChargptError if a character is not in the vocabulary; the message names it and its position.
        """
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> NDArray[np.unsignedinteger]:
        """Like `encode`, but returns an array (len(text),) of `self.dtype`. Looks up the whole text at once."""
        ids, unknown = self._look_up(text), len(self)
        if ids.size and int(ids.max()) == unknown:
            at = int(np.argmax(ids == unknown))
            raise ChargptError(
                f"character {text[at]!r} (at position {at}) is not in the vocabulary of {len(self)} characters;"
                " leave it out, or train on a text that has it"
            )
        return ids.astype(self.dtype, copy=False)

    def encode_known(self, text: str, stand_in: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The ids of any text, `stand_in` for each unknown character, and which characters are unknown.

        Both (len(text),).
        """
        ids = self._look_up(text).astype(np.int64)
        unknown = ids == len(self)
        ids[unknown] = stand_in
        return ids, unknown

    def _look_up(self, text: str) -> NDArray[np.unsignedinteger]:
        """The ids of the text's characters, (len(text),); len(self) for an unknown one."""
        unknown = len(self.itos)
        if self._table is None:
            codes = code_points("".join(self.itos))
            self._table = np.full(int(codes[-1]) + 2, unknown, dtype=np.min_scalar_type(unknown))
            self._table[codes] = np.arange(unknown)
        # mode="clip": a code point beyond the table's end reads the last entry, which means unknown
        return self._table.take(code_points(text), mode="clip")

    def closest(self, text: str) -> str:
        """The text with the line ends and in the Unicode form that have the fewest unknown characters."""

        def unknown(form: str) -> int:
            return int((self._look_up(form) == len(self)).sum())

        if not unknown(text):
            return text
        lines = text.replace("\r\n", "\n").replace("\r", "\n")
        forms = [unicodedata.normalize(form, lines) for form in ("NFC", "NFD", "NFKC")]
        return min([text, lines, *forms], key=unknown)

    @property
    def unknown_bits(self) -> float:
        """The bits of an unknown character: any next one is unknown with a probability of (seen_once + 1) / length.

        That is the escape of PPM (source: Witten and Bell 1991). All characters that Unicode has besides are equally
        likely then.
        """
        return math.log2(max(1.0, self.length / (self.seen_once + 1))) + math.log2(max(1, UNICODE - len(self)))

    def decode(self, ids: Iterable[int]) -> str:
        """The text that the ids stand for.

        ids: integers in [0, len(self)), in any iterable, also a tensor. Raises ChargptError for any other id.
        """
        indices = [int(i) for i in ids]
        for i in indices:
            if not 0 <= i < len(self.itos):
                raise ChargptError(f"id {i} is outside the vocabulary of {len(self)} characters")
        return "".join(self.itos[i] for i in indices)

    def to_json(self) -> str:
        """The vocabulary as JSON text, an object with the arguments of `Vocab`, and a final newline."""
        return json.dumps({"characters": "".join(self.itos), "seen_once": self.seen_once, "length": self.length}) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Vocab:
        """Read a vocabulary from a file with the output of `to_json`. Raises ChargptError if it holds anything else."""
        if not Path(path).is_file():
            raise ChargptError(f"{path}: no such file; run: dvc repro")
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ChargptError(f"{path}: not a vocabulary ({error}); run: dvc repro -f prepare") from None

    def __len__(self) -> int:
        return len(self.itos)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocab) and self.itos == other.itos

    def __repr__(self) -> str:
        return f"Vocab({''.join(self.itos)!r})"


def code_points(text: str) -> NDArray[np.uint32]:
    """The text's code points, (len(text),) uint32. A lone surrogate is one code point."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)

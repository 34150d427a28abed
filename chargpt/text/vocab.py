"""The vocabulary: the characters that a model knows, and their ids."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chargpt.errors import ChargptError


class Vocab:
    """The characters that a model knows. A character's id is its position among them, from 0.

    characters: at least one; distinct single characters in code-point order.
    Raises ChargptError if they are anything else.
    """

    def __init__(self, characters: Iterable[str]) -> None:
        self.itos: tuple[str, ...] = tuple(characters)
        if not self.itos:
            raise ChargptError("a vocabulary needs at least one character")
        for c in self.itos:
            if not isinstance(c, str) or len(c) != 1 or "\ud800" <= c <= "\udfff":
                raise ChargptError(f"vocabulary entry {str(c)[:20]!r} is not a single character")
        if any(a >= b for a, b in zip(self.itos, self.itos[1:], strict=False)):
            raise ChargptError("the vocabulary's characters are not distinct and in code-point order")
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
        unknown = len(self.itos)
        if self._table is None:
            codes = code_points("".join(self.itos))
            self._table = np.full(int(codes[-1]) + 2, unknown, dtype=np.min_scalar_type(unknown))
            self._table[codes] = np.arange(unknown)
        # mode="clip": a code point beyond the table's end reads the last entry, which means unknown
        ids = self._table.take(code_points(text), mode="clip")
        if ids.size and int(ids.max()) == unknown:
            at = int(np.argmax(ids == unknown))
            raise ChargptError(
                f"character {text[at]!r} (at position {at}) is not in the vocabulary of {len(self)} characters;"
                " leave it out, or train on a text that has it"
            )
        return ids.astype(self.dtype, copy=False)

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
        """The vocabulary as JSON text, `{"characters": "..."}`, with a final newline."""
        return json.dumps({"characters": "".join(self.itos)}) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Vocab:
        """Read a vocabulary from a file with the output of `to_json`. Raises ChargptError if it holds anything else."""
        if not Path(path).is_file():
            raise ChargptError(f"{path}: no such file; run: dvc repro")
        try:
            return cls(list(json.loads(Path(path).read_text(encoding="utf-8"))["characters"]))
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

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import ChargptError, escape


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain é \u2603 \U0001f600 'quoted'", "plain é \u2603 \U0001f600 'quoted'"),
        ("a\nb\r\t\x00", r"a\nb\r\t\x00"),
        (r"back\slash", r"back\slash"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u2028\ud800\u202e", r"\u2028\ud800\u202e"),
        ([1, "a"], "[1, 'a']"),
        (None, "None"),
    ],
)
def test_untrusted_text_is_one_line(value: object, shown: str) -> None:
    assert escape(value) == shown


def test_untrusted_text_is_cut() -> None:
    assert escape("x" * 1000) == "x" * 200
    assert escape("\n" * 1000, 3) == r"\n\n\n"


@given(st.text(st.characters()))
def test_whatever_it_says_is_printable(text: str) -> None:
    assert escape(text).isprintable()


def test_every_error_of_a_user_is_a_value_error() -> None:
    assert issubclass(ChargptError, ValueError)

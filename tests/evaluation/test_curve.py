from __future__ import annotations

import re
from pathlib import Path

import pytest

from chargpt.evaluation.curve import Curve, Row, diagnosis, read_curve


def test_the_curve_is_not_written_through_a_link(tmp_path: Path) -> None:
    """DVC links outputs to its cache where it is told to."""
    cached, curve = tmp_path / "cached", tmp_path / "curves.tsv"
    for link in (curve.hardlink_to, curve.symlink_to):
        cached.write_text("old")
        link(cached)
        Curve(curve).add(Row(0, 1.0, 2.0, 0.1))
        assert (cached.read_text(), curve.read_text().count("\n")) == ("old", 2)
        curve.unlink()


def test_the_curve_can_be_read_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "a" / "metrics" / "curves.tsv"
    curve = Curve(str(path))
    assert not path.parent.exists(), "nothing before the first row"
    for count in (1, 2):
        curve.add(Row(count, 1.5, 2.25, 1e-3))
        assert path.read_text().splitlines()[1:] == [f"{i}\t1.500000\t2.250000\t0.001" for i in range(1, count + 1)]
    assert path.read_bytes().startswith(b"step\ttrain_loss\tval_loss\tlr\n1\t")
    Curve(path).add(Row(3, 1.0, 1.0, 1.0))
    assert path.read_text().count("\n") == 2, "a new run begins anew"


def test_row_prints_as_tsv() -> None:
    assert str(Row(5, 1.5, 2.25, 1e-3)) == "5\t1.500000\t2.250000\t0.001\n"
    assert str(Row(10, 1 / 3, 200, 1e-5 / 3)) == "10\t0.333333\t200.000000\t3.3333333e-06\n"


def curve(losses: list[tuple[float, float]]) -> list[Row]:
    return [Row(100 * i, train, val, 0.1) for i, (train, val) in enumerate(losses)]


DIVERGED, DIFFERS = "^training diverged: after step", "^the end of the text, which is for validation, differs from its"


@pytest.mark.parametrize(
    ("losses", "unseen", "said"),
    [
        ([(4.0, 4.0), (1.5, 1.6), (1.3, 1.5)], 0.0, "^$"),
        ([(4.0, 4.0)], 0.0, "^$"),
        ([(4.0, 4.0), (1.2, 1.5), (0.1, 1.509)], 0.0, "^$"),
        (
            [(4.0, 4.0), (1.5, 1.6), (1.3, 1.6105)],
            0.0,
            r"^the .* step 100: fewer steps suffice \(-S max_iters=100\)$",
        ),
        ([(4.0, 4.0), (3.95, 4.2)], 0.0, "^$"),
        ([(4.0, 4.0), (150.0, 90.0)], 0.5, rf"{DIVERGED} 0, .* loss rose from 4\.0000 to 150"),
        ([(4.0, 4.0), (2.0, 2.0), (3.0, 3.0)], 0.0, rf"{DIVERGED} 100, .*lower the learning rate \(-S lr=0\.033\)"),
        ([(4.0, 4.0), (1.2, 1.5), (1.1, 1.509)], 0.02, rf"{DIFFERS} beginning: 2% of its characters do not occur"),
        ([(4.0, 4.0), (1.2, 1.5), (1.11, 1.509)], 0.02, "^$"),
        ([(4.0, 4.0), (2.5, 4.5), (0.3, 6.5)], 0.0, rf"{DIFFERS} beginning: .* training loss fell to 0\.3000"),
    ],
)
def test_what_the_losses_tell(losses: list[tuple[float, float]], unseen: float, said: str) -> None:
    assert re.search(said, diagnosis(curve(losses), unseen))


def test_a_row_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "curves.tsv"
    head = "step\ttrain_loss\tval_loss\tlr\n0\t1.5\t2.5\t0.1\n"
    for unfinished in ("", "5", "5\t1.0\t2.0\t0.", "5\t1.0\t2.0\t0.1"):
        path.write_text(head + unfinished)
        assert read_curve(path) == [Row(0, 1.5, 2.5, 0.1)]

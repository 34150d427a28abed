from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from chargpt.runtime import signals
from chargpt.runtime.signals import StopRequests

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[StopRequests]:
    monkeypatch.delenv("CHARGPT_DVC_PID", raising=False)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    requests = StopRequests()
    requests.install()
    yield requests
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_reason_to_stop_and_is_reported_at_once(
    requests: StopRequests, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    assert requests() is None
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)  # later ones change nothing
    assert capfd.readouterr().err == f"train: {number.name} received; saving and stopping\n"
    stopped = requests()
    assert stopped and (stopped.reason, stopped.status) == (number.name, 128 + number)
    assert requests() is stopped


def test_a_second_ctrl_c_interrupts_until_the_training_has_noticed_the_first(
    requests: StopRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)  # the same one, which torchrun passed on
    monkeypatch.setattr(signals, "IMPATIENT_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert requests()
    os.kill(os.getpid(), signal.SIGINT)


def test_only_rank_0_reports_a_signal(capfd: pytest.CaptureFixture[str]) -> None:
    requests = StopRequests(rank=1)
    requests._on_signal(signal.SIGTERM, None)
    assert requests() and capfd.readouterr().err == ""


def test_a_signal_that_is_ignored_stays_ignored(requests: StopRequests) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    requests.install()
    os.kill(os.getpid(), signal.SIGHUP)
    assert requests() is None


def test_the_death_of_dvc_is_a_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARGPT_DVC_PID", str(os.getppid()))
    assert StopRequests()() is None
    monkeypatch.setenv("CHARGPT_DVC_PID", "999999999")
    stopped = StopRequests()()
    assert stopped and (stopped.reason, stopped.status) == ("the DVC process that started this training has ended", 1)

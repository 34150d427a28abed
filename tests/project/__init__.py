"""What the tests of this package share."""

import subprocess

from tests.conftest import Run


def error(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed printed on stderr."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def exp_ref(run: Run, name: str) -> str:
    """The part of an experiment's reference after refs/exps/."""
    refs = run("git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    return next(ref for ref in refs if ref.endswith(f"/{name}")).removeprefix("refs/exps/")

"""`chargpt check`: find what would make a later command fail, and which stages changed."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from chargpt.device import pick_device
from chargpt.errors import ChargptError, escape
from chargpt.params import Params
from chargpt.paths import init_file
from chargpt.project import lock
from chargpt.project.git import NO_REPOSITORY, git, try_git, untracked_code
from chargpt.project.outputs import require_clone
from chargpt.project.params_file import load_params
from chargpt.project.remotes import dvc_repository, relative_remote
from chargpt.text.corpus import read_text
from chargpt.text.documents import list_note
from chargpt.text.download import require_corpus, unused_text

CONFIGURATION = (".dvc/config", ".dvcignore", "dvc.yaml", "chargpt", "stages")  # `dvc exp apply` replaces these too


def problems() -> Iterator[str]:
    """Yield a line for each thing that would make a later command fail; the line says what to run.

    Loads torch only if `device` names a GPU. Raises ChargptError outside the root of a clone.
    """
    require_clone()
    try:
        params = load_params()
    except ChargptError as error:
        yield from error.args
    else:
        for require in (require_prompt, require_files, require_device):
            try:
                require(params)
            except ChargptError as error:
                yield from error.args
    try:  # it may be a wrapper, so it is asked
        done = subprocess.run(["python", "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
        same = os.path.samefile(done.stdout.strip(), sys.prefix)
    except OSError:
        same = False
    if not same:
        found = shutil.which("python") or "missing"
        yield f"the stages call `python`, which is {found}; run: . {shlex.quote(f'{sys.prefix}/bin/activate')}"
    yield from git_problems()


def require_prompt(params: Params) -> None:
    """Raise ChargptError if the corpus is missing, is empty, is not UTF-8, or lacks a character of the prompt.

    Reads the text only as far as needed to find every character. Tiny Shakespeare may be missing: it is downloaded.
    """
    require_corpus(params.corpus)
    if not Path(params.corpus).exists():
        return
    missing = set(params.prompt)
    for text in read_text(params.corpus):
        missing -= set(text)
        if not missing:
            return
    if not Path(params.corpus).stat().st_size:
        raise ChargptError(f"corpus: {params.corpus} is empty; set it to the path of a UTF-8 text")
    raise ChargptError(
        f"prompt: {sorted(missing)[0]!r} does not occur in {params.corpus}; choose another with -S prompt=..."
    )


def require_files(params: Params) -> None:
    """Raise ChargptError if the legacy model's directory or the model file that training starts from is missing."""
    init_file(params.init)
    if not Path(params.legacy_dir).is_dir():
        raise ChargptError(f"params.yaml: legacy_dir is {params.legacy_dir!r}, which is not a directory; set another")


def require_device(params: Params) -> None:
    """Raise ChargptError if this machine does not have the device."""
    if params.device not in ("auto", "cpu"):  # which every machine has; the others load torch
        pick_device(params.device)


def git_problems() -> Iterator[str]:
    """Yield a line for each thing about git that would make a later command fail; the line says what to run."""
    try:
        git("rev-parse", "--git-dir")
    except ChargptError as error:
        hint = "; run: git init && git add --all && git commit -m start, or dvc config --local core.no_scm true"
        yield f"{error}{hint if NO_REPOSITORY in str(error) else ''}"
        return
    if try_git("rev-parse", "--verify", "--quiet", "HEAD") is None:
        yield 'no commit yet: experiments need one; run: git add --all && git commit -m "start"'
    if try_git("-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT") is None:
        yield (
            "git has no name and email for commits, so experiments and versions cannot be recorded; run:"
            ' git config user.name "Your Name" && git config user.email you@example.org'
        )
    if git("rev-parse", "--is-shallow-repository").strip() == "true":
        yield "a shallow clone: comparing with older versions fails; run: git fetch --unshallow --tags"
    if filters := try_git("config", "--get-regexp", r"^remote\..*\.partialclonefilter$"):
        yield (
            "a partial clone: DVC waits for ever for files that it lacks; run:"
            f" git config --unset {filters.split()[0]} && git fetch --refetch"
        )
    if git("rev-parse", "--shared-index-path"):
        yield "git's index is split, which DVC cannot read; run: git update-index --no-split-index"
    if folder := git("rev-parse", "--show-prefix").strip():
        yield (
            f"the project is in {folder} of a git repository, where sweeps and versions do not work; to give it a"
            " repository of its own, run: git init && git add --all && git commit -m start"
        )
    yield from filter(None, (relative_remote(), untracked_code()))


def changed_stages() -> list[str]:
    """The stages that `dvc repro` would run now, without the stages that only depend on these.

    Raises ChargptError if DVC cannot find out.
    """
    with dvc_repository() as repo:
        if not repo.index.stages:
            raise ChargptError("dvc.yaml: holds no stages; run: git checkout dvc.yaml")
        return list(repo.status())


def notes() -> Iterator[str]:
    """Yield a line for each thing that is not a problem, but that the user may not know."""
    params = load_params()
    yield from filter(None, (lock.note(), unused_text(params.corpus)))
    if params.documents == "whole" and Path(params.corpus).is_file() and (note := list_note(params.corpus)):
        yield note
    if names := git("diff", "--name-only", "-z", "HEAD", "--", *CONFIGURATION).split("\0")[:-1]:
        changed = " ".join(shlex.quote(escape(name)) for name in names)
        yield f"Changed since the last commit: {changed}. To discard the changes, run: git checkout HEAD -- {changed}"

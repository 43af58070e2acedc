import subprocess
import sys

import pytest

from jobs.prepare import main


@pytest.fixture
def prepare_here(monkeypatch, capsys):
    """Runs `jobs/prepare.py` without a process of its own, which is faster; in a folder, if one is given."""

    def run(*words, cwd=None):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, words)])
        with monkeypatch.context() as there:
            if cwd is not None:
                there.chdir(cwd)
            try:
                code = main()
            except SystemExit as left:
                code = left.code
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return run

"""What tests of job files share."""

import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str]]:
    """Calls `main()` of a job file with words; gives its exit code and what it says."""

    def run(main: Callable[[], int], *words: object) -> tuple[object, str]:
        capsys.readouterr()  # what came before
        monkeypatch.setattr(sys, "argv", ["job.py", *map(str, words)])
        try:
            code: object = main()
        except SystemExit as left:
            code = left.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out + err

    return run

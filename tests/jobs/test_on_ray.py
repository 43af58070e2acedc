"""What is kept of a Ray that did not start."""

from pathlib import Path

import pytest

from jobs.run import on_ray


def test_the_logs_of_a_ray_that_did_not_start_are_kept_until_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(on_ray, "LOGS", tmp_path / "kept")
    folder = Path(on_ray.own_folder() or "")
    assert len(str(folder)) <= on_ray.RAY_LONGEST
    assert on_ray.kept_logs() == ""  # it wrote none
    (folder / "session_1" / "logs").mkdir(parents=True)
    (folder / "session_1" / "logs" / "raylet.err").write_text("no memory")
    (folder / "session_latest").symlink_to("session_1")
    assert on_ray.kept_logs() == f" Ray's logs are in {tmp_path}/kept"
    assert (tmp_path / "kept" / "raylet.err").read_text() == "no memory"
    on_ray.own_folder()
    assert not (tmp_path / "kept").exists()


def test_a_ray_that_is_told_where_to_write_does_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert on_ray.own_folder() is None
    (tmp_path / "ray" / "session_latest" / "logs").mkdir(parents=True)
    assert on_ray.kept_logs() == f" Ray's logs are in {tmp_path}/ray/session_latest/logs"

"""What torchrun's processes are asked before anything is written: real processes, some of which see another folder."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pirl.data.digits import ensure_digits

ROOT = Path(__file__).parents[2]
LIMIT_S = 120


def two_ranks(storage: Path, second: str) -> list[tuple[int, str]]:
    """Exit codes and errors of two ranks, of which the second runs behind a shell command on its own mounts."""
    ensure_digits()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "jobs/pretrain.py", "digits", f"--storage={storage}", "--model.width=4"]
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    starts = [command, [*unshare, "sh", "-c", f"{second} && exec " + " ".join(command)]]
    env = {
        **os.environ,
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }
    ranks = [
        subprocess.Popen(start, cwd=ROOT, env=env | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank, start in enumerate(starts)
    ]
    errors = [rank.communicate(timeout=LIMIT_S)[1] for rank in ranks]
    return [(rank.returncode, error) for rank, error in zip(ranks, errors, strict=True)]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("mount -t tmpfs none {}", "rank 1: --storage {} is not shared"),
        ("mount --bind -o ro {} {} && mount -o remount,ro,bind {}", "rank 1: --storage {} cannot be written: "),
    ],
    ids=["another folder", "read-only"],
)
def test_a_rank_that_cannot_write_the_storage_of_rank_0_ends_all_before_anything_is_written(
    tmp_path: Path, second: str, message: str
) -> None:
    first, other = two_ranks(tmp_path, second.replace("{}", str(tmp_path)))
    assert (first[0], other[0]) == (2, 2), first[1] + other[1]
    assert first[1].startswith("error: " + message.format(tmp_path))
    assert (first[1] + other[1]).count("error: ") == 1  # rank 0 speaks for all
    assert "Traceback" not in first[1] + other[1]
    assert not list(tmp_path.iterdir())

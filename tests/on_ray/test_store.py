"""The job on a real Ray cluster whose nodes share no disk for it: images and runs lie in an object store."""

import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

from pirl.storage.folder import Folder
from tests.digits import write_digits_to
from tests.ray_cluster import (
    SMALL,
    SPREAD,
    Cluster,
    finish,
    lines_of,
    pretrain,
    train_workers,
    wait_for,
    weights,
    weights_of,
)
from tests.s3 import SECRET, Store
from tests.terminal import OnTerminal


def test_a_killed_worker_and_faults_change_nothing_and_no_secret_is_told(
    cluster: Cluster, undisturbed: Path, store: Store, tmp_path: Path
) -> None:
    """Two workers on two nodes; the store's address goes from the driver to them, its secrets are in no file.

    On a terminal, on which the last line of the steps stays.
    """
    run = Folder(store.uri("runs", "digits"), store.direct)
    uri = write_digits_to(store.uri("digits"), store.direct)
    for fault in ("slowdown", "reset", "flip", "truncate"):
        store.fail(fault, 2, method="PUT", pattern="checkpoint_")
        store.fail(fault, 2, pattern="shard")
    env = {**cluster.env, "RAY_ADDRESS": cluster.gcs, "AWS_ENDPOINT_URL": store.options["endpoint_url"]}
    cached = f"--data.cache-folder={tmp_path / 'cache'}"
    words = [*SPREAD, f"--data.uri={uri}", f"--storage={store.uri('runs')}", cached]
    terminal = OnTerminal([sys.executable, "jobs/pretrain.py", "digits", *SMALL, *words], columns=150, env=env)
    reading = threading.Thread(target=terminal.read_until)
    reading.start()
    wait_for(lambda: len(lines_of(run)) >= 20 or terminal.process.poll() is not None, "no progress")
    os.kill(train_workers(cluster)[-1], signal.SIGKILL)
    reading.join()
    assert terminal.end() == 0, terminal.text
    assert "going on from checkpoint_" in terminal.text
    steps = [line for line in (run.find("train.log") or "").splitlines() if line.startswith("epoch ")]
    assert [row for row in terminal.screens()[-1] if row.startswith("epoch ")] == steps[-1:]
    assert [line["step"] for line in lines_of(run)] == list(range(1, 61))
    result = json.loads(run.read("result.json"))
    assert result["retries"] > 0
    assert len({name.partition("/")[0] for name in run.sizes() if name.startswith("checkpoint_0")}) == 2

    expected = weights(undisturbed)
    got = weights_of(run)
    assert all(bool((expected[name] == got[name]).all()) for name in expected)

    written = {name: run.read_bytes(name) for name in run.sizes()} | {"shown": terminal.text.encode()}
    written |= {str(path): path.read_bytes() for path in cluster.scratch.rglob("*") if path.is_file()}
    assert len(written) > 20
    assert not [name for name, data in written.items() if SECRET.encode() in data]


def test_a_store_that_a_node_cannot_write_is_refused(cluster: Cluster, store: Store) -> None:
    uri = write_digits_to(store.uri("digits"), store.direct)
    store.fail("latency", 2, method="PUT", pattern=".probe")  # what the driver writes
    store.fail("refused", 9, method="PUT", pattern=".probe")
    env = {**cluster.env, "RAY_ADDRESS": cluster.gcs}
    options = json.dumps(store.options)  # which serve the run folder too
    code, out, err = finish(
        pretrain(env, f"--data.uri={uri}", f"--data.storage-options={options}", f"--storage={store.uri('runs')}")
    )
    assert code == 2, out + err
    assert re.search(r"error: node [\d.]+: --storage s3://\S+ cannot be written", err)
    assert "AccessDenied" in err or "Forbidden" in err
    assert "Traceback" not in err
    assert Folder(store.uri("runs"), store.direct).sizes() == {}

"""Which node doctor marks, and why, from what the nodes have measured."""

from typing import Any

from jobs.batch.diagnosis import COLUMNS, odd, row


def node(host: str, to: str, **changes: Any) -> dict[str, Any]:
    usual = {"start_s": 5.0, "gflops": 20.0, "write_mb_s": 300.0, "read_mb_s": 200.0, "send_mb_s": 250.0}
    room = {"temp_gb": 50.0, "shm_gb": 8.0, "gpus": 0, "unreached": [], "clock_s": 0.01}
    versions = {"python": "3.11.7", "versions": {"torch": "2.11", "ray": "2.60"}}
    return {"host": host, "to": to, "problems": [], **usual, **room, **versions, **changes}


def told(**changes: Any) -> list[list[str]]:
    """What is odd of three nodes, of which the second has changed."""
    nodes = [node("n1", "n2"), node("n2", "n3", **changes), node("n3", "n1")]
    return odd(nodes, gpus=0, shm_gb=1.0)


def test_nodes_that_are_alike_are_not_odd():
    assert told() == told(read_mb_s=60.0, start_s=14.0, clock_s=-0.9) == [[], [], []]


def test_the_node_that_differs_is_marked_and_no_other():
    for changes, said in (
        ({"read_mb_s": 40.0}, "reads the storage with 40 MB/s, and the median is 200"),
        ({"gflops": 4.0}, "calculates with 4 GFLOP/s, and the median is 20"),
        ({"start_s": 25.0}, "took 25 s to begin and import torch, and the median is 5"),
        ({"shm_gb": 0.0}, "/dev/shm has 0.00 GB free, and Ray wants 1.00"),
        ({"temp_gb": 0.5}, "temp_dir has 0.50 GB free, and Ray's logs want 1"),
        ({"clock_s": -3.0}, "its clock is -3.0 s off that of the first node"),
        ({"gpus": 1}, "has 1 GPUs, and gpus_per_node is 0"),
        ({"unreached": ["n3"]}, "its connections to n3 are refused: ports of the profile, firewall"),
        ({"python": "3.12.1"}, "has Python 3.12.1, and others have 3.11.7"),
        ({"versions": {"torch": "2.9", "ray": "2.60"}}, "has torch 2.9, and others have 2.11"),
        ({"problems": ["did not answer: no word in its log"]}, "did not answer: no word in its log"),
    ):
        assert told(**changes) == [[], [said], []]


def test_a_slow_network_is_that_of_the_node_between_and_not_of_its_neighbours():
    nodes = [node("n1", "n2", send_mb_s=2.0), node("n2", "n3", send_mb_s=2.0), node("n3", "n1")]
    said = "its network carries 2 MB/s, and that of the median node 250"
    assert odd(nodes, gpus=0, shm_gb=1.0) == [[], [said], []]


def test_a_node_alone_is_compared_with_nobody_and_one_without_an_answer_has_a_row():
    assert odd([node("n1", "n1", gflops=0.1)], gpus=0, shm_gb=1.0) == [[]]
    silent = {"host": "n2", "problems": ["did not answer: x"]}
    assert odd([node("n1", "n2"), silent], gpus=0, shm_gb=1.0) == [[], ["did not answer: x"]]
    assert [len(row(each)) for each in (silent, node("n1", "n2"))] == [len(COLUMNS)] * 2

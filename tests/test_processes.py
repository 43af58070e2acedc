import subprocess
import sys

FAULTS = """
import resource
from pirl.processes import keep_freed_memory
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        [b"x" * 7_000_000 for _ in range(8)]  # row groups of ImageNet
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults_after(call: str) -> int:
    return int(subprocess.run([sys.executable, "-c", FAULTS.format(call=call)], check=True, capture_output=True).stdout)


def test_memory_that_was_freed_is_used_again() -> None:
    """7 MB are 1,709 pages, which the kernel clears one by one if they are new."""
    assert faults_after("keep_freed_memory()") < 100
    assert faults_after("") > 8 * 1709  # of the three times that all are made, at least one

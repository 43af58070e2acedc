"""What of a user's shell counts for a script, by the rule of clusters/slurm/users_variables.py."""

import pytest

from clusters.slurm.users_variables import LOOKS, notes, option_of, options_in, that_count, without_count

SCRIPT = """#!/bin/bash
#SBATCH --job-name=digits
#SBATCH --mem=2048M
#SBATCH --no-kill
#SBATCH --nodes=1-2
#SBATCH --output='/a b/%j.out'
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=10
srun #SBATCH --partition=high
"""


def test_the_options_of_a_script_are_read_from_it():
    assert options_in(SCRIPT) == {
        "job-name": "digits",
        "mem": "2048M",
        "no-kill": "",
        "nodes": "1-2",
        "output": "'/a b/%j.out'",
        "requeue": "",
        "signal": "USR2@60",
        "time": "10",
    }


@pytest.mark.parametrize(
    ("variable", "by"),
    [
        ("SBATCH_NO_REQUEUE", "--requeue of the script does"),
        ("SBATCH_REQUEUE", "--requeue of the script does"),
        ("SBATCH_TIMELIMIT", "--time=10 of the script does"),
        ("SBATCH_SIGNAL", "--signal=USR2@60 of the script does"),
        ("SBATCH_JOB_NAME", "--job-name=digits of the script does"),
        ("SBATCH_MEM_PER_NODE", "--mem=2048M of the script does"),
        ("SBATCH_MEM_PER_CPU", "--mem=2048M of the script does"),
        ("SBATCH_OUTPUT", "--output='/a b/%j.out' of the script does"),
        # Not in the script, and never a variable's.
        ("SBATCH_ERROR", "jobs/slurm.py reads what SLURM and the job write"),
        ("SBATCH_ARRAY_INX", "jobs/slurm.py says which runs there are, and what they run"),
        ("SBATCH_WAIT", "type --wait"),
        ("SBATCH_GPUS_PER_TASK", "gpus_per_node in the profile says how many GPUs a node gives"),
        *((name, None) for name in ("SBATCH_PARTITION", "SBATCH_ACCOUNT", "SBATCH_QOS", "SBATCH_EXPORT")),
        *((name, None) for name in ("SBATCH_CONSTRAINT", "SBATCH_RESERVATION", "SBATCH_EXCLUSIVE", "SBATCH_WCKEY")),
    ],
)
def test_what_the_script_says_counts_and_so_do_sizes(variable: str, by: str | None):
    shell = {variable: "1", "PATH": "/bin", "SLURM_CONF": "x", "SLURM_HINT": "y", "SRUN_CONTAINER": "z"}
    assert without_count(shell, SCRIPT) == ({variable: by} if by else {})
    assert that_count(shell, SCRIPT) == {"SLURM_CONF": "x"} | ({} if by else {variable: "1"})
    first, *_ = notes(shell, SCRIPT)
    assert first.startswith(f"{variable}=1 in your shell {'does not count: ' if by else 'counts'}")


def test_nothing_is_said_where_there_is_nothing_to_say():
    assert notes({"PATH": "/bin", "SLURM_CONF": "x", LOOKS[0]: "relative", "SALLOC_PARTITION": "high"}, SCRIPT) == []


def test_variables_of_an_allocation_are_not_wishes():
    shell = {"SRUN_CONTAINER": "z", "SLURM_HINT": "y"}
    assert notes(shell, SCRIPT) == [
        "SLURM_HINT, SRUN_CONTAINER in your shell: no job gets them; options for sbatch and srun are the profile's"
    ]
    assert notes({**shell, "SLURM_JOB_ID": "7"}, SCRIPT) == []


def test_who_lets_nothing_through_is_told_what_reaches_the_job():
    for value, less in (("NONE", True), ("HOME,PATH", True), ("ALL", False), ("ALL,A=1", False)):
        (line,) = notes({"SBATCH_EXPORT": value}, SCRIPT)
        assert line.endswith("only the profile's environment reaches the job") == less


@pytest.mark.parametrize(
    ("variable", "option"),
    [
        *(("SBATCH_ARRAY_INX", "array"), ("SBATCH_TIMELIMIT", "time"), ("SBATCH_NO_REQUEUE", "requeue")),
        *(("SBATCH_MEM_PER_NODE", "mem"), ("SBATCH_MEM_PER_GPU", "mem-per-gpu"), ("SBATCH_DEBUG", "verbose")),
        *(("SBATCH_REQ_SWITCH", "switches"), ("SBATCH_WAIT4SWITCH", "switches"), ("SBATCH_CORE_SPEC", "core-spec")),
        *(("SBATCH_BURST_BUFFER", "bb"), ("SBATCH_OPEN_MODE", "open-mode"), ("SBATCH_USE_MIN_NODES", "use-min-nodes")),
    ],
)
def test_a_variable_stands_for_the_option_that_the_manual_says(variable: str, option: str):
    assert option_of(variable) == option

"""What a user's shell tells SLURM's commands, and what of it counts for a job of ours.

sbatch takes an option from its command line, else from a variable, else from the script: `SBATCH_NO_REQUEUE` in a shell
would end the promise to come back, and nothing in the script would say so. Here the rule is another: what the script
says counts, and so do the sizes, which are the profile's. A variable is left for what the script does not say. Both are
told. Variables of the other commands (SLURM_, SRUN_, SALLOC_) tell of an allocation or of its steps: no job gets them.
"""

import re
import shlex
from collections.abc import Mapping

REACH = ("SLURM_CONF", "SLURM_JWT")
"""How SLURM is reached: for each of its commands."""

LOOKS = ("SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")
"""How a person likes to read what SLURM prints."""

OTHER_NAMES = {
    "array-inx": "array",
    "burst-buffer": "bb",
    "cpu-freq-req": "cpu-freq",
    "debug": "verbose",
    "mem-per-node": "mem",
    "no-requeue": "requeue",
    "req-switch": "switches",
    "timelimit": "time",
    "wait4switch": "switches",
}
"""Options of variables whose names do not say them."""

WITH = {
    "mem": ("mem-per-cpu", "mem-per-gpu"),
    "mem-per-cpu": ("mem", "mem-per-gpu"),
    "mem-per-gpu": ("mem", "mem-per-cpu"),
}
"""Options that sbatch takes one of, or that say more of another one: who says the first says them all."""

OURS = {
    **dict.fromkeys(("array", "batch", "input"), "jobs/slurm.py says which runs there are, and what they run"),
    **dict.fromkeys(("output", "error", "open-mode", "verbose"), "jobs/slurm.py reads what SLURM and the job write"),
    "wait": "type --wait",
    "clusters": "the job is sent to the cluster of this machine, which is asked about it later",
    "no-kill": "nodes = {min, max} in the profile says whether a job may lose nodes",
    **dict.fromkeys(
        ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "cpus-per-gpu", "gres"),
        "gpus_per_node in the profile says how many GPUs a node gives",
    ),
}
"""Options that never come from a variable, said in the script or not: why."""


def option_of(variable: str) -> str:
    """The long option of sbatch that a variable stands for: `SBATCH_TIMELIMIT` for `time`."""
    name = variable.removeprefix("SBATCH_").lower().replace("_", "-")
    return OTHER_NAMES.get(name, name)


def options_in(script: str) -> dict[str, str]:
    """The options that a batch script says, with their values: `{"time": "60", "requeue": ""}`."""
    lines = re.findall(r"^#SBATCH --([a-z][a-z-]*)(?:=(.*))?$", script, flags=re.MULTILINE)
    return dict(lines)


def without_count(variables: Mapping[str, str], script: str) -> dict[str, str]:
    """The SBATCH_ variables that do not count for a script, each with what does."""
    said = options_in(script)
    also = {other: name for name in said for other in WITH.get(name, ())}
    found = {}
    for variable in sorted(name for name in variables if name.startswith("SBATCH_")):
        option = option_of(variable)
        by = option if option in said else also.get(option)
        if by:
            value = f"={said[by]}" if said[by] else ""
            found[variable] = f"--{by}{value} of the script does"
        elif option in OURS:
            found[variable] = OURS[option]
    return found


def that_count(variables: Mapping[str, str], script: str) -> dict[str, str]:
    """The variables of this shell that sbatch is to hear for a script."""
    hidden = without_count(variables, script)
    ours = {name for name in variables if name.startswith((*REACH, "SBATCH_"))} - {*hidden}
    return {name: variables[name] for name in ours}


def notes(variables: Mapping[str, str], script: str) -> list[str]:
    """What a person is to know of the variables in this shell: which count for a script, and which do not."""
    hidden = without_count(variables, script)
    lines = []
    for name in sorted(name for name in variables if name.startswith("SBATCH_")):
        given = f"{name}={shlex.quote(variables[name])}"
        if name in hidden:
            lines.append(f"{given} in your shell does not count: {hidden[name]}")
        else:
            more = ": only the profile's environment reaches the job" if _exports_less(name, variables[name]) else ""
            lines.append(f"{given} in your shell counts, as nothing else says --{option_of(name)}{more}")
    known = (*REACH, *LOOKS)
    others = sorted(name for name in variables if name.startswith(("SRUN_", "SLURM_")) and not name.startswith(known))
    if others and "SLURM_JOB_ID" not in variables:  # else they tell of this allocation, and not of a wish
        lines.append(
            f"{', '.join(others)} in your shell: no job gets them; options for sbatch and srun are the profile's"
        )
    return lines


def _exports_less(name: str, value: str) -> bool:
    return option_of(name) == "export" and value.partition(",")[0].upper() not in ("ALL", "")

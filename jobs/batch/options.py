"""The options of `jobs/slurm.py`, and its help."""

import argparse
import shlex

from clusters.profile import Profile
from jobs.settings import SUBMIT, Parser
from pirl.errors import ConfigError

USAGE = """python jobs/slurm.py [submit] --cluster FILE [--name N] [--array FILE[%%N]] [--after JOB[:any]] [--wait]
                            [--forget-nodes] [--dry-run] -- JOB_FILE ARGUMENTS
       python jobs/slurm.py status [JOB] | logs JOB [-f] | cancel JOB | retry JOB | list | tunnel JOB
       python jobs/slurm.py doctor --cluster FILE [--nodes N] [--data URI]"""

EPILOG = """
commands:
  submit   checks the profile and the job's own arguments, asks SLURM, and submits (the default)
  status   state, nodes, reason, times, restarts and the run's last numbers; of the newest job, or of JOB
  logs     what all nodes printed, each line with the node before it; -f goes on until the job ends
  cancel   ends a job, or takes it out of the queue; all tasks of an array, or one
  retry    submits what has failed of a job once more; of an array the tasks that failed alone. Words behind -- are
           added to the arguments of each
  list     all jobs in the job folder
  doctor   a short job on all idle nodes, or on N: Python and versions, storage, clocks, room, ports, network, GPUs;
           marks the odd node, and ends with 1 if there is one
  tunnel   the ssh command that brings the job's Ray dashboard to this machine

JOB is an id as SLURM gives it (123; 123_4 for one task of an array), or the name of the job's folder. It is looked for
in ~/pirl-jobs and in the job folders that were used before. After submit's -- comes a job file with its own arguments:
jobs/pretrain.py, jobs/clusterfit.py, tune/sweep.py, jobs/evaluate.py, jobs/embed.py or jobs/prepare.py.

examples:
  python jobs/slurm.py --cluster clusters/slurm-cpu.toml --dry-run -- jobs/pretrain.py cifar10 --data.uri /shared/c10
  python jobs/slurm.py --cluster clusters/slurm-cpu.toml -- jobs/pretrain.py cifar10 --data.uri /shared/c10
  python jobs/slurm.py --cluster clusters/slurm-cpu.toml --array seeds.txt -- jobs/pretrain.py digits
      with a line of further arguments for each run in seeds.txt: --seed 1 --run digits-1
  python jobs/slurm.py --cluster clusters/slurm-cpu.toml --wait -- jobs/pretrain.py digits
  python jobs/slurm.py --cluster clusters/slurm-cpu.toml --after 123 -- jobs/evaluate.py /shared/runs/digits
  python jobs/slurm.py retry 123
  python jobs/slurm.py doctor --cluster clusters/slurm-cpu.toml --nodes 4
  python jobs/slurm.py status
  python jobs/slurm.py logs 123 -f
"""


def submit_parser(description: str) -> argparse.ArgumentParser:
    """The options of `submit`."""
    parser = Parser(
        prog=SUBMIT,
        usage=USAGE,
        description=description,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--cluster", metavar="FILE", help="the cluster's profile; clusters/*.toml are examples")
    parser.add_argument("--name", help="of the job (default: that of its first run)")
    several = "several runs: further arguments of each on its own line; with %%N at most N at once"
    parser.add_argument("--array", metavar="FILE[%N]", help=several)
    waits = "begin when JOB is done, or, with :any, when it has ended; may be given several times"
    parser.add_argument("--after", metavar="JOB[:any]", action="append", default=[], help=waits)
    _add_sending(parser)
    return parser


def retry_parser() -> argparse.ArgumentParser:
    """The options of `retry`."""
    parser = watch_parser("retry")
    parser.set_defaults(array=None, after=[])
    parser.add_argument("--name", help="of the job (default: that of the one before)")
    _add_sending(parser)
    return parser


def doctor_parser() -> argparse.ArgumentParser:
    """The options of `doctor`."""
    parser = Parser(prog=f"{SUBMIT} doctor", allow_abbrev=False)
    parser.add_argument("--cluster", metavar="FILE", help="the cluster's profile")
    parser.add_argument("--nodes", metavar="N", type=_count, help="how many (default: all that are idle)")
    parser.add_argument("--data", metavar="URI", default="", help="a data set of which each node reads a part")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _add_sending(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--wait", action="store_true", help="return when the job has ended, with the exit code of its run")
    add(
        "--forget-nodes",
        action="store_true",
        help="give back the nodes that were left out because of what failed there",
    )
    add("--dry-run", action="store_true", help="print the script that would be sent, send nothing")


def watch_parser(name: str) -> argparse.ArgumentParser:
    """The options of the other commands."""
    parser = Parser(prog=f"{SUBMIT} {name}", allow_abbrev=False)
    if name != "list":
        parser.add_argument("job", nargs="?" if name == "status" else None, metavar="JOB", help="its id or folder name")
    if name == "logs":
        parser.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    parser.add_argument("--cluster", metavar="FILE", help="the profile that names the job folder")
    parser.add_argument("--job-folder", metavar="FOLDER", help="where jobs lie (default: ~/pirl-jobs)")
    return parser


def refuse_words(profile: Profile, job: str, words: list[str]) -> None:
    """Refuses what a job file understands, and what would go wrong on the cluster; raises ConfigError."""
    for word, behind in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        value = value if equals else behind
        if option in ("-h", "--help"):
            raise ConfigError(f"{word} asks for no job: type python {shlex.join([job, *words])}")
        if option == "--check":
            raise ConfigError(f"{word} asks for no job: type --dry-run before --, which checks too and sends nothing")
        if job not in ("jobs/pretrain.py", "jobs/clusterfit.py"):
            continue
        if option == "--resume" and value == "never" and profile.cluster == "slurm":
            raise ConfigError(
                "--resume never: the job could not go on when it comes back from the queue; "
                "leave it out, and choose a new --run NAME"
            )
        if option == "--no-ray":
            raise ConfigError("--no-ray: the first node would train alone, and the others would wait: leave it out")
        if option == "--cluster.workers" and profile.nodes.min < profile.nodes.max:
            raise ConfigError(
                "--cluster.workers would stay the same when a node is lost: leave it out, "
                f"and write workers_per_node or nodes = {profile.nodes.max} in the profile"
            )

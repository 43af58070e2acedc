"""The command `clusters/devcluster`."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from clusters.dev.cluster import HOSTS, DevCluster, environment
from pirl.errors import DevClusterError

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
    "unshare": "util-linux",
    "mount": "mount",
}
"""The commands that are needed, and Debian's packages that have them."""


def main(arguments: Sequence[str]) -> int:
    """Does what the command line says; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "missing":
        print(" ".join(missing_packages()))
        return 0
    if reason := problem():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    try:
        return _do(DevCluster(options.number), options)
    except DevClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def problem() -> str | None:
    """Why the cluster cannot run here, and what to type; None if it can."""
    if sys.platform != "linux":
        return "the cluster is made of Linux namespaces, and this is not Linux: use a Linux machine, or a virtual one"
    if missing := missing_packages():
        return f"packages are missing: `apt-get install -y --no-install-recommends {' '.join(missing)}`"
    if os.geteuid() != 0:
        return "making hosts takes root: `sudo clusters/devcluster up`"
    return None


def missing_packages() -> list[str]:
    """Debian's packages without which the cluster cannot run."""
    path = environment()["PATH"]
    return sorted({package for command, package in PACKAGES.items() if not shutil.which(command, path=path)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("clusters/devcluster", description="A real SLURM of three virtual hosts.")
    parser.add_argument("--number", type=int, default=77, help="of the cluster, and of its network 10.NUMBER.0.0/24")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start it")
    up.add_argument("--share", type=Path, action="append", default=[], help="a folder under /tmp that all hosts see")
    commands.add_parser("down", help="end it with all its jobs, and leave nothing")
    commands.add_parser("status", help="nodes, jobs, and what there is of jobs on each host")
    commands.add_parser("missing", help="print the names of the packages that are missing")
    kill = commands.add_parser("kill", help="SIGKILL for all processes of a host")
    kill.add_argument("--silent", action="store_true", help="cut its network first, as a loss of power does")
    execute = commands.add_parser("exec", help="run a command on a host: exec n2 -- ps aux")
    for command in (kill, commands.add_parser("boot", help="start a killed host again"), execute):
        command.add_argument("host", choices=HOSTS)
    execute.add_argument("line", nargs="+", metavar="COMMAND")
    return parser


def _do(cluster: DevCluster, options: argparse.Namespace) -> int:
    match options.command:
        case "up":
            if cluster.running():
                print("# it is up already")
            else:
                cluster.up([path.resolve() for path in options.share])
            print(f"export SLURM_CONF={cluster.conf}\n# then, for example: srun --nodes=3 hostname")
        case "down":
            cluster.down()
        case "status":
            return _status(cluster)
        case "kill":
            cluster.kill(options.host, options.silent)
        case "boot":
            cluster.boot(options.host)
        case "exec":
            return subprocess.run(cluster.enter(options.host, *options.line), env=environment()).returncode
    return 0


def _status(cluster: DevCluster) -> int:
    if not (running := cluster.running()):
        print("it is down; `clusters/devcluster up` starts it")
        return 1
    print("running:", *running, end="\n\n")
    for command in ("sinfo", "squeue") if "slurmctld" in running else ():
        answer = cluster.client(command)
        print(answer.stdout + answer.stderr)
    for host in HOSTS:
        left = [f"{process.pid} {process.command[:100]}" for process in cluster.processes(host)] + cluster.files(host)
        print(f"{host}:", *(left or ["nothing of jobs"]), sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

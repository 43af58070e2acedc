"""A real SLURM of three virtual hosts on this machine, for tests and for trying things; see docs/devcluster.md.

Each host is a set of Linux namespaces of its own (processes, network, host name, mounts, IPC) with a bash as
process 1 that runs slurmd: whatever a job leaves behind stays in them, and all of it ends with process 1. Network,
/tmp and /dev/shm of the host go with its last process, so that little needs to be undone.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pirl.errors import DevClusterError

HOSTS = ("n1", "n2", "n3")
HERE = Path(__file__).resolve().parent
TMP = Path("/tmp")
LIMIT_S = 60.0
"""For each wait; all nodes are idle in a second."""
NEW_NAMESPACES = ("--pid", "--fork", "--mount-proc", "--kill-child", "--net", "--uts", "--mount", "--ipc")


@dataclass(frozen=True)
class Process:
    """One process, by its number on this machine, with its command line."""

    pid: int
    command: str


@dataclass(frozen=True)
class DevCluster:
    """The cluster of one number; its files, bridge and addresses are its own, so that several can be up at once."""

    number: int = 77

    @property
    def folder(self) -> Path:
        """All its files; made by `up`, removed by `down`."""
        return Path(f"/var/tmp/pirl-devcluster-{self.number}")

    @property
    def conf(self) -> Path:
        """slurm.conf: all that a client needs, as SLURM_CONF in its environment."""
        return self.folder / "slurm.conf"

    @property
    def machine(self) -> str:
        """The address of this machine on the bridge: a server that listens there is seen by all hosts."""
        return f"10.{self.number}.0.254"

    @property
    def addresses(self) -> dict[str, str]:
        """Of the hosts, by name."""
        return {host: f"10.{self.number}.0.{last}" for last, host in enumerate(HOSTS, start=1)}

    def up(self, shared: Sequence[Path] = ()) -> None:
        """Starts everything and waits until all nodes are idle; what remains of an earlier one is removed first.

        Args:
            shared: Folders that all hosts see even where they lie under /tmp, beside this checkout, Python and HOME.

        Raises:
            DevClusterError: Something did not start; nothing is left of it.
        """
        self.down()
        try:
            self._write_files([*shared, HERE.parents[1], Path.home(), Path(sys.prefix).resolve()])
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("address", "add", f"{self.machine}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            socket = self.folder / "munge.socket"
            files = [f"--{kind}-file={self.folder}/munge.{kind}" for kind in ("key", "pid", "seed", "log")]
            self._start("munged", "munged", "--foreground", "--force", f"--socket={socket}", *files)
            self._wait_for(socket.exists, "munged does not listen")
            self._start("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
            for host in HOSTS:
                self.boot(host)
            self._wait_for(self._idle, "the nodes are not idle")
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Ends every process, of jobs too, and removes all that `up` made, whatever of it there is."""
        for name in (*HOSTS, "slurmctld", "munged"):
            self.kill(name)
        with suppress(DevClusterError):
            _ip("link", "delete", self._bridge)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def running(self) -> list[str]:
        """The hosts and daemons that are running."""
        return [name for name in ("munged", "slurmctld", *HOSTS) if self._recorded(name)]

    def boot(self, host: str) -> None:
        """Starts a host; raises DevClusterError if it is running, or does not start."""
        if self.init(host):
            raise DevClusterError(f"{host} is running; `clusters/devcluster kill {host}` ends it")
        with suppress(DevClusterError):  # of a host killed just now
            _ip("link", "delete", self._cable(host))
        script = ("bash", str(HERE / "host.sh"), host, self.addresses[host], self.machine, str(self.folder))
        pid = self._start(host, "unshare", *NEW_NAMESPACES, *script, *self._shared())
        self._wait_for(lambda: self.init(host) is not None, f"{host} does not start")  # its network is made by then
        _ip("link", "add", self._cable(host), "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _ip("link", "set", self._cable(host), "master", self._bridge, "up")

    def kill(self, name: str, silent: bool = False) -> None:
        """SIGKILL for all processes of a host at once, slurmd and jobs too, or for munged or slurmctld.

        Args:
            name: Of a host, or one of the two daemons; it may be dead already.
            silent: The network goes first, as when power is cut: nobody is told that connections have ended.
        """
        if silent:
            _ip("link", "set", self._cable(name), "down")
        pids = [pid for pid in (self.init(name), self._recorded(name)) if pid]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait_for(lambda: not any(map(_alive, pids)), f"{name} does not end")
        (self.folder / f"{name}.pid").unlink(missing_ok=True)

    def init(self, host: str) -> int | None:
        """Process 1 of a host, by its number on this machine; None where the host is not running."""
        if host not in HOSTS or not (parent := self._recorded(host)):
            return None
        with suppress(OSError):
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            return int(children[0]) if children else None
        return None

    def processes(self, host: str) -> list[Process]:
        """All processes of a host but its process 1 and slurmd."""
        found = []
        init = self.init(host)
        for entry in Path("/proc").glob("[0-9]*") if init else ():
            with suppress(OSError):  # it has ended meanwhile
                there = os.readlink(entry / "ns/pid") == os.readlink(f"/proc/{init}/ns/pid")
                name = (entry / "comm").read_text().strip()
                if there and int(entry.name) != init and name != "slurmd" and _alive(int(entry.name)):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found.append(Process(int(entry.name), line or name))
        return sorted(found, key=lambda process: process.pid)

    def files(self, host: str) -> list[str]:
        """What lies in a host's own /tmp and /dev/shm, by path; not what it shares with this machine."""
        if not (init := self.init(host)):
            return []
        root = Path(f"/proc/{init}/root")
        shared = {path.partition("/")[0] for path in self._shared()}
        there = [path for path in (root / "tmp").iterdir() if path.name not in shared]
        return sorted(f"/{path.relative_to(root)}" for path in [*there, *(root / "dev/shm").iterdir()])

    def states(self) -> list[str]:
        """State of each node as sinfo has it; [] where the controller does not answer."""
        return self.client("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T").stdout.split()

    def client(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of SLURM on this machine."""
        env = {**environment(), "SLURM_CONF": str(self.conf)}
        return subprocess.run(command, env=env, capture_output=True, text=True)

    def enter(self, host: str, *command: str) -> list[str]:
        """The command line that runs a command on a host; raises DevClusterError if the host is not running."""
        if not (init := self.init(host)):
            raise DevClusterError(f"{host} is not running; `clusters/devcluster boot {host}` starts it")
        return ["nsenter", f"--target={init}", "--pid", "--net", "--uts", "--mount", "--ipc", "--", *command]

    @property
    def _bridge(self) -> str:
        return f"pirl{self.number}"

    def _cable(self, host: str) -> str:
        return f"{self._bridge}-{host}"

    def _shared(self) -> list[str]:
        """What lies under /tmp and all hosts see, relative to it."""
        return (self.folder / "shared").read_text().splitlines()

    def _write_files(self, shared: Sequence[Path]) -> None:
        for path in (self.folder, self.folder / "state", self.folder / "spool"):
            path.mkdir(mode=0o755)
        key = os.open(self.folder / "munge.key", os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(key, os.urandom(128))
        os.close(key)
        nodes = "\n".join(f"NodeName={host} NodeAddr={address}" for host, address in self.addresses.items())
        conf = (HERE / "slurm.conf").read_text()
        name = os.uname().nodename
        port = 16000 + self.number
        self.conf.write_text(conf.format(name=name, machine=self.machine, port=port, folder=self.folder, nodes=nodes))
        # In a container there may be no systemd to ask for a group.
        (self.folder / "cgroup.conf").write_text("IgnoreSystemdOnFailure=yes\n")
        hosts = {"localhost": "127.0.0.1", name: self.machine, **self.addresses}
        (self.folder / "hosts").write_text("".join(f"{address} {host}\n" for host, address in hosts.items()))
        under_tmp = {f"{path.relative_to(TMP)}\n" for path in shared if TMP in path.parents}
        (self.folder / "shared").write_text("".join(sorted(under_tmp)))

    def _start(self, name: str, *command: str) -> int:
        """Starts a process that outlives this one, and notes its number."""
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env=environment(),
            )
        (self.folder / f"{name}.pid").write_text(str(process.pid))
        return process.pid

    def _recorded(self, name: str) -> int | None:
        """The number that was noted, if it is still that process: its command line names our folder."""
        with suppress(OSError, ValueError):
            pid = int((self.folder / f"{name}.pid").read_text())
            if str(self.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def _wait_for(self, condition: Callable[[], bool], failure: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            if time.monotonic() > deadline:
                raise DevClusterError(f"{failure} after {LIMIT_S:g} s{self._logs()}")
            time.sleep(0.05)

    def _idle(self) -> bool:
        if ended := {"munged", "slurmctld", *HOSTS} - set(self.running()):
            raise DevClusterError(f"{', '.join(sorted(ended))} did not stay up{self._logs()}")
        return self.states() == ["idle"] * len(HOSTS)

    def _logs(self) -> str:
        return "".join(f"\n{log}:\n{log.read_text()[-1000:]}" for log in sorted(self.folder.glob("*.log")))


def environment() -> dict[str, str]:
    """This environment, with the folders in PATH where Debian has commands for root."""
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _ip(*arguments: str) -> None:
    answer = subprocess.run(["ip", *arguments], capture_output=True, text=True, env=environment())
    if answer.returncode:
        raise DevClusterError(f"`ip {' '.join(arguments)}`: {answer.stderr.strip()}")

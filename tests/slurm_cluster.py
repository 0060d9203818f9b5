"""A Slurm cluster of two nodes on this machine: slurmctld and two slurmd on the loopback interface, as root."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
NODES = ("n1", "n2")
CONFIG = """\
ClusterName=t
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge/munge.socket
SlurmctldPort={ports[0]}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/log/ctld.log
SlurmdLogFile={root}/log/d-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MaxArraySize=1001
SlurmdTimeout=30
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000
PartitionName=cpu Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@dataclass(frozen=True)
class SlurmCluster:
    """The folder of a running cluster."""

    root: Path

    @property
    def environment(self) -> Mapping[str, str]:
        """What its commands need."""
        return {"SLURM_CONF": str(self.root / "slurm.conf")}

    def call(self, *words: str) -> str:
        """What a command of Slurm prints."""
        environment = os.environ | dict(self.environment)
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def start_node(self, name: str) -> None:
        self.call("slurmd", "-N", name, "-f", str(self.root / "slurm.conf"))

    def kill(self, what: str) -> None:
        """Kill `slurmctld`, or a node with all that runs on it, as when its power fails."""
        number = int((self.root / f"{what}.pid").read_text())
        os.kill(number, signal.SIGKILL)

    def start_controller(self) -> None:
        self.call("slurmctld", "-f", str(self.root / "slurm.conf"))


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at the moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def missing() -> list[str]:
    """The programs that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name) is None and not Path("/usr/sbin", name).exists()]


@contextmanager
def running(root: Path) -> Iterator[SlurmCluster]:
    """Start a cluster in a folder and stop it at the end."""
    for folder in ("munge", "state", "log", *(f"spool{name}" for name in NODES)):
        (root / folder).mkdir(parents=True)
    (root / "munge").chmod(0o755)
    key = root / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = os.uname().nodename
    (root / "slurm.conf").write_text(CONFIG.format(host=host, root=root, ports=free_ports(3)))
    munge = {"key-file": key, "socket": root / "munge/munge.socket", "pid-file": root / "munge/munged.pid"}
    munge |= {"log-file": root / "munge/munged.log", "seed-file": root / "munge/seed"}
    cluster = SlurmCluster(root)
    cluster.call("munged", "--force", *(f"--{name}={value}" for name, value in munge.items()))
    try:
        cluster.start_controller()
        for name in NODES:
            cluster.start_node(name)
        wait_for(lambda: cluster.call("sinfo", "-hN", "-pcpu", "-o%T").split() == ["idle"] * len(NODES), 60)
        yield cluster
    finally:
        with suppress(subprocess.CalledProcessError):
            cluster.call("scancel", "--me")
            wait_for(lambda: not cluster.call("squeue", "-h"), 60)
        for name in ("slurmd-n1", "slurmd-n2", "slurmctld", "munge/munged"):
            with suppress(OSError, ValueError):
                os.kill(int((root / f"{name}.pid").read_text()), signal.SIGTERM)


def wait_for(what: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            pytest.fail(f"not so within {seconds} s")
        time.sleep(0.5)

"""A real SLURM of two nodes on one machine, from Debian's packages slurm-wlm and munge, in a folder of its own."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
NODES = ("n1", "n2")
SECONDS = 120
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
InactiveLimit=0
KillWait=5
MinJobAge=2
SlurmdTimeout=10
MaxArraySize=4
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=1000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=1000
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]


class TwoNodes:
    """The cluster; `stop` ends what `start` started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "MASTER_ADDR": "127.0.0.1", "PATH": SEARCHED}

    def start(self) -> None:
        (self.folder / "state").mkdir()
        for node in NODES:
            (self.folder / node).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        text = CONFIGURATION.format(
            folder=self.folder, host=socket.gethostname().partition(".")[0], ports=_free_ports(3)
        )
        (self.folder / "slurm.conf").write_text(text)
        files = [
            f"--{name}={self.folder}/munge.{end}"
            for name, end in (
                ("key-file", "key"),
                ("pid-file", "pid"),
                ("socket", "socket"),
                ("log-file", "log"),
                ("seed-file", "seed"),
            )
        ]
        self._daemon("munged", "munged", "--foreground", "--force", "--num-threads=2", *files)
        wait_until((self.folder / "munge.socket").exists, "munged is up")
        self._daemon("slurmctld", "slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self._states() == ["idle", "idle"], "both nodes are idle")

    def start_node(self, node: str) -> None:
        """Start a node, which may have been lost before."""
        self._daemon(node, "slurmd", "-D", "-N", node)

    def lose_node(self, node: str) -> None:
        """Kill a node and all that runs on it at once, as if its power had failed."""
        slurmd = self.processes.pop(node)
        os.kill(slurmd.pid, signal.SIGKILL)
        slurmd.wait()
        tasks = self.tasks_of(node)
        for process in [*map(_parent, tasks), *tasks]:  # the parent of a task is the step, which would tell of its end
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def run(self, *command: str) -> str:
        """Run one of SLURM's commands and return what it prints."""
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | self.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in reversed(self.processes.values()):
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _states(self) -> list[str]:
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%T"], capture_output=True, text=True,
            env=os.environ | self.environment,
        )  # fmt: skip
        return done.stdout.split()

    def tasks_of(self, node: str) -> list[int]:
        """Return the processes that run on a node for this cluster's jobs and are not started by one of them."""
        marks = {f"SLURM_CONF={self.environment['SLURM_CONF']}".encode(), f"SLURMD_NODENAME={node}".encode()}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if marks <= set(path.read_bytes().split(b"\0")):
                    found.append(int(path.parent.name))
            except OSError:
                continue  # it has ended
        return [process for process in found if _parent(process) not in found]

    def _daemon(self, name: str, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=SEARCHED)
        assert path is not None
        log = (self.folder / f"{name}.out").open("ab")
        self.processes[name] = subprocess.Popen(
            [path, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=os.environ | self.environment
        )


def wait_until(holds: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Wait until something holds; fail with `what` if it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not in {seconds:.0f} seconds: {what}"
        time.sleep(0.1)


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports

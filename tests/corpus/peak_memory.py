"""Peak memory of a piece of Python in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")
# Not `resource.getrusage`: its peak is the parent's before the child was its own program.
SHOW = "\nprint(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"


def peak_memory(script):
    """Run `script`; return what it printed and the most memory that it ever held, in bytes."""
    if not STATUS.exists():
        pytest.skip("only Linux tells the peak of a process's memory")
    done = subprocess.run([sys.executable, "-c", script + SHOW], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *printed, kilobytes = done.stdout.splitlines()
    return printed, int(kilobytes) * 1024

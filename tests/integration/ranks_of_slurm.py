"""Four command lines as `srun` starts them, of which one dies and comes back; prints their outputs as JSON.

Arguments: a folder for what they print; a pattern of paths, of which the first that exists is the moment to die; then
those of the command line.
"""

import glob
import importlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

WORLD = 4
SLOW_TO_IMPORT = ("torch", "pytorch_lightning", "transformers.models.bert.modeling_bert", "faiss", "pyarrow.parquet")


def start(rank, folder, arguments):
    """Fork a process that is the command line, its output going to files in `folder`; return its id."""
    child = os.fork()
    if child:
        return child
    os.environ |= {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(WORLD), "SLURM_LOCALID": str(rank)}
    for stream in (1, 2):
        os.dup2(os.open(f"{folder}/{rank}.{stream}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
    sys.argv[1:] = arguments
    runpy.run_module("retro_lab", run_name="__main__", alter_sys=True)
    sys.exit(0)


def status(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main():
    folder, moment, *arguments = sys.argv[1:]
    for module in SLOW_TO_IMPORT:
        importlib.import_module(module)
    ranks = [start(rank, folder, arguments) for rank in range(WORLD)]
    deadline = time.monotonic() + 120
    while not glob.glob(moment) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(ranks[-1], signal.SIGKILL)
    killed = status(ranks[-1])
    ranks[-1] = start(WORLD - 1, folder, arguments)
    statuses = [status(rank) for rank in ranks]
    outputs = [[Path(folder, f"{rank}.{stream}").read_text() for stream in (1, 2)] for rank in range(WORLD)]
    print(json.dumps({"killed": killed, "statuses": statuses, "outputs": outputs}))


if __name__ == "__main__":
    main()

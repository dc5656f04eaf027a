"""Death at an exact place: a process that kills itself at the n-th thing it does to a folder."""

import os
import signal
import sys

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree")


def die_at(number, folder):
    """Have this process, for the rest of its life, die of SIGKILL before its event `number` on a path in `folder`."""
    left = number

    def hook(event, arguments):
        nonlocal left
        if event in EVENTS and str(folder) in str(arguments[0]):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


def run_and_die(number, folder, work):
    """Run `work` in a forked process that dies at event `number`; tell whether it lived to the end."""
    child = os.fork()
    if child == 0:
        die_at(number, folder)
        try:
            work()
        except BaseException:  # whatever it is, pytest's frames below must not run a second time
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

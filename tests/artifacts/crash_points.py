"""Death at an exact place: a process that kills itself before the n-th change it makes to a folder."""

import os
import signal
import sys

MAKING = ("os.mkdir", "os.rename")
REMOVING = ("os.remove", "os.rmdir")


def changes(event, arguments, folder):
    """Tell whether an audit event is a change to what is in `folder`."""
    if event not in ("open", *MAKING, *REMOVING):
        return False
    inside = str(folder) in str(arguments[0])
    if event == "open":
        return inside and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
    # Trees are removed name by name, relative to the open folder that holds the name.
    return inside or (event in REMOVING and arguments[1] >= 0)


def die_at(number, folder):
    """Have this process, for the rest of its life, die of SIGKILL before change `number` to `folder`."""
    left = number

    def hook(event, arguments):
        nonlocal left
        if changes(event, arguments, folder):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


def run_and_die(number, folder, work):
    """Run `work` in a forked process that dies before change `number`; return its exit status."""
    child = os.fork()
    if child == 0:
        die_at(number, folder)
        try:
            work()
        except BaseException:  # whatever it is, pytest's frames below must not run a second time
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

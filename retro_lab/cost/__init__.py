"""The cost of a model, its training and a database, computed from shapes alone; `task=plan` prints it.

Plain arguments in, numbers out: nothing here depends on Hydra or on a task.
"""

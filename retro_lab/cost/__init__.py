"""What a model, its training and a database take, from their shapes alone: what `task=plan` lays out.

Plain arguments in, numbers out: nothing here knows of Hydra or of a task.
"""

"""What only a GPU can show, asked by one command on a machine without network.

`check` says what a check is, `runner` runs them in a process that may die, `needs` says what is missing, `catalogue`
lists them, most valuable first. Nothing here has run on a GPU yet: what needs none (the runner, every comparison
through Triton's interpreter, compilation, ahead-of-time engines, the pages) is tested.
"""

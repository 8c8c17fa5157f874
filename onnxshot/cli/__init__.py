"""The command line, one command per file. Commands parse options, call the Python API, and print.

Start with `app`, which lists the commands. Options that commands share are in `options` and `emit_options`; tables are
in `tables`. A command imports what is heavy inside its function, so that the others start fast.
"""

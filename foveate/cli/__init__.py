"""The command line: one file per command. Bad input gives one clear line and exit code 2, never a traceback."""

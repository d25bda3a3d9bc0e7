"""One module a verb; its function's docstring is what `--help` says."""

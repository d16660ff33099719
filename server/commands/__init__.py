"""The commands of `croupier`, one module each; imported when run."""

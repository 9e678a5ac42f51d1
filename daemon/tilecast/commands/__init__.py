"""The subcommands of `tilecast`, a module each; `tilecast.cli` has their list."""

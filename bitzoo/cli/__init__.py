"""The commands: one file per command group. They read options and print; the library decides."""

"""The commands, one file per group. They read options and print; the library does the work."""

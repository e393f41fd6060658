"""The package as far as it can be run as on Windows, on a system that is not.

    python tests/as_on_windows.py list

Only the package's own modules see it, by the modules that they import: `fcntl` and others are
missing, `os` and `signal` lack what they lack on Windows, `os.name` and `sys.platform` say Windows,
folders cannot be opened, and `msvcrt.locking` locks. Paths, other libraries and processes that are
started stay as they are.
"""

import builtins
import errno
import os
import signal
import sys
import types

MISSING = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}
"""Modules that Windows has not."""

OS_LACKS = {
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "fchmod", "fchown", "fork"),
    *("forkpty", "getegid", "geteuid", "getgid", "getgroups", "getpgid", "getpgrp", "getuid"),
    *("killpg", "lchown", "mkfifo", "mknod", "nice", "openpty", "posix_fadvise", "posix_fallocate"),
    *("pread", "preadv", "pwrite", "pwritev", "readv", "register_at_fork", "sched_getaffinity"),
    *("sched_setaffinity", "sendfile", "setsid", "setuid", "statvfs", "sync", "sysconf", "uname"),
    *(
        "wait",
        "waitid",
        "writev",
        "set_blocking",
        "getxattr",
        "listxattr",
        "setxattr",
        "memfd_create",
    ),
}
SIGNAL_LACKS = {
    *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGPROF", "SIGQUIT"),
    *("SIGSTOP", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGXCPU", "ITIMER_REAL"),
    *("ITIMER_PROF", "alarm", "setitimer", "getitimer", "pause", "sigwait", "pthread_sigmask"),
}
SELECT_LACKS = {"poll", "epoll"}


def lacking(module, names, **changes):
    """Return a module without some of its names."""
    other = types.ModuleType(module.__name__)
    kept = {name: value for name, value in vars(module).items() if name not in names}
    vars(other).update(kept | changes)
    return other


def open_file(path, flags, mode=0o777, *, dir_fd=None):
    """`os.open`, which opens no folder on Windows."""
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    return os.open(path, flags, mode)


def fsync(descriptor):
    """`os.fsync`, which on Windows flushes only what is open for writing."""
    import fcntl

    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    os.fsync(descriptor)


def locking(descriptor, mode, count):
    """`msvcrt.locking`: a lock of `count` bytes at the file's position."""
    import fcntl

    if mode == 0:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, count, 0, os.SEEK_CUR)
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, count, 0, os.SEEK_CUR)
    except BlockingIOError as error:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from error


def set_wakeup_fd(descriptor, *, warn_on_full_buffer=True):
    """`signal.set_wakeup_fd`, which on Windows takes a pipe that blocks."""
    if descriptor != -1:
        os.set_blocking(descriptor, False)
    return signal.set_wakeup_fd(descriptor, warn_on_full_buffer=warn_on_full_buffer)


def install():
    """Have the package see it."""
    import select

    msvcrt = types.ModuleType("msvcrt")
    vars(msvcrt).update(LK_UNLCK=0, LK_LOCK=1, LK_NBLCK=2, locking=locking)
    seen = {
        "os": lacking(os, OS_LACKS, name="nt", open=open_file, fsync=fsync, O_BINARY=0),
        "signal": lacking(signal, SIGNAL_LACKS, set_wakeup_fd=set_wakeup_fd),
        "select": lacking(select, SELECT_LACKS),
        "sys": lacking(sys, (), platform="win32"),
        "msvcrt": msvcrt,
    }
    real = builtins.__import__

    def import_(name, globals=None, locals=None, fromlist=(), level=0):  # noqa: A002
        if not level and str((globals or {}).get("__name__")).split(".")[0] == "bitzoo":
            if name in MISSING:
                raise ImportError(f"No module named {name!r}", name=name)
            if name in seen and name != "sys":  # whose streams are replaced now and then
                return seen[name]
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = import_


if __name__ == "__main__":
    del sys.path[0]
    install()
    from bitzoo.cli.main import main

    main()

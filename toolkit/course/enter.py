"""Builds the walls of the sandbox around this process, then becomes the program inside.

Started by `toolkit.course.sandbox` as `python -I enter.py PLAN`; standard library only.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path

NEWNS, NEWIPC, NEWUTS, NEWUSER, NEWPID, NEWNET = (
    0x00020000,
    0x08000000,
    0x04000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PDEATHSIG, DUMPABLE, CAPBSET_DROP, NO_NEW_PRIVS = 1, 4, 24, 38
NOBODY = 2**30
DEVICES = ("null", "zero", "full", "random", "urandom")
libc = ctypes.CDLL(None, use_errno=True)


def main(plan: dict) -> None:
    """Isolate if asked, limit, and execute the program."""
    plan["pid"] = os.getpid()
    die_with_parent()
    if plan["isolate"]:
        new_namespaces()
        become_child()  # the namespace's first process: at its end all others end
        enter_root(plan)
        become_child()
    os.chdir("/desk" if plan["isolate"] else plan["home"])
    limit(plan["limits"])
    drop_privileges(NOBODY + plan["pid"] if plan["isolate"] else os.getuid())
    home = os.getcwd()
    os.execve(
        sys.executable,
        [sys.executable, "-I", "-u", plan["program"]],
        {"PATH": "/usr/bin:/bin", "HOME": home, "TMPDIR": home} | plan["environment"],
    )


def new_namespaces() -> None:
    """Leave the machine's mounts, processes, network and users."""
    user, group = os.getuid(), os.getgid()
    kinds = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS
    call("unshare", ctypes.c_int(kinds | (NEWUSER if user else 0)))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def become_child() -> None:
    """Go on as a child; this process waits for its end, ends alike, and takes it along if killed.

    It cannot be traced, even by a process of its own user.
    """
    if child := os.fork():
        libc.prctl(DUMPABLE, 0, 0, 0, 0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
    die_with_parent()


def die_with_parent() -> None:
    """Be killed when the process that started this one ends."""
    libc.prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def enter_root(plan: dict) -> None:
    """A root in memory with read-only views of what may be read, and a folder to work in."""
    root = Path(plan["home"], "root")
    root.mkdir()
    mount("none", "/", None, REC | PRIVATE)
    mount("tmpfs", root, "tmpfs", NOSUID | NODEV, "mode=755,size=256m")
    for path in sorted({Path(place) for place in plan["readable"]}):
        show(path, root)
    (root / "dev").mkdir()
    for name in DEVICES:
        (root / "dev" / name).touch()
        mount(f"/dev/{name}", root / "dev" / name, None, BIND)
    (root / "proc").mkdir()
    mount("proc", root / "proc", "proc", NOSUID | NODEV)
    (root / "desk").mkdir(mode=0o777)
    os.chmod(root / "desk", 0o777)
    mount(root, root, None, BIND | REC)
    os.chroot(root)
    os.chdir("/")
    mount("none", "/", None, REMOUNT | BIND | RDONLY | NOSUID)
    mount("tmpfs", "/desk", "tmpfs", NOSUID | NODEV, "mode=777,size=256m")


def show(path: Path, root: Path) -> None:
    """Make one file or folder readable under the new root, at its own place."""
    target = root / path.relative_to("/")
    if path.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_symlink():
            target.symlink_to(os.readlink(path))
        return
    if target.exists():
        return  # inside a folder that is shown already
    if path.is_dir():
        target.mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(path, target, None, BIND)
    mount("none", target, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)


def limit(limits: dict) -> None:
    """Hard limits; a child cannot raise them."""
    for kind, value in (
        (resource.RLIMIT_CPU, int(limits["cpu"])),
        (resource.RLIMIT_DATA, int(limits["memory"])),
        (resource.RLIMIT_FSIZE, int(limits["file"])),
        (resource.RLIMIT_NPROC, int(limits["processes"])),
        (resource.RLIMIT_NOFILE, int(limits["open_files"])),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def drop_privileges(user: int) -> None:
    """No capability is left, and no program can give one back.

    Args:
        user: whom root becomes: somebody without files, and of this sandbox alone, since the limit
            of processes counts a user's. Root of a user namespace is an ordinary user already.
    """
    libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):
        libc.prctl(CAPBSET_DROP, capability, 0, 0, 0)
    if os.getuid() == 0 != user and not in_user_namespace():
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)


def in_user_namespace() -> bool:
    """Whether root here is an ordinary user outside."""
    return Path("/proc/self/uid_map").read_text().split()[1] != "0"


def mount(source: object, target: object, kind: str | None, flags: int, data: str = "") -> None:
    """The system call, with text for bytes."""
    call(
        "mount",
        str(source).encode(),
        str(target).encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )


def call(name: str, *arguments: object) -> None:
    """Call libc; a failure becomes an OSError that says of what."""
    if getattr(libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}{arguments}: {os.strerror(error)}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""Every row of the table in `punchd.control.listener`, and who may connect to what it makes."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from punchd.control.listener import BACKLOG, Access, Listener
from punchd.errors import ConfigError

UID = os.getuid()
OWN = Access(UID, None, 0o600)
TRUSTED = frozenset({0, UID})
NOBODY = 65534
STRANGER = 54321  # a user and a group that nobody has

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users: sudo ./dev test")


@pytest.fixture(name="path")
def _path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path in a directory like /tmp, that others can reach."""
    directory = Path(tmp_path_factory.mktemp("open"))
    for parent in (directory, *directory.parents):
        if parent == Path("/tmp"):
            break
        parent.chmod(0o755)
    directory.chmod(0o1777)
    return directory / "punchd.socket"


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as trial:
        trial.settimeout(5)
        try:
            trial.connect(str(path))
        except OSError:
            return False
        return True


def dead_socket(path: Path, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(str(path))


def as_user(uid: int, gid: int, groups: list[int], action: Callable[[], None]) -> str:
    """What happens to `action` in a child with that identity: "ok" or the name of its error."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        text = "died"
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            action()
            text = "ok"
        except OSError as error:
            text = type(error).__name__
        finally:
            os.write(write_end, text.encode())
            os._exit(0)
    os.close(write_end)
    with open(read_end) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


# --- the table ------------------------------------------------------------------------------------------------------


def test_a_free_path_is_bound_and_removed_at_the_end(path: Path) -> None:
    listener = Listener(str(path), OWN, TRUSTED)
    assert connects(path)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert not os.get_inheritable(listener.socket.fileno())
    assert not listener.socket.getblocking()
    listener.close()
    assert not path.exists()


def test_a_live_socket_is_a_running_daemon_and_stays_unharmed(path: Path) -> None:
    first = Listener(str(path), OWN, TRUSTED)
    with pytest.raises(ConfigError, match="already running: another daemon answers there"):
        Listener(str(path), OWN, TRUSTED)
    assert connects(path)
    first.close()


def test_a_live_socket_with_a_full_backlog_is_a_running_daemon(path: Path) -> None:
    first = Listener(str(path), OWN, TRUSTED)
    first.socket.listen(0)
    waiting = []
    while True:
        trial = socket.socket(socket.AF_UNIX)
        waiting.append(trial)
        trial.setblocking(False)
        try:
            trial.connect(str(path))
        except BlockingIOError:
            break
        assert len(waiting) < 2 * BACKLOG
    with pytest.raises(ConfigError, match="already running"):
        Listener(str(path), OWN, TRUSTED)
    assert path.exists()
    for trial in waiting:
        trial.close()
    first.close()


def test_a_dead_socket_of_ours_is_replaced(path: Path) -> None:
    dead_socket(path)
    listener = Listener(str(path), OWN, TRUSTED)
    assert connects(path)
    listener.close()
    assert not path.exists()


def test_a_socket_that_was_left_by_kill_9_is_replaced(path: Path) -> None:
    program = f"import socket, time; s = socket.socket(socket.AF_UNIX); s.bind({str(path)!r}); s.listen(); "
    with subprocess.Popen(
        [sys.executable, "-c", program + "print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ConfigError, match="already running"):
            Listener(str(path), OWN, TRUSTED)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert path.exists()
        Listener(str(path), OWN, TRUSTED).close()


@root
def test_a_dead_socket_of_somebody_else_is_squatted(path: Path) -> None:
    dead_socket(path)
    os.chown(path, STRANGER, STRANGER)
    with pytest.raises(ConfigError, match=rf"taken: it belongs to uid {STRANGER}, not to root or punchd"):
        Listener(str(path), OWN, TRUSTED)
    assert path.exists()
    Listener(str(path), OWN, TRUSTED | {STRANGER}).close()


def test_a_live_datagram_socket_is_not_taken_for_a_dead_one(path: Path) -> None:
    """A log daemon's, for example: it refuses streams, and is alive."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(ConfigError, match=r"taken: .* wrong type"):
            Listener(str(path), OWN, TRUSTED)
        assert path.exists()


def test_a_symbolic_link_is_squatted_wherever_it_leads(path: Path) -> None:
    path.with_name("file").touch()
    dead_socket(path.with_name("socket"))
    for target in ("missing", "file", "socket"):
        path.symlink_to(path.with_name(target))
        with pytest.raises(ConfigError, match=r"taken: .* found a symbolic link"):
            Listener(str(path), OWN, TRUSTED)
        assert path.is_symlink()
        path.unlink()


def test_a_regular_file_and_a_directory_are_squatted_and_stay(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigError, match=r"taken: .* found not a socket"):
        Listener(str(path), OWN, TRUSTED)
    assert path.read_text() == "precious"
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"taken: .* found not a socket"):
        Listener(str(path), OWN, TRUSTED)
    os.rmdir(path)
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"taken: .* found not a socket"):
        Listener(str(path), OWN, TRUSTED)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing/punchd.socket", "No such file or directory"),
        ("x" * 120, "at most 107 bytes"),
        ("ä" * 54, "at most 107 bytes"),
    ],
)
def test_a_path_that_cannot_be_is_one_clear_message(path: Path, name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        Listener(str(path.parent / name), OWN, TRUSTED)
    assert "\n" not in str(caught.value)


# --- the end ---------------------------------------------------------------------------------------------------------


def test_a_path_that_is_somebody_elses_by_then_is_left_alone(path: Path) -> None:
    first = Listener(str(path), OWN, TRUSTED)
    path.unlink()
    second = Listener(str(path), OWN, TRUSTED)
    first.close()
    assert connects(path)
    second.close()
    assert not path.exists()


def test_a_path_that_is_gone_by_then_is_no_error(path: Path) -> None:
    listener = Listener(str(path), OWN, TRUSTED)
    path.unlink()
    listener.close()
    path.write_text("new")
    listener.close()
    assert path.read_text() == "new"


def test_nobody_finds_a_dead_socket_while_one_daemon_follows_another(path: Path) -> None:
    """At the end the path goes first: whoever finds it finds a daemon."""
    listener = Listener(str(path), OWN, TRUSTED)
    seen: list[bool] = []

    class Watched(socket.socket):
        def close(self) -> None:
            seen.append(path.exists())
            super().close()

    listener.socket = Watched(fileno=listener.socket.detach())
    listener.close()
    assert seen == [False]


@root
def test_a_listener_that_cannot_be_finished_leaves_nothing_behind(path: Path) -> None:
    """The group is not one of a user without privileges: chown fails after bind."""

    def attempt() -> None:
        try:
            Listener(str(path), Access(NOBODY, STRANGER, 0o660), frozenset({0, NOBODY}))
        except ConfigError as error:
            raise (ProcessLookupError if "Operation not permitted" in str(error) else OSError) from None

    assert as_user(NOBODY, NOBODY, [], attempt) == "ProcessLookupError"
    assert not path.exists()


# --- who may connect -----------------------------------------------------------------------------------------------


@root
@pytest.mark.parametrize(
    ("mode", "identity", "outcome"),
    [
        (0o660, (NOBODY, NOBODY, []), "PermissionError"),  # outside the group
        (0o660, (NOBODY, NOBODY, [STRANGER]), "ok"),
        (0o660, (NOBODY, STRANGER, []), "ok"),
        (0o660, (STRANGER, NOBODY, []), "ok"),  # the owner: the service user
        (0o600, (NOBODY, NOBODY, [STRANGER]), "PermissionError"),
        (0o666, (NOBODY, NOBODY, []), "ok"),
    ],
)
def test_mode_group_and_owner_decide_who_can_connect(
    path: Path, mode: int, identity: tuple[int, int, list[int]], outcome: str
) -> None:
    listener = Listener(str(path), Access(STRANGER, STRANGER, mode), TRUSTED)
    found = path.lstat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (STRANGER, STRANGER, mode)

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as application:
            application.connect(str(path))

    assert as_user(*identity, connect) == outcome
    listener.close()


@root
def test_the_service_user_can_remove_its_socket_from_a_sticky_directory(path: Path) -> None:
    listener = Listener(str(path), Access(STRANGER, STRANGER, 0o660), TRUSTED)
    assert as_user(NOBODY, NOBODY, [STRANGER], path.unlink) == "PermissionError"
    assert path.exists()
    assert as_user(STRANGER, STRANGER, [], listener.close) == "ok"
    assert not path.exists()
    listener.socket.close()


@root
def test_nobody_can_connect_before_the_socket_has_its_group(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[str] = []
    chown = os.chown

    def connect() -> None:
        with socket.socket(socket.AF_UNIX) as application:
            application.connect(str(path))

    def slow_chown(*args: object, **options: object) -> None:
        outcomes.append(as_user(NOBODY, NOBODY, [STRANGER], connect))
        chown(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "chown", slow_chown)
    old = os.umask(0)
    try:
        Listener(str(path), Access(0, STRANGER, 0o660), TRUSTED).close()
    finally:
        assert os.umask(old) == 0, "the mask is given back"
    assert outcomes == ["PermissionError"]


@root
def test_whoever_gets_the_socket_cannot_have_another_file_opened_up_instead(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new owner swaps the path between the change of owner and that of the mode."""
    secret = path.parent / "secret"
    secret.touch(0o600)
    really = os.chown

    def chown_and_swap(target: str, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        really(target, uid, gid, follow_symlinks=follow_symlinks)
        path.unlink()
        path.symlink_to(secret)

    monkeypatch.setattr(os, "chown", chown_and_swap)
    with pytest.raises(ConfigError, match="another daemon started"):
        Listener(str(path), Access(STRANGER, STRANGER, 0o666), frozenset({0}))
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600

"""Files: read regular files only, within a limit; write each as a whole or not at all; name them in messages."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import string
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from isnet_trt.errors import IsnetError, SettingsError

try:
    import fcntl
except ImportError:  # Windows has no file locks of this kind, and needs none: it keeps an open file from being removed
    fcntl = None  # type: ignore[assignment]

AnyPath = str | os.PathLike[str]
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL
_UNTRANSLATED = getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_PREFIX, _RANDOM = ".isnet~", 5
_TEMPORARY = re.compile(re.escape(_PREFIX) + f"[a-z0-9]{{{_RANDOM}}}" + r"(\.\w+)?")
"""Names of temporary files: short, since the file that they become may have the longest name that the system takes."""
_EARLIER = re.compile(r"\..+\.(?:png|pth|csv|json)\.([1-9]\d{0,9})\.tmp")
"""Those of earlier versions, with the number of the process that wrote them instead of a lock."""
_LINK_SECONDS = 60
_SPECIAL = (
    (stat.S_ISDIR, errno.EISDIR, "a folder"),
    (stat.S_ISFIFO, errno.EINVAL, "a FIFO"),
    (stat.S_ISSOCK, errno.EINVAL, "a socket"),
    (stat.S_ISCHR, errno.EINVAL, "a device"),
    (stat.S_ISBLK, errno.EINVAL, "a device"),
)


def open_regular(path: AnyPath, follow_links: bool = True) -> BinaryIO:
    """Open a regular file, or a link to one, for reading bytes; never waits for the writer of a FIFO.

    Raises:
        OSError: it cannot be opened, is no regular file, or is a link although ``follow_links`` is False (ELOOP);
            ``strerror`` has the reason.
    """
    try:
        # Before it is opened: opening a device may do something.
        status = Path(path).stat(follow_symlinks=follow_links)
        _refuse_special(status, path)
        if stat.S_ISLNK(status.st_mode):
            raise OSError(errno.ELOOP, "it is a symbolic link, not a regular file", path)
        no_link = 0 if follow_links else _NO_LINK  # it may have become a link since
        descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | _UNTRANSLATED | no_link)
    except ValueError as error:  # a NUL, or characters that no file name can hold
        raise OSError(errno.EINVAL, f"the name cannot be used ({error})", path) from None
    try:
        _refuse_special(os.fstat(descriptor), path)  # it may have been replaced since
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def regular_file_bytes(path: AnyPath, limit: int | None = None, error_type: type[IsnetError] = SettingsError) -> bytes:
    """Read a regular file, or a link to one, of at most ``limit`` bytes.

    Raises:
        IsnetError: it cannot be read, is no regular file, or is longer, as ``error_type``.
    """
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            if limit is not None and size > limit:
                raise error_type(f"{path} is too large: {size} bytes, the limit is {limit}")
            return stream.read(size)  # what is appended meanwhile stays unread
    except OSError as error:
        raise error_type(f"{path} cannot be read: {_reason(path, error)}") from None
    except MemoryError:
        raise error_type(f"{path} cannot be read: {size} bytes do not fit in memory") from None


def is_missing(path: AnyPath) -> bool:
    """Whether the system says that there is nothing of this name; False where it refuses to say, without permission."""
    try:
        Path(path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def check_name_length(path: Path, option: str) -> None:
    """Raise SettingsError if the system takes no name as long as ``path``'s; ``option`` is where it comes from."""
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    try:
        (folder / path.name).lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise SettingsError(
                f"{option}: {path.name} is longer than a file's name can be; choose a shorter one"
            ) from None


def obstacle(path: AnyPath) -> str | None:
    """Why a file cannot be opened for reading, found without opening it; None if nothing stands in the way."""
    try:
        _refuse_special(Path(path).stat(), path)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return _reason(path, error)
    return None if may_use(path, os.R_OK) else os.strerror(errno.EACCES)


def may_use(path: AnyPath, mode: int) -> bool:
    """Whether the process, with the rights that it has now, may use a file or folder so (`os.R_OK`, `os.W_OK`, …)."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _reason(path: AnyPath, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and (link := Path(path)).is_symlink():
        return f"it is a link to {link.readlink()}, which does not exist"
    return error.strerror or str(error)


def _refuse_special(status: os.stat_result, path: AnyPath) -> None:
    """Raise OSError for what is neither a regular file nor a link."""
    for is_kind, number, kind in _SPECIAL:
        if is_kind(status.st_mode):
            raise OSError(number, f"it is {kind}, not a regular file", path)


def write_file(
    path: Path, content: bytes | Callable[[BinaryIO], object], error_type: type[IsnetError] = SettingsError
) -> None:
    """Write a file through a temporary one beside it, so that it appears as a whole or not at all.

    ``content`` may be a function that writes it to a stream.

    Raises:
        IsnetError: it cannot be written, as ``error_type``; an earlier file of this name stays.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content)
    except OSError as error:
        raise error_type(f"{path} cannot be written: {error.strerror or error}; it is as it was") from None


@contextlib.contextmanager
def replacing(path: Path, suffix: str = "") -> Iterator[Path]:
    """A new, empty temporary file beside ``path`` to write to; it replaces ``path`` if the block ends without an error.

    ``suffix`` ends its name, for what chooses a format by it.

    Its name cannot be guessed, and nothing that exists under it is opened. What a killed process left in the folder
    is removed.

    Raises:
        OSError: the file cannot be created or renamed, or ``path`` is something else than a file or a link.
    """
    check_target(path)
    _sweep_once(os.path.abspath(path.parent))  # noqa: PTH100  # absolute: the working directory may change
    temporary, descriptor = _create(path.parent, suffix)
    with contextlib.ExitStack() as lock:
        lock.callback(os.close, descriptor)
        try:
            yield temporary
            if fcntl is None:  # Windows renames no open file; elsewhere the lock is kept until the name is gone
                lock.close()
            temporary.replace(path)
        except BaseException:
            if fcntl is None:
                lock.close()
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_output(path: Path, content: bytes, option: str) -> None:
    """Write a result to the file that ``option`` names: as `write_file`, or into a device or FIFO such as /dev/stdout.

    Raises SettingsError if it cannot be written.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        status = None
    try:
        if status is not None and (stat.S_ISCHR(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            path.write_bytes(content)
            return
    except OSError as error:
        raise SettingsError(f"{option} {path} cannot be written: {error.strerror or error}") from None
    try:
        write_file(path, content)
    except SettingsError as error:
        raise SettingsError(f"{option} {error}") from None


def replace_link(link: Path, target: str) -> None:
    """Create the symbolic link ``link`` to ``target``, in place of an earlier one; OSError if that fails."""
    check_target(link)
    temporary = link.with_name(_temporary_name())
    temporary.symlink_to(target)
    try:
        temporary.replace(link)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk, so that a power cut leaves them; on POSIX only."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_target(path: Path) -> None:
    """Raise OSError unless ``path`` is free, a regular file, or a link to one or to nothing: a new file may replace it.

    The super-user could replace ``/dev/null`` or the link ``/dev/stdout`` otherwise.
    """
    try:
        _refuse_special(path.lstat(), path)
        _refuse_special(path.stat(), path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno == errno.ELOOP:
            return
        raise
    except ValueError as error:
        raise OSError(errno.EINVAL, f"the name cannot be used ({error})", path) from None


def _temporary_name() -> str:
    return _PREFIX + "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(_RANDOM))


def _create(folder: Path, suffix: str) -> tuple[Path, int]:
    """A new temporary file in ``folder`` and its descriptor, whose lock keeps others from sweeping the file."""
    while True:
        path = folder / (_temporary_name() + suffix)
        try:
            descriptor = os.open(path, _CREATE | _NO_LINK | _UNTRANSLATED, 0o666)
        except FileExistsError:
            continue
        try:
            _lock(descriptor)
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return path, descriptor
        except (BlockingIOError, FileNotFoundError):
            pass  # another process swept it between its creation and the lock
        except OSError:  # a file system without locks, which is never swept
            return path, descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Lock a file for as long as it is open; OSError if another process has it (BlockingIOError) or cannot be."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@lru_cache(maxsize=256)
def _sweep_once(folder: str) -> None:
    """`sweep`, once in a process: a folder may receive a hundred thousand results."""
    sweep(Path(folder))


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes left in ``folder``; those still being written are locked."""
    try:
        names = [name for name in os.listdir(folder) if _is_abandonable(name)]  # noqa: PTH208  # 100,000 names
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):
            _remove_abandoned(folder / name)


def _is_abandonable(name: str) -> bool:
    """Whether a file of this name is temporary; False for one of an earlier version whose process still runs."""
    if _TEMPORARY.fullmatch(name):
        return True
    earlier = _EARLIER.fullmatch(name)
    return earlier is not None and _has_ended(int(earlier[1]))


def _has_ended(process: int) -> bool:
    if fcntl is None:  # Windows: os.kill would end the process
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's
        pass
    return False


def _remove_abandoned(path: Path) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):  # of `replace_link`, which takes microseconds
        if time.time() - status.st_mtime > _LINK_SECONDS:
            path.unlink()
    elif stat.S_ISREG(status.st_mode):
        descriptor = os.open(path, os.O_RDWR | _NO_LINK | _UNTRANSLATED)
        try:
            _lock(descriptor)
            path.unlink()
        finally:
            os.close(descriptor)


def make_folder(folder: Path, option: str) -> Path:
    """Create ``folder`` if it is missing, and return it; ``option`` is the command-line option that names it.

    Raises SettingsError if it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, FileExistsError):
            reason = "there is a file of this name"
        raise SettingsError(f"{option} {folder}: the folder cannot be created ({reason})") from None
    if not may_use(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"{option} {folder}: the folder cannot be written to (no permission)")
    sweep(folder)
    return folder


@contextlib.contextmanager
def output_folder(folder: Path, option: str) -> Iterator[Path]:
    """`make_folder`; those folders that it created are removed at the end if nothing was written into them."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        yield make_folder(folder, option)
    finally:
        for path in missing:  # the innermost first
            with contextlib.suppress(OSError, ValueError):
                path.rmdir()


def refuse_inputs(outputs: Iterable[Path], inputs: Iterable[Path], option: str) -> None:
    """Raise SettingsError if one of the files to be written, in the folder that ``option`` names, is also read."""
    # Path.resolve raises for a link to itself, realpath does not.
    resolved = {os.path.realpath(path) for path in inputs}
    for path in outputs:
        if os.path.realpath(path) in resolved:
            raise SettingsError(f"{path} is one of the files read and would be replaced; choose another {option}")


def printable(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are no Unicode as ``\\xe9``."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that stand for no byte: the name of no file
        return name.encode("utf-8", "backslashreplace").decode()


def named(path: AnyPath, error: Exception) -> str:
    """The message of an error with the file's path in it."""
    return str(error) if os.fspath(path) in str(error) else f"{os.fspath(path)}: {error}"

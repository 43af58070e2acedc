"""What lies in a folder: its files with their sizes, and an account of what is there and cannot be read.

On a disk links are followed. Each folder is read once, by its own name before that of any link to it, so what is found
hangs neither on the order in which the system lists names nor on links that lead in a circle.
"""

import heapq
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pirl.prepare.sources.not_read import BESIDE, HEAD_BYTES, JUNK, NotRead, is_junk, suffix_of, tidy
from pirl.storage.folder import Folder
from pirl.storage.retry import persistently

HEAD_THREADS = 32
"""Files that are looked into at a time: an object store answers after some 50 ms."""


def files_in(folder: Folder, not_read: NotRead) -> dict[str, int]:
    """Bytes of each file in a folder and in the folders in it, by its path in it, in alphabetical order.

    What systems and programs put there is left out, and on a disk what is no file that can be read; `not_read` counts
    such. Raises OSError where the folder itself cannot be read.
    """
    if folder.path is not None:
        return dict(sorted(_on_disk(str(folder.path), not_read).items()))
    found = {}
    for name, size in sorted(folder.sizes().items()):
        if is_junk(tidy(name)):
            not_read.is_read(tidy(name))
        elif not name.endswith("/"):  # an empty object of that name makes a store show a folder
            found[name] = size
    return found


def heads(uris: list[str]) -> list[bytes]:
    """The first bytes of files."""
    with ThreadPoolExecutor(HEAD_THREADS) as pool:
        return list(pool.map(lambda uri: Folder(uri).read_bytes(offset=0, length=HEAD_BYTES), uris))


def size_or_problem(path: str) -> int | str:
    """Bytes of a file of this machine; why it is none that can be read."""
    try:
        status = os.stat(path)
    except PermissionError:
        return "files without permission to read"
    except OSError:  # there is nothing, or links lead in a circle
        return "links to nothing"
    if not stat.S_ISREG(status.st_mode):
        return "pipes, sockets and devices"
    if not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        return "files without permission to read"
    return status.st_size


def _listed(path: str) -> tuple[os.stat_result, list[os.DirEntry[str]]]:
    with os.scandir(path) as entries:
        return os.stat(path), list(entries)


def _on_disk(root: str, not_read: NotRead) -> dict[str, int]:
    os.scandir(root).close()  # raises what is wrong with the folder itself
    sizes: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    links = [""]
    while links:
        for link in _walk(root, heapq.heappop(links), seen, sizes, not_read):
            heapq.heappush(links, link)
    return sizes


def _walk(root: str, top: str, seen: set[tuple[int, int]], sizes: dict[str, int], not_read: NotRead) -> list[str]:
    """Adds what is reached from a folder without a link; returns the links to folders on the way."""
    stack, links = [(top, False)], []
    while stack:
        folder, junk = stack.pop()
        path = os.path.join(root, folder)
        try:
            status, entries = persistently(f"listing {path}", partial(_listed, path))
        except PermissionError:
            not_read.add("folders without permission to read", folder, may_be_images=not junk)
            continue
        except FileNotFoundError:  # which another process removed meanwhile
            continue
        if (status.st_dev, status.st_ino) in seen:
            not_read.add("links to folders that are read already", folder, may_be_images=False)
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            is_left = junk or JUNK.fullmatch(entry.name) is not None
            if entry.is_dir(follow_symlinks=False):
                stack.append((name, is_left))
            elif is_left:
                not_read.is_read(name)
            elif os.path.isdir(entry.path):
                links.append(name)
            elif isinstance(size := size_or_problem(entry.path), int):
                sizes[name] = size
            else:
                not_read.add(size, name, may_be_images=suffix_of(name) not in BESIDE)
    return links

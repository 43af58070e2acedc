import os
import socket
import tempfile
import threading
from itertools import takewhile
from pathlib import Path

import pytest

from pirl.prepare.sources.listing import files_in, heads
from pirl.prepare.sources.not_read import HEAD_BYTES, NotRead
from pirl.storage.folder import Folder


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def listed(folder):
    """The files that are found, and the account of all else; ends after 10 s, come what may."""
    not_read, found = NotRead(), {}
    thread = threading.Thread(target=lambda: found.update(files_in(Folder(str(folder)), not_read)), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it waits for a file that nobody writes"
    return found, not_read.left


def test_files_with_their_sizes(tmp_path):
    make(tmp_path, "b/2.png", "a.txt", "b/c/1.png")
    assert listed(tmp_path) == ({"a.txt": 5, "b/2.png": 7, "b/c/1.png": 9}, {})
    assert list(listed(tmp_path)[0]) == ["a.txt", "b/2.png", "b/c/1.png"]


def test_what_is_no_file(tmp_path):
    make(tmp_path, "cat/1.png")
    os.mkfifo(tmp_path / "cat" / "x.png")
    (tmp_path / "cat" / "y.png").symlink_to("x.png")
    (tmp_path / "cat" / "z.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket is 108 bytes long at most
        server.bind("s.png")
        os.chdir(here)
        found, left = listed(tmp_path)
    assert found == {"cat/1.png": 9}
    assert left == {"pipes, sockets and devices": (4, "cat/x.png", True)}


def test_links(tmp_path):
    make(tmp_path / "set", "cat/1.png")
    make(tmp_path / "far", "dog/2.png", "3.png")
    links = {
        "dog": "../far/dog",  # a folder elsewhere
        "3.png": "../far/3.png",
        "again": "../far/dog",  # a second way to it: `again` comes first
        "cat/up": "..",
        "cat/self": ".",
        "gone.png": "nowhere",
        "round.png": "round.png",
        "notes.txt": "nowhere",
    }
    for name, target in links.items():
        (tmp_path / "set" / name).symlink_to(target)
    found, left = listed(tmp_path / "set")
    assert found == {"again/2.png": 9, "cat/1.png": 9, "3.png": 5}
    assert left == {
        "links to folders that are read already": (3, "cat/self", False),
        "links to nothing": (3, "gone.png", True),
    }


def test_each_folder_has_its_own_name_and_not_that_of_a_link_to_it(tmp_path):
    # `a` is listed first, and so is whatever the system likes.
    make(tmp_path, "z/1.png")
    (tmp_path / "a").symlink_to("z")
    assert listed(tmp_path) == ({"z/1.png": 7}, {"links to folders that are read already": (1, "a", False)})


def test_junk_is_never_listed_and_its_images_are_counted(tmp_path):
    names = [".git/1.png", "cat/.thumbnails/deep/2.png", "@eaDir/3.jpg", "._4.png", ".DS_Store", "Thumbs.db"]
    make(tmp_path, "cat/5.png", *names)
    (tmp_path / ".git" / "circle").symlink_to("..")
    expected = {"images in hidden and system folders and files": (4, "._4.png", False)}
    assert listed(tmp_path) == ({"cat/5.png": 9}, expected)


@pytest.fixture
def as_nobody():
    """Not as root, who may read all."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    yield
    os.seteuid(was)


def test_what_may_not_be_read(tmp_path, request):
    make(tmp_path, "cat/1.png", "dog/2.png", "cat/3.png")
    for folder in takewhile(lambda folder: folder != Path(tempfile.gettempdir()), [tmp_path, *tmp_path.parents]):
        folder.chmod(0o755)
    (tmp_path / "dog").chmod(0)
    (tmp_path / "cat" / "3.png").chmod(0)
    request.getfixturevalue("as_nobody")
    not_read = NotRead()
    assert files_in(Folder(str(tmp_path)), not_read) == {"cat/1.png": 9}
    assert not_read.left == {
        "folders without permission to read": (1, "dog", True),
        "files without permission to read": (1, "cat/3.png", True),
    }
    with pytest.raises(PermissionError):
        files_in(Folder(str(tmp_path / "dog")), not_read)


def test_beginnings(tmp_path):
    make(tmp_path, "a")
    (tmp_path / "b").write_bytes(b"x" * 10_000)
    assert heads([str(tmp_path / "b"), str(tmp_path / "a")]) == [b"x" * HEAD_BYTES, b"a"]
    assert heads([]) == []

"""What a file of a source is, by its name and its first bytes; and an account of all that is not read.

Nothing of a source is left out in silence: what is no image that is read goes into a `NotRead`, whatever the kind of
source, and is said at the end of the job, written into the manifest, and refused by --strict where it may hold images.
"""

import posixpath
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".avifs", ".bmp", ".dib"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".j2c", ".tga"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".mpo", ".qoi"),
)
"""Suffixes of images that are read."""
OTHER_IMAGES = (
    *(".heic", ".heif", ".hif", ".jxl", ".psd", ".svg", ".exr", ".hdr", ".dcm", ".nii", ".ico", ".eps", ".pcx", ".sgi"),
    # Raw ones look like TIFF, and what would be read of them is a small preview.
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"),
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m4v"),
)
"""Of images and films that are not."""
PACKED = {
    ".tar.gz": "gunzip",
    ".tgz": "gunzip",
    ".tar.bz2": "bunzip2",
    ".tbz2": "bunzip2",
    ".tbz": "bunzip2",
    ".tar.xz": "unxz",
    ".txz": "unxz",
    ".tar.zst": "unzstd",
    ".tzst": "unzstd",
    ".gz": "gunzip",
    ".bz2": "bunzip2",
    ".xz": "unxz",
    ".zst": "unzstd",
}
"""Suffixes of what is compressed as a whole, and what unpacks it; longer ones first."""
ARCHIVES = (
    ".tar",
    ".zip",
    ".parquet",
    ".pq",
    ".parq",
    *PACKED,
    ".tar.lz4",
    ".lz4",
    ".7z",
    ".rar",
    ".tfrecord",
    ".lmdb",
    ".mdb",
    ".h5",
)
"""Of what may hold many images."""
BESIDE = (
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".cls"),
    *(".md", ".rst", ".html", ".htm", ".pdf", ".log", ".npy", ".npz", ".mat", ".pkl", ".pt", ".pth", ".safetensors"),
    *(".py", ".ipynb", ".sh", ".m", ".lst", ".names", ".idx", ".md5", ".sha256", ".xmp", ".aae", ".db", ".sqlite"),
)
"""Of what is often found beside images and holds none."""
LEFT_OVERS = ("~", ".bak", ".tmp", ".temp", ".part", ".crdownload", ".swp", ".orig", ".lnk", ".url")
"""Of copies and of files that never became whole."""
JUNK = re.compile(
    # Whatever is hidden: .DS_Store, .git, .thumbnails, .ipynb_checkpoints, ._1.png of macOS, .Trash-1000.
    r"\..*|__MACOSX|__pycache__|@eaDir|@tmp|@Recycle|@Recently-Snapshot|@sharebin|@__thumb|#recycle|#snapshot|~snapshot"
    r"|\$RECYCLE\.BIN|RECYCLER|Recycled|System Volume Information|lost\+found|(eh)?thumbs(_vista)?\.db|desktop\.ini"
    # What Hadoop and Spark write beside Parquet files: a mark that these are all, and their footers once more.
    r"|_SUCCESS|_(common_)?metadata|Icon\r|Network Trash Folder|Temporary Items",
    re.IGNORECASE,
)
"""Names of files and folders that systems and programs make beside images, and what is in them."""

_KNOWN = {*IMAGES, *OTHER_IMAGES, *ARCHIVES, *BESIDE}

HEAD_BYTES = 512
"""Of a file: enough to see what it is."""
HEADS = (
    (r"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\0{4}|(II\*\0|MM\0\*)", ".image"),
    (r"P[1-6]\s[\s\d#]|\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51|.{4}ftypavi[fs]|qoif", ".image"),
    (r".{4}ftyp(hei|hev|mif1|msf1)", ".heic"),
    (r"PK\x03\x04", ".zip"),
    (r"PAR1", ".parquet"),
    (r".{257}ustar", ".tar"),
    (r"\x1f\x8b", ".gz"),
    (r"BZh", ".bz2"),
    (r"\xfd7zXZ\0", ".xz"),
    (r"\x28\xb5\x2f\xfd", ".zst"),
    (r"7z\xbc\xaf\x27\x1c", ".7z"),
    (r"Rar!\x1a\x07", ".rar"),
)
"""How files begin, and the suffix that such a file should have; `.image` is one of those that are read."""
_HEADS = [(re.compile(pattern.encode(), re.DOTALL), suffix) for pattern, suffix in HEADS]


LISTED = 100
"""Reasons that are told apart in the manifest."""


def tidy(name: str) -> str:
    """A path in a source as everybody writes it: `/a.png`, `././a.png`, `b//../a.png` and `a.png` are one."""
    return posixpath.normpath(f"/{name}").lstrip("/")


def is_junk(name: str) -> bool:
    """Whether a path, or a folder that it lies in, is what systems and programs make beside images."""
    return any(JUNK.fullmatch(part) for part in name.split("/"))


def is_image(name: str) -> bool:
    """Whether it is called like an image that is read."""
    return name.lower().endswith(IMAGES)


def suffix_of(name: str) -> str:
    """The suffix in small letters, both of `.tar.gz`; empty if there is none."""
    file = name.rpartition("/")[2].lower()
    long = next((suffix for suffix in PACKED if file.endswith(suffix)), None)
    return long or posixpath.splitext(file)[1]


def needs_a_look(name: str) -> bool:
    """Whether its suffix does not tell what a file is."""
    return suffix_of(name) not in _KNOWN and not name.lower().endswith(LEFT_OVERS)


def suffix_by_head(head: bytes) -> str | None:
    """The suffix that a file with such a beginning should have; None for any other."""
    return next((suffix for pattern, suffix in _HEADS if pattern.match(head)), None)


def how_to_unpack(path: str, suffix: str) -> str:
    """What to type for a file that is compressed as a whole, as its suffix says."""
    file = path.rpartition("/")[2] if "://" in path else path
    stem = file[: -len(suffix)] if file.lower().endswith(suffix) else f"{file.removesuffix('.tar')}.unpacked"
    unpacked = f"{stem.removesuffix('.tar')}.tar"
    first = "Copy it to a disk, and there type" if "://" in path else "Type"
    return f"{first}: {PACKED[suffix]} -c {shlex.quote(file)} > {shlex.quote(unpacked)}, and name {unpacked} as SOURCE"


class Left(NamedTuple):
    """Files that are not read, for one reason."""

    files: int
    first: str
    may_be_images: bool


class NotRead:
    """An account of what a source holds that is not read: how many for each reason, and the first of them by name.

    Attributes:
        left: By the reason.
        held_out: The folders or files that are held out, as a person calls them.
    """

    def __init__(self) -> None:
        self.left: dict[str, Left] = {}
        self.held_out = ""

    def add(self, what: str, name: str, count: int = 1, *, may_be_images: bool = True) -> None:
        """Counts files; `what` is their suffix, or says why they are not read."""
        before = self.left.get(what)
        name = name.encode(errors="backslashreplace").decode()  # names on a disk may be anything
        first = min(name, before.first) if before else name
        may_be_images = may_be_images or (before is not None and before.may_be_images)
        self.left[what] = Left(count + (before.files if before else 0), first, may_be_images)

    def is_read(self, name: str, head: Callable[[], bytes] = lambda: b"") -> bool:
        """Whether a file is an image that is read; counts it if not.

        Args:
            name: Its tidy path in the source.
            head: Gives its first bytes; is asked only where the suffix tells nothing.
        """
        if is_junk(name):
            if is_image(name):
                self.add("images in hidden and system folders and files", name, may_be_images=False)
            return False
        suffix = suffix_of(name)
        if suffix in IMAGES:
            return True
        if name.lower().endswith(LEFT_OVERS):
            self.add("files that look like copies or parts of others", name, may_be_images=False)
        elif suffix in BESIDE:
            self.add(suffix, name, may_be_images=False)
        elif suffix in OTHER_IMAGES or suffix in ARCHIVES:
            self.add(suffix, name)
        elif start := head():
            content = suffix_by_head(start)
            if content == ".image":
                return True
            what = content or suffix or "files without a suffix"
            self.add(what, name, may_be_images=content is not None)
        return False

    def hint(self) -> str:
        """What there is, for the message that there is nothing that is read; empty if there is nothing."""
        return "".join(f"; {line}" for line in lines(self.record()))

    def record(self) -> list[dict[str, Any]]:
        """For the manifest; in an order that hangs on nothing but what was found."""
        ranked = sorted(self.left.items(), key=lambda item: (not item[1].may_be_images, -item[1].files, item[0]))
        listed, more = ranked[:LISTED], NotRead()
        for what, left in ranked[LISTED:]:
            more.add("images and files of other kinds", what, left.files, may_be_images=left.may_be_images)
        return [{"what": what, **left._asdict()} for what, left in [*listed, *more.left.items()]]


def lines(record: Sequence[dict[str, Any]]) -> list[str]:
    """What a record says, in lines for people: first what may be images."""
    said = []
    for title, may_be_images in (("not read", True), ("passed over", False)):
        entries = [entry for entry in record if entry["may_be_images"] == may_be_images]
        if entries:
            said.append(f"{title}: {', '.join(map(_entry, entries))}")
    return said


def _entry(entry: dict[str, Any]) -> str:
    if entry["what"].startswith("folder "):
        return f"{entry['what']} ({entry['files']:,} images)"
    return f"{entry['files']:,} {entry['what']} (as {entry['first']})"

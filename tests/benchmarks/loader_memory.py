"""Memory of the loader over 50 epochs: of the process that trains, and of those that read for it.

    python tests/benchmarks/loader_memory.py --images images.tar

The images come from an S3 server on this machine, in two loader processes that hold little, so that every epoch reads
nearly all of them again: from the store, or from a cache on the disk once it has them. Each line is the memory at the
end of an epoch, in MiB: private (of no other process), and in parentheses with a fair share of what several have in
common (PSS). The readers are the loader processes with the fork server that they come from. Linux only.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import os
import tempfile

from pirl.data.dataset import open_dataset
from pirl.data.order import Order
from pirl.loading.loader import Loader
from pirl.loading.views import Views
from pirl.prepare.images import check_image
from pirl.pretext import PRETEXTS
from pirl.sections import Augment
from pirl.storage.cache import SpanCache
from pirl.storage.folder import Folder
from tests.benchmarks.local_store import BUCKET, Options, store, write_shards
from tests.benchmarks.photographs import from_tar, repeat
from tests.benchmarks.prepare_memory import family, kibibytes

BATCH, PROCESSES = 64, 2
URI = f"s3://{BUCKET}/shards"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="TAR", help="photographs; made smaller to 256 px")
    parser.add_argument("--count", type=int, default=1280, help="images in the store")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--image-size", type=int, default=64)
    args = parser.parse_args()
    photos = [check_image(photo, 256).image for photo in from_tar(args.images)]
    with tempfile.TemporaryDirectory() as name, store(Path(name)) as options:
        write_shards(URI, repeat(photos, args.count), 32 * 2**20, options)
        del photos
        cache = SpanCache(Path(name, "cache"), 10**12)
        print("| source | epoch | the process that trains | the readers |\n| --- | ---: | ---: | ---: |")
        for source, kept in (("store", None), ("store and cache", cache)):
            for epoch, figures in enumerate(epochs(options, kept, args.epochs, args.image_size), 1):
                if epoch == 1 or epoch % 10 == 0:
                    (own, own_pss), (theirs, theirs_pss) = figures
                    print(
                        f"| {source} | {epoch} | {own:,.0f} ({own_pss:,.0f}) | {theirs:,.0f} ({theirs_pss:,.0f}) |",
                        flush=True,
                    )


def epochs(options: Options, cache: SpanCache | None, epochs: int, image_size: int):
    """The memory of this process and of the readers after each epoch."""
    dataset = open_dataset(Folder(URI, options), cache=cache)
    order = Order(dataset.starts, 0, PROCESSES, BATCH, 1)
    views = Views(image_size, Augment(), PRETEXTS["jigsaw"], 0.6)
    last = order.steps_per_epoch - 1
    settings = {"seed": 0, "rank": 0, "world_size": 1, "processes": PROCESSES, "ahead_bytes": 16e6}
    for batch in Loader(dataset, order, views, first_step=0, last_step=epochs * (last + 1), **settings):
        if batch.step % (last + 1) == last:
            yield memory([os.getpid()]), memory(readers())


def readers() -> list[int]:
    """The fork server and the loader processes: what is below this process, without the S3 server."""
    return [pid for pid in family(os.getpid())[1:] if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def memory(processes: list[int]) -> tuple[float, float]:
    """MiB that are theirs alone, and with their share of what is shared."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in processes]
    private = sum(kibibytes(text, name) for text in texts for name in ("Private_Dirty", "Private_Clean"))
    return private / 1024, sum(kibibytes(text, "Pss") for text in texts) / 1024


if __name__ == "__main__":
    main()

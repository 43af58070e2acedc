import base64
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.parquet.encryption import CryptoFactory, EncryptionConfiguration, KmsClient, KmsConnectionConfig

from pirl.errors import ConfigError
from pirl.prepare.scratch import Scratch
from pirl.prepare.sources.kinds import find_source
from pirl.prepare.sources.parquet_source import PARQUET
from pirl.prepare.sources.source import Columns, Found
from pirl.storage.folder import Folder

SCRATCH = Scratch()


@pytest.fixture(autouse=True, scope="module")
def _close():
    with SCRATCH:
        yield


def open_files(files, image_column="image", label_column=None):
    return PARQUET.open(Found(None, files), Columns(image_column, label_column), SCRATCH, lambda *_: None)[0]


def images(source, rows):
    return [SCRATCH.read(span) for span in source.spans(np.array(rows, int))]


def image(row):
    return f"image {row} ".encode() * 5


def write(path, columns, metadata=None):
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=30)
    return str(path)


def two_files(folder):
    return [
        write(
            folder / f"{name}.parquet",
            {"image": [image(row) for row in rows], "label": [row % 4 for row in rows]},
        )
        for name, rows in (("a", range(700)), ("b", range(700, 1000)))
    ]


def test_images_come_in_the_order_that_is_asked_for(tmp_path):
    source = open_files(two_files(tmp_path))
    order = np.random.default_rng(0).permutation(1000)[:900]
    assert images(source, order) == [image(row) for row in order]
    assert images(source, []) == []


def test_two_sources_share_a_scratch_file(tmp_path):
    a, b = two_files(tmp_path)
    first, second = open_files([a]), open_files([b])
    assert images(first, [3, 699]) == [image(3), image(699)]
    assert images(second, [3, 299]) == [image(703), image(999)]


def test_rows_have_names(tmp_path):
    a, b = two_files(tmp_path)
    source = open_files([a, b])
    assert [source.name(row) for row in (0, 699, 700, 999)] == [
        f"{a} row 0",
        f"{a} row 699",
        f"{b} row 0",
        f"{b} row 299",
    ]
    assert source.uri == f"{a} and 1 more"


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"x", b"y", None], pa.binary()),
        pa.array([b"x", b"y", None], pa.large_binary()),
        pa.array([{"bytes": b"x", "path": "a"}, {"bytes": b"y", "path": None}, {"bytes": None, "path": "c"}]),
    ],
    ids=["binary", "large_binary", "huggingface"],
)
def test_columns_of_bytes(tmp_path, column):
    source = open_files([write(tmp_path / "x.parquet", {"pic": column})], "pic")
    assert images(source, [2, 0, 1]) == [b"", b"x", b"y"]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (pa.array([1, 0, 3], pa.int16()), ["0", "1", "2", "3"], [1, 0, 3]),
        (pa.array([1, -1, None], pa.int64()), ["0", "1"], [1, -1, -1]),
        (pa.array([-1, -1, None], pa.int64()), None, [-1, -1, -1]),
        (pa.array(["cat", "ant", None]), ["ant", "cat"], [1, 0, -1]),
        (pa.array(["cat", "ant", "cat"]).dictionary_encode(), ["ant", "cat"], [1, 0, 1]),
    ],
)
def test_labels(tmp_path, labels, classes, numbers):
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 3, "label": labels})
    source = open_files([path])
    assert (source.classes, source.labels.tolist()) == (classes, numbers)


def test_names_of_classes_come_from_huggingface(tmp_path):
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["ant", "cat"]}}}}
    metadata = {"huggingface": json.dumps(about)}
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 3, "label": [1, 1, 0]}, metadata)
    assert open_files([path]).classes == ["ant", "cat"]


@pytest.mark.parametrize("metadata", ["not json", "[]", '{"info": {"features": null}}'])
def test_what_else_stands_there_is_no_name(tmp_path, metadata):
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 2, "label": [1, 0]}, {"huggingface": metadata})
    assert open_files([path]).classes == ["0", "1"]


def test_without_a_label_column_there_are_no_labels(tmp_path):
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 3})
    source = open_files([path])
    assert (source.classes, source.labels.tolist()) == (None, [-1, -1, -1])


def test_files_may_differ_in_their_labels(tmp_path):
    labels = {"a": pa.array([1], pa.int64()), "b": pa.array([0], pa.int32()), "c": pa.nulls(1)}
    files = [write(tmp_path / f"{name}.parquet", {"image": [b"x"], "label": kind}) for name, kind in labels.items()]
    files.append(write(tmp_path / "d.parquet", {"image": [b"x"]}))
    source = open_files(files)
    assert (source.classes, source.labels.tolist()) == (["0", "1"], [1, 0, -1, -1])


def test_a_label_that_nobody_named_and_cannot_be_used_is_passed_over(tmp_path, capsys):
    path = write(tmp_path / "x.parquet", {"image": [b"x"], "label": [0.5]})
    source = open_files([path])
    assert (source.classes, source.labels.tolist()) == (None, [-1])
    assert f"{path}: its column 'label' is not used: the labels are double" in capsys.readouterr().err


def test_files_without_rows_are_refused(tmp_path):
    path = write(tmp_path / "x.parquet", {"image": pa.array([], pa.binary())})
    with pytest.raises(ConfigError, match=r"x\.parquet holds no images"):
        open_files([path])


@pytest.mark.parametrize(
    ("image_column", "label_column", "message"),
    [
        ("pic", None, "no column 'pic' of encoded images .*--image-column with one of image"),
        ("size", None, "its column 'size' is int64"),
        ("image", "kind", "no column 'kind': it has image, size, label"),
        ("image", "label", "the labels are double .*--label-column"),
    ],
)
def test_wrong_columns_are_refused(tmp_path, image_column, label_column, message):
    path = write(tmp_path / "x.parquet", {"image": [b"x"], "size": [1], "label": [0.5]})
    with pytest.raises(ConfigError, match=message):
        open_files([path], image_column, label_column)


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match=r"x\.parquet cannot be read as Parquet"):
        open_files([str(tmp_path / "x.parquet")])


def test_a_column_whose_name_has_a_dot_is_not_a_field_of_a_struct(tmp_path):
    """Parquet calls both of them `img.bytes`."""
    struct = pa.array([{"bytes": b"in the struct"}] * 3)
    path = write(tmp_path / "x.parquet", {"img": struct, "img.bytes": [b"a", b"b", b"c"], "img.label": [0, 1, 2]})
    source = open_files([path], "img.bytes", "img.label")
    assert images(source, range(3)) == [b"a", b"b", b"c"]
    assert source.labels.tolist() == [0, 1, 2]
    assert images(open_files([path], "img"), [2]) == [b"in the struct"]


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([b"x"]), pa.array([b"y"])], names=["image", "image"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"x\.parquet has 2 columns 'image'"):
        open_files([str(tmp_path / "x.parquet")])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"x", b"y", None, b"x"]).dictionary_encode(),
        pa.array([b"x", b"y", None, b"x"], pa.binary(1)),
        pa.array([b"x", b"y", None, b"x"], pa.binary_view()),
        pa.array([b"x", b"y", None, b"x"], pa.large_binary()).dictionary_encode(),
        pa.array([{"bytes": b"x"}, {"bytes": b"y"}, None, {"bytes": b"x"}]),
        pa.StructArray.from_arrays([pa.array([b"x", b"y", None, b"x"]).dictionary_encode()], ["bytes"]),
    ],
    ids=["dictionary", "fixed size", "view", "large dictionary", "struct with nulls", "dictionary in a struct"],
)
def test_other_columns_of_bytes(tmp_path, column):
    # Arrow keeps its own types in the file's schema, so that they come back as they are.
    source = open_files([write(tmp_path / "x.parquet", {"image": column})])
    assert images(source, [2, 0, 1, 3]) == [b"", b"x", b"y", b"x"]


@pytest.mark.parametrize(
    "column",
    [pa.array([[b"x", b"y"]]), pa.array([[{"bytes": b"x"}]]), pa.array([[b"x", b"y"]], pa.list_(pa.binary(), 2))],
)
def test_several_images_in_a_row_are_refused(tmp_path, column):
    path = write(tmp_path / "x.parquet", {"image": column})
    with pytest.raises(ConfigError, match=r"its column 'image' is .*list<.*write a row for each"):
        open_files([path])


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (pa.array([True, False, None]), ["false", "true"], [1, 0, -1]),
        (pa.array([1.0, None, 2.0]), ["0", "1", "2"], [1, -1, 2]),
        (pa.array([b"cat", b"ant", None]), ["ant", "cat"], [1, 0, -1]),
        (pa.array(["cat", "ant", None], pa.string_view()), ["ant", "cat"], [1, 0, -1]),
        (pa.array([b"\xff", b"ant", None]), None, [-1, -1, -1]),
        (pa.array([3, 1, None], pa.uint8()).dictionary_encode(), ["0", "1", "2", "3"], [3, 1, -1]),
    ],
)
def test_labels_of_unusual_types(tmp_path, labels, classes, numbers):
    source = open_files([write(tmp_path / "x.parquet", {"image": [b"x"] * 3, "label": labels})])
    assert (source.classes, source.labels.tolist()) == (classes, numbers)


def test_columns_that_may_be_labels_are_named(tmp_path, capsys):
    rows = {"image": [b"x"] * 2, "mask": [b"y"] * 2, "fine_label": [1, 0], "coarse_label": [0, 0], "size": [1, 2]}
    path = write(tmp_path / "x.parquet", rows)
    assert open_files([path]).classes is None
    said = capsys.readouterr().err
    assert "no column 'label', so these images have no labels; --label-column takes fine_label or coarse_label" in said
    assert "the images are those of column 'image'; --image-column takes mask" in said
    assert open_files([path], "mask", "fine_label").classes == ["0", "1"]
    assert "the labels are" not in (said := capsys.readouterr().err)
    assert "no labels" not in said
    open_files([write(tmp_path / "y.parquet", rows | {"label": [1, 1]})])
    assert (
        "labels are those of column 'label'; --label-column takes fine_label or coarse_label" in capsys.readouterr().err
    )


def test_a_column_of_classes_that_is_called_otherwise_is_found_by_what_huggingface_says(tmp_path, capsys):
    about = {"info": {"features": {"plant": {"names": ["fern", "moss"], "_type": "ClassLabel"}}}}
    path = write(tmp_path / "x.parquet", {"image": [b"x"] * 2, "plant": [1, 0]}, {"huggingface": json.dumps(about)})
    assert open_files([path]).classes is None
    assert "--label-column takes plant" in capsys.readouterr().err
    assert open_files([path], "image", "plant").classes == ["fern", "moss"]


def test_nothing_is_said_where_there_is_nothing_to_choose(tmp_path, capsys):
    open_files(two_files(tmp_path))
    open_files([write(tmp_path / "x.parquet", {"image": [b"x"], "size": [1]})])
    assert capsys.readouterr().err == ""


def test_files_that_number_their_classes_differently_are_refused(tmp_path):
    files = []
    for name, classes in (("a", ["ant", "cat"]), ("b", ["cat", "ant"])):
        about = {"info": {"features": {"label": {"names": classes}}}}
        rows = {"image": [b"x"], "label": [0]}
        files.append(write(tmp_path / f"{name}.parquet", rows, {"huggingface": json.dumps(about)}))
    with pytest.raises(ConfigError, match=r"a\.parquet names its classes ant, cat and .*b\.parquet cat, ant"):
        open_files(files)


def test_folders_name_labels_as_hive_writes_them(tmp_path):
    files = []
    for value, rows in (("label=3", 2), ("label=0", 1), ("label=__HIVE_DEFAULT_PARTITION__", 1)):
        (tmp_path / value).mkdir()
        files.append(write(tmp_path / value / "x.parquet", {"image": [b"x"] * rows}))
    source = open_files(files)
    assert (source.classes, source.labels.tolist()) == (["0", "1", "2", "3"], [3, 3, 0, -1])
    (tmp_path / "label=red%20fox").mkdir()
    files.append(write(tmp_path / "label=red%20fox" / "x.parquet", {"image": [b"x"]}))
    source = open_files(files)
    assert (source.classes, source.labels.tolist()) == (["0", "3", "red fox"], [1, 1, 0, -1, 2])
    # What a file itself says counts more.
    files = [write(tmp_path / "label=3" / "y.parquet", {"image": [b"x"], "label": [1]})]
    assert open_files(files).labels.tolist() == [1]


def test_folders_may_name_splits_as_hive_writes_them_too(tmp_path):
    for split, label, rows in (("train", "ant", 3), ("train", "cat", 2), ("test", "cat", 1)):
        folder = tmp_path / f"split={split}" / f"label={label}"
        folder.mkdir(parents=True)
        write(folder / "x.parquet", {"image": [b"x"] * rows})
    train, test = find_source(str(tmp_path), Columns(), SCRATCH, lambda *_: None)
    assert (train.classes, train.labels.tolist()) == (["ant", "cat"], [0, 0, 0, 1, 1])
    assert (test.classes, test.labels.tolist()) == (["cat"], [0])


def test_other_labels_in_folders_are_named(tmp_path, capsys):
    (tmp_path / "animal=ant").mkdir()
    path = write(tmp_path / "animal=ant" / "x.parquet", {"image": [b"x"]})
    assert open_files([path]).classes is None
    assert "--label-column takes animal" in capsys.readouterr().err
    assert open_files([path], "image", "animal").classes == ["ant"]


def test_images_that_are_files_beside_the_parquet_file_are_read(tmp_path, capsys):
    (tmp_path / "data" / "ant").mkdir(parents=True)
    (tmp_path / "data" / "ant" / "1.jpg").write_bytes(b"one")
    (tmp_path / "two.jpg").write_bytes(b"two")
    (tmp_path.parent / "secret.jpg").write_bytes(b"not below")
    paths = ["ant/1.jpg", "two.jpg", None, "./ant/../ant/1.jpg", "gone.jpg", "../secret.jpg", str(tmp_path / "two.jpg")]
    rows = pa.array([*({"bytes": None, "path": path} for path in paths), {"bytes": b"inside", "path": "two.jpg"}])
    path = write(tmp_path / "data" / "x.parquet", {"image": rows})
    found = Found(Folder(str(tmp_path)), ["data/x.parquet"])
    source = PARQUET.open(found, Columns(), SCRATCH, lambda *_: None)[0]
    assert images(source, range(8)) == [b"one", b"two", b"", b"one", b"", b"", b"", b"inside"]
    assert source.name(0) == f"{path} row 0 ({tmp_path}/data/ant/1.jpg)"
    said = capsys.readouterr().err
    assert "of 3 of 8 images there is only a path, as 'gone.jpg'" in said
    assert "they are left out" in said


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_column_of_paths(tmp_path, kind):
    (tmp_path / "1.jpg").write_bytes(b"one")
    column = pa.array(["1.jpg", "", None, "1.jpg"], pa.string()).cast(kind)
    path = write(tmp_path / "x.parquet", {"file_name": column, "label": [1, 0, 1, 0]})
    source = open_files([path], "file_name")
    assert images(source, range(4)) == [b"one", b"", b"", b"one"]
    assert source.labels.tolist() == [1, 0, 1, 0]


def test_paths_alone_that_lead_nowhere_are_refused(tmp_path):
    path = write(tmp_path / "x.parquet", {"image": pa.array([{"bytes": None, "path": "/home/me/1.jpg"}])})
    with pytest.raises(ConfigError, match=r"only a path, as '/home/me/1\.jpg'.* name the folder .* as SOURCE"):
        open_files([path])


def test_another_image_beside_the_parquet_file_is_another_source(tmp_path):
    rows = {"image": pa.array([{"bytes": None, "path": "1.jpg"}, {"bytes": b"x", "path": None}])}
    path = write(tmp_path / "x.parquet", rows)
    (tmp_path / "1.jpg").write_bytes(b"one")
    before = open_files([path]).digest()
    assert open_files([path]).digest() == before
    (tmp_path / "1.jpg").unlink()
    assert open_files([path]).digest() != before


def test_files_without_rows_need_no_columns(tmp_path):
    empty = write(tmp_path / "a.parquet", {"image": pa.nulls(0), "other": pa.array([], pa.int64())})
    bare = write(tmp_path / "b.parquet", {"other": pa.array([], pa.int64())})
    full = write(tmp_path / "c.parquet", {"image": [b"x"], "label": [1]})
    assert images(open_files([empty, bare, full]), [0]) == [b"x"]
    assert open_files([empty, bare, full]).labels.tolist() == [1]


def test_a_file_of_another_kind_among_them_is_named(tmp_path, capsys):
    good = write(tmp_path / "a.parquet", {"image": [b"x"], "label": [1]})
    other = write(tmp_path / "b.parquet", {"width": [3]})
    with pytest.raises(ConfigError, match=r"b\.parquet has no column 'image'"):
        open_files([good, other])
    bare = write(tmp_path / "c.parquet", {"image": pa.array([{"bytes": b"y"}])})
    assert images(open_files([good, bare]), [0, 1]) == [b"x", b"y"]
    assert "c.parquet: no column 'label', so these images have no labels" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["page", "compressed page", "label", "footer", "cut off", "empty"])
def test_a_damaged_file_is_named(tmp_path, damage):
    good = write(tmp_path / "a.parquet", {"image": [b"x"], "label": [1]})
    path = tmp_path / "b.parquet"
    table = pa.table({"image": [image(row) for row in range(300)], "label": list(range(300))})
    pq.write_table(table, path, write_page_checksum=damage == "page", use_dictionary=False,
                   compression="snappy" if damage != "page" else "none")  # fmt: skip
    data = bytearray(path.read_bytes())
    columns = pq.read_metadata(path).row_group(0)
    column = columns.column(1 if damage == "label" else 0)
    middle = column.data_page_offset + column.total_compressed_size // 2
    if damage in ("page", "compressed page", "label"):
        data[middle : middle + 8] = b"\xff" * 8
    elif damage == "footer":
        data[-300:-10] = b"\xff" * 290
    path.write_bytes(data[: {"cut off": 900, "empty": 0}.get(damage, len(data))])
    with pytest.raises(ConfigError, match=r"b\.parquet cannot be read as Parquet: .*copy it again"):
        open_files([good, str(path)])


class Keys(KmsClient):
    """Wraps keys in nothing."""

    def wrap_key(self, key, _):
        return base64.b64encode(key)

    def unwrap_key(self, wrapped, _):
        return base64.b64decode(wrapped)


@pytest.mark.parametrize("plain_footer", [False, True])
def test_an_encrypted_file_says_so(tmp_path, plain_footer):
    config = EncryptionConfiguration(footer_key="f", column_keys={"i": ["image"]}, plaintext_footer=plain_footer)
    properties = CryptoFactory(lambda _: Keys()).file_encryption_properties(KmsConnectionConfig(), config)
    table = pa.table({"image": [b"x"], "label": [1]})
    with pq.ParquetWriter(tmp_path / "x.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(ConfigError, match=r"x\.parquet cannot be read as Parquet: it is encrypted"):
        open_files([str(tmp_path / "x.parquet")])

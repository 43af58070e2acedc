"""Who may import whom, and that names say one thing; read from the source, nothing of it is run but its modules."""

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROOMS = {
    "pirl": [
        *("errors", "wording", "processes", "permutations", "pretext"),
        "storage.secrets",
        *("sections", "config", "imagenet_recipes", "recipes", "dist"),
        *("storage", "data", "prepare", "loading", "methods", "runs", "train", "evaluate", "clusterfit"),
    ],
    "clusters": ["profile", "job_folder", "preflight", "slurm", "node", "dev"],
    "jobs": [
        *("settings", "live_line", "reporting", "run", "evaluation", "batch"),
        *("prepare", "pretrain", "clusterfit", "evaluate", "embed", "export", "report", "slurm"),
    ],
    "tune": ["points", "curve", "rows", "search", "request", "run", "show", "sweep"],
}
"""Rooms and files of each package: each may import those that stand before it. A new one needs a place here."""

WITHIN = {
    "pirl.storage": [
        *("causes", "retry", "temporary", "sealed", "client", "reading", "writing"),
        *("folder", "checks", "cache"),
    ],
    "pirl.data": [
        *("writer", "manifest", "digits", "parquet_pages", "dataset", "described", "pseudo_labels", "order", "plan"),
    ],
    "pirl.loading": [
        *("device", "color", "crops", "views", "decode", "prefetch", "collate", "targets"),
        *("loader_processes", "loader", "group_views"),
    ],
    "pirl.methods": [
        *("models", "nce", "draws", "memory", "spread", "pirl", "classify", "distill", "choice", "gradients"),
    ],
}
"""The files of those rooms in which one stands upon another, in order."""

ABOVE = {
    "pirl": set(),
    "clusters": {"pirl"},
    "jobs": {"pirl", "clusters"},
    "tune": {"pirl", "clusters", "jobs"},
}
"""The packages that each package may import."""

MOST_FILES = 12
"""Of a folder: more are no longer seen at a glance."""
MOST_LINES = 300
"""Of a file."""
MOST_LINES_OF_A_FUNCTION = 60
"""Without its docstring."""


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """`pirl/data/order.py` -> `pirl.data.order`, `pirl/data/__init__.py` -> `pirl.data`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(code: str) -> Iterator[str]:
    """Dotted names that code imports, wherever in it; `from a import b` gives `a.b`: b may be a module."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def all_imports(package: str) -> list[tuple[str, str]]:
    return [(module_name(path), name) for path in sources(package) for name in imports(path.read_text())]


def place(name: str, package: str, order: list[str]) -> int | None:
    """The place of the longest entry of an order that a dotted name lies in; None if it is in none."""
    inside = [entry for entry in order if within(name, f"{package}.{entry}")]
    return order.index(max(inside, key=len)) if inside else None


def wrong_way(module: str, name: str, package: str, order: list[str]) -> bool:
    """Whether an import inside a package goes to a later room, or to one that is not in the order."""
    own, other = place(module, package, order), place(name, package, order)
    return own is None or other is None or other > own


def test_imports_are_found_wherever_they_are():
    code = "import a.b\ndef f():\n    from c import d, e\n    if True:\n        import g as h"
    assert sorted(imports(code)) == ["a.b", "c.d", "c.e", "g"]
    rooms = ROOMS["pirl"]
    assert wrong_way("pirl.data.order", "pirl.loading.loader.Loader", "pirl", rooms)
    assert wrong_way("pirl.data.order", "pirl.registry", "pirl", rooms)
    assert wrong_way("pirl.config", "pirl.storage.folder.Folder", "pirl", rooms)
    assert not wrong_way("pirl.config", "pirl.storage.secrets.refuse_secrets", "pirl", rooms)
    assert not wrong_way("pirl.loading.loader", "pirl.data.order.Order", "pirl", rooms)


def test_pirl_is_plain_pytorch():
    banned = ("ray", "submitit", "jobs", "clusters", "tune")
    assert [pair for pair in all_imports("pirl") if any(within(pair[1], name) for name in banned)] == []


@pytest.mark.parametrize("package", ABOVE)
def test_packages_import_one_way(package):
    below = set(ABOVE) - ABOVE[package] - {package}
    assert [pair for pair in all_imports(package) if any(within(pair[1], name) for name in below)] == []


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_one_way(package):
    modules = [module_name(path) for path in sources(package)]
    assert [name for name in modules if name != package and place(name, package, ROOMS[package]) is None] == []
    assert [entry for entry in ROOMS[package] if not any(within(name, f"{package}.{entry}") for name in modules)] == []
    inside = [pair for pair in all_imports(package) if within(pair[1], package)]
    assert len(inside) > 10
    assert [pair for pair in inside if wrong_way(*pair, package, ROOMS[package])] == []


@pytest.mark.parametrize("room", WITHIN)
def test_files_within_a_room_import_one_way(room):
    files = {path.stem for path in sources(room.replace(".", "/"))} - {"__init__", "secrets"}
    assert sorted(WITHIN[room]) == sorted(files)
    inside = [pair for pair in all_imports(room.replace(".", "/")) if within(pair[1], room)]
    inside = [pair for pair in inside if not within(pair[1], "pirl.storage.secrets")]
    assert [pair for pair in inside if wrong_way(*pair, room, WITHIN[room])] == []


def test_jobs_is_the_only_place_of_ray_train_and_submitit():
    elsewhere = [pair for package in ("pirl", "clusters", "tune") for pair in all_imports(package)]
    assert [pair for pair in elsewhere if within(pair[1], "ray.train") or within(pair[1], "submitit")] == []
    assert any(within(name, "ray.train") for _, name in all_imports("jobs"))


def test_importing_a_room_imports_nothing():
    for package in ABOVE:
        for path in sources(package):
            if path.name == "__init__.py":
                assert not list(imports(path.read_text())), path


def test_every_error_that_a_user_can_see_is_in_one_file():
    found = []
    for path in (path for package in ABOVE for path in sources(package)):
        for node in ast.walk(ast.parse(path.read_text())):
            bases = [ast.unparse(base) for base in node.bases] if isinstance(node, ast.ClassDef) else []
            if any(re.search(r"(Error|Exception|Failed)$", base) for base in bases):
                found.append(path.relative_to(ROOT).as_posix())
    assert set(found) == {"pirl/errors.py"}


RUN_FILES = re.compile(
    r"metrics\.jsonl|train\.log|result\.json|failure\.json|stopped\.json|trunk\.safetensors|checkpoint_\{"
)


def test_the_names_in_a_run_folder_are_in_one_file():
    """But for texts that are shown and documentation."""
    found = set()
    for path in (path for package in ABOVE for path in sources(package)):
        tree = ast.parse(path.read_text())
        texts = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        if any(RUN_FILES.fullmatch(text) for text in texts):
            found.add(path.relative_to(ROOT).as_posix())
    assert found == {"pirl/runs/run_files.py"}


PRIVATE = re.compile(r"ray\.train\.v2|_raylet|_pb2|ray\._private|internal_kv|kill_log_monitor|_base_exc")


def test_what_hangs_on_private_parts_of_ray_is_in_one_file():
    files = [path for package in ABOVE for path in sources(package) if PRIVATE.search(path.read_text())]
    assert [path.relative_to(ROOT).as_posix() for path in files] == ["jobs/run/ray_internals.py"]


def test_one_file_asks_fsspec():
    files = {module for package in ABOVE for module, name in all_imports(package) if within(name, "fsspec")}
    assert files == {"pirl.storage.client"}


def class_names() -> Iterator[tuple[str, str]]:
    """Classes, and other names of types at the top of a file, which have capitals; with the file."""
    for path in (path for package in ABOVE for path in sources(package)):
        for node in ast.parse(path.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            names = (
                [node.name] if isinstance(node, ast.ClassDef) else [t.id for t in targets if isinstance(t, ast.Name)]
            )
            yield from ((name, str(path)) for name in names if re.fullmatch(r"[A-Z]+[a-z]\w*", name))


def test_no_class_name_stands_for_two_things():
    counts = Counter(name for name, _ in class_names())
    assert counts["MemoryBank"] == 1
    assert {name: [path for found, path in class_names() if found == name] for name, n in counts.items() if n > 1} == {}


@pytest.mark.parametrize("package", ABOVE)
def test_no_two_files_of_a_package_have_one_name(package):
    counts = Counter(path.name for path in sources(package) if path.name != "__init__.py")
    assert [name for name, n in counts.items() if n > 1] == []


def test_folders_are_seen_at_a_glance():
    counts = Counter(path.parent for package in ABOVE for path in sources(package))
    assert {str(folder): n for folder, n in counts.items() if n > MOST_FILES} == {}


@pytest.mark.parametrize("path", [p for package in ABOVE for p in sources(package)], ids=module_name)
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < MOST_LINES_OF_A_FUNCTION, node.name


MODULE = re.compile(r"(pirl|jobs|clusters|tune)(\.\w+)+")
SCRIPT = re.compile(r"(?<![\w/])(?:pirl|jobs|clusters|tune|tests)/[\w/]+\.py\b")


def strings() -> Iterator[tuple[Path, str]]:
    """All texts in the code of the project and its tests."""
    for path in (path for package in [*ABOVE, "tests"] for path in sources(package)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path, node.value


def is_there(name: str) -> bool:
    """Whether a dotted name can be imported: a module, or what is in one."""
    module, rest = name, []
    while module:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError as error:
            if error.name is None or not within(name, error.name):
                raise
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for part in rest:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def test_every_module_that_a_string_names_can_be_imported():
    """Such as what the fork server loads beforehand: where it is gone, nothing but time is lost, and nobody is told."""
    named = {text for _, text in strings() if MODULE.fullmatch(text) and not (ROOT / text).exists()}
    settings = {"pirl.groups", "pirl.registry"}  # a key in the footer of shards; an example above
    assert len(named) > 3
    assert sorted(name for name in named - settings if not is_there(name)) == []


def test_every_script_that_is_named_somewhere_exists():
    texts = [(path, text) for path, text in strings() if path != Path(__file__)]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "clusters").glob("*.*")]
    texts += [(path, path.read_text()) for path in [*pages, ROOT / ".ci/run", ROOT / "Makefile"]]
    named = {(path.relative_to(ROOT).as_posix(), script) for path, text in texts for script in SCRIPT.findall(text)}
    assert len(named) > 20
    assert sorted(pair for pair in named if not (ROOT / pair[1]).exists()) == []


PLACE = re.compile(r"`([\w/]+\.py):([\w.]+)`")


def definitions(code: str) -> Iterator[str]:
    """Functions and classes at the top of a file, and `Class.method`."""
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef))


@pytest.mark.parametrize("page", ["docs/preemption.md", "docs/architecture.md"])
def test_every_place_that_a_page_follows_is_there(page):
    places = PLACE.findall((ROOT / page).read_text())
    assert len(places) > 15
    known = {path: set(definitions((ROOT / path).read_text())) for path, _ in places}
    assert sorted(f"{path}:{name}" for path, name in places if name not in known[path]) == []


def test_links_point_at_files_that_exist():
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        links = (link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text))
        files = [link for link in links if link and not re.match(r"[a-z]+:", link)]
        broken += [f"{page.name}: {file}" for file in files if not (page.parent / file).exists()]
    assert broken == []

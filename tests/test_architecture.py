"""Who may import whom, read from the source without running it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ORDER = [
    *("credentials", "wording", "config", "recipes"),
    *("dist", "order", "processes"),
    *(
        "retry",
        "temporary",
        "client",
        "upload",
        "storage",
        "folder",
        "writable",
        "cache",
        "shard_writer",
        "state",
        "digits",
        "pages",
        "shards",
        "held_out",
        "dealing",
    ),
    *("labels", "scratch", "png", "images", "parquet_source", "tar_source", "sources", "workers"),
    *("destination", "prepare", "inspection"),
    *("color", "transforms", "ahead", "parts", "loader"),
    *("models", "nce", "memory", "methods"),
    *("checkpoint", "runs", "meter", "mirror", "runlog", "train"),
    *("evaluate.knn", "evaluate.linear", "evaluate.features", "evaluate"),
]
"""The modules of pirl: each may import those that stand before it. A new one needs a place here."""

ABOVE = {
    "pirl": set(),
    "clusters": {"pirl"},
    "jobs": {"pirl", "clusters"},
    "tune": {"pirl", "clusters", "jobs"},
}
"""The packages that each package may import."""


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    """`pirl/evaluate/knn.py` -> `pirl.evaluate.knn`, `pirl/evaluate/__init__.py` -> `pirl.evaluate`."""
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


def wrong_way(module: str, name: str) -> bool:
    """Whether an import inside pirl goes down the list, or to a module that is not in it."""
    target = name.removeprefix("pirl.")
    while target not in ORDER and "." in target:  # `config.Config` -> `config`
        target = target.rpartition(".")[0]
    return target not in ORDER or ORDER.index(target) >= ORDER.index(module.removeprefix("pirl."))


def test_imports_are_found_wherever_they_are():
    code = "import a.b\ndef f():\n    from c import d, e\n    if True:\n        import g as h"
    assert sorted(imports(code)) == ["a.b", "c.d", "c.e", "g"]
    assert wrong_way("pirl.order", "pirl.loader.Loader")
    assert wrong_way("pirl.order", "pirl.order.Order")
    assert wrong_way("pirl.loader", "pirl.registry")
    assert not wrong_way("pirl.loader", "pirl.order.Order")
    assert not wrong_way("pirl.evaluate", "pirl.evaluate.knn")


def test_pirl_is_plain_pytorch():
    banned = ("ray", "submitit", "jobs", "clusters", "tune")
    assert [pair for pair in all_imports("pirl") if any(within(pair[1], name) for name in banned)] == []


def test_every_module_of_pirl_has_a_place_in_the_order():
    modules = [module_name(path).removeprefix("pirl.") for path in sources("pirl")]
    assert sorted(ORDER) == sorted(set(modules) - {"pirl"})
    assert not list(imports((ROOT / "pirl" / "__init__.py").read_text())), "importing one module must not import all"


def test_imports_inside_pirl_go_one_way():
    inside = [pair for pair in all_imports("pirl") if within(pair[1], "pirl")]
    assert len(inside) > 30
    assert [pair for pair in inside if wrong_way(*pair)] == []


@pytest.mark.parametrize("package", ABOVE)
def test_packages_import_one_way(package):
    below = set(ABOVE) - ABOVE[package] - {package}
    assert [pair for pair in all_imports(package) if any(within(pair[1], name) for name in below)] == []


def test_jobs_is_the_only_place_of_ray_train_and_submitit():
    elsewhere = [pair for package in ("pirl", "clusters", "tune") for pair in all_imports(package)]
    assert [pair for pair in elsewhere if within(pair[1], "ray.train") or within(pair[1], "submitit")] == []
    assert any(within(name, "ray.train") for _, name in all_imports("jobs"))


@pytest.mark.parametrize("path", [p for package in ABOVE for p in sources(package)], ids=module_name)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 300


def test_links_point_at_files_that_exist():
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        links = (link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text))
        files = [link for link in links if link and not re.match(r"[a-z]+:", link)]
        broken += [f"{page.name}: {file}" for file in files if not (page.parent / file).exists()]
    assert broken == []

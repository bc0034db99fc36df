"""Registries: a name means one part, an unknown name is helped, options are checked, and users' own files are imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from memfactory.common.errors import ConfigError, MissingFileError, UnknownNameError, UserError
from memfactory.common.registry import AGENT_REGISTRY, REGISTRIES, Registry, build_options, describe_options, import_plugins


@pytest.fixture
def registry() -> Registry[type]:
    """A table with one part, `apple`."""
    made: Registry[type] = Registry("fruit")

    @made.register("apple")
    class Apple:
        """Round."""

    return made


@pytest.fixture(autouse=True)
def forgotten_imports() -> Iterator[None]:
    """Forget what a test imported and registered."""
    modules, parts = dict(sys.modules), dict(AGENT_REGISTRY._parts)
    yield
    for name in set(sys.modules) - set(modules):
        if "plugin" in name:
            del sys.modules[name]
    AGENT_REGISTRY._parts.clear()
    AGENT_REGISTRY._parts.update(parts)


def write_plugin(path: Path, key: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"from memfactory import AGENT_REGISTRY\n\n@AGENT_REGISTRY.register({key!r})\nclass Mine: ...\n", encoding="utf-8")
    return path


def test_register_returns_the_part_unchanged(registry: Registry[type]) -> None:
    class Pear: ...

    assert registry.register("pear")(Pear) is Pear
    assert registry.get("pear") is Pear and "pear" in registry and list(registry) == ["apple", "pear"]


def test_a_name_taken_by_another_part_is_refused_and_kept(registry: Registry[type]) -> None:
    first = registry.get("apple")

    class Other: ...

    with pytest.raises(ConfigError, match=r"fruit 'apple' is already registered as .*Apple; choose another name"):
        registry.register("apple")(Other)
    assert registry.get("apple") is first


def test_the_same_part_may_be_registered_again(registry: Registry[type]) -> None:
    def cell() -> type:
        class Pear: ...

        return registry.register("pear")(Pear)

    first, second = cell(), cell()
    assert first is not second and registry.get("pear") is second


def test_an_unknown_name_lists_the_known_and_the_nearest(registry: Registry[type]) -> None:
    registry.register("pear")(type("Pear", (), {}))
    with pytest.raises(UnknownNameError) as error:
        registry.get("appel")
    assert str(error.value) == (
        "Unknown fruit 'appel'. Did you mean 'apple'? Known: apple, pear. `memfactory list` shows what is registered."
    )


def test_an_unknown_name_without_a_neighbour_guesses_nothing(registry: Registry[type]) -> None:
    with pytest.raises(UnknownNameError) as error:
        registry.get("zzzzzz")
    assert "Did you mean" not in str(error.value) and "apple" in str(error.value)
    assert isinstance(error.value, UserError) and isinstance(error.value, KeyError)


def test_an_empty_registry_says_none() -> None:
    with pytest.raises(UnknownNameError, match="Known: none"):
        Registry("nothing").get("x")


def test_every_kind_of_part_has_one_registry() -> None:
    kinds = [registry.kind for registry in REGISTRIES]
    assert len(set(kinds)) == len(kinds)
    assert {"agent", "module", "env", "trainer", "engine", "loss"} <= set(kinds)


def test_a_registry_knows_its_own_parts_at_the_first_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Registry[type] = Registry("fruit", "own_plugin_home")
    monkeypatch.setattr("memfactory.common.registry.FRUIT", made, raising=False)
    home = tmp_path / "own_plugin_home.py"
    text = "from memfactory.common.registry import FRUIT\n\n@FRUIT.register('apple')\nclass Apple: __module__ = 'memfactory.fruit'\n"
    home.write_text(f"{text}\nassert list(FRUIT) == ['apple']\nraise OSError('down')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert made.filed() == []
    for _ in range(2):  # what could not be imported is tried again, and never passes for an empty table
        with pytest.raises(OSError, match="down"):
            made.get("apple")
    home.write_text(text, encoding="utf-8")
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=r"'apple' is already registered as memfactory\.fruit\.Apple"):
        made.register("apple")(type("Mine", (), {}))  # one's own part sees the project's before it takes a name
    assert list(made) == ["apple"] and made.get("apple").__name__ == "Apple"


@dataclass(frozen=True)
class Options:
    """Two options, one without a default."""

    size: int
    colour: str = "red"


def test_options_are_filled_and_an_unknown_one_names_the_known() -> None:
    assert build_options("Apple", Options, {"size": 3}) == Options(3, "red")
    with pytest.raises(UnknownNameError, match=r"Unknown option of Apple 'color'\. Did you mean 'colour'\? Known: colour, size"):
        build_options("Apple", Options, {"size": 3, "color": "green"})


def test_a_missing_option_is_one_clear_error() -> None:
    with pytest.raises(UserError, match="size"):
        build_options("Apple", Options, {})


def test_options_are_described_with_their_defaults() -> None:
    def part(number: int, *, seed: int = 3, name: str = "x") -> None: ...

    assert describe_options(type("Apple", (), {"Options": Options})) == ["size=required", "colour='red'"]
    assert describe_options(part) == ["seed=3", "name='x'"]
    assert describe_options(object) == []


def test_a_file_of_ones_own_parts_is_imported_once(tmp_path: Path) -> None:
    path = write_plugin(tmp_path / "own_plugin_parts.py", "mine")
    import_plugins([str(path)])
    mine = AGENT_REGISTRY.get("mine")
    import_plugins([str(path)])
    assert AGENT_REGISTRY.get("mine") is mine


def test_a_module_of_ones_own_parts_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_plugin(tmp_path / "own_plugin_package" / "parts.py", "mine")
    (tmp_path / "own_plugin_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    import_plugins(["own_plugin_package.parts"])
    assert AGENT_REGISTRY.get("mine").__module__ == "own_plugin_package.parts"


def test_a_missing_file_or_module_says_what_to_give() -> None:
    with pytest.raises(MissingFileError, match=r"--import absent/parts\.py: no such file. Give the path of a Python file"):
        import_plugins(["absent/parts.py"])
    with pytest.raises(MissingFileError, match=r"--import absent_plugin: no such module .*Give a file ending in \.py or a dotted name"):
        import_plugins(["absent_plugin"])


def test_two_files_of_the_same_name_are_both_imported(tmp_path: Path) -> None:
    paths = [write_plugin(tmp_path / folder / "plugin.py", folder) for folder in ("one", "two")]
    import_plugins([str(path) for path in paths])
    assert "one" in AGENT_REGISTRY and "two" in AGENT_REGISTRY


def test_a_file_that_failed_fails_again(tmp_path: Path) -> None:
    path = tmp_path / "failing_plugin.py"
    path.write_text("raise RuntimeError('bug')\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="bug"):
            import_plugins([str(path)])

import shutil
import zipfile
from pathlib import Path

import pytest

from agent.errors import ConversionError, InputError
from converters.recipe import Package, load_recipe
from converters.sources import collect, fetch, find_models, unpack
from tests.small_graphs import small_detector, small_recognizer

RECIPE = Path(__file__).parents[1] / "models" / "ppocr-v4.toml"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    small_detector().save(folder / "own" / "finder")
    small_recognizer().save(folder / "own" / "reader")
    (folder / "own" / "reader" / "dict.txt").write_text("\n".join("0123456789") + "\n", encoding="utf-8")
    return folder


def test_models_are_told_apart_by_their_outputs(place):
    found = find_models(place / "own")
    assert {kind: model.name for kind, model in found.items()} == {"det": "finder", "rec": "reader"}
    assert list(find_models(place / "own" / "reader")) == ["rec"]


def test_a_source_without_models_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="not a directory"):
        find_models(tmp_path / "none")
    with pytest.raises(ConversionError, match=r"hold inference\.pdmodel"):
        find_models(tmp_path)
    (tmp_path / "inference.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConversionError, match="format of Paddle 3"):
        find_models(tmp_path)


def test_two_models_of_one_kind_are_refused(place, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(place / "own" / "finder", tmp_path / name)
    with pytest.raises(ConversionError, match="two det models, in a and b"):
        find_models(tmp_path)


def test_two_dictionaries_need_a_choice(place, tmp_path):
    shutil.copytree(place / "own", tmp_path / "own")
    (tmp_path / "own" / "reader" / "other.txt").write_text("x\n", encoding="utf-8")
    with pytest.raises(ConversionError, match=r"dict\.txt, other\.txt\? Name it with --characters"):
        collect(load_recipe(RECIPE), tmp_path, tmp_path / "own")
    chosen = tmp_path / "own" / "reader" / "dict.txt"
    assert collect(load_recipe(RECIPE), tmp_path, tmp_path / "own", chosen).characters == chosen


def a_wheel(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, name)
    return path


def test_without_network_or_package_the_error_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package = load_recipe(RECIPE).package
    with pytest.raises(ConversionError, match=rf"cannot be downloaded .*put {package.wheel} into .*--source DIR"):
        fetch(package, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_package_with_another_hash_is_refused(tmp_path):
    package = Package("thing==1", "thing-1-py3-none-any.whl", "0" * 64)
    a_wheel(tmp_path / package.wheel, ["x"])
    with pytest.raises(ConversionError, match=r"sha256 is .* the recipe says 0000"):
        fetch(package, tmp_path)


def test_unpacking_takes_only_what_is_named_and_decides_where_it_goes(tmp_path):
    package = Package("thing==1", "thing-1-py3-none-any.whl", "0" * 64)
    wheel = a_wheel(tmp_path / package.wheel, ["../../evil", "good/model"])
    unpack(package, wheel, {"../../evil": "det/a"}, tmp_path / "work")
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()] == [
        Path(package.wheel),
        Path("work/det/a"),
    ]
    with pytest.raises(ConversionError, match="holds no good/other"):
        unpack(package, wheel, {"good/other": "b"}, tmp_path / "work")


def test_a_cut_package_is_refused(tmp_path):
    package = Package("thing==1", "thing-1-py3-none-any.whl", "0" * 64)
    (tmp_path / package.wheel).write_bytes(a_wheel(tmp_path / "whole", ["x"]).read_bytes()[:40])
    with pytest.raises(ConversionError, match="damaged"):
        unpack(package, tmp_path / package.wheel, {"x": "x"}, tmp_path / "work")

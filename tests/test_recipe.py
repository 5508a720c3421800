from pathlib import Path

import pytest

from agent.errors import ConfigError
from converters.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "models" / "ppocr-v4.toml"


def changed(tmp_path, old, new):
    text = RECIPE.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def test_the_shipped_recipe_names_three_models_and_a_pinned_package():
    recipe = load_recipe(RECIPE)
    assert list(recipe.sections()) == ["det", "rec", "cls"]
    assert "==" in recipe.package.requirement
    assert recipe.max_difference == 1e-4
    assert recipe.det.mean == (0.485, 0.456, 0.406)


def test_the_shipped_recipe_checks_more_than_squares():
    recipe = load_recipe(RECIPE)
    shapes = recipe.det.check_shapes
    assert len(shapes) >= 3
    assert any(height != width for _, _, height, width in shapes)
    assert any(batch > 1 for batch, *_ in recipe.rec.check_shapes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threshold = 0.3", "threshold = 1.3", r"det.threshold = 1.3: .*<= 1.0"),
        ("unclip_ratio = 1.75", "unclip_ratio = 0.0", r"det.unclip_ratio = 0.0: .*> 0"),
        ("multiple = 32", "multipel = 32", r"det: .*unknown field `multipel`"),
        ("multiple = 32\n", "", r"det: .*missing required field `multiple`"),
        ("multiple = 32", 'multiple = "32"', r"det.multiple = '32': Expected `int`"),
        ("[2, 3, 320, 416]", "[2, 3, 0, 416]", r"det.check_shapes.1.2 = 0: .*>= 1"),
        ("[2, 3, 320, 416]", "[2, 3, 320]", r"det.check_shapes.1 = \[2, 3, 320\]: .*length 4"),
        ('name = "ppocr-v4"', 'name = "../x"', r"name = '../x': "),
        ("sha256 = ", "sha265 = ", r"package: .*`sha265`"),
        ("[rec]", "[wreck]", r"recipe: .*`wreck`"),
        ("max_difference = 1e-4", "max_difference = 1.0", r"max_difference = 1.0: .*<= 0.01"),
        ("[det]", "[det", "not TOML"),
    ],
)
def test_a_wrong_recipe_names_the_key_the_value_and_what_is_accepted(tmp_path, old, new, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(changed(tmp_path, old, new))


def test_a_missing_recipe_and_one_that_is_not_text_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ConfigError, match="not TOML"):
        load_recipe(tmp_path / "binary.toml")

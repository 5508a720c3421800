from pathlib import Path

import msgspec
import pytest

from agent.bundle import ModelBundle
from converters import verdict
from converters.evaluate import Figures
from converters.recipe import Compression, Gate, load_recipe
from converters.scores import Scores
from converters.stages import Stages
from converters.verdict import Candidate, Cost, Pair, failures
from converters.writing import Content
from tests.compressed import compressed

INT8 = Path(__file__).parents[1] / "models" / "ppocr-v4-int8.toml"
SCORES = Scores(1, 0, 0.9, 0.0, 0.8, 0.7, None, None, 0.0)


def figures(**changed: float | None) -> Figures:
    return Figures("a", msgspec.structs.replace(SCORES, **changed), 1.0, 1.0)


def settings(**changed: object) -> Compression:
    whole = {"char_f1": 1.0, "worst_char_f1": 1.0, "car": 1.0, "hmean": 1.0, "bytes": 1000}
    compress = load_recipe(INT8).compress
    assert compress is not None
    return msgspec.structs.replace(compress, gate=msgspec.convert({**whole, **changed}, Gate))


def pair(**after: float | None) -> Pair:
    return Pair("a", figures(), figures(**after))


def test_a_drop_is_what_int8_loses_and_unknown_without_both_figures():
    assert pair(char_f1=0.85).drop("char_f1") == pytest.approx(0.05)
    assert pair(hmean=0.8).drop("hmean") == pytest.approx(-0.1)
    assert pair(hmean=None).drop("hmean") is None


@pytest.mark.parametrize(
    ("limit", "after", "told"),
    [
        ({"hmean": 0.01}, {"hmean": 0.68}, ("hmean falls by 0.0200 in the mean, more than 0.01",)),
        ({"hmean": 0.03}, {"hmean": 0.68}, ()),
        ({"hmean": 0.0}, {"hmean": None}, ()),
        ({"car": 0.01}, {"car": 0.7}, ("CAR falls by 0.1000 in the mean, more than 0.01",)),
        ({"char_f1": 0.01}, {"char_f1": 0.8}, ("char_f1 falls by 0.1000 in the mean, more than 0.01",)),
        ({"bytes": 99}, {}, ("the models have 100 bytes, more than 99",)),
    ],
)
def test_each_figure_has_its_limit(limit, after, told):
    assert failures([pair(**after)], 100, settings(**limit)) == told


def test_means_are_over_the_sets_that_give_the_figure_and_the_worst_set_is_named():
    pairs = [pair(char_f1=0.9, hmean=None), msgspec.structs.replace(pair(char_f1=0.84, hmean=0.65), name="b")]
    told = failures(pairs, 1, settings(char_f1=0.02, worst_char_f1=0.05, hmean=0.04))
    assert [text.partition(", more")[0] for text in told] == [
        "char_f1 falls by 0.0300 in the mean",
        "char_f1 falls by 0.0600 on b",
        "hmean falls by 0.0500 in the mean",
    ]


def test_the_shipped_gate_limits_every_figure():
    gate = load_recipe(INT8).compress.gate
    assert 0 < gate.hmean <= 0.02
    assert all(0 < limit < 0.05 for limit in (gate.char_f1, gate.worst_char_f1, gate.car))


# ------------------------------------------------------------------------------------------------ variants


class Part:
    """A model on its way, as far as its files and its measured shape go."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.built = [folder / f"{name}.nb"]

    def shapes(self) -> list[tuple[int, ...]]:
        return [(1, 3, 8, 8), (1, 3, 16, 16)]


@pytest.fixture
def candidate(tmp_path):
    """Three models: det pruned and in int8, rec in int8, cls left alone; a file's size tells which it is."""
    sizes = {"reference/det": 400, "reference/rec": 1000, "reference/cls": 80, "slim/det": 300, "twin/det": 111}
    for number, (name, size) in enumerate({**sizes, "twin/rec": 222, "b/det": 90, "b/rec": 250, "b/cls": 81}.items()):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.nb").write_bytes(bytes([number]) * size)
    models = tuple(Part(name, tmp_path / "b") for name in ("det", "rec", "cls"))
    slim = str(tmp_path / "slim" / "det.nb")
    done = (
        compressed("det", twin=str(tmp_path / "twin/det.nb"), slim=slim),
        compressed("rec", twin=str(tmp_path / "twin/rec.nb")),
    )
    content = Content("ppocr", "1", "aarch64", "int8", "paddlelite", models, tmp_path / "characters.txt", ())
    return Candidate(content, done, tmp_path / "reference", tmp_path / "work")


def test_variants_hold_the_models_that_they_change(candidate, tmp_path):
    found = {variant: sorted(files) for variant, files in candidate.files().items()}
    assert found == {"float": ["cls", "det", "rec"], "pruned": ["det"], "int8": ["det", "rec"]}
    plain = msgspec.structs.replace(candidate, compressed=(compressed("rec", twin=str(tmp_path / "twin/rec.nb")),))
    assert list(plain.files()) == ["float", "int8"]


def costs(candidate: Candidate, stages: Stages) -> list[Cost]:
    return [cost for model in candidate.content.models for cost in verdict._costs(candidate, model, stages)]


def test_each_model_is_timed_once_in_each_variant_and_its_bytes_are_those_of_the_bundle(candidate, monkeypatch):
    asked = []

    def measure(job, model, *, engine, files, shape):
        asked.append((job, model, files[0].parent.name, shape))
        return {"ms": float(len(asked)), "resident_mb": 100.0 + len(asked)}

    monkeypatch.setattr(verdict.native, "run", measure)
    found = costs(candidate, Stages(candidate.work, [].append))
    assert costs(candidate, Stages(candidate.work, [].append)) == found, "and a second time not at all"
    assert [cost.model + " " + cost.variant for cost in found] == [
        "det float",
        "det pruned",
        "det int8",
        "rec float",
        "rec int8",
        "cls float",
    ]
    assert [cost.bytes for cost in found] == [400, 300, 90, 1000, 250, 80]
    assert [cost.ms for cost in found] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert found[1].peak_mb == 102.0
    assert asked[:3] == [("measure", "det", place, (1, 3, 16, 16)) for place in ("reference", "slim", "twin")]


def test_nothing_is_timed_when_that_is_not_wanted(candidate, monkeypatch):
    monkeypatch.setattr(verdict.native, "run", lambda *_, **__: pytest.fail("measured"))
    found = costs(msgspec.structs.replace(candidate, measured=False), Stages(candidate.work, [].append))
    assert [(cost.bytes, cost.ms, cost.peak_mb) for cost in found[:2]] == [(400, None, None), (300, None, None)]


def test_pages_are_read_by_every_variant_and_again_when_the_reader_has_changed(tmp_path, monkeypatch):
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"image": "a.png", "lines": [{"text": "x"}]}\n', encoding="utf-8")
    bundles = {variant: tmp_path / variant for variant in ("float", "pruned", "int8")}
    read = []

    def figures_of(bundle, *_):
        read.append(bundle.name)
        return figures(char_f1={"float": 0.9, "pruned": 0.8, "int8": 0.7}[bundle.name])

    monkeypatch.setattr(verdict, "figures_of", figures_of)
    monkeypatch.setattr(ModelBundle, "load", lambda path, machine: type("Bundle", (), {"digest": path.name}))
    for code in ("old", "old", "new"):
        monkeypatch.setattr(verdict, "_reading_code", lambda code=code: code)
        found = verdict._read("drawn", labels, bundles, Stages(tmp_path / "work", [].append))
        assert [side.scores.char_f1 for side in (found.before, found.slim, found.after)] == [0.9, 0.8, 0.7]
    assert read == ["float", "pruned", "int8"] * 2

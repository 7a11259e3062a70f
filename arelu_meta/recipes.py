"""`arelu-meta recipes [NAME]`: the packaged recipes, what each does and needs; one is copied to read and change it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from arelu_meta.config import RecipesConfig
from arelu_meta.data.catalogue import CATALOGUE
from arelu_meta.errors import InputError, RunError, nearest_names
from arelu_meta.runs.progress import print_table
from arelu_meta.validation import expanded

_HERE = Path(__file__).parent
_NEEDS_A_RUN = ("evaluate", "predict")


@dataclass(frozen=True)
class Recipe:
    """A packaged recipe.

    Args:
        name: TASK/NAME.
        text: of the file.
    """

    name: str
    text: str

    @property
    def task(self) -> str:
        """The command that reads it."""
        return self.name.partition("/")[0]

    @property
    def file(self) -> str:
        """The name of its file."""
        return self.name.partition("/")[2] + ".yaml"

    @property
    def said(self) -> str:
        """What it does: the first sentence of its header."""
        lines = [line.removeprefix("#").strip() for line in self.text.splitlines() if line.startswith("#")]
        words = " ".join(line for line in lines if not line.startswith(("arelu-meta ", "Needs ")))
        return re.split(r"(?<=[a-z0-9)])\. (?=[A-Z0-9])", words)[0].rstrip(".")

    @property
    def needs(self) -> str:
        """The data that it reads: named sets, or a run."""
        if self.task in _NEEDS_A_RUN:
            return "a run"
        content: Any = yaml.safe_load(self.text)
        found = {**content, **content.get("set", {})}
        data = found.get("data", {})
        pairs = re.findall(r"[a-z0-9]+", found.get("pairs", "").replace("-to-", ","))
        names = [name for name in (data.get("name"), data.get("root"), *pairs) if name]
        start = found.get("model", {}).get("pretrained")
        names += [start] if start in CATALOGUE else []  # a run on it comes first
        model = found.get("model", {}).get("name", "")
        names = names or (["mnist"] if self.task == "claims" and model.startswith("mnist") else [])
        return ", ".join(dict.fromkeys(names)) or ("nothing" if self.task == "swap" else "digits (embedded)")


def packaged() -> dict[str, Recipe]:
    """Find the recipes: in the installed package, or in the repository's `configs/`.

    Returns:
        By their names, TASK/NAME.

    Example:
        >>> packaged()["finetune/flowers17"].needs
        'flowers17'
    """
    folder = next(place for place in (_HERE / "configs", _HERE.parent / "configs") if place.is_dir())
    files = sorted(path for path in folder.glob("*/*.yaml") if path.parent.name != "launch")
    recipes = [Recipe(f"{path.parent.name}/{path.stem}", path.read_text(encoding="utf-8")) for path in files]
    return {recipe.name: recipe for recipe in recipes}


def recipes_task(config: RecipesConfig) -> None:
    """List the recipes, or copy one.

    Args:
        config: name and out.

    Raises:
        InputError: if there is no such recipe, or a file would be written over.
        RunError: if the file cannot be written.
    """
    recipes = packaged()
    if config.name is None:
        if config.out is not None:
            raise InputError(f"out: {config.out!r} needs a name; give one, as `arelu-meta recipes flowers17`")
        rows = [[recipe.name, recipe.said, recipe.needs] for recipe in recipes.values()]
        print_table("recipes (`arelu-meta recipes NAME` copies one)", ["name", "what it does", "data"], rows)
        print("data sets that are named here: `arelu-meta data NAME` says where they come from")
        return
    recipe = _find(config.name, recipes)
    path = expanded(config.out or recipe.file)
    path = path / recipe.file if path.is_dir() else path
    try:
        with path.open("x", encoding="utf-8") as file:  # made here, or not at all
            file.write(recipe.text.replace(f"configs/{recipe.name}.yaml", str(path)))  # the command at its head
    except FileExistsError as error:
        raise InputError(f"out: {str(path)!r} is there already; give another file with --out FILE") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"out: {str(path.parent)!r} is no folder; give a file in one that is there") from error
    except OSError as error:
        raise RunError(f"out: {str(path)!r} cannot be written ({error.strerror})") from error
    words = {"sweep": " ", "evaluate": " RUN_FOLDER --config ", "predict": " RUN_FOLDER IMAGES --config "}
    middle = words.get(recipe.task, " --config ")
    study = re.search(r"^# arelu-meta claims (\S+)", recipe.text)
    middle = f" {study[1]}{middle}" if study else middle
    print(f"{recipe.name}: {recipe.said}\nneeds: {recipe.needs}\nwritten to {path}")
    print(f"next: arelu-meta {recipe.task}{middle}{path}")


def _find(asked: str, recipes: dict[str, Recipe]) -> Recipe:
    """Find a recipe by its name, with or without its task and its ending."""
    name = asked.removesuffix(".yaml").removeprefix("configs/")
    found = [recipe for full, recipe in recipes.items() if name in (full, full.partition("/")[2])]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"name: {asked!r} could be {' or '.join(recipe.name for recipe in found)}; give one of them")
    known = [*recipes, *(full.partition("/")[2] for full in recipes)]
    raise InputError(f"name: {asked!r} is no recipe; {nearest_names(name, known)}; `arelu-meta recipes` lists them all")

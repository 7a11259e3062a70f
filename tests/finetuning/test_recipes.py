"""What stands in configs/finetune is what `arelu-meta finetune` reads."""

from pathlib import Path

import pytest

from arelu_meta.cli import parse

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "finetune").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_a_recipe_says_its_command_and_its_figure_and_is_read(file: Path) -> None:
    lines = file.read_text().splitlines()
    command = lines[0].split()
    assert command[:4] == ["#", "arelu-meta", "finetune", "--config"]
    assert str(file).endswith(command[4])
    header = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    assert "over seeds 0 to 2" in header
    given = ["--config", str(file), *command[5:]]
    assert parse("finetune", given).data.per_class is not None

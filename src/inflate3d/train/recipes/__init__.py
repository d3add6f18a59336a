"""Recipes: one function each, that returns what it trains and how; its docstring says what comes of it."""

from collections.abc import Callable

from inflate3d.errors import check_choice
from inflate3d.train.recipe import Recipe
from inflate3d.train.recipes.paper import charades, flow, paper_kinetics, paper_ucf101
from inflate3d.train.recipes.small import finetune_small, linear_probe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "finetune-small": finetune_small,
    "linear-probe": linear_probe,
    "paper-kinetics": paper_kinetics,
    "paper-ucf101": paper_ucf101,
    "flow": flow,
    "charades": charades,
}


def find_recipe(name: str) -> Recipe:
    """Look up a recipe by name.

    Raises:
        InflateError: There is no such recipe.

    Example:
        >>> find_recipe("paper-kinetics").max_steps
        115000
    """
    check_choice(name, RECIPES, what="recipe", where="inflate3d train")
    return RECIPES[name]()

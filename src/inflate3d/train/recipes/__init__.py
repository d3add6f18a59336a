"""Recipes: one function each, that returns what it trains and how; its docstring says what comes of it."""

from collections.abc import Callable

from inflate3d.errors import check_choice
from inflate3d.train.recipe import Training
from inflate3d.train.recipes.paper import charades, flow, paper_kinetics, paper_ucf101
from inflate3d.train.recipes.small import finetune_small, linear_probe
from inflate3d.train.recipes.volumes import volume_classify, volume_segment

RECIPES: dict[str, Callable[[], Training]] = {
    "finetune-small": finetune_small,
    "linear-probe": linear_probe,
    "paper-kinetics": paper_kinetics,
    "paper-ucf101": paper_ucf101,
    "flow": flow,
    "charades": charades,
    "volume-classify": volume_classify,
    "volume-segment": volume_segment,
}


def find_recipe(name: str) -> Training:
    """Look up a recipe by name.

    Raises:
        InflateError: There is no such recipe.

    Example:
        >>> find_recipe("paper-kinetics").max_steps
        115000
    """
    check_choice(name, RECIPES, what="recipe", where="inflate3d train")
    return RECIPES[name]()

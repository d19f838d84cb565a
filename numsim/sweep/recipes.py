"""A recipe in the settings of a sweep: one case of the grid, and rules that differ from it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from numsim.errors import NumsimError
from numsim.models import Model, Recipe, Rule
from numsim.models.recipe import recipe_from_tables
from numsim.models.rule import rule_from_table
from numsim.models.weights import Weights

DECLARED = Path("declared")  # in place of a file: what a packed checkpoint says of itself


class NamedRecipe(BaseModel):
    """A named recipe: a base, which is a case of the grid, and overrides.

    Parameters
    ----------
    name
        What results call it; empty: a digest of a `toml`.
    base
        Fields of a `SweepSpec` that stand for one case: ``{formats = "int4", ...}``.
    rule
        Tables of rules as in a recipe's file; what one leaves out, it has from the base.
    toml
        In place of both: the text of a recipe's file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    base: dict[str, Any] = {}
    rule: tuple[dict[str, Any], ...] = ()
    toml: str | None = None

    def recipe(self, base: Callable[[dict[str, Any]], Recipe]) -> Recipe:
        """Return the recipe; `base` makes one of fields of a `SweepSpec`.

        Raises
        ------
        NumsimError
            Rules or fields that cannot be, with the name of the recipe.
        """
        if not self.name and self.toml is None:
            raise NumsimError(
                "sweep: recipes: a table of a base and rules has a name; got none; add name = ..."
            )
        try:
            if self.toml is not None:
                return recipe_from_tables(tomllib.loads(self.toml), f"recipe {self.name}")
            begin = base(self.base)
            emulated = begin.rules[1][1]
            rules = list(begin.rules)
            for table in self.rule:
                row = dict(table)
                for key in ("weights", "activations", "target", "out_format"):
                    row.setdefault(key, getattr(emulated, key))
                rules.append(rule_from_table(row))
            return Recipe(tuple(rules), begin.seed)
        except (NumsimError, tomllib.TOMLDecodeError) as error:
            raise NumsimError(f"sweep: recipe {self.name}: {error}") from None


def declared_recipe(model: Model) -> NamedRecipe:
    """Return the recipe that a packed checkpoint declares, by the name ``declared``.

    Where activations stay wide: everything in float32, weights as they are stored.

    Raises
    ------
    NumsimError
        The model is not packed.
    """
    if not isinstance(model.tensors, Weights):
        raise NumsimError(
            f"sweep: the recipe declared is that of a packed checkpoint; {model.name} is not "
            "packed; leave declared out"
        )
    recipe = model.recipe() or Recipe((("*", Rule()),))
    return NamedRecipe(name=DECLARED.name, toml=recipe.to_toml())

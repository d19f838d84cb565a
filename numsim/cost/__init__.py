"""What formats and units cost: figures from the literature, and a structural model of area."""

from numsim.cost.area import CONSTANTS, Unit, area_ge
from numsim.cost.prices import Price, price, scaled
from numsim.cost.table import Row, load_costs

__all__ = ["CONSTANTS", "Price", "Row", "Unit", "area_ge", "load_costs", "price", "scaled"]

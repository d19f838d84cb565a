"""Training in low precision: recipes, optimizers, scaling, the loop; numsim.nn has the layers."""

from numsim.data import bundled_model_dir as bundled_model
from numsim.nn.draws import hadamard
from numsim.train.classifier import classify
from numsim.train.fit import Fit, fit
from numsim.train.integer import integer_update, to_int8
from numsim.train.integer_fit import IntegerTensor, integer_fit
from numsim.train.kept import State, store
from numsim.train.optimizers import SGD, Adam, AdamW
from numsim.train.rules import Recipe, Rule
from numsim.train.scaling import DelayedScaling, DelayedState, LossScale, LossScaleState
from numsim.train.score import evaluate
from numsim.train.table import list_recipes, recipe
from numsim.train.text import STOP_WORDS, Vocabulary, clean, read_messages
from numsim.train.watch import Lost

__all__ = [
    "SGD",
    "STOP_WORDS",
    "Adam",
    "AdamW",
    "DelayedScaling",
    "DelayedState",
    "Fit",
    "IntegerTensor",
    "LossScale",
    "LossScaleState",
    "Lost",
    "Recipe",
    "Rule",
    "State",
    "Vocabulary",
    "bundled_model",
    "classify",
    "clean",
    "evaluate",
    "fit",
    "hadamard",
    "integer_fit",
    "integer_update",
    "list_recipes",
    "read_messages",
    "recipe",
    "store",
    "to_int8",
]  # fmt: skip

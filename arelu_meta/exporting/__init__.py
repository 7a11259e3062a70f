"""Out of this toolkit: a model as a file that others run, on the Hugging Face Hub, and described in a card."""

from arelu_meta.exporting.card import results_beside, use_of_weights, write_card
from arelu_meta.exporting.files import export
from arelu_meta.exporting.hub import load_from_hub, push

__all__ = ["export", "load_from_hub", "push", "results_beside", "use_of_weights", "write_card"]

"""Out of this toolkit: a model as a file that others run, on the Hugging Face Hub, and described in a card."""

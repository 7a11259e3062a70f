"""The paper's claims and the starts at small learning rates, measured with their statistics."""

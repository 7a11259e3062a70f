"""Fine-tune a backbone on labelled images."""

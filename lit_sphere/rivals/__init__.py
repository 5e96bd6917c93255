"""Networks that other optimizers train beside a run, on its batches."""

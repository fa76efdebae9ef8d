"""Does it help? The same model trained under different arms, measured and compared."""

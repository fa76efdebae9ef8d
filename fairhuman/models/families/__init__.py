"""The families of models that can be trained, each a small package."""

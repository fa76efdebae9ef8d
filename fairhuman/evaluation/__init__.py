"""Measures of generated pictures: hands and faces, distances to a reference, the prompt's fit."""

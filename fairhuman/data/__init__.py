"""Data sets of people with their faces and hands: records, one transform, samples, order."""

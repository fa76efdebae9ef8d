"""Captions that an image-text-to-text model writes."""

"""From photographs to a data set: annotation, importers, inspection."""

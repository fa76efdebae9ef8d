"""Finding faces and hands in photographs, for the data format of `fairhuman.data.records`."""

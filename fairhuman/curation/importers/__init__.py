"""Other projects' annotations, brought into the data format of `fairhuman.data.records`."""

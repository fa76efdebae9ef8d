"""A package, so that its files may have the names of the tests above them."""

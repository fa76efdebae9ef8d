"""`fairhuman review`: look through a data set in a browser, and correct what is wrong."""

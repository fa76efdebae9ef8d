"""The commands of the command line, by what they are of. Each imports its work when it is run."""

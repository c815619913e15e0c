"""Files within folders that the configuration names, to list, search and read. Nothing is ever written."""

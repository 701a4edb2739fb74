"""The data sets of a run: what `neuronmoe data` wrote, for the commands that use it."""

"""The architecture `neuronmoe`, a base model with mixtures of any counts in it, as transformers loads and saves it."""

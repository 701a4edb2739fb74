"""Trainings that differ in one thing each, side by side: `neuronmoe study`."""

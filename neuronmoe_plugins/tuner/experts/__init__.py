"""Ways to run the experts of a mixture layer on their tokens; all of them compute the same."""

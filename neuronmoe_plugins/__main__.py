"""`python -m neuronmoe_plugins`, which `torchrun -m neuronmoe_plugins` starts several times."""

from neuronmoe_plugins.cli import main

if __name__ == "__main__":
    main()

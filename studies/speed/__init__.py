"""Speed and memory of the network, beside measured limits of the machine and beside other networks."""

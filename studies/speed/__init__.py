"""Speed and memory of the network, compared with the machine's measured limits and with other networks."""

"""Network, process, samplers, noise, weights: everything that knows about diffusion."""

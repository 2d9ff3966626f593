"""The diffusion model: network, process, samplers, noise, checkpoints."""

"""JAX against its PyTorch twin: the times of both (`python -m parity.speed`)."""

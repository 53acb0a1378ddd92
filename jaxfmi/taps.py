"""Look inside a JAX function: capture, edit and re-rule the values it computes."""

from jax.ad_checkpoint import checkpoint_name as tag

__all__ = ["tag"]

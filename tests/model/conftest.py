import jax

# before any array exists: meshes of up to eight CPU devices
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
